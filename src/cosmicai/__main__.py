"""`cosmicai` and `python -m cosmicai`."""

from .foreign_modules import explain_foreign_modules


def main() -> None:
    """Run the command line, and exit with its code."""
    with explain_foreign_modules("cosmicai"):
        from .cli.main import main as run  # only now, since libraries may be those of another installation

        run()


if __name__ == "__main__":
    main()
