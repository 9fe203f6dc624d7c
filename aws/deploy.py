"""`python aws/deploy.py ...`: the stack on AWS that does runs, from the template in this folder."""

from pathlib import Path

from cosmicai.cli.deploy import deploy
from cosmicai.console.command_line import run_command

if __name__ == "__main__":
    run_command(deploy, "deploy", Path(__file__).parent)
