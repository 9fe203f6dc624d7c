"""The commands `weights import`, `weights info`, `weights fetch` and `weights export`."""

from __future__ import annotations

import click

from ..console import echo
from ..errors import InputError
from .options import Amount


@click.group()
def weights() -> None:
    """Import, inspect, download and export weights."""


@weights.command("import")
@click.argument("checkpoint")
@click.argument("out")
@click.option("--heads", type=click.IntRange(1, 2**16), help="Attention heads of a state dict; published: 12.")
@click.option("--norm-eps", type=Amount(1), help="Eps of the LayerNorms of a state dict; published: 1e-6.")
@click.option("--overwrite", is_flag=True, help="Replace OUT if it exists.")
def import_(checkpoint: str, out: str, heads: int | None, norm_eps: float | None, overwrite: bool) -> None:
    """Convert a published CHECKPOINT (.pt) to safetensors, without executing its pickle.

    CHECKPOINT is a whole model, or a state dict: --heads and --norm-eps give what the tensors of that do not show.
    """
    from ..models.checkpoint_import import import_checkpoint
    from ..models.state_dict import Constants
    from ..storage.outputs import require_new

    require_new(out, overwrite=overwrite)
    if (heads is None) != (norm_eps is None):
        raise InputError("--heads and --norm-eps belong together; give both for a state dict, none for a whole model")
    constants = None if heads is None or norm_eps is None else Constants(heads, norm_eps)
    imported = import_checkpoint(checkpoint, constants)
    imported.save(out)
    echo(f"{imported.parameters} parameters in {out}")


@weights.command()
@click.argument("file")
def info(file: str) -> None:
    """Show the network that FILE holds, its number of parameters and its origin."""
    import msgspec

    from ..calibration.describe import describe_domain, describe_fit
    from ..calibration.records import CALIBRATION, DOMAIN, trust_of
    from ..models.weights import check_architecture, load_weights

    loaded = load_weights(file)
    config = check_architecture(loaded)
    facts = {"parameters": loaded.parameters, "sha256": loaded.sha256}
    trust = trust_of(loaded.notes, file)
    notes = {name: text for name, text in loaded.notes.items() if name not in (CALIBRATION, DOMAIN)}
    for name, value in {**facts, **notes, **msgspec.to_builtins(config)}.items():
        echo(f"{name:24} {value}")
    for name, lines in (
        (CALIBRATION, describe_fit(trust.calibration) if trust.calibration else ["none: no intervals"]),
        (DOMAIN, describe_domain(trust.domain) if trust.domain else ["unknown"]),
    ):
        for line in lines:
            echo(f"{name:24} {line}")


@weights.command()
@click.option("--out", default=".", show_default=True, help="Folder to download the two files to.")
@click.option("--base-url", help="Another server with the files of the repository under the same paths.")
def fetch(out: str, base_url: str | None) -> None:
    """Download the published checkpoint and its 1,253 galaxies; continue an interrupted download."""
    from ..models.download import PUBLISHED_URL, fetch_published
    from ..storage.outputs import require_output_folder

    require_output_folder(out)
    for path in fetch_published(out, base_url or PUBLISHED_URL):
        echo(path)


@weights.command()
@click.argument("files", nargs=-1, required=True)
@click.option("--out", required=True, help="Folder for the graphs; set COSMICAI_GRAPHS to it to use them.")
def export(files: tuple[str, ...], out: str) -> None:
    """Export the networks of weights FILES as graphs that a rank can compile without reading the weights."""
    from ..engines.openvino.export import export_graphs
    from ..models.weights import find_weights
    from ..storage.outputs import require_output_folder

    require_output_folder(out)
    for file in files:
        for path in export_graphs(find_weights(file), out):
            echo(path)


COMMANDS = (weights,)
