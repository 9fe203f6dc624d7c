"""The commands `cosmicai bench ...`, which measure speed and memory."""

from __future__ import annotations

import shlex
from collections.abc import Callable
from typing import Any

import click

from ..console import echo, notify
from ..engines.registry import ENGINES
from .bench_options import engines_option, json_option, numbers_option, output_options, repeats_option, weights_option
from .options import PRECISION_NAMES, Amount


@click.group()
def bench() -> None:
    """Measure speed and memory on this machine."""


@bench.command()
@weights_option
@click.option("--survey", "--partition", "survey", help="Survey whose galaxies are used; default synthetic galaxies.")
@click.option(
    "--galaxies", "count", default=2048, show_default=True, type=click.IntRange(1), help="Number of galaxies."
)
@click.option("--batch-size", type=click.IntRange(1), help="Galaxies per batch; default as in a run.")
@repeats_option(5)
@engines_option("reference,openvino,cuda")
@click.option("--device", type=click.Choice(["cpu", "cuda"]), help="Device; default CPU and any visible GPU.")
@click.option(
    "--alternatives",
    default="",
    metavar="NAME,...",
    help="Measure what one would run instead, too, each at its best batch: `all`, or some of batch, eager, autocast, "
    "compile, folded, folded-compile, onnx, compiled. Takes minutes.",
)
@output_options
def engines(as_json: bool, out: str | None, **options: Any) -> None:
    """Measure galaxies per second of every engine and precision, compared with the published loop."""
    from ..bench.engines import bench_engines

    _measure(bench_engines, as_json, out, options)


@bench.command()
@weights_option
@click.option("--galaxies", default=65536, show_default=True, type=click.IntRange(1), help="Number of galaxies.")
@numbers_option("--inner-batches", int, "256,512,1024,2048,4096,8192,16384", "Sizes of the inner batches.")
@engines_option("cuda")
@output_options
def inner_batches(as_json: bool, out: str | None, **options: Any) -> None:
    """Measure speed, GPU memory and power of engines by the size of their inner batches."""
    from ..bench.inner_batches import bench_inner_batches

    _measure(bench_inner_batches, as_json, out, options)


@bench.command()
@weights_option
@click.option("--device", default="cuda", show_default=True, type=click.Choice(["cpu", "cuda"]), help="Device.")
@click.option(
    "--precision",
    default="bfloat16",
    show_default=True,
    type=click.Choice(["bfloat16", "tf32", "float32"]),
    help="Precision of the arithmetic.",
)
@click.option("--batch", default=1024, show_default=True, type=click.IntRange(1), help="Galaxies computed at once.")
@click.option("--top", default=30, show_default=True, type=click.IntRange(1), help="Number of kernels to list.")
@output_options
def kernels(as_json: bool, out: str | None, **options: Any) -> None:
    """Profile the network and list its kernels by time, with the arithmetic and memory rates it reaches."""
    from ..bench.kernels import bench_kernels
    from ..measurement.table import print_measurements

    _warn_about_demo(options)
    print_measurements(bench_kernels(**options), as_json, out)


@bench.command()
@weights_option
@click.option("--survey", help="Survey whose galaxies are used; default synthetic galaxies.")
@click.option(
    "--galaxies", "count", default=20000, show_default=True, type=click.IntRange(1), help="Number of galaxies."
)
@engines_option("openvino,cuda")
@output_options
def precisions(as_json: bool, out: str | None, **options: Any) -> None:
    """Measure how far engines and precisions move redshifts from float32 on the CPU."""
    from ..bench.precisions import bench_precisions

    _measure(bench_precisions, as_json, out, options)


@bench.command()
@weights_option
@repeats_option(5)
@engines_option("openvino:float32,openvino:bfloat16,reference")
@output_options
def start(as_json: bool, out: str | None, **options: Any) -> None:
    """Measure seconds from the start of a process to its first redshifts."""
    from ..bench.start import bench_start
    from ..measurement.table import print_measurements

    _warn_about_demo(options)
    print_measurements(bench_start(**options, notify=notify), as_json, out)


