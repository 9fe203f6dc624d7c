"""Commands that make and read runs: infer, plan, work, summarize, catalogue, demo, selftest."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from ..console import echo, notify
from ..ranks.environment import MAX_RANKS
from .options import require_weights, run_options, schedule_option

CATALOGUE_FORMATS = ("parquet", "fits", "hdf5", "votable", "ecsv", "csv", "qp", "hats")

# Commands import what they need when they run, so that `cosmicai --help` and each command start without the others'
# libraries (numpy, torch, OpenVINO, pyarrow).
if TYPE_CHECKING:
    from ..ranks.environment import Rank
    from ..runs.store import RunFolder


@click.command()
@run_options
def infer(survey: str, weights: str | None, **options: Any) -> int:
    """Predict the redshift of every galaxy in SURVEY: a folder, an s3:// prefix, a .h5 or .pt file, or `demo`.

    The tasks of a SLURM array that run this with --resume share the work; the last one writes the catalogue.
    """
    from ..runs.create import create_run
    from ..runs.demo import open_named_survey
    from ..runs.request import RunRequest
    from ..worker.rank_process import run_rank

    weights = require_weights(survey, weights)
    rank = _own_rank()
    request = RunRequest(survey, weights=weights, **options)
    run = create_run(request, open_named_survey(survey, request.out), ranks=rank.world_size, notify=notify)
    return _finish(run, rank) if rank.world_size == 1 else run_rank(run, rank, "dynamic")


def _own_rank() -> Rank:
    """Return the rank of this process, known before anything is written."""
    from ..ranks.environment import describe_ignored, rank_from_environment

    rank = rank_from_environment()
    for notice in describe_ignored(rank):
        notify(notice)
    return rank


def _finish(run: RunFolder, rank: Rank) -> int:
    """Do in this process what is missing of a run, summarize it, and return the exit code."""
    from ..console.progress import show_progress
    from ..worker.complete import complete_run

    summary = complete_run(run, rank, show_progress)
    from ..runs.summary_text import print_summary

    run.remove_leftovers()
    return print_summary(summary)


@click.command()
@run_options
@click.option(
    "--ranks",
    default=1,
    show_default=True,
    type=click.IntRange(1, MAX_RANKS),
    help="Number of ranks to split the work for.",
)
def plan(survey: str, weights: str | None, ranks: int, **options: Any) -> int:
    """Write the plan of a run without predicting anything; several `cosmicai work` can then share the work."""
    from ..runs.create import create_run
    from ..runs.demo import open_named_survey
    from ..runs.request import RunRequest

    request = RunRequest(survey, weights=require_weights(survey, weights), **options)
    run = create_run(request, open_named_survey(survey, request.out), ranks=ranks, notify=notify)
    written = run.plan()
    echo(f"{written.galaxies} galaxies in {len(written.items)} items; do them with `cosmicai work {run.uri}`")
    return 0


@click.command()
@click.argument("run")
@schedule_option
def work(run: str, schedule: str) -> int:
    """Do the share of one rank of the run in the folder RUN.

    Start it with mpirun, torchrun or srun, or as a SLURM array; `python -m launch` starts it too. Ranks that can
    communicate write the catalogue at the end.
    """
    from .. import storage
    from ..runs.store import RunFolder
    from ..worker.rank_process import run_rank

    return run_rank(RunFolder(storage.absolute(run)), _own_rank(), schedule)


@click.command()
@click.argument("run")
def summarize(run: str) -> int:
    """Write catalogue, plot and summary of the run in the folder RUN from what is completed."""
    from .. import storage
    from ..runs.store import RunFolder
    from ..runs.summarize import summarize as summarize_run
    from ..runs.summary_text import print_summary

    folder = RunFolder(storage.absolute(run))
    summary = summarize_run(folder)
    folder.remove_leftovers()
    return print_summary(summary)


@click.command()
@click.argument("run")
@click.option("--to", "kind", required=True, type=click.Choice(CATALOGUE_FORMATS), help="Format.")
@click.option("--out", type=click.Path(), help="File or, for hats, folder to write; default RUN/catalogue.<format>.")
def catalogue(run: str, kind: str, out: str | None) -> None:
    """Write the catalogue of the run in the folder RUN in another format."""
    from .. import storage
    from ..runs.catalogue.convert import LEFT_OUT, convert_catalogue, default_name
    from ..runs.catalogue.reading import count_rows
    from ..runs.store import RunFolder

    folder = RunFolder(storage.absolute(run))
    if folder.has_plan():
        folder.plan()  # raises InputError if it is damaged: the catalogue of such a run is not to be trusted
    target = out or folder.path(default_name(kind))
    rows = convert_catalogue(folder, kind, target)
    rest = f"; {count_rows(folder) - rows} without {LEFT_OUT[kind]} are left out" if kind in LEFT_OUT else ""
    echo(f"{rows} galaxies in {target}{rest}")


@click.command()
@click.option("--out", default="demo", show_default=True, help="Folder for the synthetic survey and the run.")
@click.option("--galaxies", default=4096, show_default=True, type=click.IntRange(1), help="Number of galaxies.")
def demo(out: str, galaxies: int) -> int:
    """Predict the redshifts of synthetic galaxies with the demo weights and write their catalogue."""
    from ..runs.demo import create_demo_run, describe_next_steps

    rank = _own_rank()
    code = _finish(create_demo_run(out, galaxies), rank)
    if code == 0:
        for line in describe_next_steps(out):
            echo(line)
    return code


@click.command()
@click.option("--json", "as_json", is_flag=True, help="Print JSON on standard output and the table on standard error.")
def selftest(as_json: bool) -> int:
    """Predict the redshifts of synthetic galaxies with every engine that can run here, and check them."""
    from ..measurement.table import print_measurements
    from ..verification.selftest import selftest as run_selftest

    report = run_selftest(notify)
    print_measurements(report, as_json, None)
    failed = [row["name"] for row in report.rows if not row["passed"]]
    if failed:
        echo(f"the redshifts of {', '.join(failed)} are wrong", err=True)
    return 3 if failed else 0


COMMANDS = (infer, plan, work, summarize, catalogue, demo, selftest)
