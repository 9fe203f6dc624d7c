"""Print docs/commands.md, the reference of all commands and options: `python docs/generate_commands.py`."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import click

from analysis.cli import cli as analysis
from cosmicai.cli.deploy import deploy
from cosmicai.cli.main import cli as cosmicai
from cosmicai.console.command_line import find_page
from fmi.commands import PAGE as FMI_PAGE
from fmi.commands import fmi
from launch.commands import launch

ROOT = Path(__file__).parents[1]
# How each program is started, and the name by which its help calls it.
PROGRAMS: dict[str, tuple[str, click.Group]] = {
    "cosmicai": ("cosmicai", cosmicai),
    "python -m launch": ("launch", launch),
    "python -m fmi": ("fmi", fmi),
    "python -m analysis": ("analysis", analysis),
    "python aws/deploy.py": ("deploy", deploy),
}
SCRIPTS = (
    "jobs/infer_array.sh", "jobs/infer_gpus.sh", "jobs/infer_mpi.sh", "jobs/sweep.sh", "slurm/container.sh",
    "slurm/testcluster/up", "containers/build.sh", "containers/base.sh", "containers/sif.sh",
    "tests/system/gpu/acceptance.sh", "tests/system/gpu/wheels.sh",
)  # fmt: skip
INTRODUCTION = """\
# Commands

This page lists every command of the programs with all of its options. `make docs` generates it from the programs: edit
their help texts, not this page.

Every command prints its options with `--help` or `-h`. `python -m cosmicai` is the same as `cosmicai`, and `fmi` the
same as `python -m fmi`."""


def generate() -> str:
    """Return the page as Markdown that GitHub and MkDocs render alike."""
    parts = [INTRODUCTION]
    for program, (name, group) in PROGRAMS.items():
        parts.append(f"## {program}")
        parts += _describe(program, name, group)
        for started, called, command in list_commands(program, name, group):
            parts.append(f"### {started}")
            parts += _describe(started, called, command)
    parts.append("## Scripts\n\nThese scripts print the following with `--help`.")
    parts += [f"### {script}\n\n```text\n{_read_head_comment(script)}\n```" for script in SCRIPTS]
    return "\n\n".join(parts) + "\n"


def list_commands(program: str, name: str, group: click.Group) -> Iterator[tuple[str, str, click.Command]]:
    """Yield how each command of a group is started, the name by which its help calls it, and the command itself."""
    for word, command in group.commands.items():
        yield f"{program} {word}", f"{name} {word}", command
        if isinstance(command, click.Group):
            yield from list_commands(f"{program} {word}", f"{name} {word}", command)


def _describe(started: str, called: str, command: click.Command) -> Iterator[str]:
    context = click.Context(command, info_name=started)
    yield f"`{' '.join((started, *command.collect_usage_pieces(context)))}`"
    for paragraph in (command.help or "").split("\n\n"):
        yield _escape(" ".join(paragraph.split()))
    page = FMI_PAGE if called.startswith("fmi") else find_page(called)
    yield f"Explained in [{page}]({page})."
    options = [parameter for parameter in command.params if isinstance(parameter, click.Option)]
    if options:
        rows = [
            "| option | default | meaning |",
            "|---|---|---|",
            *(_format_row(option, context) for option in options),
        ]
        yield "\n".join(rows)


def _format_row(option: click.Option, context: click.Context) -> str:
    extra = option.get_help_extra(context)
    names = ", ".join(f"`{name}`" for name in (*option.opts, *option.secondary_opts) if name.startswith("-"))
    if not option.is_flag and not isinstance(option.type, click.Choice):
        names += _escape(f" {option.make_metavar(context).removesuffix(' RANGE')}")
    meaning = [_escape(option.help or "")]
    if isinstance(option.type, click.Choice):
        meaning.append(f"One of {', '.join(f'`{choice}`' for choice in option.type.choices)}.")
    if bound := extra.get("range"):
        meaning.append(f"Allowed: `{bound}`.")
    if option.envvar:
        meaning.append(f"Environment variable: `{option.envvar}`.")
    default = f"`{extra['default']}`" if "default" in extra else "required" if option.required else ""
    return f"| {names} | {default} | {' '.join(filter(None, meaning))} |"


def _escape(text: str) -> str:
    """Return text in which nothing outside of `code` is taken for HTML, emphasis or a column of a table."""
    pieces = re.split(r"(`[^`]*`)", text)
    return "".join(piece if piece[:1] == "`" else re.sub(r"([<*|])", r"\\\1", piece) for piece in pieces)


def _read_head_comment(script: str) -> str:
    lines = (ROOT / script).read_text().splitlines()[1:]
    end = next(number for number, line in enumerate(lines) if not line.startswith("#") or line.startswith("#SBATCH"))
    return "\n".join(line.removeprefix("#").removeprefix(" ") for line in lines[:end])


if __name__ == "__main__":
    print(generate(), end="")
