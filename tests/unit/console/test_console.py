"""Test that text of files cannot control the terminal."""

from __future__ import annotations

import pytest

from cosmicai.console import printable
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
