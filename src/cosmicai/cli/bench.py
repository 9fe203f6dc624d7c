"""bench engines, start, memory, end-to-end, ranks, slurm, container, lambda, fmi, analysis, sweep."""

from __future__ import annotations

import shlex
from collections.abc import Callable
from typing import Any

import click

from ..console import notify
from ..engines.registry import ENGINES
from .options import PRECISION_NAMES


def _output(command: Callable[..., Any]) -> Callable[..., Any]:
    for option in (
        click.option("--json", "as_json", is_flag=True, help="JSON on standard output, the table on standard error."),
        click.option("--out", type=click.Path(), help="File for the JSON."),
    ):
        command = option(command)
    return command


def _numbers(name: str, kind: type[int] | type[float], default: str) -> Callable[..., Any]:
    def parse(context: click.Context, option: click.Parameter, text: str) -> tuple[float, ...]:
        try:
            values = tuple(kind(part) for part in text.split(","))
        except ValueError:
            values = ()
        if not values or min(values) <= 0:
            raise click.BadParameter(f"{text!r} is not a list of numbers above 0, separated by commas")
        return values

    return click.option(name, default=default, show_default=True, callback=parse, metavar="NUMBER,...")


def _weights(command: Callable[..., Any]) -> Callable[..., Any]:
    return click.option(
        "--weights", default="demo", show_default=True, help="Weights file, or `demo` (a small network)."
    )(command)


def _repeats(default: int) -> Callable[..., Any]:
    return click.option("--repeats", default=default, show_default=True, type=click.IntRange(1))


def _engines(default: str) -> Callable[..., Any]:
    return click.option(
        "--engines", default=default, show_default=True, help="ENGINE or ENGINE:PRECISION, separated by commas."
    )


@click.group()
def bench() -> None:
    """Measure speed and memory on this machine."""


@bench.command()
@_weights
@click.option("--survey", "--partition", "survey", help="Galaxies to measure with; default synthetic ones.")
@click.option("--galaxies", "count", default=2048, show_default=True, type=click.IntRange(1))
@click.option("--batch-size", type=click.IntRange(1), help="Galaxies at once; default as a run's.")
@_repeats(5)
@_engines("reference,openvino,cuda")
@click.option("--device", type=click.Choice(["cpu", "cuda"]), help="Default both, where there is a GPU.")
@_output
def engines(as_json: bool, out: str | None, **options: Any) -> None:
    """Galaxies per second of every engine and precision, beside the published loop."""
    from ..bench.engines import bench_engines

    _show(bench_engines, as_json, out, options)


@bench.command()
@_weights
@_repeats(5)
@_engines("openvino:float32,openvino:bfloat16,reference")
@_output
def start(as_json: bool, out: str | None, **options: Any) -> None:
    """Seconds from the start of a process to its first redshifts."""
    from ..bench.start import bench_start
    from ..measurement.report import show

    _note_demo(options)
    show(bench_start(**options, tell=notify), as_json, out)


@bench.command()
@_weights
@_numbers("--partition-mb", float, "25,50,75,100")
@click.option("--survey-mb", default=1000.0, show_default=True, type=click.FloatRange(min=0, min_open=True))
@_engines("openvino:float32,openvino:bfloat16,reference")
@_output
def memory(as_json: bool, out: str | None, **options: Any) -> None:
    """Largest memory of a run on surveys of noise, by the size of their partitions in MB (2^20 bytes)."""
    from ..bench.memory import bench_memory

    _show(bench_memory, as_json, out, options)


@bench.command()
@_weights
@click.option("--galaxies", default=20000, show_default=True, type=click.IntRange(1))
@_repeats(3)
@_engines("openvino:float32,openvino:bfloat16")
@_output
def end_to_end(as_json: bool, out: str | None, **options: Any) -> None:
    """How much of the engine's speed a run keeps, from disk to catalogue."""
    from ..bench.end_to_end import bench_end_to_end

    _show(bench_end_to_end, as_json, out, options)


@bench.command()
@_weights
@click.option("--galaxies", default=16384, show_default=True, type=click.IntRange(1))
@_numbers("--ranks", int, "1,2,4,8")
@_repeats(3)
@_engines("openvino:float32")
@click.option(
    "--simulate",
    "simulated",
    metavar="FOLDER",
    help="Draw simulated service times from the combined_data.json files in it; default a fit to published ones.",
)
@_output
def ranks(as_json: bool, out: str | None, **options: Any) -> None:
    """Speed and memory by number of ranks of one thread; schedules of 1,000 and 10,000 ranks, simulated."""
    from ..bench.ranks import bench_ranks

    _show(bench_ranks, as_json, out, options)


