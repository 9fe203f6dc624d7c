"""What a rank's GPU does while the rank works: utilization, power, memory and energy, by NVIDIA's library NVML."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Any

import msgspec
from msgspec import UNSET, UnsetType

INTERVAL = 1.0  # seconds between samples


class GpuUse(msgspec.Struct, frozen=True, kw_only=True):
    """What `samples` over some `seconds` say of a rank's GPU; what NVML does not report is absent.

    Utilization (percent of the time in which a kernel ran) and power (W) are means, and energy (J) is that of the
    `seconds`; all three are of the whole GPU, also where several `processes` share it. Memory is the most that this
    process had, in MB (2^20 bytes).
    """

    samples: int
    seconds: float
    utilization_percent: float | UnsetType = UNSET
    power_watts: float | UnsetType = UNSET
    memory_mb: float | UnsetType = UNSET
    energy_joules: float | UnsetType = UNSET
    processes: int | UnsetType = UNSET


@dataclass
class _Mean:
    count: int = 0
    total: float = 0.0

    def add(self, value: float | None) -> None:
        """Count a value unless it is unknown."""
        if value is not None:
            self.count, self.total = self.count + 1, self.total + value

    def value(self) -> float | UnsetType:
        """Return the mean, UNSET without values."""
        return round(self.total / self.count, 2) if self.count else UNSET


class GpuSampler:
    """Samples a GPU; `nvml` is the module pynvml, and `handle` its handle of the GPU.

    Of a slice of a GPU (MIG) only memory is sampled: utilization is not defined there, and power and energy are those
    of all slices together, on which others work.
    """

    def __init__(self, nvml: Any, handle: Any, clock: Callable[[], float] = time.monotonic) -> None:
        self._nvml, self._handle, self._clock = nvml, handle, clock
        mode = self._query("nvmlDeviceGetMigMode")  # an error where the GPU cannot be divided
        self._is_slice = mode is not None and mode[0] == 1
        self._lock = threading.Lock()  # another thread writes the record
        self._samples, self._begin, self._now = 0, 0.0, 0.0
        self._utilization, self._power = _Mean(), _Mean()
        self._counter: tuple[float, float] | None = None  # J: the first and the newest reading of the card's counter
        self._integral = 0.0  # J
        self._last_power: float | None = None  # mW
        self._memory: float | UnsetType = UNSET
        self._processes: int | UnsetType = UNSET

    def sample(self) -> None:
        """Take a sample of all that NVML reports."""
        running = self._query("nvmlDeviceGetComputeRunningProcesses")
        rates = power = energy = None
        if not self._is_slice:
            rates = self._query("nvmlDeviceGetUtilizationRates")
            power = self._query("nvmlDeviceGetPowerUsage")  # mW
            energy = self._query("nvmlDeviceGetTotalEnergyConsumption")  # mJ since the driver was loaded
        now = self._clock()
        with self._lock:
            if not self._samples:
                self._begin = self._now = now
            self._utilization.add(None if rates is None else float(rates.gpu))
            self._power.add(None if power is None else power / 1000)
            if power is not None and self._last_power is not None:
                self._integral += (now - self._now) * (power + self._last_power) / 2000
            self._last_power = power
            if energy is not None:
                self._counter = (self._counter[0] if self._counter else energy / 1000, energy / 1000)
            if running is not None:
                self._add_processes(running)
            self._samples, self._now = self._samples + 1, now

    def use(self) -> GpuUse | UnsetType:
        """Return what the samples say so far, UNSET if they say nothing."""
        with self._lock:
            measured = self._counter[1] - self._counter[0] if self._counter else self._integral
            found: dict[str, Any] = {
                "utilization_percent": self._utilization.value(),
                "power_watts": self._power.value(),
                "memory_mb": self._memory,
                "energy_joules": round(measured, 3) if self._counter or self._power.count > 1 else UNSET,
                "processes": self._processes,
            }
            seconds = round(self._now - self._begin, 3)
            is_known = any(value is not UNSET for value in found.values())
            return GpuUse(samples=self._samples, seconds=seconds, **found) if is_known else UNSET

    def _add_processes(self, running: Any) -> None:
        """Keep the largest memory of this process, and the largest number of processes on the GPU.

        In a container with its own numbers of processes this one is not found; where the driver may not say how much
        memory a process has, the number is None.
        """
        self._processes = max(len(running), self._processes or 0)
        used = [process.usedGpuMemory for process in running if process.pid == os.getpid()]
        for size in used:
            if size is not None:
                self._memory = max(round(size / 2**20, 1), self._memory or 0.0)

    def _query(self, function: str) -> Any:
        """Return what NVML answers, None if it, the GPU or the driver does not have that."""
        try:
            return getattr(self._nvml, function)(self._handle)
        except Exception:  # NVMLError, or of a driver that is older than the package another one
            return None


@contextmanager
def sample_gpu() -> Iterator[GpuSampler | None]:
    """Sample the current GPU of torch about once a second while the block runs, and once more at its end.

    Yield None where the package nvidia-ml-py, NVIDIA's library or the driver is missing: a run does not need them.
    """
    if (opened := _open_gpu()) is None:
        yield None
        return
    nvml, handle = opened
    try:
        with _sampling_thread(GpuSampler(nvml, handle)) as sampler:
            yield sampler
    finally:
        with suppress(Exception):
            nvml.nvmlShutdown()


def _open_gpu() -> tuple[Any, Any] | None:
    """Return the module pynvml and its handle of torch's current GPU, None if one of them is missing."""
    try:
        import pynvml

        pynvml.nvmlInit()
        return pynvml, pynvml.nvmlDeviceGetHandleByPciBusId(pci_address())
    except Exception:  # whatever goes wrong with a library that only measures, the run goes on
        return None


def pci_address() -> str:
    """Return the address of torch's current GPU, which NVML knows, too, whatever CUDA_VISIBLE_DEVICES hides."""
    import torch

    properties: Any = torch.cuda.get_device_properties(torch.cuda.current_device())
    return f"{properties.pci_domain_id:08X}:{properties.pci_bus_id:02X}:{properties.pci_device_id:02X}.0"


@contextmanager
def _sampling_thread(sampler: GpuSampler) -> Iterator[GpuSampler]:
    stopped = threading.Event()

    def sample_until_stopped() -> None:
        while not stopped.wait(INTERVAL):
            sampler.sample()

    sampler.sample()
    thread = threading.Thread(target=sample_until_stopped, name="gpu", daemon=True)
    thread.start()
    try:
        yield sampler
    finally:
        stopped.set()
        thread.join()
        sampler.sample()
