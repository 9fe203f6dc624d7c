"""`cosmicai bench`: what it counts and writes. No test depends on the size of a measured figure."""

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from click.testing import CliRunner, Result

from cosmicai.bench import ceiling, engines, workloads
from cosmicai.bench.engines import compute_gb_seconds_per_million
from cosmicai.bench.flops import count_folded_flop, count_published_flop
from cosmicai.bench.galaxies import generate_noise, load_galaxies
from cosmicai.bench.timing import build_in_process, measure_interleaved, summarize_spread
from cosmicai.cli.bench import bench
from cosmicai.engines import cuda
from cosmicai.engines.openvino import engine
from cosmicai.engines.openvino.processor import has_bfloat16
from cosmicai.errors import InputError
from cosmicai.measurement import engine_spec
from cosmicai.measurement.engine_spec import EngineSpec, create_engine_run, parse_engine_specs
from cosmicai.measurement.subprocesses import run_module, run_module_with_peak
from cosmicai.models.astromae import AstroMAE
from cosmicai.models.config import AstroMAEConfig
from cosmicai.models.fold import fold
from cosmicai.models.weights import extract_weights, find_weights
from cosmicai.ranks.cores import available_cores
from cosmicai.runs.plan import Plan
from cosmicai.runs.schedule import split_work
from cosmicai.runs.store import RunFolder
from cosmicai.surveys.shard import Galaxies
from cosmicai.surveys.survey import galaxies_per_partition
from support.helpers import TINY, make_survey, random_galaxies, tiny_weights

MACHINE = {
    "cpu_model": str, "cores": int, "memory_gb": float, "load_average": float, "gpu_model": str | None, "os": str,
    "kernel": str, "python": str, "torch": str, "openvino": str | None, "git_commit": str | None,
    "image_digest": str | None, "date": str,
}  # fmt: skip


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    yield
    torch.set_num_threads(1)  # trials set their own


@pytest.fixture
def weights(tmp_path: Path) -> str:
    return tiny_weights(tmp_path / "w.safetensors")


@pytest.fixture
def small_products(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ceiling, "SHAPES", {"cpu": ((64, 32, 48),)})
    monkeypatch.setattr(ceiling, "SECONDS", 0.005)
    monkeypatch.setattr(ceiling, "CALL_GFLOP", 0.001)


def invoke(*arguments: object) -> Result:
    done = CliRunner().invoke(bench, [str(argument) for argument in arguments], standalone_mode=False)
    if done.exception:
        raise done.exception
    return done


def measure(*arguments: object) -> dict[str, Any]:
    """Run a command and return its JSON; its table is on standard error."""
    done = invoke(*arguments, "--json")
    values: dict[str, Any] = json.loads(done.stdout)
    assert {name: type(value) for name, value in values["machine"].items()}.keys() == MACHINE.keys()
    assert all(isinstance(values["machine"][name], kind) for name, kind in MACHINE.items())
    assert values["machine"]["cores"] == available_cores()
    assert values["command"].startswith("cosmicai") and "cpu_model" in done.stderr and "┃" in done.stderr
    return values


def are_positive(rows: list[dict[str, Any]], name: str) -> bool:
    return all(0 < row[f"{name}_min"] <= row[name] <= row[f"{name}_max"] for row in rows)


