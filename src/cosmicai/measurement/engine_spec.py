"""From `--engines openvino:bfloat16,reference` to engines as a run opens them."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass

from ..engines.base import Engine
from ..engines.registry import DEVICES, PRECISIONS, open_engine
from ..errors import InputError
from ..ranks.cores import available_cores
from ..runs.create import begin
from ..runs.plan import Plan
from ..runs.store import RunFolder
from ..surveys.survey import Survey


@dataclass(frozen=True)
class Wanted:
    """An engine in one of its precisions."""

    engine: str
    precision: str

    @property
    def name(self) -> str:
        """As it reads in a table."""
        return f"{self.engine} {self.precision}"


def parse_engines(text: str) -> tuple[Wanted, ...]:
    """Engines by name, separated by commas; `engine:precision` asks for one precision, else all of them are meant.

    Raises InputError if there is no such engine or precision.
    """
    wanted: list[Wanted] = []
    for part in text.split(","):
        engine, _, precision = part.strip().partition(":")
        offered = PRECISIONS.get(engine, ())
        if not offered or (precision and precision not in offered):
            known = ", ".join(f"{name}:{'|'.join(PRECISIONS[name])}" for name in PRECISIONS)
            raise InputError(f"there is no engine {part.strip()!r}; expected some of {known}")
        wanted += [Wanted(engine, own) for own in offered if precision in ("", own)]
    return tuple(dict.fromkeys(wanted))


def of_devices(wanted: Iterable[Wanted], devices: Iterable[str]) -> list[Wanted]:
    """Those that run on one of these devices unless told otherwise."""
    return [own for own in wanted if DEVICES[own.engine][0] in devices]


def plan_run(
    wanted: Wanted, survey: Survey, weights: str, out: str, batch_size: int | None, tell: Callable[[str], None]
) -> RunFolder | None:
    """A run begun for this engine as a user would begin it, with its precision checked; None, and told, if it cannot
    run here. A precision that changes the redshifts too much is no hindrance."""
    try:
        run = begin(
            survey, weights, out, engine=wanted.engine, precision=wanted.precision, batch_size=batch_size,
            accept_precision_loss=True,
        )  # fmt: skip
    except (InputError, ImportError) as error:
        tell(f"{wanted.name} is left out: {error}")
        return None
    plan = run.plan()
    if plan.precision != wanted.precision:
        tell(f"{wanted.name} is left out: this machine does not have it")
        return None
    if passed(plan) is False:
        tell(f"{wanted.name}: the run's check says {(plan.precision_check or {})['reason']}")
    return run


def passed(plan: Plan) -> bool | None:
    """Whether the run's check found the precision good enough; None where there is nothing to check."""
    return None if plan.precision_check is None else plan.precision_check["reason"] == "checked"


def open_planned(run: RunFolder) -> Engine:
    """The engine of a run, with all cores. Raises InputError if it cannot run."""
    plan = run.plan()
    quantized = run.read_quantized(plan.quantized) if plan.quantized else None
    return open_engine(plan.choice, plan.weights_file, available_cores(), quantized)
