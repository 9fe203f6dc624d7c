"""Test that text of files cannot control the terminal."""

from __future__ import annotations

import pytest
from rich.table import Table

from cosmicai.console import echo, make_console, notify, printable, printable_line
from support.helpers import run


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("a\x1b[31mred", "a\\x1b[31mred"),
        ("bell\x07", "bell\\x07"),
        ("overwritten\r", "overwritten\\r"),
        ("\x9b2J", "\\x9b2J"),
        ("turned\u202etxt", "turned\\u202etxt"),
        ("\udcff", "\\udcff"),
        ("two\nlines\tand a tab", "two\nlines\tand a tab"),
        ("Łódź 星", "Łódź 星"),
    ],
)
def test_control_characters_are_shown(text: str, shown: str) -> None:
    assert printable(text) == shown


def test_an_escape_sequence_in_a_name_reaches_no_terminal() -> None:
    done = run("survey", "info", "a\x1b]0;title\x07b")
    assert done.returncode == 2
    assert "\x1b" not in done.stderr + done.stdout and "a\\x1b]0;title\\x07b" in done.stderr


def test_a_name_with_a_line_end_stays_in_its_line(capfd: pytest.CaptureFixture[str]) -> None:
    assert printable_line("a\nb\tc\x1b\u2028") == "a\\nb\\tc\\x1b\\u2028"
    echo("galaxies in a\nfake line")
    notify("cannot read a\r\nb", "end of its\x07log")
    captured = capfd.readouterr()
    assert captured.out == "galaxies in a\\nfake line\n"
    assert captured.err == "cannot read a\\r\\nb\n  end of its\\x07log\n"


def test_every_text_in_a_table_is_shown_as_it_is(capfd: pytest.CaptureFixture[str]) -> None:
    table = Table("[/x] heading", title="[red]title\x1b[2J")
    table.add_row("host\nname[/x] :smile:\x1b]0;t\x07 turned\u202e")
    console = make_console()
    console.print(table)
    console.print("[/x] a\nb\x9b")
    shown = capfd.readouterr().out
    assert "[red]title\\x1b[2J" in shown and "[/x] heading" in shown
    assert "│ host\\nname[/x] :smile:\\x1b]0;t\\x07 turned\\u202e │" in shown
    assert shown.endswith("[/x] a\\nb\\x9b\n")


@pytest.mark.parametrize("arguments", [["infer\n\x1b[31m"], ["infer", "--a\n\x1b[31m"], ["infer", "a\nb\x1b[31m"]])
def test_a_mistake_with_control_characters_is_reported_in_one_line(arguments: list[str]) -> None:
    done = run(*arguments, "--weights", "demo", "--out", "absent\n\x1b[31m/run")
    assert done.returncode == 2
    assert "\x1b" not in done.stderr
    assert "\\n" in done.stderr.splitlines()[-1] and "\\x1b[31m" in done.stderr.splitlines()[-1]
