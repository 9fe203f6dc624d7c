"""The commands `ingest`, `split`, `synthetic`, `survey info`, `survey check` and `survey verify`."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import TYPE_CHECKING, Any

import click

from ..console import echo, notify
from ..errors import InputError
from ..storage.s3 import is_s3
from .options import Amount

if TYPE_CHECKING:
    from ..surveys.ingest.ingest import IngestRequest
    from ..surveys.survey import Survey

_PARTITION_MB = click.option(
    "--partition-mb", default=25.0, show_default=True, type=Amount(),
    help="Size of a shard in MB (2^20 bytes), counted as in the published data.",
)  # fmt: skip
_LARGEST_SHIFT = 5.0  # magnitudes
_MANY = 1000  # files of one galaxy from which on the progress is shown
_OUT = click.option("--out", required=True, help="New folder to write the survey to.")


@click.command()
@click.argument("sources", nargs=-1, required=True)
@_OUT
@_PARTITION_MB
@click.option("--catalogue", metavar="TABLE", help="FITS, CSV, ECSV, Parquet or VOTable with a row for each galaxy.")
@click.option("--id", "objid", metavar="COLUMN", help="Column of ids, by which cutouts are found.")
@click.option(
    "--magnitudes",
    metavar="COLUMNS",
    help="Five columns, as U,G,R,I,Z or as modelMag_{band}, or one with all five.",
)
@click.option("--redshift", metavar="COLUMN", help="Column of spectroscopic redshifts.")
@click.option("--ra", metavar="COLUMN", help="Column of right ascension, in degrees (ICRS).")
@click.option("--dec", metavar="COLUMN", help="Column of declination, in degrees (ICRS).")
@click.option("--file", metavar="COLUMN", help="Column of the catalogue with the name of each galaxy's cutout.")
@click.option("--table", metavar="NAME", help="Name or number of the table, in a catalogue's file of several.")
@click.option("--keep", metavar="COLUMNS", help="Columns to carry into the survey, as A,B,C; or `all`.")
@click.option("--per-band", metavar="PATTERN", help="Names of files that hold one band each, as '{id}_{band}.fits'.")
@click.option(
    "--field",
    "fields",
    multiple=True,
    metavar="FIELD=NAME",
    help="Name of image, magnitude, redshift, objid, ra or dec in the sources.",
)
@click.option(
    "--hdu",
    "hdus",
    multiple=True,
    metavar="NAME",
    help="Name or number of the HDU of the image or the table in FITS files.",
)
@click.option(
    "--mask",
    metavar="NAME[=zero|=nonzero]",
    help="Array with one value per pixel, for each band or for all, whose bad pixels become NaN, and which are bad.",
)
@click.option(
    "--magnitude-bands",
    metavar="BANDS",
    help="Order of the bands in a vector of magnitudes, where it is not u g r i z, or a file states one for its image.",
)
@click.option("--accept-pixel-scale", is_flag=True, help="Use pixels of another size than 0.396 arcsec as they are.")
@click.option("--resample", is_flag=True, help="Resample pixels of another size to 0.396 arcsec, conserving flux.")
@click.option("--allow-external", is_flag=True, help="Read HDF5 data that lie in other files.")
@click.option("--strict", is_flag=True, help="Write nothing if the survey does not look right (`survey check`).")
@click.option(
    "--processes", type=click.IntRange(1), help="Processes that read files of one galaxy each.  [default: the cores]"
)
def ingest(
    sources: tuple[str, ...], out: str, partition_mb: float, strict: bool, processes: int | None, **options: Any
) -> None:
    """Ingest galaxies into a survey; larger cutouts are cropped to their central 32x32.

    SOURCES are .npz, .npy, HDF5, FITS, Parquet or .pt files, folders of them, quoted patterns, or s3://. They hold many
    galaxies each; or they are FITS or .npy files of one cutout each, whose names have the ids of a catalogue. If such
    an ingest is stopped, the same command goes on where it was.
    """
    from ..ranks.cores import available_cores
    from ..surveys.check import inspect_survey
    from ..surveys.ingest.ingest import ingest as ingest_request
    from ..surveys.survey import galaxies_per_partition
    from ..surveys.upload import output_folder

    request = _ingest_request(sources, options)
    with output_folder(out) as folder:
        report = ingest_request(
            request, folder, galaxies_per_partition(partition_mb), processes or available_cores(), _files_progress
        )
        for notice in report.notices:
            notify(notice)
        try:
            inspect_survey(report.survey, strict, notify)
        except InputError:
            shutil.rmtree(report.survey.uri)
            raise
    survey = report.survey
    echo(f"{survey.galaxies} galaxies in {_count_shards(survey)} in {out if is_s3(out) else survey.uri}")


def _ingest_request(sources: tuple[str, ...], options: dict[str, Any]) -> IngestRequest:
    """Return the request that the options of `ingest` make up. Raises InputError if they contradict one another."""
    from ..surveys.ingest.ingest import IngestRequest
    from ..surveys.ingest.names import ALIASES, OPTIONS
    from ..surveys.ingest.source import IngestOptions

    fields = [field.partition("=")[::2] for field in options.pop("fields")]
    names = dict(fields)
    if twice := next((name for name in names if [field for field, _ in fields].count(name) > 1), None):
        raise InputError(f"--field {twice}= is given twice; give it once")
    if not all(names.get(name) for name in names) or not names.keys() <= ALIASES.keys():
        raise InputError(f"--field expects FIELD=NAME with FIELD one of {', '.join(ALIASES)}")
    for name, option in OPTIONS.items():
        given = options.pop("magnitudes" if name == "magnitude" else name)
        if given is not None and name in names:
            raise InputError(f"{option} {given} and --field {name}={names[name]} name the same field; give one of them")
        names |= {name: given} if given is not None else {}
    given = options.pop("keep")
    keep = tuple(name.strip() for name in (given or "").split(","))
    if given is not None and (not all(keep) or ("all" in keep and len(keep) > 1)):
        raise InputError(f"--keep expects names of columns as A,B,C, or all alone; got {given!r}")
    if options["resample"] and options["accept_pixel_scale"]:
        raise InputError("--resample and --accept-pixel-scale contradict each other; give one of them")
    where = {name: options.pop(name) for name in ("catalogue", "file", "table", "per_band")}
    return IngestRequest(sources, IngestOptions(names, keep=keep if given else (), **options), **where)


def _files_progress(total: int) -> AbstractContextManager[Callable[[int], None]]:
    """Show the progress of an ingest that reads many files."""
    from ..console.progress import show_progress

    return show_progress(total, unit="galaxies") if total >= _MANY else nullcontext(_ignore)


def _ignore(_: int) -> None:
    """Show nothing."""


@click.command()
@click.argument("survey")
@_OUT
@_PARTITION_MB
def split(survey: str, out: str, partition_mb: float) -> None:
    """Split SURVEY again into shards of one size."""
    from ..surveys.survey import galaxies_per_partition, open_survey, resplit_survey

    written = resplit_survey(open_survey(survey), out, galaxies_per_partition(partition_mb))
    for notice in written.notices:
        notify(notice)
    echo(f"{written.galaxies} galaxies in {_count_shards(written)} in {written.uri}")


def _read_colour_shift(_: click.Context, parameter: click.Parameter, text: str) -> tuple[float, ...]:
    """Return the five magnitudes of a list with commas. Raises BadParameter of click if it is none."""
    try:
        shift = tuple(float(part) for part in text.split(","))
    except ValueError:
        shift = ()
    if len(shift) != 5 or not all(abs(value) <= _LARGEST_SHIFT for value in shift):
        expected = f"five magnitudes from -{_LARGEST_SHIFT:g} to {_LARGEST_SHIFT:g}, as in 0.1,0,0,0,-0.05"
        raise click.BadParameter(f"{text!r} is not the shift of u,g,r,i,z; give {expected}.", param=parameter)
    return shift


@click.command()
@click.option("--galaxies", default=4096, show_default=True, type=click.IntRange(1), help="Number of galaxies.")
@click.option("--seed", default=0, show_default=True, type=click.IntRange(0), help="Seed of the random numbers.")
@click.option("--noise", default=1.0, show_default=True, type=Amount(), help="Noise of the sky, relative to that of SDSS.")  # fmt: skip  # noqa: E501
@click.option("--colour-shift", default="0,0,0,0,0", show_default=True, callback=_read_colour_shift, help="Magnitudes that are added in u,g,r,i,z, of images and magnitudes alike.")  # fmt: skip  # noqa: E501
@_OUT
@_PARTITION_MB
def synthetic(
    galaxies: int, seed: int, noise: float, colour_shift: tuple[float, ...], out: str, partition_mb: float
) -> None:
    """Write a survey of synthetic galaxies."""
    from ..surveys.survey import galaxies_per_partition
    from ..surveys.synthetic import Photometry, write_synthetic_survey

    photometry = Photometry(noise, colour_shift)
    survey = write_synthetic_survey(out, galaxies, seed, galaxies_per_partition(partition_mb), photometry)
    echo(f"{survey.galaxies} synthetic galaxies in {_count_shards(survey)} in {survey.uri}")


@click.group()
def survey() -> None:
    """Inspect and verify surveys."""


@survey.command()
@click.argument("folder")
def info(folder: str) -> None:
    """Show what the survey FOLDER holds."""
    from ..surveys.survey import inspect_ids, open_survey

    opened = open_survey(folder)
    sizes = [shard.galaxies for shard in opened.shards]
    echo(f"survey     {opened.uri}")
    echo(f"galaxies   {opened.galaxies}")
    each = f"{sizes[0]}" if len(set(sizes)) == 1 else f"{min(sizes)} to {max(sizes)}"
    echo(f"shards     {len(sizes)} of {each} galaxies")
    echo(f"size       {opened.bytes / 2**20:,.1f} MB")
    with opened.open(opened.shards[0]) as shard:
        echo(f"fields     {', '.join(f'{name} {field.dtype}' for name, field in shard.fields.items())}")
    echo(f"ids        {inspect_ids(opened).describe()}")
    with_checksum = sum(bool(shard.sha256) for shard in opened.shards)
    echo(f"checksums  {with_checksum} of {len(sizes)} shards")


@survey.command()
@click.argument("folder")
@click.option("--weights", help="Weights that shall predict it: refused if they cannot be used.")
@click.option("--strict", is_flag=True, help="Exit with code 2 if the survey does not look right.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON on standard output and the table on standard error.")
def check(folder: str, weights: str | None, strict: bool, as_json: bool) -> None:
    """Compare pixels and magnitudes of a sample of the survey FOLDER: bands, units, colours of galaxies.

    The same check is made by `cosmicai ingest`, `cosmicai infer` and `python -m launch run`. It reads up to 2,048
    galaxies that are spread over the survey.
    """
    import msgspec

    from ..console import notify
    from ..surveys.check import check_survey
    from ..surveys.check_record import describe_table, require_consistent, warnings
    from ..surveys.survey import open_survey

    if weights:
        from ..models.weights import check_architecture, find_weights

        check_architecture(find_weights(weights).load())
    opened = open_survey(folder)
    found = check_survey(opened)
    if as_json:
        click.echo(json.dumps(msgspec.to_builtins(found), indent=1))  # in ASCII, which no terminal obeys
    for line in describe_table(found, opened):
        echo(line, err=as_json)
    if strict:
        require_consistent(found, opened.uri)
    for line in (*opened.notices, *warnings(found, opened.uri)):
        notify(line)


@survey.command()
@click.argument("folder")
def verify(folder: str) -> None:
    """Verify the checksum of every shard of the survey FOLDER."""
    from ..surveys.survey import open_survey, verify_survey

    opened = open_survey(folder)
    problems = [(shard.name, problem) for shard, problem in verify_survey(opened) if problem]
    for name, problem in problems:
        echo(f"{name}: {problem}", err=True)
    if problems:
        raise InputError(
            f"{opened.uri}: {len(problems)} of {len(opened.shards)} shards are not as written; copy them again"
        )
    echo(f"{len(opened.shards)} shards, {opened.galaxies} galaxies, all as written")


def _count_shards(survey: Survey) -> str:
    return "1 shard" if len(survey.shards) == 1 else f"{len(survey.shards)} shards"


COMMANDS = (ingest, split, synthetic, survey)