def test_engines_measures_every_engine_that_can_run_here(tmp_path, weights, small_products):
    make_survey(tmp_path / "survey", random_galaxies(150), 100)
    values = measure(
        "engines", "--weights", weights, "--survey", tmp_path / "survey", "--galaxies", 160, "--repeats", 1,
        "--engines", "reference,openvino:float32,openvino:bfloat16", "--device", "cpu", "--out", tmp_path / "e.json",
    )  # fmt: skip
    rows = {row["name"]: row for row in values["rows"]}
    expected = ["published loop", "reference float32", "openvino float32"]
    assert list(rows) == expected + ["openvino bfloat16"] * has_bfloat16()
    assert are_positive(values["rows"], "galaxies_per_second")
    assert rows["published loop"]["ratio_to_published"] == 1 and rows["published loop"]["largest_dz"] == 0
    for name, row in rows.items():
        rate = row["galaxies_per_second"]
        assert row["ratio_to_published"] == pytest.approx(rate / rows["published loop"]["galaxies_per_second"])
        assert row["gb_seconds_per_million_galaxies"] == compute_gb_seconds_per_million(available_cores(), rate)
        assert row["fraction_of_ceiling"] > 0 and row["nmad_shift"] == pytest.approx(0, abs=0.5)
        assert type(row["check_passed"]) is (bool if name == "openvino bfloat16" else type(None))
        if name != "openvino bfloat16":
            assert row["largest_dz"] <= 1e-5
    assert values["galaxies"] == 160 and values["gflop_per_galaxy"] == count_published_flop(TINY) / 1e9
    assert {own["precision"] for own in values["ceilings"]} == {row["precision"] for row in values["rows"]}
    assert {own["shape"] for own in values["ceilings"]} == {"64x32x48"}
    assert json.loads((tmp_path / "e.json").read_text()) == values


def test_engines_that_cannot_run_here_are_reported_and_absent(weights, small_products, monkeypatch):
    monkeypatch.setattr(engine, "has_bfloat16", lambda: False)
    done = invoke(
        "engines", "--weights", weights, "--galaxies", 8, "--repeats", 1,
        "--engines", "openvino:bfloat16,cuda:float32", "--device", "cpu",
    )  # fmt: skip
    assert "openvino bfloat16 is left out: this machine does not support it" in done.stderr
    assert "published loop" in done.stdout and "openvino bfloat16" not in done.stdout and "cuda" not in done.stdout


def test_a_gpu_has_rows_with_and_without_copies_to_it(tmp_path, weights, monkeypatch):
    class Engine:
        def __init__(self, *arguments: Any, compiled: bool = False) -> None:
            self.rate = 2000.0 if compiled else 1000.0

        def predict(self, image: np.ndarray, magnitude: np.ndarray) -> np.ndarray:
            return image[:, 0, 0, 0]

        def measure_resident_rate(self) -> float:
            return self.rate

        def measure_pinned_rate(self) -> float:
            return self.rate / 2

    monkeypatch.setattr(engine_spec, "open_engine", Engine)
    monkeypatch.setattr(workloads, "repeat_run", lambda *_: SimpleNamespace(galaxies_per_second=250.0))
    monkeypatch.setattr(cuda, "CudaEngine", Engine)
    monkeypatch.setattr(engines, "build_in_process", lambda stack, make, *arguments: make(*arguments))
    galaxies = random_galaxies(100)
    notices: list[str] = []
    survey, file = make_survey(tmp_path / "survey", galaxies, 60), find_weights(weights)
    run = RunFolder(str(tmp_path / "run"))
    run.write_plan(
        Plan(
            survey.uri, survey.shards, file.uri, file.sha256, "cuda", "tf32", "cuda", 64, 32, None, None,
            split_work(survey.shards, 64, 64),
        )
    )  # fmt: skip
    stack: Any = None
    arguments = (stack, EngineSpec("cuda", "tf32"), run, survey)
    rows = {row.name: row.trial() for row in engines._prepare_workloads(*arguments, True, notices.append)}
    assert list(rows) == [
        "cuda tf32", "cuda tf32, files", "cuda tf32, pinned", "cuda tf32, resident", "cuda tf32, compiled",
        "cuda tf32, compiled, pinned", "cuda tf32, compiled, resident",
    ]  # fmt: skip
    assert np.array_equal(rows["cuda tf32"][1], galaxies.image[:, 0, 0, 0])  # type: ignore[arg-type]
    assert rows["cuda tf32, resident"] == (1000.0, None) and rows["cuda tf32, compiled, resident"] == (2000.0, None)
    assert rows["cuda tf32, pinned"] == (500.0, None)
    assert rows["cuda tf32, files"] == (250.0, None)

    def no_compiler(*_: Any, **__: Any) -> None:
        raise RuntimeError("there is no compiler")

    assert len(list(engines._prepare_workloads(*arguments, False, notices.append))) == 4
    monkeypatch.setattr(cuda, "CudaEngine", no_compiler)
    assert len(list(engines._prepare_workloads(*arguments, True, notices.append))) == 4
    assert notices == ["cuda tf32, compiled is left out: there is no compiler"]


