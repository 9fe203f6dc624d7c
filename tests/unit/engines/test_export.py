"""Exported graphs of a container image give the same redshifts without the weights."""

from pathlib import Path

import numpy as np
import pytest

from cosmicai.engines.base import EngineChoice
from cosmicai.engines.openvino.compiled_cache import cache_folder
from cosmicai.engines.openvino.export import find_exported_graph
from cosmicai.engines.openvino.graph import VERSION
from cosmicai.engines.registry import open_engine
from cosmicai.errors import InputError
from cosmicai.models.weights import WeightsFile, find_weights, load_weights
from support.helpers import random_galaxies, run, tiny_weights

FLOAT32 = EngineChoice("openvino", "float32", "cpu", 64)


@pytest.fixture
def exported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[WeightsFile, Path]:
    """Weights without compiled networks, and the folder of their graphs, set as COSMICAI_GRAPHS."""
    weights, graphs = tiny_weights(tmp_path / "w.safetensors", seed=9), tmp_path / "graphs"
    done = run("weights", "export", weights, "--out", str(graphs))
    assert (done.returncode, done.stderr) == (0, "")
    file = find_weights(weights)
    stems = [f"{file.sha256[:16]}-{part}-{batch}-{VERSION}" for batch in (64, 128) for part in ("encoder", "rest")]
    names = [f"{stem}.{kind}" for stem in stems for kind in ("bin", "xml")]
    assert done.stdout.splitlines() == [str(graphs / name) for name in names]
    assert sorted(path.name for path in graphs.iterdir()) == sorted(names)
    monkeypatch.setenv("COSMICAI_GRAPHS", str(graphs))
    forget_compiled(file)
    return file, graphs


def forget_compiled(file: WeightsFile) -> None:
    for path in cache_folder().glob(f"{file.sha256[:16]}-*"):
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
    assert find_exported_graph(file.sha256, "rest", 64) and find_exported_graph(file.sha256, "encoder", 128)
    assert find_exported_graph(file.sha256, "rest", 63) is None
    assert find_exported_graph("0" * 64, "rest", 64) is None
    galaxies = random_galaxies(33)
    engine = open_engine(EngineChoice("openvino", "float32", "cpu", 33), file, 1)
    assert np.isfinite(engine.predict(galaxies.image, galaxies.magnitude)).all()


@pytest.mark.parametrize("part", ["encoder", "rest"])
@pytest.mark.parametrize("kind", ["xml", "bin"])
def test_a_damaged_graph_is_named(exported, part, kind):
    file, graphs = exported
    path = graphs / f"{file.sha256[:16]}-{part}-64-{VERSION}.{kind}"
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    with pytest.raises(
        InputError, match=f"{part}-64-{VERSION}.xml is not complete; write it again with `cosmicai weights export`"
    ):
        open_engine(FLOAT32, file, 1)


@pytest.mark.parametrize("value", [np.nan, np.inf])
@pytest.mark.parametrize("part", ["encoder", "rest"])
def test_a_graph_with_weights_that_are_not_finite_is_refused(exported, part, value):
    file, graphs = exported
    path = graphs / f"{file.sha256[:16]}-{part}-64-{VERSION}.bin"
    data = bytearray(path.read_bytes())
    kernel = load_weights(file.uri).tensors["patch.weight" if part == "encoder" else "inception.0.weight"].tobytes()
    assert data.count(kernel) == 1
    start = data.index(kernel)
    data[start : start + 4] = np.float32(value).tobytes()
    path.write_bytes(data)
    sentence = f"{part}-64-{VERSION}.xml holds weights that are NaN or infinite; write it again with"
    with pytest.raises(InputError, match=sentence):
        open_engine(FLOAT32, file, 1)


def test_weights_that_cannot_be_used_are_not_exported(tmp_path):
    (tmp_path / "w.safetensors").write_bytes(b"no weights")
    done = run("weights", "export", str(tmp_path / "w.safetensors"), "--out", str(tmp_path / "graphs"))
    assert done.returncode == 2
    assert "w.safetensors is not a whole safetensors file" in done.stderr and done.stderr.count("\n") == 1
    assert not (tmp_path / "graphs").exists()
