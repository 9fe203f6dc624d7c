"""`cosmicai reproduce`: compare the published checkpoint on the 1,253 published galaxies with the published metrics."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec

from .. import storage
from ..console.progress import show_progress
from ..errors import InputError, describe_os_errors
from ..measurement.machine import describe_machine
from ..measurement.table import MeasurementColumn, MeasurementTable
from ..models.checkpoint_import import import_checkpoint
from ..models.download import PUBLISHED_FILES, PublishedFile, git_blob_id
from ..ranks.environment import rank_from_environment
from ..runs.create import create_run
from ..runs.request import RunRequest
from ..runs.store import RunFolder
from ..runs.summarize import summarize
from ..storage.outputs import require_output_folder
from ..storage.s3 import is_s3
from ..surveys.survey import open_survey
from ..worker import loop
from ..worker.sources import select_source

SOURCE = "UVA-MLSys/DS5110_Summer_2025: these galaxies on one machine, in batches of 1 to 128, with the same metrics"
COLUMNS = (
    MeasurementColumn("name", "metric"),
    MeasurementColumn("ours", "ours", ".8f"),
    MeasurementColumn("published", "published", ".8f"),
    MeasurementColumn("quoted", "as quoted", "s"),
    MeasurementColumn("difference", "difference", "+.1e"),
    MeasurementColumn("agrees", "agrees"),
)


@dataclass(frozen=True)
class PublishedMetric:
    """A published metric: its key in a summary, its name, its full value, and the decimals with which it is quoted.

    A metric of ours agrees if it differs from the full value by less than half a unit of the last quoted decimal.
    """

    key: str
    name: str
    value: float
    decimals: int

    def compare(self, ours: float | None) -> dict[str, Any]:
        """Return a row with our value, None if the run has none, and the published one."""
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
    PublishedMetric("r2", "R2", 0.9746744092553854, 6),
    PublishedMetric("mae", "MAE", 0.01251969638102928, 5),
    PublishedMetric("mse", "MSE", 0.0002972779993238396, 6),
    PublishedMetric("bias", "bias", 0.0020244850317002864, 6),
    PublishedMetric("precision", "precision", 0.011360399723052979, 5),
)


def reproduce(
    folder: str,
    out: str,
    notify: Callable[[str], None],
    files: tuple[PublishedFile, PublishedFile] = (PUBLISHED_FILES[0], PUBLISHED_FILES[1]),
    metrics: tuple[PublishedMetric, ...] = METRICS,
) -> tuple[MeasurementTable, bool]:
    """Run checkpoint and galaxies of `folder` as `infer` does, in float32; return a table and whether all agree.

    `out` receives the imported weights and the run, which starts from scratch each time. `notify` receives the failed
    items. Raises InputError if a file is missing or not the published one, or if `out` is on S3 or holds another run.
    """
    if not is_s3(out):
        require_output_folder(out)
    rank = rank_from_environment()
    checkpoint, galaxies = find_published_files(folder, files)
    here = describe_machine()
    survey = open_survey(str(galaxies))
    weights = storage.absolute(storage.join(out, "published.safetensors"))
    run = _prepare_run_folder(out, weights)
    import_checkpoint(str(checkpoint)).save(weights)
    create_run(RunRequest(survey.uri, run.uri, weights, precision="float32"), survey, notify=notify)
    with show_progress(survey.galaxies) as advance:
        loop.run(run, rank, select_source(run, rank), loop.WorkerOptions(advance))
    summary = summarize(run)
    for failure in summary.failures:
        notify(f"{failure.item}: {failure.reason}")
    found = msgspec.to_builtins(summary.metrics) or {"galaxies": 0}
    rows = [metric.compare(found.get(metric.key)) for metric in metrics]
    agrees = found["galaxies"] == survey.galaxies and all(row["agrees"] for row in rows)
    facts = {"galaxies": found["galaxies"], "asked": survey.galaxies, "agrees": agrees, "run": run.uri}
    notes = {
        "galaxies": f"{found['galaxies']:,} of {survey.galaxies:,}",
        "measured on": "; ".join(summary.machines),
        "run": run.uri,
        "published": SOURCE,
    }
    return MeasurementTable("Reproduction", COLUMNS, rows, here, facts | {"published": SOURCE}, notes), agrees


def find_published_files(folder: str, files: tuple[PublishedFile, PublishedFile]) -> tuple[Path, Path]:
    """Return the paths of checkpoint and galaxies. Raises InputError if one is missing or not the published file."""
    checkpoint, galaxies = (Path(folder, file.name).absolute() for file in files)
    where, fetch = Path(folder).absolute(), f"`cosmicai weights fetch --out {folder}`"
    if missing := [path.name for path in (checkpoint, galaxies) if not path.exists()]:
        raise InputError(
            f"{checkpoint.name} and {galaxies.name} are needed and {' and '.join(missing)} "
            f"{'is' if len(missing) == 1 else 'are'} not in {where}; fetch both with {fetch}"
        )
    for path, file in zip((checkpoint, galaxies), files, strict=True):
        with describe_os_errors(str(path), "read"):
            found = git_blob_id(path)
        if found != file.blob_id:
            raise InputError(
                f"{path} is not the published file: its git blob id is {found}, expected {file.blob_id}; "
                f"fetch that with {fetch}"
            )
    return checkpoint, galaxies


def _prepare_run_folder(out: str, weights: str) -> RunFolder:
    """Return the run folder OUT/run after removing an earlier run with these weights."""
    if is_s3(out):
        raise InputError(f"the published checkpoint is imported into {out}, which is on S3; choose a local --out")
    run = RunFolder(storage.absolute(storage.join(out, "run")))
    if run.has_plan():
        if run.plan().weights != weights:
            raise InputError(f"{run.uri} is another run, with the weights {run.plan().weights}; choose another --out")
        with describe_os_errors(run.uri, "remove"):
            shutil.rmtree(run.uri)
    return run