@bench.command()
@weights_option
@numbers_option("--partition-mb", float, "25,50,75,100", "Sizes of the partitions in MB.")
@click.option(
    "--survey-mb", default=1000.0, show_default=True, type=Amount(),
    help="Size of the survey in MB.",
)  # fmt: skip
@engines_option("openvino:float32,openvino:bfloat16,reference")
@output_options
def memory(as_json: bool, out: str | None, **options: Any) -> None:
    """Measure the peak memory of runs on surveys of noise, by size of their partitions in MB (2^20 bytes)."""
    from ..bench.memory import bench_memory

    _measure(bench_memory, as_json, out, options)


@bench.command()
@weights_option
@click.option("--galaxies", default=20000, show_default=True, type=click.IntRange(1), help="Number of galaxies.")
@repeats_option(3)
@engines_option("openvino:float32,openvino:bfloat16")
@click.option("--noise", is_flag=True, help="Noise instead of synthetic galaxies, which is generated faster.")
@click.option("--cached", is_flag=True, help="Keep the files in the file system's cache, instead of reading the disk.")
@output_options
def end_to_end(as_json: bool, out: str | None, **options: Any) -> None:
    """Measure which fraction of the engine's speed a run achieves, from disk to catalogue."""
    from ..bench.end_to_end import bench_end_to_end

    _measure(bench_end_to_end, as_json, out, options)


@bench.command()
@weights_option
@click.option("--galaxies", default=16384, show_default=True, type=click.IntRange(1), help="Number of galaxies.")
@numbers_option("--ranks", int, "1,2,4,8", "Numbers of ranks.")
@repeats_option(3)
@engines_option("openvino:float32")
@click.option(
    "--simulate",
    "simulated",
    metavar="FOLDER",
    help="Draw simulated service times from the combined_data.json files in FOLDER; default a fit to published ones.",
)
@output_options
def ranks(as_json: bool, out: str | None, **options: Any) -> None:
    """Measure speed and memory by number of single-threaded ranks; simulate schedules of 1,000 and 10,000 ranks."""
    from ..bench.ranks import bench_ranks

    _measure(bench_ranks, as_json, out, options)


@bench.command()
@weights_option
@click.option("--galaxies", default=65536, show_default=True, type=click.IntRange(1), help="Number of galaxies.")
@click.option("--tasks", default=64, show_default=True, type=click.IntRange(1), help="Number of tasks of the array.")
@click.option("--cores", default=1, show_default=True, type=click.IntRange(1), help="Cores per task.")
@repeats_option(3)
@click.option(
    "--folder",
    default=".",
    show_default=True,
    type=click.Path(),
    help="Folder for survey and runs, visible to the nodes.",
)
@output_options
def slurm(as_json: bool, out: str | None, **options: Any) -> None:
    """Measure a SLURM array from sbatch to catalogue, compared with one process on this machine.

    SBATCH_ACCOUNT and SBATCH_PARTITION set the SLURM account and partition.
    """
    from ..bench.slurm import bench_slurm

    _measure(bench_slurm, as_json, out, options)


@bench.command()
@click.argument("image")
@weights_option
@click.option("--galaxies", default=5113, show_default=True, type=click.IntRange(1), help="Default: 100 MB of them.")
@repeats_option(5)
@click.option(
    "--emulator",
    help="Emulator of AWS Lambda (aws-lambda-rie-...), to measure the image as a function, too.",
)
@output_options
def container(as_json: bool, out: str | None, **options: Any) -> None:
    """Measure start and run in the Apptainer image file IMAGE, compared with plain Python."""
    from ..bench.container import bench_container

    _measure(bench_container, as_json, out, options)


@bench.command("lambda")
@click.argument("folder")
@weights_option
@click.option(
    "--partition-mb", default=100.0, show_default=True, type=Amount(),
    help="Size of the partition in MB.",
)  # fmt: skip
@click.option(
    "--memory", default=3538, show_default=True, type=click.IntRange(128), help="MB of memory that are billed."
)
@repeats_option(5)
@click.option("--emulator", required=True, help="Emulator of AWS Lambda (aws-lambda-rie-...).")
@output_options
def lambda_(as_json: bool, out: str | None, **options: Any) -> None:
    """Measure the AWS Lambda function in its emulator, cold and warm, on partitions in the S3 prefix FOLDER."""
    from ..bench.lambda_function import bench_lambda

    _measure(bench_lambda, as_json, out, options)


