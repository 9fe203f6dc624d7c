"""For a survey: where to run it and with which settings, from what was measured.

A choice is on the front if no other is better in time, dollars or service units and at least as good in the other two;
what costs no dollars or no service units costs 0 of them.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Sequence
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cosmicai import storage
from cosmicai.errors import InputError
from cosmicai.models.weights import DEMO
from cosmicai.runs.cost import load_prices
from cosmicai.runs.demo import named_survey
from cosmicai.storage.s3 import is_s3

from .audit import Audit, audit
from .candidates import Choice, Excluded, Target, choices
from .collect import collect
from .model import Model, fit_models
from .published_figures import published_runs
from .recommendation import Advice, advice_table, based_on, error_table, miss, to_json
from .tables import GALAXY_BYTES, Collection
from .workload import ARRAY, GPU, LAMBDA, LAPTOP, NODE

__all__ = [
    "Advice", "Target", "advice_table", "advise", "advise_by", "advise_survey", "based_on", "chosen", "error_table",
    "pareto", "parse_seconds", "target_of", "to_json",
]  # fmt: skip
LONGEST_SECONDS = 365 * 86400.0
_UNITS = {"": 1.0, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}
_WANTED = {LAPTOP: "a laptop", ARRAY: "a CPU array of SLURM", GPU: "a GPU of SLURM", LAMBDA: "Lambda"}


def parse_seconds(text: str) -> float:
    """The seconds of a duration such as 600, 90s, 10m, 1.5h or 2d. Raises InputError if it is none, or not above 0."""
    found = re.fullmatch(r"([0-9]+(?:\.[0-9]+)?)([smhd]?)", text.strip())
    seconds = float(found[1]) * _UNITS[found[2]] if found else 0.0
    if not 0 < seconds <= LONGEST_SECONDS:
        raise InputError(
            f"{text!r} is no duration; expected a number above 0 with s, m, h or d, such as 600, 10m or 1.5h, and no "
            "more than 365d"
        )
    return seconds


def advise(
    target: Target, collection: Collection, audited: Audit, deadline: float | None = None, budget: float | None = None
) -> Advice:
    """What runs that were measured say about a survey; `deadline` in seconds, `budget` in US dollars.

    Raises InputError if the survey has no galaxies, deadline, budget or limits cannot be, or there are no prices for
    the region.
    """
    models = fit_models(collection, audited)
    return advise_by(target, chosen(of_network(models, target)), deadline, budget, _set_aside(models, target))


def advise_by(
    target: Target, models: Sequence[Model], deadline: float | None, budget: float | None, notes: Sequence[str] = ()
) -> Advice:
    """What these models say about a survey; `notes` are told with it. Raises InputError as `advise` does."""
    _require(target, deadline, budget)
    found = [one for model in models for one in choices(model, target)]
    possible = sorted((one for one in found if isinstance(one, Choice)), key=lambda one: (one.seconds, one.name))
    return Advice(
        target,
        deadline,
        budget,
        tuple(possible),
        tuple(map(bool, pareto(_axes(possible)))),
        tuple(miss(one, deadline, budget) <= 1 for one in possible),
        tuple(one for one in found if isinstance(one, Excluded)),
        tuple(models),
        (*notes, *_notes(models, possible)),
    )


def advise_survey(
    survey: str,
    measured: Sequence[str] = (),
    *,
    deadline: float | None = None,
    budget: float | None = None,
    **limits: Any,
) -> Advice:
    """What runs at the addresses `measured` say about a survey, and for platforms of which they tell nothing, or if
    there are none, the published figures.

    `survey` is an address, `demo`, or a number of galaxies; `limits` are further fields of `Target`. Raises InputError
    if there is no such survey or address, and as `advise` does.
    """
    target, fits = target_of(survey, **limits), []
    if measured:
        found = collect(measured)
        fits = fit_models(found, audit(found))
    models = chosen(of_network(fits, target))
    figures = published_runs()
    known = {_platform(model) for model in models}
    models += [one for one in chosen(fit_models(figures, audit(figures))) if _platform(one) not in known]
    return advise_by(target, models, deadline, budget, _set_aside(fits, target))


def target_of(survey: str, **limits: Any) -> Target:
    """The survey at an address, `demo`, or so many galaxies at an address that is still to be named: SURVEY.

    Raises InputError if there is no such survey.
    """
    if survey == DEMO:
        limits["weights"] = limits.get("weights") or DEMO
    if re.fullmatch(r"[0-9][0-9_,]*", survey) and not storage.exists(storage.absolute(survey)):
        galaxies = int(re.sub("[_,]", "", survey))
        return Target("SURVEY", galaxies, galaxies * GALAXY_BYTES, galaxies, **limits)
    with TemporaryDirectory(prefix="cosmicai-advise-") as folder:
        opened = named_survey(survey, folder)
        largest = max((shard.galaxies for shard in opened.shards), default=0)
        return Target(survey, opened.galaxies, opened.bytes, largest, not is_s3(opened.uri), **limits)


def of_network(models: Iterable[Model], target: Target) -> list[Model]:
    """The models of networks as large as the one that will run: the demo weights' is far smaller than AstroMAE's."""
    return [model for model in models if (model.weights == DEMO) == (target.weights == DEMO) or not model.weights]


def _set_aside(models: Iterable[Model], target: Target) -> list[str]:
    """What is said of runs of yours that are not used."""
    everything = list(models)
    used = of_network(everything, target)
    runs = sum(len(model.runs) for model in everything if model not in used)
    return (
        [f"{runs} runs of yours are not used, since their network has another size: that of the demo weights is small"]
        if runs
        else []
    )


def chosen(models: Iterable[Model]) -> list[Model]:
    """The models of each platform that advice rests on: of ours if there are any, else of published runs."""
    everything = list(models)
    ours = {_platform(model) for model in everything if model.origin == "ours"}
    return [model for model in everything if model.origin == "ours" or _platform(model) not in ours]


def pareto(axes: NDArray[np.float64]) -> NDArray[np.bool_]:
    """Which of the points (N, axes) are on the front: no other is less in one axis and no more in any."""
    no_more = np.all(axes[None] <= axes[:, None], axis=2)
    less = np.any(axes[None] < axes[:, None], axis=2)
    return np.asarray(~np.any(no_more & less, axis=1), dtype=np.bool_)


def _platform(model: Model) -> str:
    """What a model's place is to who chooses: a single node tells of arrays too."""
    return ARRAY if model.place == NODE and model.origin == "ours" else model.place


