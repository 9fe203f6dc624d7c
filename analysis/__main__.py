"""`python -m analysis ...`."""

from cosmicai.console.command_line import run_command

from .cli import cli

if __name__ == "__main__":
    run_command(cli, "analysis")
