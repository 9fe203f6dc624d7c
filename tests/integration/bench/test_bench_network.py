"""`cosmicai bench`: alternatives, inner batches, kernels and precisions, as far as a CPU runs them."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from click.testing import CliRunner, Result

from cosmicai.bench import alternatives, bandwidth, ceiling, inner_batches, kernels, power
from cosmicai.bench.alternatives import ALTERNATIVES, choose_batch, parse_alternatives
from cosmicai.bench.traffic import count_traffic
from cosmicai.cli.bench import bench
from cosmicai.errors import InputError
from cosmicai.models.astromae import AstroMAE
from cosmicai.models.fold import fold
from cosmicai.models.weights import extract_weights
from support.helpers import TINY, make_survey, random_galaxies, tiny_weights


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    yield
    torch.set_num_threads(1)  # the benchmarks set their own


@pytest.fixture
def weights(tmp_path: Path) -> str:
    return tiny_weights(tmp_path / "w.safetensors")


@pytest.fixture
def short(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ceiling, "SHAPES", {"cpu": ((64, 32, 48),)})
    monkeypatch.setattr(ceiling, "SECONDS", 0.005)
    monkeypatch.setattr(ceiling, "CALL_GFLOP", 0.001)
    monkeypatch.setattr(bandwidth, "BYTES", {"cpu": 2**20})
    monkeypatch.setattr(bandwidth, "SECONDS", 0.005)


def invoke(*arguments: object) -> tuple[dict[str, Any], Result]:
    done = CliRunner().invoke(bench, [*map(str, arguments), "--json"], standalone_mode=False)
    if done.exception:
        raise done.exception
    return json.loads(done.stdout), done


def test_alternatives_are_measured_at_their_best_batch_with_the_same_redshifts(
    tmp_path: Path, weights: str, short: None
) -> None:
    make_survey(tmp_path / "survey", random_galaxies(40), 40)
    values, _ = invoke(
        "engines", "--weights", weights, "--survey", tmp_path / "survey", "--galaxies", 40, "--repeats", 1,
        "--engines", "reference", "--alternatives", "batch,eager,folded", "--device", "cpu",
    )  # fmt: skip
    loop, *others, own = values["rows"]
    assert loop["name"] == "published loop" and own["name"] == "reference float32"
    names, batches = zip(*(row["name"].split(", batches of ") for row in others), strict=True)
    assert names == ("published loop", "published network, eager torch", "folded network, eager torch")
    assert set(batches) <= {"32", "40"}
    assert [row["precision"] for row in others] == ["float32", "float32", "bfloat16"]
    assert [row["largest_dz"] < limit for row, limit in zip(others, (1e-5, 1e-5, 0.1), strict=True)] == [True] * 3


def test_an_alternative_whose_package_is_missing_is_left_out_with_the_reason(
    weights: str, short: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(alternatives, "find_spec", lambda name: None)
    with pytest.raises(InputError, match="onnxruntime is not installed"):
        alternatives._prepare_onnx(weights, random_galaxies(4), "cpu")


def test_an_alternative_that_cannot_run_is_left_out_with_the_first_line_of_the_reason(
    weights: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    from cosmicai.bench import engines

    def refuse(*_: object) -> None:
        raise RuntimeError("there is no compiler\nand much more")

    notices: list[str] = []
    monkeypatch.setattr(engines, "build_in_process", refuse)
    arguments: Any = (
        None,
        ALTERNATIVES[3],
        "cuda",
        weights,
        random_survey := type("S", (), {"uri": "s"}),
        notices.append,
    )
    assert random_survey and list(engines._prepare_alternative(*arguments)) == []
    assert notices == ["published network, torch.compile on the GPU is left out: there is no compiler"]


def test_autocast_computes_the_network_in_bfloat16(weights: str) -> None:
    galaxies = random_galaxies(6)
    exact = alternatives._prepare_eager(weights, galaxies, "cpu")(4)
    reduced = alternatives._prepare_autocast(weights, galaxies, "cpu")(4)
    assert exact.dtype == reduced.dtype == np.float32
    assert 0 < np.abs(exact - reduced).max() < 0.1


def test_alternatives_are_named() -> None:
    assert parse_alternatives("") == ((), False)
    chosen, compiled = parse_alternatives("onnx, batch,compiled,onnx")
    assert [own.key for own in chosen] == ["onnx", "batch"] and compiled
    assert parse_alternatives("all") == (ALTERNATIVES, True)
    with pytest.raises(InputError, match="there is no alternative 'tensorrt'; expected all, or some of batch, eager"):
        parse_alternatives("batch,tensorrt")
    assert ALTERNATIVES[0].batches("cuda", 10**6)[0] == 512 and len(ALTERNATIVES[3].batches("cuda", 10**6)) == 1
    assert ALTERNATIVES[0].batches("cpu", 100) == (32, 100)


def test_the_best_batch_is_that_of_the_second_trial() -> None:
    rates = iter([9, 1, 1, 3, 1, 2])
    assert choose_batch(lambda batch: (next(rates), None), (8, 16, 32)) == 16


def test_inner_batches_have_a_row_each(weights: str) -> None:
    values, _ = invoke(
        "inner-batches", "--weights", weights, "--galaxies", 50, "--inner-batches", "8,32", "--engines",
        "openvino:float32,reference",
    )  # fmt: skip
    rows = values["rows"]
    assert [(row["name"], row["inner_batch"]) for row in rows] == [
        (name, size) for name in ("openvino float32", "reference float32") for size in (8, 32)
    ]
    assert all(row["galaxies_per_second"] > 0 and row["open_seconds"] > 0 for row in rows)
    assert all(row["resident_galaxies_per_second"] is None and row["peak_gpu_mb"] is None for row in rows)


def test_on_a_gpu_rates_power_and_their_ratio_are_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    class Engine:
        def measure_pinned_rate(self, seconds: float) -> float:
            return 300.0

        def measure_resident_rate(self, seconds: float) -> float:
            import time

            time.sleep(0.05)
            return 800.0

    monkeypatch.setattr(power, "INTERVAL", 0.005)
    monkeypatch.setattr(power, "open_power_reader", lambda: ("NVML", lambda: 400.0))
    found = inner_batches._measure_on_gpu(Engine())
    assert found == {
        "pinned_galaxies_per_second": 300.0, "resident_galaxies_per_second": 800.0, "watts": 400.0,
        "galaxies_per_joule": 2.0, "power_source": "NVML",
    }  # fmt: skip
    monkeypatch.setattr(power, "open_power_reader", lambda: (None, None))
    found = inner_batches._measure_on_gpu(Engine())
    assert found["watts"] is found["galaxies_per_joule"] is found["power_source"] is None


def test_what_nvidia_smi_prints_is_a_number_or_nothing() -> None:
    assert [power.parse_watts(text) for text in (" 123.45\n", "[N/A]\n", "")] == [123.45, None, None]
    assert torch.cuda.is_available() or power.open_power_reader() == (None, None)


def test_kernels_are_listed_by_time_with_what_the_device_reaches(weights: str, short: None) -> None:
    values, done = invoke("kernels", "--weights", weights, "--device", "cpu", "--precision", "float32", "--batch", 4,
                          "--top", 5)  # fmt: skip
    rows = values["rows"]
    times = [row["microseconds_per_batch"] for row in rows]
    assert len(rows) == 5 < values["kernels"] and times == sorted(times, reverse=True) and times[-1] > 0
    assert sum(row["share"] for row in rows) < 1 and any(row["name"] == "aten::addmm" for row in rows)
    assert values["bandwidth"]["device_gb_per_second"] > 0 and values["bandwidth"]["to_device_gb_per_second"] is None
    rate = values["galaxies_per_second"]
    assert values["tflop_per_second"] == pytest.approx(rate * values["gflop_per_galaxy"] / 1e3)
    assert values["gb_per_second"] == pytest.approx(rate * values["mb_per_galaxy"] / 1e3)
    assert "copies reach" in done.stderr


def test_a_precision_that_the_device_does_not_have_is_refused(weights: str) -> None:
    with pytest.raises(InputError, match="there is no precision 'tf32' on cpu; expected float32 or bfloat16"):
        kernels.bench_kernels(weights, "cpu", "tf32", 4, 5)
    with pytest.raises(InputError, match="no GPU is visible"):
        kernels.bench_kernels(weights, "cuda", "tf32", 4, 5)


def test_traffic_counts_what_operations_read_and_write() -> None:
    folded = fold(extract_weights(AstroMAE(TINY), {}), np.float32)
    single, half = count_traffic(folded, torch.float32), count_traffic(folded, torch.bfloat16)
    # At least the image is read by the stem and by the patches, and at most a few hundred times that is moved.
    assert 2 * 5 * 32 * 32 * 4 < half < single < 2 * half < 300 * 5 * 32 * 32 * 4


def test_precisions_are_compared_with_the_reference_on_the_cpu(tmp_path: Path, weights: str) -> None:
    make_survey(tmp_path / "survey", random_galaxies(120), 60)
    values, _ = invoke(
        "precisions", "--weights", weights, "--survey", tmp_path / "survey", "--galaxies", 120, "--engines",
        "openvino:float32,reference",
    )  # fmt: skip
    reference, own = values["rows"]
    assert (reference["name"], reference["largest_dz"], reference["nmad_shift"]) == ("reference float32", 0, 0)
    assert own["name"] == "openvino float32" and 0 < own["largest_dz"] <= 1e-5
    assert own["nmad"] == pytest.approx(reference["nmad"], rel=1e-3) and own["check_passed"] is None
