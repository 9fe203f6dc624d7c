"""The report of `cosmicai bench fmi`."""

from __future__ import annotations

import json

import pytest

from cosmicai.bench.nat_lab.networks import explain_unsupported
from support.helpers import run

PLAIN = {"NATs": ["plain TCP", "punched", "relay"], "loopback": ["plain TCP", "private", "relay"]}
REDUCED = ["barrier", "allreduce 1 KB", "allreduce 16 MB"]


def test_all_metrics_are_measured_with_their_references():
    if why := explain_unsupported():
        pytest.skip(why)
    done = run("bench", "fmi", "--ranks", "2", "--joining", "3", "--repeats", "1", "--json")
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout)
    rows = report["rows"]
    expected = [
        (figure, network, 2, by)
        for network, ways in PLAIN.items()
        for figure in ("round trip", "transfer")
        for by in ways
    ]
    expected += [(figure, "loopback", 2, by) for figure in REDUCED for by in ("gloo", "fmi")]
    expected += [(figure, "loopback", 3, "fmi") for figure in ("join", "join, barrier")]
    assert [(row["figure"], row["network"], row["ranks"], row["by"]) for row in rows] == expected
    for row in rows:
        assert 0 < row["microseconds_min"] <= row["microseconds"] <= row["microseconds_max"]
        assert (row["mb_per_second"] is not None) == (row["figure"] == "transfer")
    first = {(row["figure"], row["network"]): row for row in reversed(rows)}
    for row in rows[:-2]:
        faster = first[row["figure"], row["network"]]["microseconds"] / row["microseconds"]
        assert row["relative"] == pytest.approx(faster)
    assert [row["relative"] for row in rows[-2:]] == [None, None]
    assert report["machine"]["cores"] >= 1
