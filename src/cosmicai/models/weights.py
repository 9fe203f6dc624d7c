"""Weights files: safetensors, with AstroMAE's configuration in the metadata.

Metadata keys: `format` ("cosmicai-weights/1"), `config` (JSON of AstroMAEConfig) and any notes on the origin.
Among the notes may be a calibration and a training domain (`calibration.records`). They change the digest of the file,
and not that of the network, by which whatever is compiled of it is known. Reading needs no torch; `build_network` makes
the network of the weights.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec
import numpy as np
import xxhash
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.numpy import load as load_tensors
from safetensors.numpy import save as save_tensors

from ..errors import InputError
from ..records import decode_json
from ..storage import absolute, basename, read_bytes, read_pieces, write_bytes
from .config import AstroMAEConfig
from .tensor_shapes import tensor_shapes

if TYPE_CHECKING:
    from .astromae import AstroMAE

FORMAT = "cosmicai-weights/1"
DEMO = "demo"  # the weights in the package, trained on synthetic galaxies
DEMO_LABEL = "demo weights, trained on synthetic galaxies"
SHORT_DIGEST = 16  # digits of a SHA-256 that are shown to people
BUFFERS = ("running_mean", "running_var", "num_batches_tracked")
# Attention and the MLPs of the transformer read values of at most sqrt(width). With weights up to this limit, hundreds
# of times those of any trained network, no result in them overflows, where softmax and 8-bit integers would hide it.
LARGEST_BLOCK_WEIGHT = 1e4
LARGEST_WEIGHT = 1e9  # of the other layers, which read values of any size; their overflows reach the redshift


@dataclass(frozen=True)
class Weights:
    """A network's configuration (JSON), tensors by name, notes on their origin, and the file's address and SHA-256."""

    config_json: str
    tensors: dict[str, NDArray[Any]]
    notes: dict[str, str] = field(default_factory=dict)
    uri: str = "the weights"
    sha256: str = ""

    @property
    def config(self) -> AstroMAEConfig:
        """The configuration. Raises InputError as `AstroMAEConfig.from_json`."""
        return AstroMAEConfig.from_json(self.config_json, where=f"{self.uri}: its configuration")

    @property
    def parameters(self) -> int:
        """Number of learned values, without BatchNorm's running statistics."""
        return sum(tensor.size for name, tensor in self.tensors.items() if not name.endswith(BUFFERS))

    def save(self, uri: str) -> None:
        """Write the file, whole or not at all; the same weights give the same bytes."""
        metadata = {"format": FORMAT, "config": self.config_json, **self.notes}
        write_bytes(uri, _with_metadata(save_tensors(self.tensors), metadata))


@dataclass(frozen=True)
class WeightsFile:
    """A weights file by its address and the SHA-256 of its bytes; it is read when it is needed.

    `network` is a digest of tensors and configuration alone, empty in plans of earlier versions, and `notes` are those
    of the file where they have been read.
    """

    uri: str
    sha256: str
    network: str = ""
    notes: Mapping[str, str] = field(default_factory=dict, compare=False)

    @property
    def key(self) -> str:
        """What the network is known by where something is kept of it, such as a compiled one."""
        return self.network or self.sha256

    @property
    def is_demo(self) -> bool:
        """Whether these are the demo weights, under whatever name and with whatever calibration."""
        return self.uri == DEMO or self.key in (_demo().sha256, _demo().network)

    @property
    def label(self) -> str:
        """What people call the weights: the file name without folders, which differ between machines."""
        if not self.is_demo:
            return basename(self.uri)
        return DEMO_LABEL if self.uri == DEMO else f"{basename(self.uri)} ({DEMO_LABEL})"

    def load(self) -> Weights:
        """Read the weights. Raises InputError if they cannot be used or the file has changed."""
        weights = load_weights(self.uri)
        if weights.sha256 != self.sha256:
            raise InputError(f"{self.uri} has changed since the run was planned; restore the file or start a new run")
        return weights


def find_weights(uri: str) -> WeightsFile:
    """Return the weights file at an address, the packaged one for `demo`. Raises InputError if it is absent."""
    digest, network, notes = hashlib.sha256(), xxhash.xxh3_128(), dict[str, str]()
    for number, piece in enumerate(read_pieces(_address(uri))):
        digest.update(piece)
        if number == 0:
            described, notes = _describe_network(piece)
            network.update(described)
            piece = piece[len(_header(piece)) + 8 :]
        network.update(piece)
    return WeightsFile(uri if uri == DEMO else absolute(uri), digest.hexdigest(), network.hexdigest(), notes)


def _describe_network(start: memoryview) -> tuple[bytes, dict[str, str]]:
    """Return a text of configuration, names, shapes and places of the tensors, and the notes, by the start of a file.

    They are the start itself and no notes if it does not hold a header of safetensors, which loading it reports.
    """
    try:
        header = json.loads(_header(start))
        notes = dict(header.pop("__metadata__", {}))
        return json.dumps([notes.get("config"), header]).encode(), notes
    except (ValueError, TypeError, AttributeError):
        return bytes(start), {}


@cache
def _demo() -> WeightsFile:
    return find_weights(DEMO)


def _address(uri: str) -> str:
    return str(Path(__file__).with_name("demo.safetensors")) if uri == DEMO else uri


