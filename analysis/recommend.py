"""Recommend where to run a survey and with which settings, based on measured runs.

`candidates` lists the ways to run it; this module selects the measured runs, marks the candidates that are on the
Pareto front and that meet deadline and budget, and `recommendation_output` shows the result. A candidate is on the
front if no other is better in time, dollars or service units and at least as good in the other two; a place that
charges no dollars or no service units costs 0 of them.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cosmicai import storage
from cosmicai.errors import InputError
from cosmicai.models.weights import DEMO
from cosmicai.runs.demo import open_named_survey
from cosmicai.runs.prices import load_prices
from cosmicai.storage.s3 import is_s3

from .audit import Audit, audit
from .candidates import Candidate, ExcludedCandidate, Target, list_candidates
from .collect import collect
from .formatting import format_statistic
from .published_values import build_published_runs
from .tables import GALAXY_BYTES, ONE_MACHINE, Collection
from .time_model import TimeModel, fit_models
from .workload import ARRAY, GPU, LAMBDA, NODE

PATIENCE = 1.5  # ratio to the least time, above which a cheaper choice is too slow
LONGEST_SECONDS = 365 * 86400.0
_UNITS = {"": 1.0, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}
_PLACES = {ONE_MACHINE: "one machine", ARRAY: "a SLURM array on CPUs", GPU: "a GPU with SLURM", LAMBDA: "Lambda"}


@dataclass(frozen=True)
class Recommendation:
    """All ways to run a survey, fastest first.

    `deadline` in seconds and `budget` in US dollars are None without a limit. `on_front` and `meets` mark each of the
    `choices`; `excluded` are ways that do not work, `models` all models, `notes` remarks for the reader.
    """

    target: Target
    deadline: float | None
    budget: float | None
    choices: tuple[Candidate, ...]
    on_front: tuple[bool, ...]
    meets: tuple[bool, ...]
    excluded: tuple[ExcludedCandidate, ...]
    models: tuple[TimeModel, ...]
    notes: tuple[str, ...]

    @property
    def nearest(self) -> Candidate | None:
        """The candidate that exceeds deadline and budget by the smallest factor; None without candidates."""
        return min(
            self.choices,
            key=lambda one: (compute_exceedance(one, self.deadline, self.budget), one.seconds),
            default=None,
        )

    @property
    def recommended(self) -> tuple[Candidate | None, str]:
        """The candidate to take and the reason; None without candidates.

        Without a deadline only those count that take at most PATIENCE times as long as the fastest. One that is not
        charged comes first, then the cheapest at the place of the fastest: dollars and service units have no common
        price. If none meets the limits, it is the nearest.
        """
        within = [one for one, meets in zip(self.choices, self.meets, strict=True) if meets]
        if not within:
            return self.nearest, "nearest to the limits, which no choice meets"
        fastest = within[0]
        quick = [one for one in within if self.deadline is not None or one.seconds <= PATIENCE * fastest.seconds]
        which = "within the limits" if self.deadline is not None else f"at most {PATIENCE:g} times as slow"
        if free := [one for one in quick if one.dollars is None and one.service_units is None]:
            return free[0], f"not charged, {which}"
        alike = [one for one in quick if one.place == fastest.place]
        best = min(alike, key=lambda one: ((one.dollars or 0.0) + (one.service_units or 0.0), one.seconds))
        if best is fastest:
            return best, "the fastest"
        return best, f"the cheapest on {best.place}, the fastest platform, {which}"

    @property
    def verdict(self) -> str:
        """One sentence: how many choices meet deadline and budget, or which one comes nearest."""
        limits = [f"{self.deadline:,.6g} s"] if self.deadline is not None else []
        limits += [f"${self.budget:,.6g}"] if self.budget is not None else []
        count, near = sum(self.meets), self.nearest
        if near is None:
            return "There are no choices: nothing that was measured can run this survey."
        if not limits:
            return f"{len(self.choices)} choices, {sum(self.on_front)} of them on the front."
        if count:
            return f"{count} of {len(self.choices)} choices stay within {' and '.join(limits)}."
        cost = "" if near.dollars is None else f" and ${format_statistic(near.dollars)}"
        return (
            f"None of {len(self.choices)} choices stays within {' and '.join(limits)}; the nearest is {near.name}, "
            f"with {format_statistic(near.seconds)} s{cost}."
        )


def compute_exceedance(one: Candidate, deadline: float | None, budget: float | None) -> float:
    """Return the larger ratio of time to deadline and dollars to budget; 1 or less if the candidate meets both."""
    late = 0.0 if deadline is None else one.seconds / deadline
    if budget is None or not one.dollars:
        return late
    return max(late, one.dollars / budget if budget else math.inf)


def parse_seconds(text: str) -> float:
    """Return the seconds of a duration such as 600, 90s, 10m, 1.5h or 2d. Raises InputError for any other text."""
    found = re.fullmatch(r"([0-9]+(?:\.[0-9]+)?)([smhd]?)", text.strip())
    seconds = float(found[1]) * _UNITS[found[2]] if found else 0.0
    if not 0 < seconds <= LONGEST_SECONDS:
        raise InputError(
            f"{text!r} is not a duration; expected a number above 0 with s, m, h or d, such as 600, 10m or 1.5h, at "
            "most 365d"
        )
    return seconds


def recommend(
    target: Target, collection: Collection, audited: Audit, deadline: float | None = None, budget: float | None = None
) -> Recommendation:
    """Return a recommendation from collected runs; `deadline` in seconds, `budget` in US dollars.

    Raises InputError if the survey has no galaxies, if deadline, budget or limits are out of range, or if there are no
    prices for the region.
    """
    models = fit_models(collection, audited)
    selected = prefer_own_models(select_network(models, target))
    return recommend_from_models(target, selected, deadline, budget, _describe_unused(models, target))


def recommend_from_models(
    target: Target, models: Sequence[TimeModel], deadline: float | None, budget: float | None, notes: Sequence[str] = ()
) -> Recommendation:
    """Return a recommendation from models, with these notes first. Raises InputError as `recommend` does."""
    _validate(target, deadline, budget)
    found = [one for model in models for one in list_candidates(model, target)]
    possible = sorted((one for one in found if isinstance(one, Candidate)), key=lambda one: (one.seconds, one.name))
    return Recommendation(
        target,
        deadline,
        budget,
        tuple(possible),
        tuple(map(bool, find_pareto_front(_list_objectives(possible)))),
        tuple(compute_exceedance(one, deadline, budget) <= 1 for one in possible),
        tuple(one for one in found if isinstance(one, ExcludedCandidate)),
        tuple(models),
        tuple(dict.fromkeys((*notes, *_make_notes(models, possible)))),
    )


def recommend_for_survey(
    survey: str,
    measured: Sequence[str] = (),
    *,
    deadline: float | None = None,
    budget: float | None = None,
    **limits: Any,
) -> Recommendation:
    """Return a recommendation from the runs at the addresses `measured`.

    For platforms without such runs the published values are used. `survey` is an address, `demo`, or a number of
    galaxies; `limits` are further fields of `Target`. Raises InputError if the survey or an address does not exist, and
    as `recommend` does.
    """
    target, fitted = resolve_target(survey, **limits), []
    if measured:
        found = collect(measured)
        fitted = fit_models(found, audit(found))
    models = prefer_own_models(select_network(fitted, target))
    values = build_published_runs()
    known = {_find_platform(model) for model in models}
    published = prefer_own_models(fit_models(values, audit(values)))
    models += [one for one in published if _find_platform(one) not in known]
    return recommend_from_models(target, models, deadline, budget, _describe_unused(fitted, target))


def resolve_target(survey: str, **limits: Any) -> Target:
    """Return the survey at an address, `demo`, or a survey of a number of galaxies with the placeholder name SURVEY.

    Raises InputError if there is no such survey.
    """
    if survey == DEMO:
        limits["weights"] = limits.get("weights") or DEMO
    if re.fullmatch(r"[0-9][0-9_,]{0,30}", survey) and not storage.exists(storage.absolute(survey)):
        galaxies = int(re.sub("[_,]", "", survey))
        return Target("SURVEY", galaxies, galaxies * GALAXY_BYTES, galaxies, **limits)
    with TemporaryDirectory(prefix="cosmicai-advise-") as folder:
        opened = open_named_survey(survey, folder)
        largest = max((shard.galaxies for shard in opened.shards), default=0)
        return Target(survey, opened.galaxies, opened.bytes, largest, not is_s3(opened.uri), **limits)


def select_network(models: Iterable[TimeModel], target: Target) -> list[TimeModel]:
    """Return the models of networks as large as the one that will run; that of the demo weights is much smaller."""
    return [model for model in models if (model.weights == DEMO) == (target.weights == DEMO) or not model.weights]


def _describe_unused(models: Iterable[TimeModel], target: Target) -> list[str]:
    """Return a note about runs of the user that are not used, if there are any."""
    everything = list(models)
    used = select_network(everything, target)
    runs = sum(len(model.runs) for model in everything if model not in used)
    return (
        [f"{runs} runs of yours are not used, since their network has another size: that of the demo weights is small"]
        if runs
        else []
    )


def prefer_own_models(models: Iterable[TimeModel]) -> list[TimeModel]:
    """Return the models of this project's runs, and for platforms without any those of published runs."""
    everything = list(models)
    own = {_find_platform(model) for model in everything if model.origin == "ours"}
    return [model for model in everything if model.origin == "ours" or _find_platform(model) not in own]


