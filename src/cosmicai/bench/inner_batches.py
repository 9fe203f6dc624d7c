"""`cosmicai bench inner-batches`: speed, memory and power of an engine by the size of its inner batches."""

from __future__ import annotations

import gc
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from ..engines.registry import open_engine
from ..measurement.engine_spec import create_engine_run, parse_engine_specs
from ..measurement.machine import describe_machine
from ..measurement.table import MeasurementColumn, MeasurementTable
from ..ranks.cores import available_cores
from ..runs.store import RunFolder
from ..surveys.shard import Galaxies
from .galaxies import generate_noise, load_galaxies, write_galaxies
from .power import sample_power
from .timing import build_in_process, predict_all
from .workloads import measure_rate

PLANNED = 64  # galaxies of the survey for which the run is planned
SECONDS = 0.7  # that each source is measured on a GPU
COLUMNS = (
    MeasurementColumn("name", "engine"),
    MeasurementColumn("inner_batch", "inner batch", ","),
    MeasurementColumn("galaxies_per_second", "galaxies/s", ",.0f"),
    MeasurementColumn("pinned_galaxies_per_second", "pinned", ",.0f"),
    MeasurementColumn("resident_galaxies_per_second", "resident", ",.0f"),
    MeasurementColumn("open_seconds", "open s", ".2f"),
    MeasurementColumn("peak_gpu_mb", "peak GPU MB", ",.0f"),
    MeasurementColumn("watts", "W, resident", ",.0f"),
    MeasurementColumn("galaxies_per_joule", "galaxies/J", ",.0f"),
)


def bench_inner_batches(
    weights: str, galaxies: int, inner_batches: Sequence[int], engines: str, notify: Callable[[str], None]
) -> MeasurementTable:
    """Measure engines by inner batch on `galaxies` galaxies of noise in memory.

    `galaxies_per_second` is from arrays as in a run, `pinned` from pinned memory without copying there first, and
    `resident` with galaxies on the GPU; each is the second of two measurements. `peak_gpu_mb` (MB of 2^20 bytes) is
    that of this inner batch alone, `watts` the mean power while the galaxies are resident. `notify` receives the
    engines and inner batches that cannot run here. Raises InputError if options are invalid.
    """
    here = describe_machine()
    rows: list[dict[str, Any]] = []
    with TemporaryDirectory(prefix="cosmicai-bench-") as folder:
        survey = write_galaxies(str(Path(folder, "survey")), load_galaxies(None, PLANNED))
        for spec in parse_engine_specs(engines):
            run = create_engine_run(spec, survey, weights, str(Path(folder, spec.name)), None, notify)
            if run is None:
                continue
            with ExitStack() as stack:
                trial = build_in_process(stack, prepare_inner_batch, run.uri, galaxies)
                for inner_batch in inner_batches:
                    try:
                        rows.append({"name": spec.name, "inner_batch": inner_batch} | trial(inner_batch))
                    except RuntimeError as error:  # too little memory
                        notify(f"{spec.name} by {inner_batch}: {str(error).partition(chr(10))[0]}")
    facts = {"weights": weights, "galaxies": galaxies}
    return MeasurementTable("Inner batches", COLUMNS, rows, here, facts, {"weights": weights})


def prepare_inner_batch(run: str, count: int) -> Callable[[int], dict[str, Any]]:
    """Return a function that measures the engine of a run with another inner batch, on `count` galaxies of noise."""
    folder, noise = RunFolder(run), Galaxies.concatenate(generate_noise(count))
    plan = folder.plan()
    quantized = folder.read_quantized(plan.quantized) if plan.quantized else None

    def measure(inner_batch: int) -> dict[str, Any]:
        _forget_engines(plan.device)
        choice = replace(plan.choice, inner_batch=inner_batch)
        begin = time.perf_counter()
        engine: Any = open_engine(choice, plan.weights_file, available_cores(), quantized)
        opened = time.perf_counter() - begin
        size = max(inner_batch, plan.batch_size)
        rates = [measure_rate(lambda: predict_all(engine, choice, noise, size, available_cores())) for _ in range(2)]
        on_gpu = _measure_on_gpu(engine) if plan.device == "cuda" else dict.fromkeys(_ON_GPU)
        return {
            "galaxies_per_second": rates[-1][0],
            "open_seconds": opened,
            "peak_gpu_mb": engine.peak_gpu_mb() or None,
            **on_gpu,
        }

    return measure


_ON_GPU = ("pinned_galaxies_per_second", "resident_galaxies_per_second", "watts", "galaxies_per_joule", "power_source")


def _measure_on_gpu(engine: Any) -> dict[str, Any]:
    pinned = engine.measure_pinned_rate(SECONDS)
    with sample_power("cuda") as power:
        resident = engine.measure_resident_rate(SECONDS)
    per_joule = resident / power.mean if power.mean else None
    return dict(zip(_ON_GPU, (pinned, resident, power.mean, per_joule, power.source), strict=True))


def _forget_engines(device: str) -> None:
    """Free the GPU memory of engines that are no longer used, and begin its peak anew."""
    if device == "cuda":
        import torch

        gc.collect()
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
