"""The power of the GPU while something is measured: from NVML (nvidia-ml-py), else from nvidia-smi, else unknown."""

from __future__ import annotations

import shutil
import subprocess
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from statistics import fmean

import torch

INTERVAL = 0.05  # seconds between two readings; the sensor itself averages over about as long


class PowerSamples:
    """Readings of the power in watts, and what gave them: "NVML", "nvidia-smi", or None if nothing could be read."""

    def __init__(self, source: str | None) -> None:
        self.source, self.watts = source, list[float]()

    @property
    def mean(self) -> float | None:
        """Return the mean in watts, None without a reading."""
        return fmean(self.watts) if self.watts else None


@contextmanager
def sample_power(device: str) -> Iterator[PowerSamples]:
    """Read the power of the current GPU every INTERVAL in a thread until the block ends; not at all for the CPU."""
    source, read = open_power_reader() if device == "cuda" else (None, None)
    samples, ended = PowerSamples(source), threading.Event()

    def sample() -> None:
        while read and not ended.wait(INTERVAL):
            if (watts := read()) is not None:
                samples.watts.append(watts)

    thread = threading.Thread(target=sample, name="power")
    thread.start()
    try:
        yield samples
    finally:
        ended.set()
        thread.join()


def open_power_reader() -> tuple[str | None, Callable[[], float | None] | None]:
    """Return the name of a source and a function that reads the current GPU's power in watts from it.

    The function returns None where the driver reports no power. Both are None if there is no source.
    """
    uuid = f"GPU-{torch.cuda.get_device_properties().uuid}" if torch.cuda.is_available() else None
    if uuid and find_spec("pynvml") and (read := _open_nvml(uuid)):
        return "NVML", read
    if uuid and shutil.which("nvidia-smi"):
        return "nvidia-smi", lambda: parse_watts(_ask_nvidia_smi(uuid))
    return None, None


def _open_nvml(uuid: str) -> Callable[[], float | None] | None:
    import pynvml

    try:
        pynvml.nvmlInit()
        handle = pynvml.nvmlDeviceGetHandleByUUID(uuid)
        pynvml.nvmlDeviceGetPowerUsage(handle)
    except pynvml.NVMLError:
        return None
    return lambda: pynvml.nvmlDeviceGetPowerUsage(handle) / 1000


def _ask_nvidia_smi(uuid: str) -> str:
    command = ["nvidia-smi", f"--id={uuid}", "--query-gpu=power.draw", "--format=csv,noheader,nounits"]
    return subprocess.run(command, capture_output=True, text=True).stdout


def parse_watts(text: str) -> float | None:
    """Return the number that nvidia-smi printed, None for texts such as "[N/A]"."""
    try:
        return float(text.strip())
    except ValueError:
        return None
