"""Deploy the stack of this folder's template on AWS: `python aws/deploy.py up` and its other commands."""

from pathlib import Path

from cosmicai.cli.deploy import deploy
from cosmicai.console.command_line import run_command

if __name__ == "__main__":
    run_command(deploy, "deploy", Path(__file__).parent)
