"""Engines named as in `--engines openvino:bfloat16,reference`, created and opened as in a run."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass

from ..engines.base import Engine
from ..engines.registry import DEVICES, PRECISIONS, open_engine
from ..errors import InputError
from ..ranks.cores import available_cores
from ..runs.create import create_run
from ..runs.plan import Plan
from ..runs.request import RunRequest
from ..runs.store import RunFolder
from ..surveys.survey import Survey


@dataclass(frozen=True)
class EngineSpec:
    """An engine in one of its precisions."""

    engine: str
    precision: str

    @property
    def name(self) -> str:
        """The name in tables."""
        return f"{self.engine} {self.precision}"


def parse_engine_specs(text: str) -> tuple[EngineSpec, ...]:
    """Return the engines in a text such as "openvino:bfloat16,reference", without repetitions.

    An engine without a precision stands for all of its precisions. Raises InputError if an engine or precision does
    not exist.
    """
    specs: list[EngineSpec] = []
    for part in text.split(","):
        engine, _, precision = part.strip().partition(":")
        offered = PRECISIONS.get(engine, ())
        if not offered or (precision and precision not in offered):
            known = ", ".join(f"{name}:{'|'.join(PRECISIONS[name])}" for name in PRECISIONS)
            raise InputError(f"there is no engine {part.strip()!r}; expected some of {known}")
        specs += [EngineSpec(engine, own) for own in offered if precision in ("", own)]
    return tuple(dict.fromkeys(specs))


def select_by_device(specs: Iterable[EngineSpec], devices: Iterable[str]) -> list[EngineSpec]:
    """Return the engines whose default device is one of these."""
    return [spec for spec in specs if DEVICES[spec.engine][0] in devices]


def create_engine_run(
    spec: EngineSpec, survey: Survey, weights: str, out: str, batch_size: int | None, notify: Callable[[str], None]
) -> RunFolder | None:
    """Create a run with this engine as a user would, with its precision checked; return None if it cannot run here.

    `notify` receives the reason for None, and a warning if the precision changes redshifts too much, which does not
    prevent the run.
    """
    try:
        request = RunRequest(
            survey.uri, out, weights, engine=spec.engine, precision=spec.precision, batch_size=batch_size,
            accept_precision_loss=True,
        )  # fmt: skip
        run = create_run(request, survey)
    except (InputError, ImportError) as error:
        notify(f"{spec.name} is left out: {error}")
        return None
    plan = run.plan()
    if plan.precision != spec.precision:
        notify(f"{spec.name} is left out: this machine does not support it")
        return None
    if plan.precision_check and not has_passed_check(plan):
        notify(f"{spec.name}: the precision check of the run says {plan.precision_check.reason}")
    return run


def has_passed_check(plan: Plan) -> bool | None:
    """Return whether the precision passed the check of the run, or None if the plan has no check."""
    return None if plan.precision_check is None else plan.precision_check.reason == "checked"


def open_run_engine(run: RunFolder) -> Engine:
    """Open the engine of a run on all available cores. Raises InputError if it cannot run here."""
    plan = run.plan()
    quantized = run.read_quantized(plan.quantized) if plan.quantized else None
    return open_engine(plan.choice, plan.weights_file, available_cores(), quantized)