def load_weights(uri: str) -> Weights:
    """Read a weights file, local or on S3, or the one in the package for `demo`.

    Raises InputError if it is absent, empty, truncated, not safetensors or not AstroMAE's.
    """
    data = read_bytes(_address(uri))
    if not data:
        raise InputError(f"{uri} is empty; expected a weights file (safetensors), copy it again")
    try:
        tensors = load_tensors(data)
        header = decode_json(_header(data), _Header, where=uri, remedy="copy it again")
    except KeyError as error:
        raise InputError(f"{uri} holds {error} tensors; expected float32, import the checkpoint again") from None
    except (SafetensorError, ValueError) as error:
        # Checked last: the first byte of a safetensors file can be that of a pickle, too.
        if data[:4] == b"PK\x03\x04" or data[:1] == b"\x80":
            from .saved_model import require_model

            require_model(uri)  # raises if `weights import` would refuse the file
            raise InputError(
                f"{uri} is a model that was pickled by PyTorch; convert it to safetensors first: "
                f"cosmicai weights import {uri} WEIGHTS.safetensors"
            ) from None
        raise InputError(f"{uri} is not a whole safetensors file ({error}); copy it again") from None
    notes = header.metadata
    if notes.pop("format", None) != FORMAT:
        raise InputError(
            f'{uri} is a safetensors file without the metadata `format` = "{FORMAT}", so the sizes of its network are '
            "unknown; expected weights written by `cosmicai weights import` or `cosmicai train`"
        )
    return Weights(notes.pop("config", ""), tensors, notes, uri, hashlib.sha256(data).hexdigest())


class _Header(msgspec.Struct, frozen=True):
    """The header of a safetensors file as far as the library does not return it."""

    metadata: dict[str, str] = msgspec.field(name="__metadata__", default_factory=dict)


def _header(data: bytes | memoryview) -> bytes:
    return bytes(data[8 : 8 + int.from_bytes(data[:8], "little")])


def _with_metadata(data: bytes, metadata: dict[str, str]) -> bytes:
    """Return safetensors with this metadata in sorted order; the library would write it in a random one."""
    header = {"__metadata__": dict(sorted(metadata.items())), **json.loads(_header(data))}
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)  # the tensors begin at a multiple of 8
    return len(text).to_bytes(8, "little") + text + data[8 + int.from_bytes(data[:8], "little") :]


def check_architecture(weights: Weights) -> AstroMAEConfig:
    """Return the configuration.

    Raises InputError unless the tensors have its names, shapes and dtypes, and values that a network can use.
    """
    config = weights.config
    if config.depth > len(weights.tensors):
        raise InputError(
            f"{weights.uri} is of another architecture: {config.depth} blocks cannot be made of "
            f"{len(weights.tensors)} tensors; expected AstroMAE"
        )
    expected = tensor_shapes(config)
    for key in sorted(expected.keys() | weights.tensors.keys()):
        shape = weights.tensors[key].shape if key in weights.tensors else None
        if shape != expected.get(key):
            raise InputError(
                f"{weights.uri} is of another architecture: tensor {key} is {'absent' if shape is None else shape}, "
                f"its configuration requires {expected.get(key, 'none')}; import the checkpoint again"
            )
    for key, tensor in weights.tensors.items():
        dtype = "int64" if key.endswith("num_batches_tracked") else "float32"
        if tensor.dtype != dtype:
            raise InputError(f"{weights.uri}: tensor {key} is {tensor.dtype}; expected {dtype}, import it again")
        if problem := _value_problem(key, tensor):
            raise InputError(
                f"{weights.uri}: tensor {key} holds {problem}; expected weights of a training that converged"
            )
    return config


def _value_problem(name: str, tensor: NDArray[Any]) -> str | None:
    """Return what a tensor holds that no network can compute redshifts with, None if there is nothing."""
    if name.endswith("num_batches_tracked"):
        return None
    low, high = float(tensor.min()), float(tensor.max())  # NaN if any value is
    if not (math.isfinite(low) and math.isfinite(high)):
        return f"NaN or infinite values ({np.count_nonzero(~np.isfinite(tensor))} of {tensor.size})"
    if name.endswith("running_var"):
        return f"the variance {low:g}, which is negative" if low < 0 else None
    in_block = name == "class_token" or (name.startswith("blocks.") and ".convolution." not in name)
    largest = LARGEST_BLOCK_WEIGHT if in_block else LARGEST_WEIGHT
    if max(-low, high) > largest:
        return f"the value {low if -low > high else high:g}, and the largest allowed is {largest:g}"
    return None


def build_network(weights: Weights) -> AstroMAE:
    """Return the network with these weights, in evaluation mode. Raises InputError as `check_architecture`."""
    import torch  # imported here since most processes use the weights without torch, which is slow to import

    from .astromae import AstroMAE

    config = check_architecture(weights)
    with torch.device("meta"):
        network = AstroMAE(config)
    state = {key: torch.from_numpy(np.require(tensor, requirements="W")) for key, tensor in weights.tensors.items()}
    network.load_state_dict(state, assign=True)
    return network.eval().requires_grad_(False)


def extract_weights(network: AstroMAE, notes: Mapping[str, str]) -> Weights:
    """Return the weights of a network, on the CPU, with these notes on their origin."""
    tensors = {name: tensor.detach().cpu().numpy() for name, tensor in network.state_dict().items()}
    return Weights(network.config.to_json(), tensors, dict(notes))