@bench.command()
@_weights
@click.option("--galaxies", default=65536, show_default=True, type=click.IntRange(1))
@click.option("--tasks", default=64, show_default=True, type=click.IntRange(1))
@click.option("--cores", default=1, show_default=True, type=click.IntRange(1), help="Of each task.")
@_repeats(3)
@click.option(
    "--folder", default=".", show_default=True, type=click.Path(), help="Where survey and runs lie; nodes must see it."
)
@_output
def slurm(as_json: bool, out: str | None, **options: Any) -> None:
    """A SLURM array from sbatch to catalogue, beside one process on this machine.

    Account and partition are those of SBATCH_ACCOUNT and SBATCH_PARTITION.
    """
    from ..bench.slurm import bench_slurm

    _show(bench_slurm, as_json, out, options)


@bench.command()
@click.argument("image")
@_weights
@click.option("--galaxies", default=5113, show_default=True, type=click.IntRange(1), help="Default: those of 100 MB.")
@_repeats(5)
@click.option("--emulator", help="AWS Lambda's, a program aws-lambda-rie-...; for the image under it.")
@_output
def container(as_json: bool, out: str | None, **options: Any) -> None:
    """The file IMAGE of Apptainer beside plain Python: start, and a run."""
    from ..bench.container import bench_container

    _show(bench_container, as_json, out, options)


@bench.command("lambda")
@click.argument("folder")
@_weights
@click.option("--partition-mb", default=100.0, show_default=True, type=click.FloatRange(min=0, min_open=True))
@click.option("--memory", default=3538, show_default=True, type=click.IntRange(128), help="MB that are paid for.")
@_repeats(5)
@click.option("--emulator", required=True, help="AWS Lambda's, a program aws-lambda-rie-...")
@_output
def lambda_(as_json: bool, out: str | None, **options: Any) -> None:
    """The function of AWS Lambda under its emulator, cold and warm, over partitions in the S3 address FOLDER."""
    from ..bench.lambda_function import bench_lambda

    _show(bench_lambda, as_json, out, options)


@bench.command()
@_numbers("--ranks", int, "2,8,32")
@click.option("--joining", default=64, show_default=True, type=click.IntRange(2), help="Ranks that join at once.")
@_repeats(5)
@_output
def fmi(as_json: bool, out: str | None, **options: Any) -> None:
    """Ranks that meet at a rendezvous server, beside plain TCP and gloo, on this machine."""
    from ..bench.fmi import bench_fmi
    from ..measurement.report import show

    show(bench_fmi(**options, tell=notify), as_json, out)


@bench.command()
@click.option("--runs", default=10, show_default=True, type=click.IntRange(1))
@click.option("--ranks", default=10000, show_default=True, type=click.IntRange(1), help="Of each run.")
@_repeats(3)
@_output
def analysis(as_json: bool, out: str | None, **options: Any) -> None:
    """Speed and memory of `python -m analysis` over made-up runs of very many ranks."""
    from ..bench.analysis import bench_analysis
    from ..measurement.report import show

    show(bench_analysis(**options, tell=notify), as_json, out)


@bench.command()
@click.argument("survey")
@click.option(
    "--out", "folder", required=True, help="Folder for surveys, runs and sweep.json; an old one is gone on with."
)
@_weights
@_numbers("--batch-sizes", int, "1,2,4,8,16,32,64,128,256,512")
@_numbers("--world-sizes", int, "1,2,4")
@_numbers("--partition-mb", float, "10,25,50,75,100")
@_repeats(3)
@click.option("--engine", type=click.Choice(ENGINES), help="Default: the run's own choice.")
@click.option("--precision", type=click.Choice(PRECISION_NAMES), help="Default: the run's own choice.")
@click.option("--dry-run", is_flag=True, help="Print the commands that would be run, and run nothing.")
@click.option("--json", "as_json", is_flag=True, help="JSON on standard output, the table on standard error.")
def sweep(as_json: bool, dry_run: bool, **options: Any) -> int:
    """Run SURVEY by size of partition, batch size and number of ranks."""
    from ..bench.sweep import Sweep, bench_sweep
    from ..measurement.report import show
    from ..storage import join

    asked = Sweep(**options)
    if dry_run:
        for own in asked.missing():
            click.echo(f"python -m {shlex.join(asked.command(*own))}")
        return 0
    _note_demo(options)
    report, complete = bench_sweep(asked, notify)
    show(report, as_json, join(asked.folder, "sweep.json"))
    return 0 if complete else 3


def _show(measure: Callable[..., Any], as_json: bool, out: str | None, options: dict[str, Any]) -> None:
    from ..measurement.report import show

    _note_demo(options)
    show(measure(**options, tell=notify), as_json, out)


def _note_demo(options: dict[str, Any]) -> None:
    if options["weights"] == "demo":
        notify("the demo network is small; figures of the full size need AstroMAE's --weights")


COMMANDS = (bench,)
