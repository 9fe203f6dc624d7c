"""README and the pages in docs/, and what their code names."""

from __future__ import annotations

import re
import runpy
import shlex
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click

ROOT = Path(__file__).parents[2]
PAGES = (ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md")))
GENERATOR: dict[str, Any] = runpy.run_path(str(ROOT / "docs/generate_commands.py"))
PROGRAMS: dict[str, click.Command] = {program: group for program, (_, group) in GENERATOR["PROGRAMS"].items()}
FENCE = re.compile(r"^([ >]*)```(\w*)([^\n]*)\n(.*?)^\1```[ \t]*$", re.MULTILINE | re.DOTALL)
# How else the programs are called, anywhere in a command line (after mpirun, srun, apptainer ...) or at its start.
_NAMES = {tuple(program.split()): program for program in PROGRAMS} | {("-m", "cosmicai"): "cosmicai"}
_NAMES_AT_START = {
    ("fmi",): "python -m fmi",
    ("launch",): "python -m launch",
    ("analysis",): "python -m analysis",
    ("deploy.py",): "python aws/deploy.py",
    ("aws/deploy.py",): "python aws/deploy.py",
}
_SEPARATORS = re.compile(r"\s(?:&&|\|\||[|;&])(?:\s|$)|\$\(")


@dataclass(frozen=True)
class Block:
    """A fenced block of a page."""

    line: int
    language: str
    title: str
    text: str


def name_of(page: Path) -> str:
    """Return the page's path in the repository."""
    return str(page.relative_to(ROOT))


def read_blocks(page: Path) -> list[Block]:
    """Return the fenced blocks of a page, without the indentation that they may have in a list."""
    text = page.read_text()
    return [
        Block(
            text[: match.start()].count("\n") + 1, match[2], match[3].strip(), re.sub(rf"(?m)^{match[1]}", "", match[4])
        )
        for match in FENCE.finditer(text)
    ]


def read_code_spans(page: Path) -> list[str]:
    """Return what a page has in `backticks`, outside of its blocks."""
    prose = FENCE.sub("", page.read_text())
    return [" ".join(span.split()) for span in re.findall(r"(?<!`)`([^`]+)`(?!`)", prose)]


def read_command_lines(page: Path) -> Iterator[str]:
    """Yield the commands of a page: in backticks, and the lines of its shell blocks."""
    yield from read_code_spans(page)
    for block in read_blocks(page):
        if block.language in ("bash", "sh"):
            for line in block.text.replace("\\\n", " ").splitlines():
                yield from _SEPARATORS.split(re.sub(r"(^|\s)#.*", "", line).strip())


def find_errors(line: str) -> list[str]:
    """Return what a command line asks of this project's programs that they do not have; other programs are ignored."""
    try:
        words = shlex.split(line, comments=True)
    except ValueError:  # part of a construct of the shell, or of a sentence
        words = line.split()
    for start in range(len(words)):
        for name, program in (_NAMES_AT_START | _NAMES if start == 0 else _NAMES).items():
            if tuple(words[start : start + len(name)]) == name:
                return _check_arguments(program, words[start + len(name) :])
        script = ROOT / words[start]
        if words[start] == "slurm/container.sh":  # it runs the command behind it
            continue
        if words[start].startswith(("jobs/", "slurm/", "containers/")) and script.is_file():
            known = _read_script_options(script)
            return [
                f"{words[start]} has no option {one}" for one in _read_options(words[start + 1 :]) if one not in known
            ]
    return []


def _check_arguments(program: str, words: list[str]) -> list[str]:
    command = PROGRAMS[program]
    if (
        program == "python -m launch"
        and words
        and words[0] not in ("run", "status", "resume", "cancel", "--help", "-h")
    ):
        words = ["run", *words]
    while isinstance(command, click.Group) and words and re.fullmatch(r"[a-z][a-z0-9_-]*", words[0]):
        if words[0] not in command.commands:
            return [f"{program} has no command {words[0]}"]
        program, command, words = f"{program} {words[0]}", command.commands[words[0]], words[1:]
    known = {name for parameter in command.params for name in parameter.opts} | {"--help", "-h"}
    return [f"{program} has no option {option}" for option in _read_options(words) if option not in known]


def _read_options(words: list[str]) -> list[str]:
    return [word.partition("=")[0] for word in words if re.match(r"--[a-z]", word)]


def all_options() -> set[str]:
    """Return the options of all programs, and of the scripts of this project."""

    def collect(command: click.Command) -> Iterator[str]:
        for parameter in command.params:
            yield from parameter.opts
        if isinstance(command, click.Group):
            for one in command.commands.values():
                yield from collect(one)

    scripts = [ROOT / script for script in GENERATOR["SCRIPTS"]]
    return {"--help"}.union(*map(collect, PROGRAMS.values()), *map(_read_script_options, scripts))


def _read_script_options(script: Path) -> set[str]:
    return {"--help", *re.findall(r"(?<![\w-])--[a-z][a-z-]+", script.read_text())}
