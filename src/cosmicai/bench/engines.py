"""`cosmicai bench engines`: galaxies per second of every engine and precision, beside the published loop."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from ..engines.reference import require_device
from ..measurement.engine_spec import Wanted, of_devices, parse_engines, passed, plan_run
from ..measurement.machine import machine
from ..measurement.report import Column, Report
from ..models.fold import fold
from ..models.weights import load_weights
from ..ranks.cores import available_cores
from ..runs.metrics import measure
from ..runs.precision import ENOUGH
from ..runs.store import RunFolder
from ..surveys.survey import Survey
from .ceiling import measure_ceiling
from .flops import folded_flop, published_flop
from .galaxies import galaxies_in_memory, write_galaxies
from .timing import in_own_process, interleaved, spread
from .workloads import Redshift, Turn, engine_row, published_row

LAMBDA_MB_PER_CORE = 1769  # AWS Lambda gives one core for every 1,769 MB that are paid for
COLUMNS = (
    Column("name", "engine"),
    Column("galaxies_per_second", "galaxies/s", ",.0f"),
    Column("galaxies_per_second_min", "min", ",.0f"),
    Column("galaxies_per_second_max", "max", ",.0f"),
    Column("ratio_to_published", "x published", ".2f"),
    Column("fraction_of_ceiling", "of ceiling", ".1%"),
    Column("largest_dz", "largest |dz|", ".1e"),
    Column("nmad_shift", "NMAD shift", "+.3%"),
    Column("gb_seconds_per_million_galaxies", "GB-s per million", ",.0f"),
    Column("check_passed", "check passed"),
)

Tell = Callable[[str], None]


@dataclass(frozen=True)
class Contender:
    """Who will be a row."""

    name: str
    device: str
    precision: str
    turn: Turn
    check_passed: bool | None = None


def bench_engines(
    weights: str,
    survey: str | None,
    count: int,
    batch_size: int | None,
    repeats: int,
    engines: str,
    device: str | None,
    tell: Tell,
) -> Report:
    """Measures so many galaxies of the survey, synthetic ones without it, `repeats` times, interleaved.

    `ratio_to_published` is that to the published loop on the same device; `fraction_of_ceiling` sets the arithmetic of
    the published network against the machine's best matrix products; `largest_dz` is the largest |z - z0| / (1 + z0)
    and `nmad_shift` the relative change of NMAD (where spectroscopic redshifts are known) against the published loop's
    z0 in float32. What cannot run here is absent, and told. Raises InputError for bad input.
    """
    here = machine()
    devices = [device] if device else ["cpu", "cuda"] if torch.cuda.is_available() else ["cpu"]
    for name in devices:
        require_device(name)
    wanted = of_devices(parse_engines(engines), devices)
    loaded, galaxies = load_weights(weights), galaxies_in_memory(survey, count)
    with TemporaryDirectory(prefix="cosmicai-bench-") as folder, ExitStack() as stack:
        written = write_galaxies(str(Path(folder, "survey")), galaxies)
        contenders = []
        for name in devices:
            loop = in_own_process(stack, published_row, weights, written.uri, name)
            contenders.append(Contender(f"published loop{' on the GPU' * (name != 'cpu')}", name, "float32", loop))
        _, exact = contenders[0].turn(False)
        assert exact is not None
        for engine in wanted:
            if run := plan_run(engine, written, weights, str(Path(folder, engine.name)), batch_size, tell):
                contenders += _contenders(stack, engine, run, written, tell)
        kinds = list(dict.fromkeys((contender.device, contender.precision) for contender in contenders))
        everyone: list[Callable[[], Any]] = [contender.turn for contender in contenders]
        everyone += [partial(measure_ceiling, *kind, available_cores()) for kind in kinds]
        turns = interleaved(everyone, repeats, tell)
    found = [
        max(filter(None, passes), key=lambda own: own.gflop_per_second, default=None)
        for passes in turns[len(contenders) :]
    ]
    ceilings = {kind: ceiling for kind, ceiling in zip(kinds, found, strict=True) if ceiling}

    gflop = published_flop(loaded.config) / 1e9
    published = {name: median(rate for rate, _ in turn) for name, turn in zip(devices, turns, strict=False)}
    rows = []
    for own, turn in zip(contenders, turns, strict=False):
        rates = [rate for rate, _ in turn]
        rate, ceiling = median(rates), ceilings.get((own.device, own.precision))
        rows.append({
            "name": own.name, "device": own.device, "precision": own.precision,
            **spread("galaxies_per_second", rates),
            "ratio_to_published": rate / published[own.device],
            "fraction_of_ceiling": rate * gflop / ceiling.gflop_per_second if ceiling else None,
            **_shift([redshift for _, redshift in turn if redshift is not None], exact, galaxies.redshift),
            "gb_seconds_per_million_galaxies": (
                gb_seconds_per_million(available_cores(), rate) if own.device == "cpu" else None
            ),
            "check_passed": own.check_passed,
        })  # fmt: skip
    facts = {
        "weights": weights, "parameters": loaded.parameters, "survey": survey, "galaxies": len(galaxies),
        "repeats": repeats, "gflop_per_galaxy": gflop,
        "folded_gflop_per_galaxy": folded_flop(fold(loaded, np.float32)) / 1e9,
        "ceilings": [asdict(own) | {"galaxies_per_second": own.gflop_per_second / gflop} for own in ceilings.values()],
    }  # fmt: skip
    return Report("Engines", COLUMNS, rows, here, facts, _notes(facts))


def gb_seconds_per_million(cores: int, galaxies_per_second: float) -> float:
    """What AWS Lambda would bill for a million galaxies: GB (2^30 bytes) of memory that come with the cores, times
    seconds."""
    return cores * LAMBDA_MB_PER_CORE / 1024 * 1e6 / galaxies_per_second


def _contenders(stack: ExitStack, wanted: Wanted, run: RunFolder, survey: Survey, tell: Tell) -> Iterator[Contender]:
    """An engine as a run has it; that of a GPU also without the way to the GPU, and with the kernels torch writes."""
    plan = run.plan()
    for compiled in (False, True) if plan.engine == "cuda" else (False,):
        name = f"{wanted.name}{', compiled' * compiled}"
        try:
            turn = in_own_process(stack, engine_row, run.uri, survey.uri, compiled)
        except RuntimeError as error:  # no compiler on this machine
            if not compiled:
                raise
            tell(f"{name} is left out: {error}")
            continue
        yield Contender(name, plan.device, plan.precision, turn, passed(plan))
        if plan.engine == "cuda":
            yield Contender(f"{name}, resident", plan.device, plan.precision, partial(turn, True))


def _shift(passes: Sequence[Redshift], exact: Redshift, spectroscopic: NDArray[np.float64]) -> dict[str, float | None]:
    """The largest of all passes, which ought to be the same."""
    if not passes:
        return {"largest_dz": None, "nmad_shift": None}
    largest = max(float((np.abs(own - exact) / (1 + np.maximum(exact, 0))).max()) for own in passes)
    before = measure(exact, spectroscopic)
    if before is None or before.galaxies < ENOUGH or not before.precision:
        return {"largest_dz": largest, "nmad_shift": None}
    shifts = [after.precision / before.precision - 1 for own in passes if (after := measure(own, spectroscopic))]
    return {"largest_dz": largest, "nmad_shift": max(shifts, key=abs)}


def _notes(facts: dict[str, Any]) -> dict[str, str]:
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
