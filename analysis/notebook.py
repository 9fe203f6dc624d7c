"""What the notebooks begin with: where the runs are, and tables and figures shown inline."""

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
from .figures import Drawing, draw
from .figures.style import to_png
from .formatting import texts
from .report import gather
from .sections import Evidence
from .studies import STUDIES, study_table

RUNS, PUBLISHED = "COSMICAI_RUNS", "COSMICAI_PUBLISHED"
DEFAULTS = ("demo/run", "sweep")  # what `make report` leaves in the project's folder
SOURCE = "https://github.com/UVA-MLSys/AI-for-Astronomy"
ROOT = Path(__file__).resolve().parents[1]  # the package may be found by a link


def runs() -> list[str]:
    """The addresses in COSMICAI_RUNS, separated as paths are in PATH or by spaces; without it those of DEFAULTS that
    are in the project's folder. Raises InputError if there is none."""
    between = rf"\s+|{re.escape(os.pathsep)}(?!//)"  # that of s3:// separates nothing
    if given := [part for part in re.split(between, os.environ.get(RUNS, "")) if part]:
        return given
    if there := [str(ROOT / name) for name in DEFAULTS if (ROOT / name).exists()]:
        return there
    raise InputError(f"there are no runs to show; set {RUNS} to run folders, or make some with `make report`")


def published() -> str:
    """The folder in COSMICAI_PUBLISHED. Raises InputError if that is not set, or the folder is not there."""
    folder = os.environ.get(PUBLISHED)
    if not folder or not storage.is_folder(folder):
        told = f"{folder} is no folder" if folder else f"{PUBLISHED} is not set"
        raise InputError(f"{told}; set {PUBLISHED} to a folder with the published results, such as a clone of {SOURCE}")
    return folder


def addresses() -> list[str]:
    """`runs` and, if COSMICAI_PUBLISHED is set, beside them the `published` results. Raises InputError as both do."""
    return [*runs(), published()] if os.environ.get(PUBLISHED) else runs()


def measured() -> Evidence:
    """What is at `addresses`, or without published results there, the few published figures that come along."""
    return gather(collect(addresses()))


@dataclass(frozen=True)
class Inline:
    """A drawing as a notebook shows it: the picture, and for who cannot see it title and caption."""

    drawing: Drawing

    def _repr_mimebundle_(self, **_: Any) -> dict[str, str]:
        picture = base64.b64encode(to_png(self.drawing)).decode()
        return {"image/png": picture, "text/plain": f"{self.drawing.title}\n{self.drawing.caption}"}


def points(name: str, evidence: Evidence) -> pd.DataFrame:
    """What the figure of the study with this name (see `studies.STUDIES`) shows."""
    return study_table(_STUDIES[name], evidence.collection.runs, evidence.audit.verdicts)


def study(name: str, evidence: Evidence) -> Inline:
    """The figure of the study with this name."""
    return Inline(draw(_STUDIES[name], points(name, evidence)))


def tabulate(table: pd.DataFrame) -> Any:
    """The table in full, numbers as people read them, without columns that are empty throughout."""
    return texts(table.dropna(axis="columns", how="all")).style.hide(axis="index")


_STUDIES = {one.name: one for one in STUDIES}
