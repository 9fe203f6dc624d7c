"""Runs and their catalogues from Python."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from os import PathLike
from typing import TYPE_CHECKING, Any

from .. import storage
from ..errors import InputError
from ..ranks.environment import rank_from_environment
from ..runs.catalogue.reading import open_catalogue, open_catalogue_file, read_table
from ..runs.create import create_run
from ..runs.demo import open_named_survey
from ..runs.request import RunRequest
from ..runs.store import RunFolder
from ..runs.summary import Summary
from ..worker.complete import complete_run

if TYPE_CHECKING:
    from astropy.table import Table

Address = str | PathLike[str]

logger = logging.getLogger("cosmicai")


@dataclass(frozen=True)
class Run:
    """A run in its folder, at the address `uri`, and its summary (`summary.complete`, `.coverage`, `.metrics`, ...)."""

    uri: str
    summary: Summary

    def catalogue(self) -> Table:
        """Return the catalogue; see `read_catalogue`."""
        return read_catalogue(self.uri)


def infer(survey: Address, *, weights: Address, out: Address, **options: Any) -> Run:
    """Predict the redshift of every galaxy of a survey, as `cosmicai infer` does, and return the run.

    `survey` is a folder, an s3:// prefix, a .h5 or .pt file, or `demo`; `weights` a weights file or `demo`; `out` the
    run folder. Other options are fields of `cosmicai.runs.request.RunRequest`, such as `resume=True`. What is chosen
    or odd is logged to the logger `cosmicai`.

    Look at `summary.complete`: items that failed are counted there, and done again by another call with `resume=True`.
    Raises InputError as the command ends with status 2, and in one of several ranks, which need `cosmicai work`.
    """
    try:
        request = RunRequest(str(survey), str(out), str(weights), **options)
    except TypeError as error:
        raise InputError(f"cosmicai.infer: {str(error).rpartition('__init__() ')[2]}") from None
    rank = rank_from_environment()
    if rank.world_size > 1:
        raise InputError(
            f"this process is one of {rank.world_size} ranks, and cosmicai.infer does a run alone; "
            "let all of them call `cosmicai work RUN`"
        )
    run = create_run(request, open_named_survey(request.survey, request.out), notify=logger.warning)
    return Run(run.uri, complete_run(run, rank))


def open_run(folder: Address) -> Run:
    """Return the run in a folder, local or on S3. Raises InputError if it is no run folder, or has no summary yet."""
    run = RunFolder(storage.absolute(str(folder)))
    run.plan()
    summary = run.summary()
    if summary is None:
        raise InputError(f"{run.uri} has no summary yet; write it with `cosmicai summarize {run.uri}`")
    return Run(run.uri, summary)


def read_catalogue(source: Address) -> Table:
    """Return the catalogue of a run folder, or one in a Parquet file, as a table of astropy.

    It has units, descriptions, the provenance in `meta`, and missing integers masked; `.to_pandas()` makes a data frame
    of it. All of it is in memory. Raises InputError if there is none or it cannot be read.
    """
    uri = str(source)
    if uri.endswith(".parquet"):
        with open_catalogue_file(uri, "copy it again") as file:
            return read_table(file)
    with open_catalogue(RunFolder(storage.absolute(uri))) as file:
        return read_table(file)
