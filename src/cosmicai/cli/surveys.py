"""ingest, split, synthetic, survey info, survey verify."""

from __future__ import annotations

import click

from ..errors import InputError

_PARTITION_MB = click.option(
    "--partition-mb", default=25.0, show_default=True, type=click.FloatRange(min=0, min_open=True),
    help="Size of a shard in MB (2^20 bytes), as the published data were split.",
)  # fmt: skip
_OUT = click.option("--out", required=True, help="New folder for the survey.")


@click.command()
@click.argument("sources", nargs=-1, required=True)
@_OUT
@_PARTITION_MB
@click.option("--field", "fields", multiple=True, metavar="FIELD=NAME", help="What the sources call image, magnitude, redshift or objid.")  # fmt: skip  # noqa: E501
def ingest(sources: tuple[str, ...], out: str, partition_mb: float, fields: tuple[str, ...]) -> None:
    """Bring .npz, .npy, HDF5, FITS cubes or .pt files into a survey; 64x64 cutouts keep their central 32x32."""
    from ..surveys.ingest import ALIASES
    from ..surveys.ingest import ingest as bring_in
    from ..surveys.survey import galaxies_per_partition

    names = dict(field.partition("=")[::2] for field in fields)
    if not all(names.get(name) for name in names) or not names.keys() <= ALIASES.keys():
        raise InputError(f"--field expects FIELD=NAME with FIELD one of {', '.join(ALIASES)}")
    survey = bring_in(list(sources), out, galaxies_per_partition(partition_mb), names)
    click.echo(f"{survey.galaxies} galaxies in {len(survey.shards)} shards in {survey.uri}")


@click.command()
@click.argument("survey")
@_OUT
@_PARTITION_MB
def split(survey: str, out: str, partition_mb: float) -> None:
    """Cut SURVEY anew into shards of one size."""
    from ..surveys.survey import galaxies_per_partition, open_survey, resplit

    written = resplit(open_survey(survey), out, galaxies_per_partition(partition_mb))
    click.echo(f"{written.galaxies} galaxies in {len(written.shards)} shards in {written.uri}")


@click.command()
@click.option("--galaxies", default=4096, show_default=True, type=click.IntRange(1))
@click.option("--seed", default=0, show_default=True, type=click.IntRange(0))
@_OUT
@_PARTITION_MB
def synthetic(galaxies: int, seed: int, out: str, partition_mb: float) -> None:
    """Write a survey of synthetic galaxies."""
    from ..runs.demo import write_synthetic_survey
    from ..surveys.survey import galaxies_per_partition

    survey = write_synthetic_survey(out, galaxies, seed, galaxies_per_partition(partition_mb))
    click.echo(f"{survey.galaxies} synthetic galaxies in {len(survey.shards)} shards in {survey.uri}")


@click.group()
def survey() -> None:
    """Look at surveys."""


@survey.command()
@click.argument("folder")
def info(folder: str) -> None:
    """What the survey FOLDER holds."""
    from ..surveys.survey import open_survey

    found = open_survey(folder)
    sizes = [shard.galaxies for shard in found.shards]
    click.echo(f"survey     {found.uri}")
    click.echo(f"galaxies   {found.galaxies}")
    click.echo(f"shards     {len(sizes)} of {min(sizes)} to {max(sizes)} galaxies")
    click.echo(f"size       {found.bytes / 2**20:,.1f} MB")
    with found.open(found.shards[0]) as shard:
        click.echo(f"fields     {', '.join(f'{name} {where.dtype}' for name, where in shard.fields.items())}")
    checked = sum(bool(shard.sha256) for shard in found.shards)
    click.echo(f"checksums  {checked} of {len(sizes)} shards")


@survey.command()
@click.argument("folder")
def verify(folder: str) -> None:
    """Read every shard of the survey FOLDER and compare it with its checksum."""
    from ..surveys.survey import open_survey
    from ..surveys.survey import verify as verify_survey

    found = open_survey(folder)
    wrong = [(shard.name, what) for shard, what in verify_survey(found) if what]
    for name, what in wrong:
        click.echo(f"{name}: {what}", err=True)
    if wrong:
        raise InputError(f"{found.uri}: {len(wrong)} of {len(found.shards)} shards are not as written; copy them again")
    click.echo(f"{len(found.shards)} shards, {found.galaxies} galaxies, all as written")


COMMANDS = (ingest, split, synthetic, survey)
