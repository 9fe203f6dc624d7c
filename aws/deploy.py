"""Deploy the stack of this folder's template on AWS: `python aws/deploy.py up` and its other commands."""

from pathlib import Path

from cosmicai.foreign_modules import explain_foreign_modules

if __name__ == "__main__":
    with explain_foreign_modules("deploy"):
        from cosmicai.cli.deploy import deploy
        from cosmicai.console.command_line import run_command

        run_command(deploy, "deploy", Path(__file__).parent)
