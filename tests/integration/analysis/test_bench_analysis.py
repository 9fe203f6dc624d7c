"""Test `cosmicai bench analysis`: artificial runs are whole, and every command is measured; no speed is asserted."""

import json
from datetime import datetime

import pytest
from click.testing import CliRunner
from msgspec import structs

from analysis.audit import audit
from analysis.collect import collect
from cosmicai.bench import analysis
from cosmicai.bench.analysis import GALAXIES, write_run
from cosmicai.cli.bench import bench
from cosmicai.errors import InputError
from cosmicai.runs.store import RunFolder


def test_artificial_runs_are_whole(tmp_path):
    for number in range(2):
        write_run(str(tmp_path / str(number)), 5, number)
    found = collect([str(tmp_path)])
    assert found.left_out == () and len(found.ranks) == 10
    verdicts = audit(found).verdicts
    assert verdicts.to_dict() == {"0": "whole", "1": "whole"}
    runs = found.runs.set_index("run")
    assert runs["galaxies"].to_dict() == {"0": 5 * GALAXIES, "1": 5 * GALAXIES}
    assert (runs["ranks"] == 5).all() and (runs["partition_mb"] == 25).all()
    # Ranks of one run differ, and so do runs.
    assert found.ranks["seconds"].nunique() == 10


def test_an_artificial_record_is_consistent(tmp_path):
    write_run(str(tmp_path), 3, 0)
    records = RunFolder(str(tmp_path)).records()
    assert sorted(records) == ["0", "1", "2"]
    for record in records.values():
        begun, worked, ended = (
            datetime.fromisoformat(getattr(record, f"{name}_at")) for name in ("started", "working", "updated")
        )
        assert (ended - begun).total_seconds() == pytest.approx(sum(structs.astuple(record.seconds)), abs=1e-5)
        assert begun < worked < ended
        working = record.seconds.read + record.seconds.predict + record.seconds.write
        assert record.galaxies_per_second == pytest.approx(GALAXIES / working)
        assert record.seconds_per_batch * record.batches == pytest.approx(working)
        assert record.throughput_bps * record.cpu_seconds == pytest.approx(GALAXIES * 164160)


def test_every_command_is_measured(tmp_path):
    options = ["--runs", "2", "--ranks", "3", "--repeats", "1", "--json", "--out", str(tmp_path / "a.json")]
    done = CliRunner().invoke(bench, ["analysis", *options], standalone_mode=False)
    assert done.exception is None, done.output
    found = json.loads(done.stdout)
    assert json.loads((tmp_path / "a.json").read_text()) == found
    assert [row["name"] for row in found["rows"]] == ["collect", "audit", "report"]
    for row in found["rows"]:
        assert (row["runs"], row["records"]) == (2, 6)
        assert 0 < row["seconds_min"] == row["seconds"] == row["seconds_max"]
        assert row["peak_rss_mb"] > 20
    assert "generating 6 records" in done.stderr and found["machine"]["cpu_model"]


def test_a_command_that_fails_is_one_sentence(monkeypatch):
    monkeypatch.setattr(analysis, "COMMANDS", ("nonsense",))
    with pytest.raises(InputError, match=r"analysis nonsense .* failed: "):
        analysis.bench_analysis(1, 1, 1, lambda _: None)
