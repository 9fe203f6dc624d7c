"""What a user requests of a run, on whatever machines it will be done."""

from __future__ import annotations

from dataclasses import dataclass
from numbers import Integral
from typing import Any

from ..errors import InputError

VIEWS = (1, 8)  # a cutout as it is, or all its rotations by right angles and their reflections


@dataclass(frozen=True)
class RunRequest:
    """A survey to predict, with what, and where the results go.

    `survey` and `out` are addresses as the user wrote them; the survey `demo` is a synthetic one in the run folder.
    What is None, and the engine `auto`, is chosen where the run starts. `limit_files` keeps the first shards only.
    Each cutout is predicted in `views` views (by default 1) and the redshifts are averaged. With `quantiles` the
    catalogue has all quantiles of each redshift. With `calibrate_on_spectra` half of the galaxies that have
    spectroscopic redshifts calibrate the intervals. With `resume` the run that is in `out` already is finished. With
    `strict` a survey that does not look right is refused.
    """

    survey: str
    out: str
    weights: str
    engine: str = "auto"
    precision: str | None = None
    device: str | None = None
    batch_size: int | None = None
    views: int | None = None
    quantiles: bool = False
    calibrate_on_spectra: bool = False
    limit_files: int | None = None
    accept_precision_loss: bool = False
    resume: bool = False
    strict: bool = False


def require_views(views: Any, name: str = "--views") -> int:
    """Return a number of views as a plain integer. Raises InputError with its `name` if it is not one of VIEWS."""
    if isinstance(views, Integral) and not isinstance(views, bool) and views in VIEWS:
        return int(views)
    raise InputError(
        f"{name} {views!r} cannot be used; expected 1 (each cutout as it is) or 8 (its rotations by right angles and "
        "their reflections)"
    )
