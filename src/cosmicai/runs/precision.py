"""Is a reduced precision good enough? Decided before a run begins, on a sample of its own galaxies."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from itertools import groupby
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..engines.base import Choice
from ..engines.registry import open_engine
from ..errors import InputError
from ..models.weights import WeightsFile
from ..ranks.cores import available_cores
from ..surveys.quality import input_flags
from ..surveys.shard import FIELDS, Galaxies
from ..surveys.survey import Survey
from .metrics import measure
from .store import RunFolder

CHECKED, CALIBRATING = 2048, 512  # galaxies
CHUNK = 64  # consecutive galaxies of the sample
ENOUGH = 100  # spectroscopic redshifts, for NMAD to mean something
LARGEST_SHIFT = 0.01  # of any galaxy, in units of 1 + z
LARGEST_NMAD_SHIFT = 0.01  # relative


@dataclass(frozen=True)
class PrecisionCheck:
    """What a reduced precision does to the redshifts of a sample, against the same engine in float32.

    largest: largest |z - z_float32| / (1 + z_float32); nmad, nmad_float32: 1.48 median |dz - median dz| against
    spectroscopic redshifts (None where fewer than ENOUGH are known).
    """

    asked: str
    used: str
    reason: str
    galaxies: int = 0
    largest: float | None = None
    nmad: float | None = None
    nmad_float32: float | None = None


@dataclass(frozen=True)
class Settled:
    """The precision that a run gets, what the check found, and the name of its network in int8."""

    choice: Choice
    check: dict[str, Any] | None = None
    quantized: str | None = None


def settle_precision(
    run: RunFolder,
    survey: Survey,
    weights: WeightsFile,
    choice: Choice,
    asked: str | None,
    accept_loss: bool,
    tell: Callable[[str], None],
) -> Settled:
    """The precision for a run of this choice. A network in int8 is written to the run folder.

    Raises InputError with the figures if the precision that was asked for moves any galaxy by more than
    LARGEST_SHIFT (1 + z) or NMAD by more than LARGEST_NMAD_SHIFT, unless the loss is accepted. A precision that nobody
    asked for gives way to float32.
    """
    if choice.precision == "float32":
        if asked in (None, "float32"):
            return Settled(choice)
        return Settled(choice, asdict(PrecisionCheck(str(asked), "float32", "this machine does not have it")))
    galaxies, quantized = sample(survey, CHECKED + CALIBRATING), None
    if choice.precision == "int8":
        calibrating = np.arange(len(galaxies)) // CHUNK % (1 + CHECKED // CALIBRATING) == 0
        quantized = _quantized(weights, choice, _rows(galaxies, calibrating))
        if not calibrating.all():
            galaxies = _rows(galaxies, ~calibrating)
    check = compare(weights, choice, quantized, galaxies)
    if failed := _failures(check):
        figures = " and ".join(failed)
        if asked is None:
            tell(f"{choice.precision} is left for float32: on {check.galaxies} galaxies of the survey it {figures}")
            return Settled(replace(choice, precision="float32"), asdict(replace(check, used="float32", reason=figures)))
        if not accept_loss:
            raise InputError(
                f"{choice.precision} is not good enough: on {check.galaxies} galaxies of {survey.uri} it {figures}; "
                "use --precision float32, or --accept-precision-loss"
            )
        check = replace(check, reason=f"accepted though it {figures}")
    if quantized is None:
        return Settled(choice, asdict(check))
    return Settled(choice, asdict(check), run.write_quantized(quantized))


def sample(survey: Survey, count: int) -> Galaxies:
    """About this many sound galaxies, in chunks spread evenly over the survey; all of them if it has fewer."""
    chunks = [(entry, row) for entry in survey.shards for row in range(0, entry.galaxies, CHUNK)]
    wanted = min(-(-count // CHUNK), len(chunks))
    taken = []
    for entry, found in groupby((chunks[len(chunks) * own // wanted] for own in range(wanted)), lambda chunk: chunk[0]):
        with survey.open(entry) as shard:
            taken += [shard.read(row, min(row + CHUNK, entry.galaxies)) for _, row in found]
    galaxies = Galaxies.concatenate(taken)
    return _rows(galaxies, input_flags(galaxies.image, galaxies.magnitude) == 0)


def _rows(galaxies: Galaxies, chosen: NDArray[np.bool_]) -> Galaxies:
    return Galaxies(*(getattr(galaxies, name)[chosen] for name in FIELDS))


def compare(weights: WeightsFile, choice: Choice, quantized: bytes | None, galaxies: Galaxies) -> PrecisionCheck:
    """Predicts galaxies in the chosen precision and in float32."""
    exact = _predict(weights, replace(choice, precision="float32"), None, galaxies)
    reduced = _predict(weights, choice, quantized, galaxies)
    shift = np.abs(reduced - exact)[np.isfinite(exact)] / (1 + np.maximum(exact, 0))[np.isfinite(exact)]
    before, after = measure(exact, galaxies.redshift), measure(reduced, galaxies.redshift)
    known = before is not None and after is not None and before.galaxies >= ENOUGH
    return PrecisionCheck(
        choice.precision, choice.precision, "checked", len(galaxies), float(shift.max(initial=0)),
        after.precision if known and after else None, before.precision if known and before else None,
    )  # fmt: skip


def _failures(check: PrecisionCheck) -> list[str]:
    """What is wrong with a precision, as it reads after "it"."""
    found = []
    if not (check.largest or 0) <= LARGEST_SHIFT:
        found.append(f"moves a galaxy by {check.largest:.4f} (1 + z), allowed is {LARGEST_SHIFT}")
    if check.nmad is not None and check.nmad_float32 is not None:
        shift = abs(check.nmad / check.nmad_float32 - 1) if check.nmad_float32 else float(check.nmad > 0)
        if not shift <= LARGEST_NMAD_SHIFT:
            found.append(
                f"changes NMAD from {check.nmad_float32:.6f} to {check.nmad:.6f} ({shift:.1%}), allowed is "
                f"{LARGEST_NMAD_SHIFT:.0%}"
            )
    return found


def _predict(weights: WeightsFile, choice: Choice, quantized: bytes | None, galaxies: Galaxies) -> NDArray[np.float32]:
    engine = open_engine(choice, weights, available_cores(), quantized)
    return engine.predict(galaxies.image, galaxies.magnitude)


def _quantized(weights: WeightsFile, choice: Choice, galaxies: Galaxies) -> bytes:
    from ..engines.openvino.int8 import quantize
    from ..models.fold import fold

    return quantize(fold(weights.load(), np.float32), choice.inner_batch, galaxies.image)
