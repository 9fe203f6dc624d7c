"""The transformer with its Linear layers over tokens in 8-bit integers, and float32 for everything else.

These layers (queries, keys and values, `proj`, `mlp_in`, `mlp_out`) take two thirds of the time. The rest stays in
float32, by measurement (docs/performance.md, "What did not help"): 8 bits change a magnitude by up to 0.05, and the
heads after it, the Inception network, the patch embedding and the parallel module read values that are not normalized,
whose range is so wide that 8 bits resolve little of most galaxies. The rest in bfloat16 is slower.

NNCF calibrates activations between the smallest and the largest value it sees, and weights per output. Weights use 7 of
their 8 bits, since without the VNNI instructions sums of 8-bit products overflow without an error.
"""

from __future__ import annotations

import io
import logging
import sys
import tempfile
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stdout
from pathlib import Path

import numpy as np
import openvino as ov
from numpy.typing import NDArray
from openvino import Node

from ...errors import InputError
from ...models.fold import FoldedWeights
from .graph import build_encoder, has_finite_constants

FILES = ("model.xml", "model.bin")
NO_NNCF = "--precision int8 needs nncf; install it with pip install 'cosmicai[int8]', or choose bfloat16"


def quantize(folded: FoldedWeights, batch: int, image: NDArray[np.float32]) -> bytes:
    """Return the encoder for `batch` galaxies with its large layers in 8 bits, to be read with `read_quantized`.

    It is calibrated on the cutouts `image` (N, bands, H, W), all finite, N >= 1; 512 are enough. The same input gives
    the same bytes. Raises InputError if NNCF is not installed.
    """
    model = build_encoder(folded, batch)
    operations = [node for node in model.get_ops() if node.get_type_name() not in ("Parameter", "Constant", "Result")]
    others = [node.get_friendly_name() for node in operations if not _is_linear_over_tokens(node)]
    rows = np.arange(-(-len(image) // batch) * batch).reshape(-1, batch) % len(image)
    batches = [{"image": image[own]} for own in rows]
    with _quiet_nncf():
        try:
            import nncf
        except ImportError:
            raise InputError(NO_NNCF) from None
        from nncf.quantization.range_estimator import RangeEstimatorParametersSet

        nncf.set_log_level(logging.ERROR)
        quantized = nncf.quantize(
            model,
            nncf.Dataset(batches),
            preset=nncf.QuantizationPreset.MIXED,
            subset_size=len(batches),
            ignored_scope=nncf.IgnoredScope(names=others),
            advanced_parameters=nncf.AdvancedQuantizationParameters(
                overflow_fix=nncf.OverflowFix.ENABLE,
                disable_bias_correction=True,
                activations_range_estimator_params=RangeEstimatorParametersSet.MINMAX,
            ),
        )
    return _archive(quantized)


def read_quantized(data: bytes) -> ov.Model:
    """Return the graph that `quantize` wrote, to be compiled for float32. Raises InputError if it is damaged."""
    try:
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            text, weights = (archive.read(name) for name in FILES)
        model = ov.Core().read_model(text, weights)
    except (zipfile.BadZipFile, EOFError, KeyError, ValueError, RuntimeError):
        model = None
    if model is None or not has_finite_constants(model):
        raise InputError("the quantized network is damaged; start the run again with --precision int8")
    return model


def _is_linear_over_tokens(node: Node) -> bool:
    """Return whether a node is (B, T, inputs) @ (outputs, inputs).T, unlike the heads and the parallel module."""
    if node.get_type_name() != "MatMul":
        return False
    x, weight = node.input_values()
    return len(x.shape) == 3 and len(weight.shape) == 2 and weight.get_node().get_type_name() == "Constant"


@contextmanager
def _quiet_nncf() -> Iterator[None]:
    """Keep NNCF from importing torch, which it does not need here, and from drawing on standard output."""
    hide_torch = "torch" not in sys.modules
    if hide_torch:
        sys.modules["torch"] = None  # type: ignore[assignment]  # as if it were not installed
    try:
        with redirect_stdout(io.StringIO()):
            yield
    finally:
        if hide_torch:
            del sys.modules["torch"]


def _archive(model: ov.Model) -> bytes:
    for index, node in enumerate(model.get_ordered_ops()):  # OpenVINO's own numbers grow during a process
        if node.get_type_name() != "Parameter":
            node.set_friendly_name(f"{node.get_type_name()}_{index}")
    model.output(0).tensor.set_names({"encoded"})
    del model.get_rt_info()["nncf"]  # names every ignored layer as it was before
    data = io.BytesIO()
    with tempfile.TemporaryDirectory() as folder, zipfile.ZipFile(data, "w") as archive:
        ov.save_model(model, Path(folder) / FILES[0], compress_to_fp16=False)
        for name in FILES:
            archive.writestr(zipfile.ZipInfo(name), (Path(folder) / name).read_bytes())
    return data.getvalue()
