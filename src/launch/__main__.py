"""`python -m launch ...`: runs with several ranks."""

from cosmicai.foreign_modules import explain_foreign_modules

if __name__ == "__main__":
    with explain_foreign_modules("launch"):
        from cosmicai.console.command_line import run_command

        from .commands import launch

        run_command(launch, "launch")
