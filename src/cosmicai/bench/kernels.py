"""`cosmicai bench kernels`: where the time of the folded network goes, compared with what the device could do."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict
from typing import Any

import numpy as np
import torch
from torch.profiler import ProfilerActivity, profile

from ..engines.cuda import PRECISIONS, CudaEngine
from ..engines.reference import require_device
from ..errors import InputError
from ..measurement.machine import describe_machine
from ..measurement.table import MeasurementColumn, MeasurementTable
from ..models.fold import fold
from ..models.folded import FoldedAstroMAE
from ..models.weights import Weights, load_weights
from ..ranks.cores import available_cores
from .bandwidth import measure_bandwidth
from .ceiling import measure_ceiling
from .flops import count_folded_flop
from .galaxies import generate_noise
from .traffic import count_traffic
from .workloads import measure_rate

PASSES = 10  # of one batch, profiled
COLUMNS = (
    MeasurementColumn("name", "kernel"),
    MeasurementColumn("calls_per_batch", "calls", ",.0f"),
    MeasurementColumn("microseconds_per_batch", "us per batch", ",.1f"),
    MeasurementColumn("share", "share", ".1%"),
)
LONGEST_NAME = 100  # names of templates fill pages

# Compute a number of batches, and return the number of galaxies.
Replay = Callable[[int], int]


def bench_kernels(weights: str, device: str, precision: str, batch: int, top: int) -> MeasurementTable:
    """Profile batches of noise on a device and return the `top` kernels (on a CPU operations) that take longest.

    On a GPU that is the graph of the engine `cuda`, elsewhere the folded network in eager torch. The facts are the
    rate without the profiler, the operations and bytes per galaxy with the TFLOP/s and GB/s that follow, and next to
    them what matrix products and copies reach on this device. Raises InputError if the weights cannot be used or the
    device or precision is not there.
    """
    require_device(device)
    if precision not in PRECISIONS or (device == "cpu" and precision == "tf32"):
        raise InputError(f"there is no precision {precision!r} on {device}; expected float32 or bfloat16")
    here, loaded = describe_machine(), load_weights(weights)
    rate, replay = (_prepare_gpu if device == "cuda" else _prepare_cpu)(loaded, precision, batch)
    rows = profile_kernels(replay, device)
    ceiling, bandwidth = measure_ceiling(device, precision, available_cores()), measure_bandwidth(device)
    folded = fold(loaded, np.float32)
    flop, traffic = count_folded_flop(folded), count_traffic(folded, PRECISIONS[precision])
    facts = {
        "weights": weights, "device": device, "precision": precision, "batch": batch, "galaxies_per_second": rate,
        "kernels": len(rows), "busy_microseconds_per_batch": sum(row["microseconds_per_batch"] for row in rows),
        "batch_microseconds": batch / rate * 1e6,
        "gflop_per_galaxy": flop / 1e9, "tflop_per_second": rate * flop / 1e12,
        "ceiling_tflop_per_second": ceiling.gflop_per_second / 1e3 if ceiling else None,
        "mb_per_galaxy": traffic / 1e6, "gb_per_second": rate * traffic / 1e9, "bandwidth": asdict(bandwidth),
    }  # fmt: skip
    return MeasurementTable("Kernels", COLUMNS, rows[:top], here, facts, _describe(facts))


def profile_kernels(replay: Replay, device: str) -> list[dict[str, Any]]:
    """Return all kernels, on a CPU operations, of PASSES batches by their time, the longest first.

    Each has name, calls and microseconds per batch, and its share of the time of all.
    """
    on_gpu = device == "cuda"
    with profile(activities=[ProfilerActivity.CUDA if on_gpu else ProfilerActivity.CPU]) as profiler:
        replay(PASSES)
    times = [
        (event.key, event.count, event.self_device_time_total if on_gpu else event.self_cpu_time_total)
        for event in profiler.key_averages()
    ]
    total = sum(microseconds for _, _, microseconds in times) or 1.0
    rows = [
        {
            "name": name[:LONGEST_NAME],
            "calls_per_batch": calls / PASSES,
            "microseconds_per_batch": microseconds / PASSES,
            "share": microseconds / total,
        }
        for name, calls, microseconds in times
        if microseconds > 0
    ]
    return sorted(rows, key=lambda row: -row["microseconds_per_batch"])


def _prepare_gpu(weights: Weights, precision: str, batch: int) -> tuple[float, Replay]:
    engine = CudaEngine(weights, precision, batch)
    return engine.measure_resident_rate(), engine.replay


def _prepare_cpu(weights: Weights, precision: str, batch: int) -> tuple[float, Replay]:
    torch.set_num_threads(available_cores())
    network = FoldedAstroMAE(fold(weights, np.float32), PRECISIONS[precision])
    (noise,) = generate_noise(batch)
    image, magnitude = torch.from_numpy(noise.image), torch.from_numpy(noise.magnitude)

    @torch.inference_mode()
    def predict() -> Any:
        return network(image, magnitude).numpy()

    def replay(times: int) -> int:
        for _ in range(times):
            predict()
        return times * batch

    replay(2)
    return measure_rate(predict)[0], replay


def _describe(facts: dict[str, Any]) -> dict[str, str]:
    ceiling, copies = facts["ceiling_tflop_per_second"], facts["bandwidth"]["device_gb_per_second"]
    return {
        "network": f"{facts['weights']}, {facts['gflop_per_galaxy']:.4f} GFLOP and at most "
        f"{facts['mb_per_galaxy']:.2f} MB per galaxy",
        "rate": f"{facts['galaxies_per_second']:,.0f} galaxies/s by {facts['batch']:,} in {facts['precision']}",
        "arithmetic": f"{facts['tflop_per_second']:.2f} TFLOP/s; products reach "
        + (f"{ceiling:.2f}" if ceiling else "an unknown number"),
        "memory": f"at most {facts['gb_per_second']:,.0f} GB/s; copies reach {copies:,.0f}",
        "kernels": f"{facts['busy_microseconds_per_batch']:,.0f} of {facts['batch_microseconds']:,.0f} us per batch",
    }
