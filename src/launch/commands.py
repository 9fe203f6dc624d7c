"""The commands of `python -m launch`: runs with several ranks."""

from __future__ import annotations

from difflib import get_close_matches
from pathlib import Path

import click

from cosmicai.cli.launch import cancel, resume, run, status
from cosmicai.errors import InputError


class _LaunchGroup(click.Group):
    """A group whose command `run` does not need to be named."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        if args and args[0] not in (*self.commands, *ctx.help_option_names):
            _refuse_misspelled(args[0], list(self.commands))
            args = ["run", *args]
        return super().parse_args(ctx, args)


def _refuse_misspelled(word: str, commands: list[str]) -> None:
    """Raise InputError if a word is nearly a command, and no survey that is there."""
    near = get_close_matches(word.lower(), commands, 1, cutoff=0.6)
    if near and not Path(word).exists():
        raise InputError(f"there is no command and no survey {word}; did you mean `python -m launch {near[0]}`?")


@click.group(cls=_LaunchGroup, context_settings={"help_option_names": ["-h", "--help"]})
def launch() -> None:
    """Predict the redshifts of a survey with several ranks, and manage such runs.

    `python -m launch SURVEY ...` is short for `python -m launch run SURVEY ...`, whose --help lists the options. Exit
    codes: 0 complete, 2 bad input, 3 not complete, 130 interrupted.
    """


for command in (run, status, resume, cancel):
    launch.add_command(command)