def find_pareto_front(points: NDArray[np.float64]) -> NDArray[np.bool_]:
    """Return which of the points (N, objectives) are on the front.

    For these no other point is smaller in one objective and not larger in any.
    """
    no_larger = np.all(points[None] <= points[:, None], axis=2)
    smaller = np.any(points[None] < points[:, None], axis=2)
    return np.asarray(~np.any(no_larger & smaller, axis=1), dtype=np.bool_)


def _find_platform(model: TimeModel) -> str:
    """Return the platform that a model describes: a single node of this project describes arrays too."""
    return ARRAY if model.place == NODE and model.origin == "ours" else model.place


def _list_objectives(possible: Sequence[Candidate]) -> NDArray[np.float64]:
    """Return seconds, dollars and service units (N, 3) of N candidates."""
    rows = [(one.seconds, one.dollars or 0.0, one.service_units or 0.0) for one in possible]
    return np.array(rows, dtype=np.float64).reshape(-1, 3)


def _validate(target: Target, deadline: float | None, budget: float | None) -> None:
    """Raise InputError if a value is out of range, or if there are no prices for the region."""
    if target.galaxies < 1:
        raise InputError(f"{target.survey} holds no galaxies; expected a survey with galaxies, or a number above 0")
    if deadline is not None and not (math.isfinite(deadline) and deadline > 0):
        raise InputError(f"a deadline of {deadline:g} s is not possible; expected more than 0")
    if budget is not None and not (math.isfinite(budget) and budget >= 0):
        raise InputError(f"a budget of {budget:g} dollars is not possible; expected 0 or more")
    if not 128 <= target.memory_mb <= 10240:
        raise InputError(f"functions of {target.memory_mb} MB are not possible; expected 128 to 10240")
    if target.concurrency < 1:
        raise InputError(f"a concurrency of {target.concurrency} is not possible; expected 1 or more")
    load_prices(target.region, target.architecture)


def _make_notes(models: Sequence[TimeModel], possible: Sequence[Candidate]) -> Iterable[str]:
    known = {_find_platform(model) for model in models}
    for place in (place for place in _PLACES if place not in known):
        yield f"There are no choices for {_PLACES[place]}, since no runs on it were measured."
    for model in models:
        if model.error is None:
            where = f"{model.place} ({model.machine})" if model.machine else model.place
            yield f"The error of the model for {where} is not known: too few configurations were measured."
    if any(one.service_units is not None for one in possible):
        yield (
            "Service units are for every core during the whole time, the maximum that a job can be charged; the time "
            "that a job waits in the queue is not included."
        )
    if any(one.dollars is not None for one in possible):
        yield (
            "Dollars are list prices for the configured memory of functions, which is more than they use. For other "
            "memory than was measured, the computing time is assumed to scale with the number of processors. Uploading "
            "a survey to S3 is not included."
        )
