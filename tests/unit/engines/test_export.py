"""Exported graphs of a container image give the same redshifts without the weights."""

import os
from pathlib import Path

import numpy as np
import pytest

from cosmicai.engines.base import EngineChoice
from cosmicai.engines.openvino.compiled_cache import cache_folder
from cosmicai.engines.openvino.export import read_exported_graph
from cosmicai.engines.openvino.graph import VERSION
from cosmicai.engines.registry import open_engine
from cosmicai.errors import InputError
from cosmicai.models.weights import WeightsFile, find_weights
from support.helpers import random_galaxies, run, tiny_weights

FLOAT32 = EngineChoice("openvino", "float32", "cpu", 64)


@pytest.fixture
def exported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[WeightsFile, Path]:
    """Weights without compiled networks, and the folder of their graphs, set as COSMICAI_GRAPHS."""
    weights, graphs = tiny_weights(tmp_path / "w.safetensors", seed=9), tmp_path / "graphs"
    done = run("weights", "export", weights, "--out", str(graphs))
    assert (done.returncode, done.stderr) == (0, "")
    file = find_weights(weights)
    stems = [f"{file.key[:16]}-{part}-{batch}-{VERSION}" for batch in (64, 128) for part in ("encoder", "rest")]
    names = [f"{stem}.{kind}" for stem in stems for kind in ("bin", "xml")]
    assert done.stdout.splitlines() == [str(graphs / name) for name in names]
    assert sorted(path.name for path in graphs.iterdir()) == sorted(names)
    monkeypatch.setenv("COSMICAI_GRAPHS", str(graphs))
    forget_compiled(file)
    return file, graphs


def forget_compiled(file: WeightsFile) -> None:
    for path in cache_folder().glob(f"{file.key[:16]}-*"):
        path.unlink()


def test_exported_graphs_give_the_same_bits(exported, monkeypatch):
    file, _ = exported
    galaxies = random_galaxies(100)
    found = open_engine(FLOAT32, file, 1).predict(galaxies.image, galaxies.magnitude)
    forget_compiled(file)
    monkeypatch.delenv("COSMICAI_GRAPHS")
    expected = open_engine(FLOAT32, file, 1).predict(galaxies.image, galaxies.magnitude)
    assert np.array_equal(found, expected) and np.isfinite(found).all()


def test_the_weights_are_not_read(exported):
    file, _ = exported
    Path(file.uri).unlink()
    galaxies = random_galaxies(64)
    assert np.isfinite(open_engine(FLOAT32, file, 1).predict(galaxies.image, galaxies.magnitude)).all()


def test_weights_and_batches_without_a_graph_are_folded(exported):
    file, _ = exported
    assert read_exported_graph(file.key, "rest", 64) and read_exported_graph(file.key, "encoder", 128)
    assert read_exported_graph(file.key, "rest", 63) is None
    assert read_exported_graph("0" * 64, "rest", 64) is None
    galaxies = random_galaxies(33)
    engine = open_engine(EngineChoice("openvino", "float32", "cpu", 33), file, 1)
    assert np.isfinite(engine.predict(galaxies.image, galaxies.magnitude)).all()


@pytest.mark.parametrize("part", ["encoder", "rest"])
@pytest.mark.parametrize("kind", ["xml", "bin"])
def test_a_damaged_graph_is_named(exported, part, kind):
    file, graphs = exported
    path = graphs / f"{file.key[:16]}-{part}-64-{VERSION}.{kind}"
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    with pytest.raises(
        InputError, match=f"{part}-64-{VERSION}.xml is not complete; write it again with `cosmicai weights export`"
    ):
        open_engine(FLOAT32, file, 1)


@pytest.mark.parametrize("part", ["encoder", "rest"])
@pytest.mark.parametrize("kind", ["xml", "bin"])
def test_a_graph_with_one_flipped_bit_is_refused(exported, part, kind):
    file, graphs = exported
    path = graphs / f"{file.key[:16]}-{part}-64-{VERSION}.{kind}"
    whole = path.read_bytes()
    for place in (0, len(whole) // 3, len(whole) // 2, len(whole) - 100):
        changed = bytearray(whole)
        changed[place] ^= 64
        path.write_bytes(changed)
        with pytest.raises(InputError) as refused:
            read_exported_graph(file.key, part, 64)
        assert str(refused.value) == (
            f"{path.with_suffix('.xml')} is damaged: it and its .bin differ from their digest; "
            "write it again with `cosmicai weights export`"
        )


def test_a_graph_of_another_name_and_one_without_a_digest_are_refused(exported):
    file, graphs = exported
    stem = graphs / f"{file.key[:16]}-rest-64-{VERSION}"
    for own in ("xml", "bin"):
        other = stem.with_name(stem.name.replace("-64-", "-128-")).with_suffix(f".{own}")
        stem.with_suffix(f".{own}").write_bytes(other.read_bytes())
    with pytest.raises(InputError, match=f"rest-64-{VERSION}.xml is damaged"):
        read_exported_graph(file.key, "rest", 64)
    text = stem.with_suffix(".xml").read_bytes()
    stem.with_suffix(".xml").write_bytes(text[: text.index(b"<!-- cosmicai-graph")])
    with pytest.raises(InputError, match=f"rest-64-{VERSION}.xml is not complete; write it again"):
        read_exported_graph(file.key, "rest", 64)


def test_a_pipe_in_the_place_of_a_graph_is_named(exported):
    file, graphs = exported
    path = graphs / f"{file.key[:16]}-rest-64-{VERSION}.bin"
    path.unlink()
    os.mkfifo(path)
    with pytest.raises(InputError, match=f"cannot read {path}: it is a pipe"):
        read_exported_graph(file.key, "rest", 64)


def test_weights_that_cannot_be_used_are_not_exported(tmp_path):
    (tmp_path / "w.safetensors").write_bytes(b"no weights")
    done = run("weights", "export", str(tmp_path / "w.safetensors"), "--out", str(tmp_path / "graphs"))
    assert done.returncode == 2
    assert "w.safetensors is not a whole safetensors file" in done.stderr and done.stderr.count("\n") == 1
    assert not (tmp_path / "graphs").exists()
