"""What a user would run instead of this program's engines: the network in torch or ONNX Runtime, at its best batch.

Each is fed with slices of arrays in memory, except `batch`, which is the published loop with its DataLoader.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass
from functools import cache
from importlib.util import find_spec
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from ..engines.base import split_rows
from ..errors import InputError
from ..models.fold import fold
from ..models.folded import FoldedAstroMAE
from ..models.weights import build_network, load_weights
from ..ranks.cores import available_cores
from ..surveys.shard import BANDS, IMAGE_SHAPE, Galaxies
from ..surveys.survey import open_survey
from .galaxies import read_galaxies
from .published_loop import make_published_dataset, run_published_loop
from .workloads import Redshift, measure_rate

BATCHES = {"cpu": (32, 128, 512), "cuda": (512, 1024, 2048, 4096, 8192, 16384)}
COMPILED_BATCHES = {"cpu": (64, 512), "cuda": (4096,)}  # each is compiled anew, which takes up to a minute
Predict = Callable[[int], Redshift]  # from the number of galaxies in a batch


@dataclass(frozen=True)
class Alternative:
    """A way to run the network: its key in `--alternatives`, its name in tables, its precision, and where it runs."""

    key: str
    name: str
    precision: str
    devices: tuple[str, ...] = ("cpu", "cuda")
    compiled: bool = False

    def batches(self, device: str, galaxies: int) -> tuple[int, ...]:
        """Return the batch sizes among which the fastest is chosen, none larger than the number of galaxies."""
        sizes = (COMPILED_BATCHES if self.compiled else BATCHES)[device]
        return tuple(dict.fromkeys(min(size, galaxies) for size in sizes))


ALTERNATIVES = (
    Alternative("batch", "published loop", "float32"),
    Alternative("eager", "published network, eager torch", "float32"),
    Alternative("autocast", "published network, autocast to bfloat16", "bfloat16"),
    Alternative("compile", "published network, torch.compile", "float32", compiled=True),
    Alternative("folded", "folded network, eager torch", "bfloat16"),
    Alternative("folded-compile", "folded network, torch.compile", "bfloat16", compiled=True),
    Alternative("onnx", "ONNX Runtime", "float32", devices=("cpu",)),
)


COMPILED_ENGINE = "compiled"  # not another program, but this one's engine on a GPU with kernels of torch.compile


def parse_alternatives(text: str) -> tuple[tuple[Alternative, ...], bool]:
    """Return the alternatives in a text such as "batch,onnx", or all of them for "all", and whether the engine is
    measured with compiled kernels, too.

    Raises InputError if one does not exist.
    """
    known = {own.key: own for own in ALTERNATIVES}
    keys = [key.strip() for key in text.split(",") if key.strip()]
    if keys == ["all"]:
        return ALTERNATIVES, True
    for key in keys:
        if key not in (*known, COMPILED_ENGINE):
            expected = ", ".join((*known, COMPILED_ENGINE))
            raise InputError(f"there is no alternative {key!r}; expected all, or some of {expected}")
    return tuple(dict.fromkeys(known[key] for key in keys if key in known)), COMPILED_ENGINE in keys


def prepare_alternative(key: str, weights: str, survey: str, device: str) -> Callable[[int], tuple[float, Redshift]]:
    """Return a trial of an alternative on all cores or the GPU: galaxies per second, and redshifts, for a batch size.

    Raises InputError if a package is missing.
    """
    torch.set_num_threads(available_cores())
    predict = _PREPARE[key](weights, read_galaxies(open_survey(survey)), device)
    return lambda batch: measure_rate(lambda: predict(batch))


def choose_batch(trial: Callable[[int], tuple[float, Any]], batches: tuple[int, ...]) -> int:
    """Return the batch size with the highest rate in its second trial; the first one warms up."""
    rates = {}
    for batch in batches:
        trial(batch)
        rates[batch] = trial(batch)[0]
    return max(rates, key=lambda batch: rates[batch])


def _prepare_loop(weights: str, galaxies: Galaxies, device: str) -> Predict:
    network, dataset = build_network(load_weights(weights)).to(device), make_published_dataset(galaxies)
    return lambda batch: run_published_loop(network, dataset, device, batch)


def _prepare_eager(weights: str, galaxies: Galaxies, device: str) -> Predict:
    return _predict_slices(build_network(load_weights(weights)).to(device), galaxies, device)


def _prepare_autocast(weights: str, galaxies: Galaxies, device: str) -> Predict:
    network = build_network(load_weights(weights)).to(device)
    return _predict_slices(network, galaxies, device, autocast=True)


def _prepare_compiled(weights: str, galaxies: Galaxies, device: str) -> Predict:
    return _predict_slices(_compile(build_network(load_weights(weights)).to(device)), galaxies, device)


def _prepare_folded(weights: str, galaxies: Galaxies, device: str) -> Predict:
    return _predict_slices(_fold(weights).to(device), galaxies, device)


def _prepare_folded_compiled(weights: str, galaxies: Galaxies, device: str) -> Predict:
    return _predict_slices(_compile(_fold(weights).to(device)), galaxies, device)


def _prepare_onnx(weights: str, galaxies: Galaxies, device: str) -> Predict:
    for module, package in (("onnxruntime", "onnxruntime"), ("onnx", "onnx"), ("onnxscript", "onnxscript")):
        if not find_spec(module):
            raise InputError(f"{package} is not installed (pip install onnxruntime onnx onnxscript)")
    import onnxruntime

    network, options = build_network(load_weights(weights)), onnxruntime.SessionOptions()
    options.intra_op_num_threads = available_cores()

    @cache  # for a fixed batch size it allocates its memory once
    def open_session(batch: int) -> Any:
        return onnxruntime.InferenceSession(_export_onnx(network, batch), options, ["CPUExecutionProvider"])

    def predict(batch: int) -> Redshift:
        session, parts = open_session(batch), []
        for rows in split_rows(len(galaxies), batch):
            padded = np.resize(np.arange(rows.start, rows.stop), batch)
            inputs = {"image": galaxies.image[padded], "magnitude": galaxies.magnitude[padded]}
            parts.append(session.run(None, inputs)[0][: rows.stop - rows.start])
        redshift: Redshift = np.concatenate(parts)
        return redshift

    return predict


def _export_onnx(network: nn.Module, batch: int) -> bytes:
    """Return the published network in float32 for `batch` galaxies as an ONNX model."""
    example = torch.zeros(batch, *IMAGE_SHAPE), torch.full((batch, len(BANDS)), 20.0, dtype=torch.float64)
    program = torch.onnx.export(
        network, example, input_names=["image", "magnitude"], output_names=["redshift"], dynamo=True, verbose=False
    )
    assert program is not None
    model: bytes = program.model_proto.SerializeToString()
    return model


_PREPARE: dict[str, Callable[[str, Galaxies, str], Predict]] = {
    "batch": _prepare_loop,
    "eager": _prepare_eager,
    "autocast": _prepare_autocast,
    "compile": _prepare_compiled,
    "folded": _prepare_folded,
    "folded-compile": _prepare_folded_compiled,
    "onnx": _prepare_onnx,
}


def _fold(weights: str) -> nn.Module:
    return FoldedAstroMAE(fold(load_weights(weights), np.float32), torch.bfloat16)


def _compile(network: nn.Module) -> Any:
    """Return the network compiled for one batch size at a time, its weights as constants."""
    import torch._inductor.config

    torch._inductor.config.freezing = True
    return torch.compile(network, dynamic=False)


def _predict_slices(network: Any, galaxies: Galaxies, device: str, autocast: bool = False) -> Predict:
    image, magnitude = torch.from_numpy(galaxies.image), torch.from_numpy(galaxies.magnitude)
    if device == "cuda":
        image, magnitude = image.pin_memory(), magnitude.pin_memory()

    def compute(rows: slice) -> Tensor:
        redshift: Tensor = network(*(x[rows].to(device, non_blocking=True) for x in (image, magnitude)))
        return redshift.float()

    # Not inference_mode, under which a frozen network is not compiled.
    @torch.no_grad()
    def predict(batch: int) -> Redshift:
        with torch.autocast(device, torch.bfloat16) if autocast else nullcontext():
            redshift: Redshift = torch.cat([compute(rows) for rows in split_rows(len(image), batch)]).cpu().numpy()
        return redshift

    return predict
