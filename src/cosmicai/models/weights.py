"""Weights files: safetensors, with AstroMAE's configuration in the metadata.

Metadata keys: `format` ("cosmicai-weights/1"), `config` (JSON of AstroMAEConfig) and any notes on the origin.
Reading needs no torch; the network itself is built in `build`.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.numpy import load as load_tensors
from safetensors.numpy import save as save_tensors

from ..errors import InputError
from ..storage import absolute, read_bytes, sha256, write_bytes
from .config import AstroMAEConfig
from .layout import tensor_shapes

if TYPE_CHECKING:
    from .astromae import AstroMAE

FORMAT = "cosmicai-weights/1"
DEMO = "demo"  # the weights in the package, trained on synthetic galaxies
BUFFERS = ("running_mean", "running_var", "num_batches_tracked")


@dataclass(frozen=True)
class Weights:
    """A network's configuration (JSON), its tensors by name, notes on their origin; the file's address and SHA-256."""

    config_json: str
    tensors: dict[str, NDArray[Any]]
    notes: dict[str, str] = field(default_factory=dict)
    uri: str = "the weights"
    sha256: str = ""

    @property
    def config(self) -> AstroMAEConfig:
        """The configuration."""
        return AstroMAEConfig.from_json(self.config_json)

    @property
    def parameters(self) -> int:
        """Learned values, without BatchNorm's running statistics."""
        return sum(tensor.size for name, tensor in self.tensors.items() if not name.endswith(BUFFERS))

    def save(self, uri: str) -> None:
        """Writes the file whole or not at all; the same weights give the same bytes."""
        metadata = {"format": FORMAT, "config": self.config_json, **self.notes}
        write_bytes(uri, _with_metadata(save_tensors(self.tensors), metadata))


@dataclass(frozen=True)
class WeightsFile:
    """A weights file by its address and the SHA-256 of its bytes, read only when it is needed."""

    uri: str
    sha256: str

    def load(self) -> Weights:
        """The weights. Raises InputError if they cannot be used or the file is no longer the one that was found."""
        weights = load_weights(self.uri)
        if weights.sha256 != self.sha256:
            raise InputError(f"{self.uri} has changed since the run was planned; put the old file back or start anew")
        return weights


def find_weights(uri: str) -> WeightsFile:
    """The weights file at an address, `demo` the one in the package. Raises InputError if there is none."""
    return WeightsFile(uri if uri == DEMO else absolute(uri), sha256(_address(uri)))


def _address(uri: str) -> str:
    return str(Path(__file__).with_name("demo.safetensors")) if uri == DEMO else uri


def load_weights(uri: str) -> Weights:
    """Reads a weights file, local or on S3; `demo` is the one in the package.

    Raises InputError if it is absent, empty, truncated, not safetensors or not AstroMAE's.
    """
    data = read_bytes(_address(uri))
    if not data:
        raise InputError(f"{uri} is empty; expected a weights file (safetensors), copy it again")
    try:
        tensors = load_tensors(data)
        notes = _header(data).get("__metadata__", {})
    except KeyError as error:
        raise InputError(f"{uri} holds {error} tensors; expected float32, import the checkpoint again") from None
    except (SafetensorError, ValueError) as error:
        # Only now: the first byte of safetensors, too, can be that of a pickle.
        if data[:4] == b"PK\x03\x04" or data[:1] == b"\x80":
            raise InputError(
                f"{uri} is a pickled PyTorch file; turn it into safetensors first: "
                f"cosmicai weights import {uri} WEIGHTS.safetensors"
            ) from None
        raise InputError(f"{uri} is not a whole safetensors file ({error}); copy it again") from None
    if notes.pop("format", None) != FORMAT:
        raise InputError(f'{uri} has no metadata `format` = "{FORMAT}"; expected weights written by this program')
    return Weights(notes.pop("config", ""), tensors, notes, uri, hashlib.sha256(data).hexdigest())


def _header(data: bytes) -> dict[str, Any]:
    header: dict[str, Any] = json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])
    return header


def _with_metadata(data: bytes, metadata: dict[str, str]) -> bytes:
    """The safetensors with this metadata, in sorted order; the library would write it in a random one."""
    header = {"__metadata__": dict(sorted(metadata.items())), **_header(data)}
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)  # the tensors begin at a multiple of 8
    return len(text).to_bytes(8, "little") + text + data[8 + int.from_bytes(data[:8], "little") :]


def check(weights: Weights) -> AstroMAEConfig:
    """The configuration, if the tensors have the names, shapes and dtypes that it asks for; else InputError."""
    try:
        config = weights.config
        if config.depth > len(weights.tensors):
            raise ValueError(f"{config.depth} blocks cannot be made of {len(weights.tensors)} tensors")
    except (ValueError, TypeError, ArithmeticError, RecursionError) as error:
        raise InputError(f"{weights.uri} is of another architecture: {error}; expected AstroMAE") from None
    expected = tensor_shapes(config)
    for key in sorted(expected.keys() | weights.tensors.keys()):
        shape = weights.tensors[key].shape if key in weights.tensors else None
        if shape != expected.get(key):
            raise InputError(
                f"{weights.uri} is of another architecture: tensor {key} is {'absent' if shape is None else shape}, "
                f"its configuration asks for {expected.get(key, 'none')}; import the checkpoint again"
            )
    for key, tensor in weights.tensors.items():
        dtype = "int64" if key.endswith("num_batches_tracked") else "float32"
        if tensor.dtype != dtype:
            raise InputError(f"{weights.uri}: tensor {key} is {tensor.dtype}; expected {dtype}, import it again")
    return config


def build(weights: Weights) -> AstroMAE:
    """The network with these weights, in evaluation mode. Raises InputError as `check`."""
    import torch

    from .astromae import AstroMAE

    config = check(weights)
    with torch.device("meta"):
        network = AstroMAE(config)
    state = {key: torch.from_numpy(np.require(tensor, requirements="W")) for key, tensor in weights.tensors.items()}
    network.load_state_dict(state, assign=True)
    return network.eval().requires_grad_(False)


def from_network(network: AstroMAE, notes: Mapping[str, str]) -> Weights:
    """The weights of a network, on the CPU."""
    tensors = {name: tensor.detach().cpu().numpy() for name, tensor in network.state_dict().items()}
    return Weights(network.config.to_json(), tensors, dict(notes))
