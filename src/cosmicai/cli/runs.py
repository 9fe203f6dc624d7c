"""infer, plan, work, summarize, catalogue, demo, selftest."""

from __future__ import annotations

from typing import Any

import click

from ..console import notify
from .options import run_options, schedule_option


@click.command()
@run_options
def infer(survey: str, **options: Any) -> int:
    """Predict the redshift of every galaxy in SURVEY: a folder, an s3:// prefix, a .h5 or .pt file, or `demo`.

    The tasks of a SLURM array that run this with --resume share the work; the last one makes the catalogue.
    """
    from ..ranks.environment import rank_from_environment
    from ..runs.create import begin
    from ..runs.demo import named_survey
    from ..worker.entry import run_rank

    rank = rank_from_environment()
    run = begin(named_survey(survey, options["out"]), **options, ranks=rank.world_size, tell=notify)
    return _finish(run, rank) if rank.world_size == 1 else run_rank(run, rank, "dynamic")


def _finish(run: Any, rank: Any) -> int:
    """Does what is missing of a run in this process, summarizes it, and returns the exit code."""
    from ..console.progress import progress
    from ..worker.loop import work as work_on

    plan = run.plan()
    done = plan.galaxies_of(run.parts())
    if done < plan.galaxies:
        with progress(plan.galaxies, done) as advance:
            work_on(run, rank, advance)
    # Only now, when the engine has given its memory back: tables and plots bring 50 MB of code.
    from ..runs.summary import summarize
    from ..runs.summary_text import conclude

    return conclude(summarize(run))


@click.command()
@run_options
@click.option(
    "--ranks", default=1, show_default=True, type=click.IntRange(1), help="For how many ranks to cut the work."
)
def plan(survey: str, ranks: int, **options: Any) -> int:
    """Write the plan of a run and do nothing of it yet; several `cosmicai work` can then share it."""
    from ..runs.create import begin
    from ..runs.demo import named_survey

    run = begin(named_survey(survey, options["out"]), **options, ranks=ranks, tell=notify)
    made = run.plan()
    click.echo(f"{made.galaxies} galaxies in {len(made.items)} items; do them with `cosmicai work {run.uri}`")
    return 0


@click.command()
@click.argument("run")
@schedule_option
def work(run: str, schedule: str) -> int:
    """Do one rank's part of the run folder RUN.

    Start it with mpirun, torchrun or srun, or as a SLURM array; `python -m launch` starts it too. Ranks that can talk
    to each other end with the catalogue.
    """
    from .. import storage
    from ..ranks.environment import rank_from_environment
    from ..runs.store import RunFolder
    from ..worker.entry import run_rank

    return run_rank(RunFolder(storage.absolute(run)), rank_from_environment(), schedule)


@click.command()
@click.argument("run")
def summarize(run: str) -> int:
    """Make catalogue, plot and summary of the run folder RUN from whatever is done."""
    from .. import storage
    from ..runs.store import RunFolder
    from ..runs.summary import summarize as summarize_run
    from ..runs.summary_text import conclude

    return conclude(summarize_run(RunFolder(storage.absolute(run))))


@click.command()
@click.argument("run")
@click.option("--to", "kind", required=True, type=click.Choice(["fits", "csv", "hdf5"]))
@click.option("--out", type=click.Path(), help="File to write; default RUN/catalogue.<kind>.")
def catalogue(run: str, kind: str, out: str | None) -> None:
    """Write the catalogue of the run folder RUN in another format."""
    from .. import storage
    from ..runs.catalogue import convert_catalogue
    from ..runs.store import RunFolder

    folder = RunFolder(storage.absolute(run))
    target = out or folder.path(f"catalogue.{kind}")
    rows = convert_catalogue(folder, kind, target)
    click.echo(f"{rows} galaxies in {target}")


@click.command()
@click.option("--out", default="demo", show_default=True, help="Folder for the synthetic survey and the run.")
@click.option("--galaxies", default=4096, show_default=True, type=click.IntRange(1))
def demo(out: str, galaxies: int) -> int:
    """Make synthetic galaxies and turn them into a catalogue of redshifts with the demo weights."""
    from ..ranks.environment import rank_from_environment
    from ..runs.demo import demo_run

    return _finish(demo_run(out, galaxies), rank_from_environment())


@click.command()
@click.option("--json", "as_json", is_flag=True, help="JSON on standard output, the table on standard error.")
def selftest(as_json: bool) -> int:
    """Turn synthetic galaxies into redshifts with every engine that can run here, and check them."""
    from ..measurement.report import show
    from ..verification.selftest import selftest as run_selftest

    report = run_selftest(notify)
    show(report, as_json, None)
    failed = [row["name"] for row in report.rows if not row["passed"]]
    if failed:
        click.echo(f"the redshifts of {', '.join(failed)} are wrong", err=True)
    return 3 if failed else 0


COMMANDS = (infer, plan, work, summarize, catalogue, demo, selftest)
