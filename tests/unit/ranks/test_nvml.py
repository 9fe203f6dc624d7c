"""What NVML says of a rank's GPU, with a module in its place: there is no GPU here."""

import os
import sys
from types import SimpleNamespace
from typing import Any

import msgspec
import pytest
import torch
from msgspec import UNSET, structs

from cosmicai.engines.registry import open_engine
from cosmicai.ranks import nvml
from cosmicai.ranks.environment import Rank
from cosmicai.ranks.nvml import GpuSampler, GpuUse, pci_address, sample_gpu
from cosmicai.runs.record import Record
from cosmicai.runs.store import RunFolder
from cosmicai.worker import loop
from cosmicai.worker.sources import select_source
from support.helpers import make_record, make_run, make_survey, random_galaxies, tiny_weights

MB = 2**20


class NVMLError(Exception):
    """As pynvml raises it."""


class NVMLLibraryMismatchError(Exception):
    """As pynvml raises it where the driver is older than the package."""


class FakeNvml:
    """The functions of pynvml that are used; each returns the next of its values, raises it, or NVMLError for None."""

    NVMLError = NVMLError

    def __init__(self, **values: list[Any]) -> None:
        self.calls: list[str] = []
        for name in ("MigMode", "UtilizationRates", "PowerUsage", "TotalEnergyConsumption", "ComputeRunningProcesses"):
            setattr(self, f"nvmlDeviceGet{name}", self._function(list(values.get(name, []))))

    def _function(self, values: list[Any]) -> Any:
        def call(handle: object) -> Any:
            assert handle == "gpu 0"
            value = values.pop(0) if values else None
            if value is None:
                raise NVMLError("Not Supported")
            if isinstance(value, Exception):
                raise value
            return value

        return call

    def nvmlInit(self) -> None:  # noqa: N802
        self.calls.append("init")

    def nvmlShutdown(self) -> None:  # noqa: N802
        self.calls.append("shutdown")

    def nvmlDeviceGetHandleByPciBusId(self, address: str) -> str:  # noqa: N802
        self.calls.append(address)
        return "gpu 0"


def rates(*percent: int) -> list[SimpleNamespace]:
    return [SimpleNamespace(gpu=value, memory=0) for value in percent]


def processes(*sizes: tuple[int, int | None]) -> list[SimpleNamespace]:
    return [SimpleNamespace(pid=pid, usedGpuMemory=size) for pid, size in sizes]


def sampled(nvml: FakeNvml, *times: float) -> Any:
    """What samples at these times say."""
    clock = iter(times)
    sampler = GpuSampler(nvml, "gpu 0", lambda: next(clock))
    for _ in times:
        sampler.sample()
    return sampler.use()


def test_a_card_that_reports_everything():
    own = os.getpid()
    fake = FakeNvml(
        MigMode=[(0, 0)], UtilizationRates=rates(50, 90, 100), PowerUsage=[200_000, 300_000, 400_000],
        TotalEnergyConsumption=[5_000_000, 5_250_500, 5_600_000],
        ComputeRunningProcesses=[processes((own, 100 * MB)), processes((own, 700 * MB), (1, 900 * MB)), []],
    )  # fmt: skip
    assert sampled(fake, 10.0, 11.0, 12.5) == GpuUse(
        samples=3, seconds=2.5, utilization_percent=80.0, power_watts=300.0, memory_mb=700.0, energy_joules=600.0,
        processes=2,
    )  # fmt: skip


def test_without_a_counter_energy_is_integrated_power():
    fake = FakeNvml(PowerUsage=[100_000, 200_000, 200_000])
    assert sampled(fake, 0.0, 1.0, 3.0) == GpuUse(samples=3, seconds=3.0, power_watts=166.67, energy_joules=550.0)


def test_one_sample_of_power_is_no_energy():
    assert sampled(FakeNvml(PowerUsage=[100_000]), 0.0) == GpuUse(samples=1, seconds=0.0, power_watts=100.0)


def test_a_reading_that_fails_once_leaves_a_gap():
    fake = FakeNvml(PowerUsage=[100_000, None, 100_000, 100_000])
    assert sampled(fake, 0.0, 1.0, 2.0, 3.0).energy_joules == 100.0


def test_a_driver_that_is_older_than_the_package():
    fake = FakeNvml(PowerUsage=[70_000], ComputeRunningProcesses=[NVMLLibraryMismatchError("use _v2")])
    assert sampled(fake, 0.0) == GpuUse(samples=1, seconds=0.0, power_watts=70.0)


