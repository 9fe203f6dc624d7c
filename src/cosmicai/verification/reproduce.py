"""`cosmicai reproduce`: the published checkpoint on the 1,253 published galaxies, beside what was published of them."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .. import storage
from ..console.progress import progress
from ..errors import InputError, explained
from ..measurement.machine import machine
from ..measurement.report import Column, Report
from ..models.checkpoint_import import import_checkpoint
from ..models.published_files import FILES, PublishedFile, blob_id
from ..ranks.environment import rank_from_environment
from ..runs.create import begin
from ..runs.store import RunFolder
from ..runs.summary import summarize
from ..storage.s3 import is_s3
from ..surveys.survey import open_survey
from ..worker.loop import work

SOURCE = "UVA-MLSys/DS5110_Summer_2025: these galaxies on one machine, in batches of 1 to 128, with the same metrics"
COLUMNS = (
    Column("name", "metric"),
    Column("ours", "ours", ".8f"),
    Column("published", "published", ".8f"),
    Column("quoted", "as quoted", "s"),
    Column("difference", "difference", "+.1e"),
    Column("agrees", "agrees"),
)


@dataclass(frozen=True)
class Published:
    """A published metric: which of ours it is, its name, its value in full, and the decimals with which it is quoted.

    Ours agrees if it is less than half a unit of the last of these decimals from the full value.
    """

    key: str
    name: str
    value: float
    decimals: int

    def row(self, ours: float | None) -> dict[str, Any]:
        """Ours, None where the run has none, beside the published value."""
        difference = None if ours is None else ours - self.value
        return {
            "name": self.name,
            "ours": ours,
            "published": self.value,
            "quoted": f"{self.value:.{self.decimals}f}",
            "difference": difference,
            "agrees": difference is not None and abs(difference) < 0.5 * 10**-self.decimals,
        }


METRICS = (
    Published("r2", "R2", 0.9746744092553854, 6),
    Published("mae", "MAE", 0.01251969638102928, 5),
    Published("mse", "MSE", 0.0002972779993238396, 6),
    Published("bias", "bias", 0.0020244850317002864, 6),
    Published("precision", "precision", 0.011360399723052979, 5),
)


def reproduce(
    folder: str,
    out: str,
    tell: Callable[[str], None],
    files: tuple[PublishedFile, PublishedFile] = (FILES[0], FILES[1]),
    metrics: tuple[Published, ...] = METRICS,
) -> tuple[Report, bool]:
    """Runs checkpoint and galaxies of `folder` as `infer` does, in float32, and says whether all metrics agree.

    `out` gets the imported weights and the run, begun anew each time; what the run could not do is told. Raises
    InputError if a file is absent or not the published one, or `out` is on S3 or holds something else.
    """
    checkpoint, galaxies = published_files(folder, files)
    here = machine()
    survey = open_survey(str(galaxies))
    weights = storage.absolute(storage.join(out, "published.safetensors"))
    run = _emptied(out, weights)
    import_checkpoint(str(checkpoint)).save(weights)
    begin(survey, weights, run.uri, precision="float32", tell=tell)
    with progress(survey.galaxies) as advance:
        work(run, rank_from_environment(), advance)
    summary = summarize(run)
    for failure in summary["failures"]:
        tell(f"{failure['item']}: {failure['reason']}")
    found = summary["metrics"] or {"galaxies": 0}
    rows = [metric.row(found.get(metric.key)) for metric in metrics]
    agrees = found["galaxies"] == survey.galaxies and all(row["agrees"] for row in rows)
    facts = {"galaxies": found["galaxies"], "asked": survey.galaxies, "agrees": agrees, "run": run.uri}
    notes = {
        "galaxies": f"{found['galaxies']:,} of {survey.galaxies:,}",
        "measured on": "; ".join(summary["machines"]),
        "run": run.uri,
        "published": SOURCE,
    }
    return Report("Reproduction", COLUMNS, rows, here, facts | {"published": SOURCE}, notes), agrees


def published_files(folder: str, files: tuple[PublishedFile, PublishedFile]) -> tuple[Path, Path]:
    """Checkpoint and galaxies in this folder. Raises InputError if one is absent or not the published file."""
    checkpoint, galaxies = (Path(folder, file.name).absolute() for file in files)
    where, fetch = Path(folder).absolute(), f"`cosmicai weights fetch --out {folder}`"
    if missing := [path.name for path in (checkpoint, galaxies) if not path.exists()]:
        raise InputError(
            f"{checkpoint.name} and {galaxies.name} are needed and {' and '.join(missing)} "
            f"{'is' if len(missing) == 1 else 'are'} not in {where}; fetch both with {fetch}"
        )
    for path, file in zip((checkpoint, galaxies), files, strict=True):
        with explained(str(path), "read"):
            found = blob_id(path)
        if found != file.blob_id:
            raise InputError(
                f"{path} is not the published file: its git blob id is {found}, expected {file.blob_id}; "
                f"fetch that with {fetch}"
            )
    return checkpoint, galaxies


def _emptied(out: str, weights: str) -> RunFolder:
    """The run folder OUT/run, in which an earlier run with these weights is no more."""
    if is_s3(out):
        raise InputError(f"the published checkpoint is imported into {out}, which is on S3; choose a local --out")
    run = RunFolder(storage.absolute(storage.join(out, "run")))
    if run.has_plan():
        if run.plan().weights != weights:
            raise InputError(f"{run.uri} is another run, with the weights {run.plan().weights}; choose another --out")
        with explained(run.uri, "remove"):
            shutil.rmtree(run.uri)
    return run
