"""`python -m analysis ...`."""

from cosmicai.foreign_modules import explain_foreign_modules

if __name__ == "__main__":
    with explain_foreign_modules("analysis"):
        from cosmicai.console.command_line import exit_with_sentence, run_command

        with exit_with_sentence("analysis"):
            from .cli import cli  # only now, since it needs pandas, which not every installation has
        run_command(cli, "analysis")