@bench.command()
@numbers_option("--ranks", int, "2,8,32", "Numbers of ranks.")
@click.option(
    "--joining",
    default=64,
    show_default=True,
    type=click.IntRange(2),
    help="Ranks that join at once.",
)
@repeats_option(5)
@output_options
def fmi(as_json: bool, out: str | None, **options: Any) -> None:
    """Measure communication of ranks through a rendezvous server on this machine, compared with plain TCP and gloo."""
    from ..bench.fmi import bench_fmi
    from ..measurement.table import print_measurements

    print_measurements(bench_fmi(**options, notify=notify), as_json, out)


@bench.command()
@click.option("--runs", default=10, show_default=True, type=click.IntRange(1), help="Number of runs.")
@click.option("--ranks", default=10000, show_default=True, type=click.IntRange(1), help="Ranks per run.")
@repeats_option(3)
@output_options
def analysis(as_json: bool, out: str | None, **options: Any) -> None:
    """Measure speed and memory of `python -m analysis` on generated runs with many ranks."""
    from ..bench.analysis import bench_analysis
    from ..measurement.table import print_measurements

    print_measurements(bench_analysis(**options, notify=notify), as_json, out)


@bench.command()
@click.option("--galaxies", default=2000, show_default=True, type=click.IntRange(1), help="Number of galaxies.")
@repeats_option(5)
@output_options
def ingest(as_json: bool, out: str | None, **options: Any) -> None:
    """Measure speed and memory of `cosmicai ingest` by format, compared with plain astropy, numpy and h5py.

    The files are in the file system's cache: what is measured is the reading, not the disk.
    """
    from ..bench.ingest import bench_ingest
    from ..measurement.table import print_measurements

    print_measurements(bench_ingest(**options, notify=notify), as_json, out)


@bench.command()
@click.option("--seeds", default=10, show_default=True, type=click.IntRange(1), help="Of 2048 synthetic galaxies each.")
@output_options
def survey_check(as_json: bool, out: str | None, **options: Any) -> None:
    """Measure how many surveys with wrong bands or units `cosmicai survey check` recognises, and its false alarms."""
    from ..bench.survey_check import bench_survey_check
    from ..measurement.table import print_measurements

    print_measurements(bench_survey_check(**options, notify=notify), as_json, out)


@bench.command()
@click.argument("survey")
@click.option(
    "--out",
    "folder",
    required=True,
    help="Folder for surveys, runs and sweep.json; a sweep that is there is continued.",
)
@weights_option
@numbers_option("--batch-sizes", int, "1,2,4,8,16,32,64,128,256,512", "Batch sizes.")
@numbers_option("--world-sizes", int, "1,2,4", "Numbers of ranks.")
@numbers_option("--partition-mb", float, "10,25,50,75,100", "Sizes of the partitions in MB.")
@repeats_option(3)
@click.option("--engine", type=click.Choice(ENGINES), help="Inference engine; default as in a run.")
@click.option(
    "--precision", type=click.Choice(PRECISION_NAMES), help="Precision of the arithmetic; default as in a run."
)
@click.option("--dry-run", is_flag=True, help="Print the commands of the missing runs without running them.")
@json_option
def sweep(as_json: bool, dry_run: bool, **options: Any) -> int:
    """Run SURVEY for all combinations of partition size, batch size and number of ranks."""
    from ..bench.sweep import Sweep, bench_sweep
    from ..measurement.table import print_measurements
    from ..storage import join

    planned = Sweep(**options)
    if dry_run:
        for setting in planned.missing():
            echo(f"python -m {shlex.join(planned.command(*setting))}")
        return 0
    _warn_about_demo(options)
    measurements, complete = bench_sweep(planned, notify)
    print_measurements(measurements, as_json, join(planned.folder, "sweep.json"))
    return 0 if complete else 3


def _measure(measure: Callable[..., Any], as_json: bool, out: str | None, options: dict[str, Any]) -> None:
    from ..measurement.table import print_measurements

    _warn_about_demo(options)
    print_measurements(measure(**options, notify=notify), as_json, out)


def _warn_about_demo(options: dict[str, Any]) -> None:
    if options["weights"] == "demo":
        notify("the demo network is small; for figures of the full network pass its --weights")


COMMANDS = (bench,)
