"""weights import, info, fetch, export."""

from __future__ import annotations

import click


@click.group()
def weights() -> None:
    """Import, inspect and fetch weights."""


@weights.command("import")
@click.argument("checkpoint")
@click.argument("out")
def import_(checkpoint: str, out: str) -> None:
    """Turn a published CHECKPOINT (.pt) into safetensors, without executing its pickle."""
    from ..models.checkpoint_import import import_checkpoint

    imported = import_checkpoint(checkpoint)
    imported.save(out)
    click.echo(f"{imported.parameters} parameters in {out}")


@weights.command()
@click.argument("file")
def info(file: str) -> None:
    """Which network FILE holds, and its parameters and origin."""
    from dataclasses import asdict

    from ..models.weights import check, load_weights

    loaded = load_weights(file)
    config = check(loaded)
    facts = {"parameters": loaded.parameters, "sha256": loaded.sha256}
    for name, value in {**facts, **loaded.notes, **asdict(config)}.items():
        click.echo(f"{name:24} {value}")


@weights.command()
@click.option("--out", default=".", show_default=True, help="Folder for the two files.")
@click.option("--base-url", help="Another server that has the repository's files under the same paths.")
def fetch(out: str, base_url: str | None) -> None:
    """Download the published checkpoint and its 1,253 galaxies; go on where an earlier download stopped."""
    from ..models.published_files import PUBLISHED_URL, fetch_published

    for path in fetch_published(out, base_url or PUBLISHED_URL):
        click.echo(path)


@weights.command()
@click.argument("files", nargs=-1, required=True)
@click.option("--out", required=True, help="Folder for the graphs; COSMICAI_GRAPHS names it to those who use them.")
def export(files: tuple[str, ...], out: str) -> None:
    """Write the networks of weights FILES as graphs that a rank can compile without reading the weights."""
    from ..engines.openvino.export import export_graphs
    from ..models.weights import find_weights

    for file in files:
        for path in export_graphs(find_weights(file), out):
            click.echo(path)


COMMANDS = (weights,)