def _axes(possible: Sequence[Choice]) -> NDArray[np.float64]:
    rows = [(one.seconds, one.dollars or 0.0, one.service_units or 0.0) for one in possible]
    return np.array(rows, dtype=np.float64).reshape(-1, 3)


def _require(target: Target, deadline: float | None, budget: float | None) -> None:
    """Raises InputError if nothing could be said about this."""
    if target.galaxies < 1:
        raise InputError(f"{target.survey} holds no galaxies; expected a survey with some, or a number of 1 or more")
    if deadline is not None and not (math.isfinite(deadline) and deadline > 0):
        raise InputError(f"a deadline of {deadline:g} s cannot be met; expected more than 0")
    if budget is not None and not (math.isfinite(budget) and budget >= 0):
        raise InputError(f"a budget of {budget:g} dollars cannot be; expected 0 or more")
    if not 128 <= target.memory_mb <= 10240:
        raise InputError(f"functions of {target.memory_mb} MB cannot be; expected 128 to 10240")
    if target.concurrency < 1:
        raise InputError(f"a concurrency of {target.concurrency} cannot be; expected 1 or more")
    load_prices(target.region, target.architecture)


def _notes(models: Sequence[Model], possible: Sequence[Choice]) -> Iterable[str]:
    there = {_platform(model) for model in models}
    for place in (place for place in _WANTED if place not in there):
        yield f"Of {_WANTED[place]} nothing was measured, so that there is no choice for it."
    for model in models:
        if model.error is None:
            where = f"{model.place} ({model.machine})" if model.machine else model.place
            yield f"How far the model for {where} is off is not known: too few configurations were measured."
    if any(one.service_units is not None for one in possible):
        yield (
            "Service units are for every core during the whole time, the most that a job can be charged; how long a "
            "job waits in the queue is not in its time."
        )
    if any(one.dollars is not None for one in possible):
        yield (
            "Dollars are list prices for the memory that functions have, which is more than they use; with other "
            "memory than was measured, the time to compute is taken to go with the processors. Sending a survey to S3 "
            "is not in it."
        )
