"""The int8 encoder: 8 bits in exactly the intended layers, close to float32, the same bytes every time."""

from __future__ import annotations

import io
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import openvino as ov
import pytest
import torch
from msgspec.structs import replace
from numpy.typing import NDArray

from cosmicai.engines.openvino.graph import build_encoder
from cosmicai.engines.openvino.int8 import quantize, read_quantized
from cosmicai.errors import InputError
from cosmicai.models.astromae import AstroMAE
from cosmicai.models.fold import FoldedWeights, fold
from cosmicai.models.weights import extract_weights
from cosmicai.surveys.shard import Galaxies
from support.helpers import TINY, random_galaxies, run

# No two kinds of layer have the same shape.
CONFIG = replace(TINY, depth=2, width=24, heads=2, attention_width=16, mlp_width=40, convolution_groups=(6, 6),
                 convolution_width=36, vit_head=(20,))  # fmt: skip
BATCH = 8


@pytest.fixture(scope="module")
def folded() -> FoldedWeights:
    torch.manual_seed(0)
    return fold(extract_weights(AstroMAE(CONFIG), {}))


@pytest.fixture(scope="module")
def galaxies() -> Galaxies:
    return random_galaxies(20)


@pytest.fixture(scope="module")
def quantized(folded: FoldedWeights, galaxies: Galaxies) -> bytes:
    return quantize(folded, BATCH, galaxies.image)


def encode(model: ov.Model, galaxies: Galaxies) -> NDArray[np.float32]:
    compiled = ov.Core().compile_model(model, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    own = galaxies[slice(0, BATCH)]
    found: NDArray[np.float32] = compiled([own.image])[0]
    return found


def test_only_the_linear_layers_over_tokens_have_8_bits(quantized: bytes) -> None:
    model = read_quantized(quantized)
    constants = [node for node in model.get_ops() if node.get_type_name() == "Constant"]
    weights = [node for node in constants if node.get_element_type() == ov.Type.i8]
    first = [(3 * 16, 24), (24, 16), (40, 24), (24, 40)]
    last = [(16, 24)] * 3 + [(24, 16), (40, 24)]  # its mlp_out sees one row per galaxy, no tokens
    assert sorted(tuple(node.shape) for node in weights) == sorted(first + last)
    assert max(np.abs(node.data).max() for node in weights) == 64  # 7 bits: no processor's sums overflow
    activations = [node for node in model.get_ops() if node.get_type_name() == "FakeQuantize"]
    readers = [reader.get_type_name() for node in activations for reader in find_readers(node)]
    assert readers == ["MatMul"] * len(weights)
    assert all(output.partial_shape.is_static for node in model.get_ops() for output in node.outputs())


def find_readers(node: ov.Node) -> list[ov.Node]:
    return [reader.get_node() for reader in node.output(0).get_target_inputs()]


def test_its_output_is_close_to_float32(folded: FoldedWeights, galaxies: Galaxies, quantized: bytes) -> None:
    exact = encode(build_encoder(folded, BATCH), galaxies)
    found = encode(read_quantized(quantized), galaxies)
    assert found.shape == (BATCH, 24)
    assert 0 < np.abs(found - exact).max() < 0.05 * exact.std()


def test_the_same_input_gives_the_same_bytes(folded: FoldedWeights, galaxies: Galaxies, quantized: bytes) -> None:
    assert quantize(folded, BATCH, galaxies.image) == quantized
    with zipfile.ZipFile(io.BytesIO(quantized)) as archive:
        assert archive.namelist() == ["model.xml", "model.bin"]


def test_fewer_galaxies_than_a_batch_are_repeated(folded: FoldedWeights, galaxies: Galaxies) -> None:
    rows = np.array([0, 1, 2, 0, 1, 2, 0, 1])
    repeated = quantize(folded, BATCH, galaxies.image[rows])
    assert quantize(folded, BATCH, galaxies.image[:3]) == repeated


def test_without_nncf_the_message_says_how_to_install_it(
    folded: FoldedWeights, galaxies: Galaxies, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "nncf", None)
    with pytest.raises(InputError, match=r"^--precision int8 needs nncf; install it with pip install 'cosmicai\[int8"):
        quantize(folded, BATCH, galaxies.image)


@pytest.mark.parametrize("damage", [lambda data: b"", lambda data: data[:1000], lambda data: data[1000:]])
def test_damaged_bytes_are_refused(quantized: bytes, damage: Callable[[bytes], bytes]) -> None:
    with pytest.raises(InputError, match="damaged"):
        read_quantized(damage(quantized))


def test_quantizing_prints_nothing_and_imports_no_torch(folded: FoldedWeights, tmp_path: Path) -> None:
    torch.manual_seed(0)
    extract_weights(AstroMAE(CONFIG), {}).save(str(tmp_path / "w.safetensors"))
    (tmp_path / "quantize_it.py").write_text(
        "import sys\n"
        "import numpy as np\n"
        "from cosmicai.engines.openvino.int8 import quantize\n"
        "from cosmicai.models.fold import fold\n"
        "from cosmicai.models.weights import load_weights\n"
        f"folded = fold(load_weights({str(tmp_path / 'w.safetensors')!r}))\n"
        "quantize(folded, 2, np.ones((2, 5, 32, 32), np.float32))\n"
        "assert 'torch' not in sys.modules\n"
    )
    done = run(module="quantize_it", PYTHONPATH=str(tmp_path))
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
