"""README and docs/ name everything that the program has, and nothing that it does not have."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from click.testing import CliRunner

from cosmicai.console.command_line import PAGES as PAGES_OF_COMMANDS
from cosmicai.console.command_line import add_page
from fmi.commands import PAGE as FMI_PAGE
from support.documentation import (
    GENERATOR,
    PAGES,
    PROGRAMS,
    ROOT,
    all_options,
    find_errors,
    name_of,
    read_blocks,
    read_code_spans,
    read_command_lines,
)

VARIABLE = re.compile(r"(?<![A-Z_])(?:COSMICAI|FMI)_[A-Z_]*[A-Z]")
CODE_FOLDERS = ("src", "analysis", "aws", "slurm", "jobs", "containers")
# Options of other programs that a page names without the program, in backticks.
FOREIGN_OPTIONS: set[str] = set()

every_page = pytest.mark.parametrize("page", PAGES, ids=name_of)
# The changelog also names what is no longer there.
every_page_of_today = pytest.mark.parametrize("page", [page for page in PAGES if page.stem != "changelog"], ids=name_of)


def variables(*paths: Path) -> set[str]:
    return {name for path in paths for name in VARIABLE.findall(path.read_text(errors="replace"))}


def code_files(*folders: str) -> list[Path]:
    suffixes = {".py", ".sh", ".yaml", ".json", ".toml", ".conf", ""}
    return [
        path
        for folder in folders
        for path in (ROOT / folder).rglob("*")
        if path.is_file() and (path.suffix in suffixes or path.name.endswith(".j2"))
    ]


def test_every_environment_variable_is_documented() -> None:
    found = variables(*code_files(*CODE_FOLDERS))
    assert {"COSMICAI_CACHE", "COSMICAI_MAX_REQUEUES", "FMI_SECRET"} <= found
    assert sorted(found - variables(ROOT / "docs/configuration.md")) == []


@every_page_of_today
def test_every_documented_variable_exists(page: Path) -> None:
    exist = variables(*code_files(*CODE_FOLDERS, "tests/support"), ROOT / "tests/conftest.py", ROOT / "Makefile")
    assert sorted(variables(page) - exist) == []


@every_page_of_today
def test_every_command_and_option_exists(page: Path) -> None:
    errors = [f"{line}: {error}" for line in read_command_lines(page) for error in find_errors(line)]
    known = all_options() | FOREIGN_OPTIONS
    for span in read_code_spans(page):
        if span.startswith("--"):
            errors += [
                f"{span}: no program has {option}"
                for option in re.findall(r"--[a-z][\w-]*", span)
                if option not in known
            ]
    assert errors == []


@pytest.mark.parametrize(
    ("line", "errors"),
    [
        ("cosmicai infer survey --out run", []),
        ("cosmicai survey info survey # --what", []),
        ("cosmicai survey fly", ["cosmicai survey has no command fly"]),
        ("cosmicai infer survey --output=run", ["cosmicai infer has no option --output"]),
        ("python -m launch survey --procs 4 --threads 2", ["python -m launch run has no option --threads"]),
        ("deploy.py up --weights demo --why", ["python aws/deploy.py up has no option --why"]),
        ("mpirun --oversubscribe -n 2 cosmicai work run --fast", ["cosmicai work has no option --fast"]),
        ("sbatch --array=0-63 jobs/infer_array.sh SURVEY --no", ["jobs/infer_array.sh has no option --no"]),
        ("torchrun --nproc-per-node 2 -m cosmicai wrok run", ["cosmicai has no command wrok"]),
        ("pip install --upgrade cosmicai", []),
    ],
)
def test_the_checks_find_errors(line: str, errors: list[str]) -> None:
    assert find_errors(line) == errors


@every_page_of_today
def test_every_path_of_the_repository_exists(page: Path) -> None:
    missing = []
    for span in read_code_spans(page):
        match = re.match(r"(?:jobs|slurm|src|containers|aws|tests|analysis|docs)/[\w./*-]*", span)
        if match and not path_exists(match[0].rstrip(".")):
            missing.append(match[0])
    assert missing == []


def path_exists(path: str) -> bool:
    """Whether the repository has this path; a word in capitals stands for any name, `*` for any characters."""
    pattern = re.sub(r"\b[A-Z]{3,}\b", "*", path)
    return (ROOT / path).exists() or ("*" in pattern and any(ROOT.glob(pattern)))


@every_page_of_today
def test_every_target_of_make_exists(page: Path) -> None:
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    named = {match[1] for line in read_command_lines(page) if (match := re.match(r"make ([a-z][a-z-]*)", line))}
    assert sorted(named - targets) == []


@pytest.mark.parametrize("page", PAGES[1:], ids=name_of)  # without the README, whose titles GitHub does not show
def test_blocks_that_do_not_run_say_why(page: Path) -> None:
    titles = {block.line: block.title for block in read_blocks(page) if block.language == "sh"}
    wrong = {line: title for line, title in titles.items() if 'title="Not run by the tests: ' not in title}
    assert wrong == {}


@every_page
def test_pages_begin_with_a_title(page: Path) -> None:
    assert re.match(r"# \S.*\n\n\S", page.read_text())


def test_the_readme_is_short() -> None:
    text = (ROOT / "README.md").read_text()
    assert len(text.splitlines()) <= 150
    assert len(text.encode()) <= 10_000


def test_the_reference_of_commands_is_that_of_the_programs() -> None:
    assert (ROOT / "docs/commands.md").read_text() == GENERATOR["generate"](), "run `make docs`"


@pytest.mark.parametrize("page", sorted({*PAGES_OF_COMMANDS.values(), FMI_PAGE}))
def test_the_pages_that_help_texts_name_exist(page: str) -> None:
    assert (ROOT / "docs" / page).is_file()


def test_every_command_of_the_table_exists() -> None:
    programs = GENERATOR["PROGRAMS"]
    commands = {
        called
        for program, (name, group) in programs.items()
        for _, called, _ in GENERATOR["list_commands"](program, name, group)
    }
    assert set(PAGES_OF_COMMANDS) <= commands | {name for name, _ in programs.values()}


def test_help_ends_with_the_page() -> None:
    cosmicai = PROGRAMS["cosmicai"]
    add_page(cosmicai, "cosmicai")
    for command, page in (("infer", "quickstart.md"), ("survey", "data.md"), ("train", "training.md")):
        assert CliRunner().invoke(cosmicai, [command, "--help"]).output.endswith(f"\n  Documentation: docs/{page}\n")