def test_a_slice_has_memory_alone():
    fake = FakeNvml(
        MigMode=[(1, 1)], UtilizationRates=rates(0, 0), PowerUsage=[9000, 9000], TotalEnergyConsumption=[1, 2],
        ComputeRunningProcesses=[processes((os.getpid(), 64 * MB))] * 2,
    )  # fmt: skip
    assert sampled(fake, 0.0, 1.0) == GpuUse(samples=2, seconds=1.0, memory_mb=64.0, processes=1)


@pytest.mark.parametrize("seen", [processes((1, 64 * MB)), processes((os.getpid(), None))])
def test_memory_that_the_driver_does_not_tell_is_absent(seen):
    assert sampled(FakeNvml(ComputeRunningProcesses=[seen]), 0.0) == GpuUse(samples=1, seconds=0.0, processes=1)


def test_a_card_that_reports_nothing_is_absent():
    assert sampled(FakeNvml(), 0.0, 1.0) is UNSET
    assert "gpu" not in msgspec.to_builtins(make_record())


def test_the_record_keeps_what_was_measured():
    record = structs.replace(make_record(), gpu=GpuUse(samples=2, seconds=1.0, power_watts=70.5))
    text = msgspec.json.encode(record)
    assert msgspec.json.decode(text)["gpu"] == {"samples": 2, "seconds": 1.0, "power_watts": 70.5}
    assert msgspec.json.decode(text, type=Record) == record


def samples(sampler: GpuSampler | None) -> int:
    assert sampler is not None
    use = sampler.use()
    assert use is not UNSET
    return use.samples


@pytest.fixture
def installed(monkeypatch: pytest.MonkeyPatch) -> FakeNvml:
    """A module pynvml that is installed, and a GPU that torch sees."""
    fake = FakeNvml(PowerUsage=[70_000] * 100)
    monkeypatch.setitem(sys.modules, "pynvml", fake)
    properties = SimpleNamespace(pci_domain_id=0, pci_bus_id=0x3B, pci_device_id=2)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 1)
    monkeypatch.setattr(torch.cuda, "get_device_properties", {1: properties}.__getitem__)
    return fake


def test_torchs_gpu_is_found_by_its_address(installed):
    assert pci_address() == "00000000:3B:02.0"


def test_the_gpu_is_sampled_at_both_ends_of_the_work(installed, monkeypatch):
    monkeypatch.setattr(nvml, "INTERVAL", 3600.0)
    with sample_gpu() as sampler:
        assert samples(sampler) == 1
    assert samples(sampler) == 2
    assert installed.calls == ["init", "00000000:3B:02.0", "shutdown"]


def test_the_gpu_is_sampled_again_and_again(installed, monkeypatch):
    monkeypatch.setattr(nvml, "INTERVAL", 0.001)
    with sample_gpu() as sampler:
        while samples(sampler) < 5:
            pass


@pytest.mark.parametrize("missing", ["package", "driver", "gpu"])
def test_what_is_missing_is_left_out_in_silence(installed, monkeypatch, capsys, missing):
    def fail(*_: object) -> None:
        raise NVMLError("Driver Not Loaded")

    if missing == "package":
        monkeypatch.setitem(sys.modules, "pynvml", None)  # import then raises ImportError
    else:
        monkeypatch.setattr(installed, "nvmlInit" if missing == "driver" else "nvmlDeviceGetHandleByPciBusId", fail)
    with sample_gpu() as sampler:
        assert sampler is None
    assert capsys.readouterr() == ("", "")


def test_a_rank_on_a_gpu_records_what_was_sampled(installed, monkeypatch, tmp_path):
    survey = make_survey(tmp_path / "survey", random_galaxies(6), 3)
    run = make_run(survey, tiny_weights(tmp_path / "w.safetensors"), str(tmp_path / "run"), precision="float32")
    plan = run.plan()
    monkeypatch.setattr(nvml, "INTERVAL", 3600.0)
    on_gpu = RunFolder(str(tmp_path / "run-2"))
    on_gpu.write_plan(structs.replace(plan, device="cuda"))
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "a GPU")

    def open_on_cpu(choice, *arguments):
        return open_engine(structs.replace(plan, device="cpu").choice, *arguments)

    def work(folder):
        source = select_source(folder, Rank(), "dynamic")
        return loop.run(folder, Rank(), source, loop.WorkerOptions(open_engine=open_on_cpu))

    assert work(run).gpu is UNSET
    found = work(on_gpu).gpu
    assert found is not UNSET and (found.power_watts, found.samples) == (70.0, 2)
    assert on_gpu.records()["0"].gpu == found
