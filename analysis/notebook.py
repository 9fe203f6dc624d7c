"""Helpers of the notebooks: find the runs, and show tables and figures inline."""

from __future__ import annotations

import base64
import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from cosmicai import storage
from cosmicai.errors import InputError

from .collect import collect
from .evidence import Evidence
from .figures import Drawing, draw_study
from .figures.style import to_png
from .formatting import format_table
from .report import gather_evidence
from .studies import STUDIES, build_study_table

RUNS, PUBLISHED = "COSMICAI_RUNS", "COSMICAI_PUBLISHED"
DEFAULTS = ("demo/run", "sweep")  # written to the project's folder by `make report`
SOURCE = "https://github.com/UVA-MLSys/AI-for-Astronomy"
ROOT = Path(__file__).resolve().parents[1]  # the package may be imported through a link


def find_runs() -> list[str]:
    """Return the addresses in COSMICAI_RUNS, separated as paths in PATH or by spaces.

    Without it, return those of DEFAULTS that exist in the project's folder. Raises InputError if there are none.
    """
    separator = rf"\s+|{re.escape(os.pathsep)}(?!//)"  # the colon of s3:// is not a separator
    if given := [part for part in re.split(separator, os.environ.get(RUNS, "")) if part]:
        return given
    if existing := [str(ROOT / name) for name in DEFAULTS if (ROOT / name).exists()]:
        return existing
    raise InputError(f"there are no runs to show; set {RUNS} to run folders, or make some with `make report`")


def find_published() -> str:
    """Return the folder in COSMICAI_PUBLISHED. Raises InputError if it is not set, or the folder does not exist."""
    folder = os.environ.get(PUBLISHED)
    if not folder or not storage.is_folder(folder):
        problem = f"{folder} is not a folder" if folder else f"{PUBLISHED} is not set"
        raise InputError(
            f"{problem}; set {PUBLISHED} to a folder with the published results, such as a clone of {SOURCE}"
        )
    return folder


def find_addresses() -> list[str]:
    """Return `find_runs` and, if COSMICAI_PUBLISHED is set, `find_published`. Raises InputError as these do."""
    return [*find_runs(), find_published()] if os.environ.get(PUBLISHED) else find_runs()


def load_evidence() -> Evidence:
    """Return the runs at `find_addresses`, with the published values of this package if they hold no published runs."""
    return gather_evidence(collect(find_addresses()))


@dataclass(frozen=True)
class InlineFigure:
    """A drawing for a notebook: the picture, and title and caption as its text alternative."""

    drawing: Drawing

    def _repr_mimebundle_(self, **_: Any) -> dict[str, str]:
        picture = base64.b64encode(to_png(self.drawing)).decode()
        return {"image/png": picture, "text/plain": f"{self.drawing.title}\n{self.drawing.caption}"}


def tabulate_study(name: str, evidence: Evidence) -> pd.DataFrame:
    """Return the points of the study with this name (see `studies.STUDIES`)."""
    return build_study_table(_STUDIES[name], evidence.collection.runs, evidence.audit.verdicts)


def show_study(name: str, evidence: Evidence) -> InlineFigure:
    """Return the figure of the study with this name."""
    return InlineFigure(draw_study(_STUDIES[name], tabulate_study(name, evidence)))


def show_table(table: pd.DataFrame) -> Any:
    """Return the full table with formatted numbers, without empty columns."""
    return format_table(table.dropna(axis="columns", how="all")).style.hide(axis="index")


_STUDIES = {one.name: one for one in STUDIES}
