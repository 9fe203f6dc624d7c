"""Select the precision of a run: a reduced one is checked on a sample of the survey before the run starts."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from itertools import groupby
from math import isfinite

import numpy as np
from msgspec import structs
from numpy.typing import NDArray

from ..engines.base import EngineChoice
from ..engines.registry import open_engine
from ..errors import InputError
from ..models.weights import WeightsFile
from ..ranks.cores import available_cores
from ..surveys.quality import flag_inputs
from ..surveys.shard import FIELDS, Galaxies
from ..surveys.survey import Survey
from .metrics import compute_metrics
from .plan import PrecisionCheck
from .store import RunFolder

CHECKED, CALIBRATING = 2048, 512  # galaxies
CHUNK = 64  # consecutive galaxies of the sample
MIN_SPECTROSCOPIC = 100  # redshifts below which NMAD says nothing
LARGEST_SHIFT = 0.01  # of any galaxy, in units of 1 + z
# A precision that is meant to be float32 but for rounding has a bound of its own, far below what other precisions do.
LARGEST_SHIFTS = {"bf16x3": 1e-4}
LARGEST_NMAD_SHIFT = 0.01  # relative


@dataclass(frozen=True)
class PrecisionDecision:
    """The engine choice with the precision of a run, what the check found, and the name of its network in int8."""

    choice: EngineChoice
    check: PrecisionCheck | None = None
    quantized: str | None = None


def select_precision(
    run: RunFolder,
    survey: Survey,
    weights: WeightsFile,
    choice: EngineChoice,
    requested: str | None,
    accept_loss: bool,
    notify: Callable[[str], None],
) -> PrecisionDecision:
    """Return the precision for a run with this engine choice; a network in int8 is written to the run folder.

    A reduced precision must not move any galaxy by more than LARGEST_SHIFT (1 + z), or its own bound in LARGEST_SHIFTS,
    nor change NMAD by more than LARGEST_NMAD_SHIFT. Raises InputError with the figures if a `requested` one does,
    unless the loss is accepted; a default (None) is replaced by float32, which is reported through `notify`.
    """
    if choice.precision == "float32":
        if requested in (None, "float32"):
            return PrecisionDecision(choice)
        return PrecisionDecision(choice, PrecisionCheck(str(requested), "float32", "this machine does not have it"))
    galaxies, quantized = sample_galaxies(survey, CHECKED + CALIBRATING), None
    if choice.precision == "int8":
        calibrating = np.arange(len(galaxies)) // CHUNK % (1 + CHECKED // CALIBRATING) == 0
        quantized = _quantize(weights, choice, _rows(galaxies, calibrating))
        if not calibrating.all():
            galaxies = _rows(galaxies, ~calibrating)
    check = compare_precisions(weights, choice, quantized, galaxies)
    if failed := _failures(check):
        figures = " and ".join(failed)
        if requested is None:
            notify(
                f"{choice.precision} is replaced by float32: on {check.galaxies} galaxies of the survey it {figures}"
            )
            check = structs.replace(_finite(check), used="float32", reason=figures)
            return PrecisionDecision(replace(choice, precision="float32"), check)
        if not accept_loss:
            raise InputError(
                f"{choice.precision} is not good enough: on {check.galaxies} galaxies of {survey.uri} it {figures}; "
                "use --precision float32, or --accept-precision-loss"
            )
        check = structs.replace(_finite(check), reason=f"accepted though it {figures}")
    if quantized is None:
        return PrecisionDecision(choice, check)
    return PrecisionDecision(choice, check, run.write_quantized(quantized))


def sample_galaxies(survey: Survey, count: int) -> Galaxies:
    """Return about `count` galaxies without flags, in chunks spread evenly over the survey; all if it has fewer."""
    chunks = [(entry, row) for entry in survey.shards for row in range(0, entry.galaxies, CHUNK)]
    number = min(-(-count // CHUNK), len(chunks))
    selected = (chunks[len(chunks) * index // number] for index in range(number))
    read = []
    for entry, group in groupby(selected, lambda chunk: chunk[0]):
        with survey.open(entry) as shard:
            read += [shard.read(row, min(row + CHUNK, entry.galaxies)) for _, row in group]
    galaxies = Galaxies.concatenate(read)
    return _rows(galaxies, flag_inputs(galaxies.image, galaxies.magnitude) == 0)


def _rows(galaxies: Galaxies, selected: NDArray[np.bool_]) -> Galaxies:
    return Galaxies(*(getattr(galaxies, name)[selected] for name in FIELDS))


def compare_precisions(
    weights: WeightsFile, choice: EngineChoice, quantized: bytes | None, galaxies: Galaxies
) -> PrecisionCheck:
    """Predict galaxies in the chosen precision and in float32, and return how the redshifts differ."""
    exact = _predict(weights, replace(choice, precision="float32"), None, galaxies)
    reduced = _predict(weights, choice, quantized, galaxies)
    shift = np.abs(reduced - exact)[np.isfinite(exact)] / (1 + np.maximum(exact, 0))[np.isfinite(exact)]
    before, after = compute_metrics(exact, galaxies.redshift), compute_metrics(reduced, galaxies.redshift)
    known = before is not None and after is not None and before.galaxies >= MIN_SPECTROSCOPIC
    return PrecisionCheck(
        choice.precision, choice.precision, "checked", len(galaxies), float(shift.max(initial=0)),
        after.precision if known and after else None, before.precision if known and before else None,
    )  # fmt: skip


def _failures(check: PrecisionCheck) -> list[str]:
    """Return what is wrong with a precision, in words that follow "it"."""
    found, bound = [], LARGEST_SHIFTS.get(check.requested, LARGEST_SHIFT)
    if not (check.largest_shift or 0) <= bound:
        digits = 4 if bound == LARGEST_SHIFT else 6
        found.append(f"moves a galaxy by {check.largest_shift:.{digits}f} (1 + z), allowed is {bound:.{digits}g}")
    if check.nmad is not None and check.nmad_float32 is not None:
        shift = abs(check.nmad / check.nmad_float32 - 1) if check.nmad_float32 else float(check.nmad > 0)
        if not shift <= LARGEST_NMAD_SHIFT:
            found.append(
                f"changes NMAD from {check.nmad_float32:.6f} to {check.nmad:.6f} ({shift:.1%}), allowed is "
                f"{LARGEST_NMAD_SHIFT:.0%}"
            )
    return found


def _finite(check: PrecisionCheck) -> PrecisionCheck:
    """Return a check without a shift that is not finite, which JSON cannot hold; its reason names it."""
    return check if isfinite(check.largest_shift or 0) else structs.replace(check, largest_shift=None)


def _predict(
    weights: WeightsFile, choice: EngineChoice, quantized: bytes | None, galaxies: Galaxies
) -> NDArray[np.float32]:
    engine = open_engine(choice, weights, available_cores(), quantized)
    return engine.predict(galaxies.image, galaxies.magnitude)


def _quantize(weights: WeightsFile, choice: EngineChoice, galaxies: Galaxies) -> bytes:
    from ..engines.openvino.int8 import quantize
    from ..models.fold import fold

    return quantize(fold(weights.load(), np.float32), choice.inner_batch, galaxies.image)
