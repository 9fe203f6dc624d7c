"""`cosmicai bench` on a GPU; what can be tried without one is in the other files."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from click.testing import CliRunner

from cosmicai.bench import alternatives, power
from cosmicai.bench.bandwidth import measure_bandwidth
from cosmicai.cli.bench import bench
from cosmicai.surveys import synthetic

NO_GPU = "no GPU is visible to this process"


@pytest.fixture
def real_gpu() -> None:
    if not torch.cuda.is_available():
        pytest.skip(NO_GPU)


def measure(*arguments: object) -> dict[str, Any]:
    done = CliRunner().invoke(bench, [*map(str, arguments), "--json"], standalone_mode=False)
    if done.exception:
        raise done.exception
    values: dict[str, Any] = json.loads(done.stdout)
    return values


@pytest.mark.cuda
def test_copies_on_to_and_from_a_gpu_are_measured(real_gpu: None) -> None:
    found = measure_bandwidth("cuda")
    assert found.to_device_gb_per_second is not None and found.from_device_gb_per_second is not None
    assert found.device_gb_per_second > found.to_device_gb_per_second > 0 < found.from_device_gb_per_second


@pytest.mark.cuda
def test_kernels_of_a_graph_are_profiled(real_gpu: None) -> None:
    values = measure("kernels", "--batch", 64, "--top", 5)
    assert len(values["rows"]) == 5 < values["kernels"]
    # The kernels of a graph follow one another on one stream: together they cannot take longer than their batch.
    assert 0 < values["busy_microseconds_per_batch"] < 1.2 * values["batch_microseconds"]


@pytest.mark.cuda
def test_inner_batches_are_measured_from_each_place(real_gpu: None) -> None:
    values = measure("inner-batches", "--galaxies", 512, "--inner-batches", "64,256", "--engines", "cuda:float32")
    small, large = values["rows"]
    for name in ("galaxies_per_second", "pinned_galaxies_per_second", "resident_galaxies_per_second"):
        assert small[name] > 0 < large[name]
    assert 0 < small["peak_gpu_mb"] < large["peak_gpu_mb"]


@pytest.mark.cuda
@pytest.mark.parametrize(("key", "tolerance"), [("batch", 1e-3), ("eager", 1e-3), ("autocast", 0.2), ("folded", 2e-2)])
def test_alternatives_on_a_gpu_predict_what_they_predict_on_a_cpu(key: str, tolerance: float, real_gpu: None) -> None:
    some = next(iter(synthetic.generate_batches(40)))
    exact = alternatives._prepare_eager("demo", some, "cpu")(40)
    assert np.abs(alternatives._PREPARE[key]("demo", some, "cuda")(16) - exact).max() < tolerance


# What reads the power, with a pretended library or program.


@pytest.fixture
def pretended_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda: SimpleNamespace(uuid="1234"))


def pretend_nvml(power_usage: Callable[[str], int]) -> SimpleNamespace:
    return SimpleNamespace(
        NVMLError=ValueError,
        nvmlInit=lambda: None,
        nvmlDeviceGetHandleByUUID=lambda uuid: uuid,
        nvmlDeviceGetPowerUsage=power_usage,
    )


def test_power_comes_from_nvml_in_watts(pretended_gpu: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(power, "find_spec", lambda name: name == "pynvml")
    monkeypatch.setitem(sys.modules, "pynvml", pretend_nvml({"GPU-1234": 456_700}.__getitem__))
    source, read = power.open_power_reader()
    assert source == "NVML" and read is not None and read() == 456.7


def test_power_comes_from_nvidia_smi_where_nvml_has_none(
    tmp_path: Path, pretended_gpu: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(handle: str) -> int:
        raise ValueError("not supported")

    program = tmp_path / "nvidia-smi"
    program.write_text('#!/bin/bash\n[ "$1" = --id=GPU-1234 ] && echo 78.5\n')
    program.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    monkeypatch.setattr(power, "find_spec", lambda name: True)
    monkeypatch.setitem(sys.modules, "pynvml", pretend_nvml(refuse))
    source, read = power.open_power_reader()
    assert source == "nvidia-smi" and read is not None and read() == 78.5
    program.unlink()
    monkeypatch.setenv("PATH", str(tmp_path))
    assert power.open_power_reader() == (None, None)
