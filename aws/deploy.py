"""`python aws/deploy.py ...`: the stack on AWS that does runs, from the template in this folder."""

from pathlib import Path

from cosmicai.cli import run_command
from launch.aws.commands import deploy

if __name__ == "__main__":
    run_command(deploy, "deploy", Path(__file__).parent)