def test_operations_are_counted_as_by_hand():
    pixels, tokens, patches, width = 32 * 32, 17, 16, 16
    common = patches * width * 5 * 64 + 2 * patches * 16 * 32 // 4  # patch embedding, grouped convolutions
    inception = 256 * (4 * (2 + 2 + 2 + 2) + 2 * 2 * 9 + 2 * 2 * 25)
    published = (
        common + tokens * width * 48 + 2 * tokens * tokens * width + tokens * width * width + 2 * tokens * width * 32
        + pixels * 5 * 4 + inception
        + 16 * 16 + 16 * 16 + 2048 * 16 + 5 * 16 + 16 * 16 + 48 * 16 + 16
    )  # fmt: skip
    assert count_published_flop(TINY) == 2 * published
    # The only block is the last: it queries the patches alone, and its MLP ends with their mean. The stem reads pooled
    # pixels. The last layer of each head is merged into the first common one, which reads 16, 2048 and 16 values.
    folded = (
        common + patches * width * 16 + tokens * width * 32 + 2 * patches * tokens * width + patches * width * width
        + patches * width * 32 + width * 32 + pixels // 4 * 5 * 4 + inception
        + 5 * 16 + (16 + 2048 + 16) * 16 + 16
    )  # fmt: skip
    assert count_folded_flop(fold(extract_weights(AstroMAE(TINY), {}))) == 2 * folded


def test_the_published_network_is_a_fifth_of_a_gflop_per_galaxy():
    assert count_published_flop(AstroMAEConfig()) == pytest.approx(0.2215e9, rel=1e-3)


def test_lambda_bills_memory_times_time():
    assert compute_gb_seconds_per_million(2, 1000) == pytest.approx(2 * 1769 / 1024 * 1000)


def test_passes_are_interleaved_and_the_first_is_left_out():
    order: list[str] = []
    notices: list[str] = []
    trials = [lambda: order.append("a") or len(order), lambda: order.append("b") or len(order)]  # type: ignore[func-returns-value]
    assert measure_interleaved(trials, 2, notices.append) == [[3, 5], [4, 6]]
    assert order == ["a", "b"] * 3 and notices == ["warming up", "pass 1 of 2", "pass 2 of 2"]
    assert summarize_spread("x", [3, 1, 2]) == {"x": 2, "x_min": 1, "x_max": 3}


def test_a_trial_has_a_process_of_its_own_that_imports_only_what_it_needs(tmp_path, weights):
    with ExitStack() as stack:
        pid = build_in_process(stack, partial, os.getpid)
        assert pid() == pid() != os.getpid()
        with pytest.raises(InputError, match="there is no engine"):
            build_in_process(stack, parse_engine_specs, "none")  # type: ignore[arg-type]
    survey = make_survey(tmp_path / "survey", random_galaxies(20), 20)
    run = create_engine_run(EngineSpec("openvino", "float32"), survey, weights, str(tmp_path / "run"), None, print)
    assert run is not None
    program = (
        "import sys; from cosmicai.bench.workloads import prepare_engine; prepare_engine(*sys.argv[1:])(); "
        "print('torch' in sys.modules)"
    )
    assert subprocess.check_output([sys.executable, "-c", program, run.uri, survey.uri], text=True) == "False\n"


def test_galaxies_are_repeated_if_too_few_and_flagged_ones_are_left_out(tmp_path):
    galaxies = random_galaxies(70)
    galaxies.image[3, 0, 0, 0] = np.nan
    uri = make_survey(tmp_path / "survey", galaxies, 40).uri
    found = load_galaxies(uri, 100)
    kept = np.delete(galaxies.objid, 3)
    assert found.objid.tolist() == [*kept, *kept[:31]] and np.isfinite(found.image).all()
    assert [len(part) for part in generate_noise(1500)] == [1024, 476]
    assert Galaxies.concatenate(generate_noise(1500)).objid.tolist() == list(range(1500))


