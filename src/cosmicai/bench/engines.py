"""`cosmicai bench engines`: galaxies per second of every engine and precision, compared with the published loop."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from functools import partial
from itertools import product
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from ..engines.reference import require_device
from ..errors import InputError
from ..measurement.engine_spec import (
    EngineSpec,
    create_engine_run,
    has_passed_check,
    parse_engine_specs,
    select_by_device,
)
from ..measurement.machine import describe_machine
from ..measurement.table import MeasurementColumn, MeasurementTable
from ..models.fold import fold
from ..models.weights import load_weights
from ..ranks.cores import available_cores
from ..runs.metrics import compute_metrics
from ..runs.precision import MIN_SPECTROSCOPIC
from ..runs.store import RunFolder
from ..surveys.survey import Survey
from .alternatives import Alternative, choose_batch, parse_alternatives, prepare_alternative
from .ceiling import Ceiling, measure_ceiling
from .flops import count_folded_flop, count_published_flop
from .galaxies import load_galaxies, write_galaxies
from .timing import build_in_process, measure_interleaved, summarize_spread
from .workloads import Redshift, Trial, prepare_engine, prepare_published_loop

LAMBDA_MB_PER_CORE = 1769  # AWS Lambda gives one core for every 1,769 MB that are paid for
COLUMNS = (
    MeasurementColumn("name", "engine"),
    MeasurementColumn("galaxies_per_second", "galaxies/s", ",.0f"),
    MeasurementColumn("galaxies_per_second_min", "min", ",.0f"),
    MeasurementColumn("galaxies_per_second_max", "max", ",.0f"),
    MeasurementColumn("ratio_to_published", "x published", ".2f"),
    MeasurementColumn("fraction_of_ceiling", "of ceiling", ".1%"),
    MeasurementColumn("largest_dz", "largest |dz|", ".1e"),
    MeasurementColumn("nmad_shift", "NMAD shift", "+.3%"),
    MeasurementColumn("gb_seconds_per_million_galaxies", "GB-s per million", ",.0f"),
    MeasurementColumn("check_passed", "check passed"),
)

Notify = Callable[[str], None]


@dataclass(frozen=True)
class Workload:
    """A row of the table: what its trial measures."""

    name: str
    device: str
    precision: str
    trial: Trial
    check_passed: bool | None = None


def bench_engines(
    weights: str,
    survey: str | None,
    count: int,
    batch_size: int | None,
    repeats: int,
    engines: str,
    device: str | None,
    alternatives: str,
    notify: Notify,
) -> MeasurementTable:
    """Measure engines on `count` galaxies of the survey, or on synthetic ones, `repeats` times and interleaved.

    `alternatives` names what is measured in addition (`alternatives.ALTERNATIVES`, and "compiled": on a GPU the engine
    with kernels of torch.compile).

    `ratio_to_published` is the rate relative to the published loop on the same device. `fraction_of_ceiling` compares
    the arithmetic of the published network with the machine's fastest matrix products. `largest_dz` is the largest
    |z - z0| / (1 + z0) and `nmad_shift` the relative change of NMAD (if spectroscopic redshifts are known), where z0 is
    from the published loop in float32. `notify` receives the engines and alternatives that cannot run here. Raises
    InputError if input or options are invalid.
    """
    here = describe_machine()
    devices = [device] if device else ["cpu", "cuda"] if torch.cuda.is_available() else ["cpu"]
    for name in devices:
        require_device(name)
    specs = select_by_device(parse_engine_specs(engines), devices)
    others, compiled = parse_alternatives(alternatives)
    loaded, galaxies = load_weights(weights), load_galaxies(survey, count)
    with TemporaryDirectory(prefix="cosmicai-bench-") as folder, ExitStack() as stack:
        written = write_galaxies(str(Path(folder, "survey")), galaxies)
        workloads = [_prepare_loop(stack, weights, written, name) for name in devices]
        _, exact = workloads[0].trial(False)
        assert exact is not None
        for other, name in product(others, devices):
            if name in other.devices:
                workloads += _prepare_alternative(stack, other, name, weights, written, notify)
        for spec in specs:
            if run := create_engine_run(spec, written, weights, str(Path(folder, spec.name)), batch_size, notify):
                workloads += _prepare_workloads(stack, spec, run, written, compiled, notify)
        results, ceilings = _measure(workloads, repeats, notify)
    gflop = count_published_flop(loaded.config) / 1e9
    published = {name: median(rate for rate, _ in passes) for name, passes in zip(devices, results, strict=False)}
    rows = []
    for own, passes in zip(workloads, results, strict=True):
        rate, ceiling = median(rate for rate, _ in passes), ceilings.get((own.device, own.precision))
        rows.append({
            "name": own.name, "device": own.device, "precision": own.precision,
            **summarize_spread("galaxies_per_second", [rate for rate, _ in passes]),
            "ratio_to_published": rate / published[own.device],
            "fraction_of_ceiling": rate * gflop / ceiling.gflop_per_second if ceiling else None,
            **compare_redshifts([found for _, found in passes if found is not None], exact, galaxies.redshift),
            "gb_seconds_per_million_galaxies": (
                compute_gb_seconds_per_million(available_cores(), rate) if own.device == "cpu" else None
            ),
            "check_passed": own.check_passed,
        })  # fmt: skip
    facts = {
        "weights": weights, "parameters": loaded.parameters, "survey": survey, "galaxies": len(galaxies),
        "repeats": repeats, "gflop_per_galaxy": gflop,
        "folded_gflop_per_galaxy": count_folded_flop(fold(loaded, np.float32)) / 1e9,
        "ceilings": [asdict(own) | {"galaxies_per_second": own.gflop_per_second / gflop} for own in ceilings.values()],
    }  # fmt: skip
    return MeasurementTable("Engines", COLUMNS, rows, here, facts, _describe_facts(facts))


def compute_gb_seconds_per_million(cores: int, galaxies_per_second: float) -> float:
    """Return the GB-seconds that AWS Lambda would bill for a million galaxies, with the memory (in GB of 2^30 bytes)
    that comes with these cores."""
    return cores * LAMBDA_MB_PER_CORE / 1024 * 1e6 / galaxies_per_second


def _measure(
    workloads: Sequence[Workload], repeats: int, notify: Notify
) -> tuple[list[list[Any]], dict[tuple[str, str], Ceiling]]:
    """Return the results of each workload, and the ceilings by device and precision, all measured in turns."""
    kinds = list(dict.fromkeys((workload.device, workload.precision) for workload in workloads))
    trials: list[Callable[[], Any]] = [workload.trial for workload in workloads]
    trials += [partial(measure_ceiling, *kind, available_cores()) for kind in kinds]
    results = measure_interleaved(trials, repeats, notify)
    ceilings = {}
    for kind, passes in zip(kinds, results[len(workloads) :], strict=True):
        if measured := [ceiling for ceiling in passes if ceiling]:
            ceilings[kind] = max(measured, key=lambda ceiling: ceiling.gflop_per_second)
    return results[: len(workloads)], ceilings


def _prepare_loop(stack: ExitStack, weights: str, survey: Survey, device: str) -> Workload:
    trial = build_in_process(stack, prepare_published_loop, weights, survey.uri, device)
    return Workload(f"published loop{_place(device)}", device, "float32", trial)


def _place(device: str) -> str:
    return "" if device == "cpu" else " on the GPU"


def _prepare_alternative(
    stack: ExitStack, other: Alternative, device: str, weights: str, survey: Survey, notify: Notify
) -> Iterator[Workload]:
    """Yield an alternative at its best batch, unless it cannot run here."""
    name = f"{other.name}{_place(device)}"
    try:
        trial = build_in_process(stack, prepare_alternative, other.key, weights, survey.uri, device)
        batch = choose_batch(trial, other.batches(device, survey.galaxies))
    except (InputError, ImportError, RuntimeError) as error:  # a missing package, no compiler, too little memory
        notify(f"{name} is left out: {str(error).partition(chr(10))[0]}")
        return
    yield Workload(f"{name}, batches of {batch}", device, other.precision, partial(trial, batch))


def _prepare_workloads(
    stack: ExitStack, spec: EngineSpec, run: RunFolder, survey: Survey, compiled: bool, notify: Notify
) -> Iterator[Workload]:
    """Yield the engine of a run; on a GPU also from files, from pinned memory and without copies to the GPU.

    With `compiled` the same follows with kernels of torch.compile.
    """
    plan = run.plan()
    sources = ("files", "pinned", "resident") if plan.engine == "cuda" else ()
    for own in (False, True) if compiled and plan.engine == "cuda" else (False,):
        name = f"{spec.name}{', compiled' * own}"
        try:
            trial = build_in_process(stack, prepare_engine, run.uri, survey.uri, own)
        except RuntimeError as error:  # no compiler on this machine
            if not own:
                raise
            notify(f"{name} is left out: {error}")
            continue
        yield Workload(name, plan.device, plan.precision, trial, has_passed_check(plan))
        for source in sources[own:]:  # a run never has compiled kernels
            yield Workload(f"{name}, {source}", plan.device, plan.precision, partial(trial, source))


def compare_redshifts(
    passes: Sequence[Redshift], exact: Redshift, spectroscopic: NDArray[np.float64]
) -> dict[str, float | None]:
    """Return the largest differences of all passes, which should be equal."""
    if not passes:
        return {"largest_dz": None, "nmad_shift": None}
    largest = max(float((np.abs(own - exact) / (1 + np.maximum(exact, 0))).max()) for own in passes)
    before = compute_metrics(exact, spectroscopic)
    if before is None or before.galaxies < MIN_SPECTROSCOPIC or not before.precision:
        return {"largest_dz": largest, "nmad_shift": None}
    others = (compute_metrics(own, spectroscopic) for own in passes)
    shifts = [after.precision / before.precision - 1 for after in others if after]
    return {"largest_dz": largest, "nmad_shift": max(shifts, key=abs)}


def _describe_facts(facts: dict[str, Any]) -> dict[str, str]:
    notes = {
        "network": f"{facts['weights']}, {facts['parameters']:,} parameters, {facts['gflop_per_galaxy']:.4f} GFLOP per "
        f"galaxy as published, {facts['folded_gflop_per_galaxy']:.4f} folded",
        "galaxies": f"{facts['galaxies']:,} of {facts['survey'] or 'the synthetic ones'}, {facts['repeats']} repeats",
    }
    for own in facts["ceilings"]:
        notes[f"{own['device']} {own['precision']}"] = (
            f"at most {own['gflop_per_second']:,.0f} GFLOP/s ({own['library']}, {own['shape']}), "
            f"{own['galaxies_per_second']:,.0f} galaxies/s"
        )
    return notes
