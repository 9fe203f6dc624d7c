"""The commands of `python -m launch`: runs with several ranks."""

from __future__ import annotations

import click

from cosmicai.cli.launch import cancel, resume, run, status


class _LaunchGroup(click.Group):
    """A group whose command `run` does not need to be named."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        if args and args[0] not in (*self.commands, *ctx.help_option_names):
            args = ["run", *args]
        return super().parse_args(ctx, args)


@click.group(cls=_LaunchGroup, context_settings={"help_option_names": ["-h", "--help"]})
def launch() -> None:
    """Predict the redshifts of a survey with several ranks, and manage such runs.

    `python -m launch SURVEY ...` is short for `python -m launch run SURVEY ...`, whose --help lists the options. Exit
    codes: 0 complete, 2 bad input, 3 not complete, 130 interrupted.
    """


for command in (run, status, resume, cancel):
    launch.add_command(command)