def test_engines_are_named_with_or_without_precision():
    assert parse_engine_specs("reference, cuda:tf32,reference") == (
        EngineSpec("reference", "float32"),
        EngineSpec("cuda", "tf32"),
    )
    assert [own.precision for own in parse_engine_specs("openvino")] == ["float32", "bfloat16", "int8"]
    for wrong in ("onnx", "openvino:tf32", ""):
        with pytest.raises(InputError, match=f"no engine '{wrong}'; expected some of openvino:float32|bfloat16|int8"):
            parse_engine_specs(wrong)


def test_start_measures_when_each_stage_is_reached(weights):
    values = measure("start", "--weights", weights, "--repeats", 1, "--engines", "openvino:float32")
    (row,) = values["rows"]
    assert row["name"] == "openvino float32" and are_positive([row], "first_prediction_seconds")
    assert 0 < row["imports_seconds"] <= row["engine_seconds"] <= row["first_prediction_seconds"]
    assert row["cold_first_prediction_seconds"] > 0


def test_memory_is_measured_for_the_process_alone(weights):
    values = measure(
        "memory", "--weights", weights, "--partition-mb", "0.5", "--survey-mb", 2, "--engines", "openvino:float32"
    )
    rows = [(row["name"], row["partition_mb"], row["galaxies"]) for row in values["rows"]]
    assert rows == [
        ("published loop", 0.5, galaxies_per_partition(0.5)), ("openvino float32", 0.5, galaxies_per_partition(2))
    ]  # fmt: skip
    for row in values["rows"]:
        # The kernel counts pages in steps, so that either may lag a little.
        assert 50 < row["peak_rss_worker_mb"] < row["peak_rss_command_mb"] + 5
        assert row["galaxies_per_second"] > 0


def test_the_peak_of_a_small_process_is_not_that_of_its_parent():
    own = np.ones(2**25)  # 256 MB
    printed, peak = run_module_with_peak("base64", "-h")
    assert 5 < peak < 100 < own.nbytes / 2**20 and "usage" in printed


def test_a_process_that_fails_is_one_sentence():
    for run in (run_module, run_module_with_peak):
        with pytest.raises(InputError, match=r"no_such_module` failed: .*No module named no_such_module"):
            run("no_such_module")


@pytest.mark.parametrize("options", [(), ("--noise", "--cached")])
def test_end_to_end_compares_a_run_with_its_engine(weights, options):
    values = measure(
        "end-to-end", "--weights", weights, "--galaxies", 300, "--repeats", 1, "--engines", "openvino:float32",
        *options,
    )  # fmt: skip
    (row,) = values["rows"]
    assert row["name"] == "openvino float32" and values["galaxies"] == 300
    assert (values["noise"], values["cached"]) == (bool(options), bool(options)) and 0 < row["read_fraction"] < 1
    for what in ("run", "catalogue"):
        assert are_positive([row], f"{what}_galaxies_per_second")
        assert row[f"{what}_fraction"] == row[f"{what}_galaxies_per_second"] / row["engine_galaxies_per_second"]
    assert row["catalogue_galaxies_per_second"] < row["run_galaxies_per_second"]


def test_ingest_is_compared_with_plain_reading_of_each_format(tmp_path, monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    values = measure("ingest", "--galaxies", 20, "--repeats", 1)
    rows = values["rows"]
    assert [row["name"] for row in rows] == [
        "FITS file per galaxy", "gzip FITS file per galaxy", "FITS cube with a table", "npz", "HDF5, bands last",
    ]  # fmt: skip
    for rate in ("galaxies_per_second", "plain_galaxies_per_second", "ratio"):
        assert are_positive(rows, rate)
    for row in rows:
        assert row["ratio"] == pytest.approx(row["galaxies_per_second"] / row["plain_galaxies_per_second"])
        assert row["processes"] == 1 and row["peak_rss_mb"] > 20
    plain, compressed = rows[0], rows[1]
    assert plain["mb_per_second"] / plain["galaxies_per_second"] > 5 * 64 * 64 * 4 / 2**20
    assert 0 < compressed["mb_per_second"] / compressed["galaxies_per_second"] < 5 * 64 * 64 * 4 / 2**20
    assert values["galaxies"] == 20 and values["start_seconds"] > 0
    assert not list(tmp_path.iterdir())


@pytest.fixture
def sweep(tmp_path: Path, weights: str) -> tuple[object, ...]:
    make_survey(tmp_path / "survey", random_galaxies(60), 60)
    return (
        "sweep", tmp_path / "survey", "--out", tmp_path / "sweep", "--weights", weights, "--batch-sizes", "32",
        "--world-sizes", "1,2", "--partition-mb", "0.5", "--repeats", 1,
    )  # fmt: skip


def test_a_sweep_does_every_run_once_and_continues_where_it_stopped(tmp_path, sweep):
    lines = invoke(*sweep, "--dry-run").stdout.splitlines()
    assert len(lines) == 2 and all(line.startswith("python -m launch ") for line in lines)
    assert not (tmp_path / "sweep").exists()

    values = measure(*sweep)
    assert [(row["batch_size"], row["world_size"], row["runs"]) for row in values["rows"]] == [(32, 1, 1), (32, 2, 1)]
    assert are_positive(values["rows"], "galaxies_per_second") and values["galaxies"] == 60
    assert json.loads((tmp_path / "sweep/sweep.json").read_text()) == values
    plans = sorted((tmp_path / "sweep").rglob("plan.json"))
    folders = [str(plan.parent.relative_to(tmp_path / "sweep")) for plan in plans]
    assert folders == ["partition-0.5MB/batch-32/world-1/1", "partition-0.5MB/batch-32/world-2/1"]
    survey = json.loads((tmp_path / "sweep/surveys/partition-0.5MB/survey.json").read_text())
    assert [shard["galaxies"] for shard in survey["shards"]] == [25, 25, 10]

    (plans[0].parent / "summary.json").unlink()  # as if it had been interrupted
    before = [plan.stat().st_mtime_ns for plan in plans]
    assert invoke(*sweep, "--dry-run").stdout.splitlines() == lines[:1]
    again = invoke(*sweep)
    after = [plan.stat().st_mtime_ns for plan in plans]
    assert again.return_value == 0 and after[0] > before[0] and after[1] == before[1]

    invoke(*sweep)
    assert [plan.stat().st_mtime_ns for plan in plans] == after and not invoke(*sweep, "--dry-run").stdout
    with pytest.raises(InputError, match=r"belongs to another sweep \(it differs in precision\); choose another"):
        invoke(*sweep, "--precision", "bfloat16")


def test_a_run_that_fails_leaves_its_row_empty(tmp_path, sweep, monkeypatch):
    run, failed = subprocess.run, subprocess.CompletedProcess([], 2, "", "first\nno space left")

    def fail(command: list[str], **options: Any) -> Any:
        return failed if command[0] == sys.executable else run(command, **options)

    monkeypatch.setattr(subprocess, "run", fail)
    done = invoke(*sweep, "--json")
    assert done.return_value == 3 and done.stderr.count("ended with exit code 2: no space left") == 2
    rows = json.loads(done.stdout)["rows"]
    assert [row["runs"] for row in rows] == [0, 0] and rows[0]["galaxies_per_second"] is None


def test_invalid_numbers_are_refused(tmp_path):
    for wrong in ("", "1,x", "0", "-1,2"):
        done = CliRunner().invoke(bench, ["sweep", "s", "--out", str(tmp_path / "o"), "--batch-sizes", wrong])
        assert done.exit_code == 2 and "is not a list of numbers above 0" in done.stderr
