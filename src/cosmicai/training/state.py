"""The state of an unfinished training, a file beside the weights from which it resumes."""

from __future__ import annotations

import hashlib
import io
import json
import math
import pickle
from typing import Any

import msgspec
import numpy as np
import torch
from msgspec import structs

from .. import storage
from ..errors import InputError, describe_os_errors
from ..models.config import AstroMAEConfig
from ..models.weights import Weights
from ..records import convert
from ..surveys.survey import Survey
from .history import Epoch
from .recipe import TrainingOptions

STATE_SUFFIX = ".state.pt"  # of the file beside the weights


class BestEpoch(msgspec.Struct, frozen=True):
    """The epoch with the lowest validation MAE so far, and its network's tensors by name."""

    mae: float = math.inf
    r2: float = math.nan
    epoch: int = 0
    network: dict[str, Any] = {}


class TrainingState(msgspec.Struct, frozen=True):
    """Everything that a resumed training needs, as it is saved after every epoch."""

    identity: dict[str, Any]
    best: BestEpoch
    history: list[Epoch]  # of all epochs so far
    network: dict[str, Any]
    optimizer: dict[str, Any]


def identify_training(
    survey: Survey, config: AstroMAEConfig, options: TrainingOptions, initial: Weights | None
) -> dict[str, Any]:
    """Return everything that a resumed training must have in common with the one it continues."""
    shards = json.dumps(msgspec.to_builtins(survey.shards))
    digest = hashlib.sha256()
    for name, tensor in sorted(initial.tensors.items()) if initial is not None else []:
        digest.update(name.encode() + np.ascontiguousarray(tensor).tobytes())
    known = {"survey": hashlib.sha256(shards.encode()).hexdigest(), "network": config.to_json()}
    return {**msgspec.to_builtins(options), **known, "initial weights": digest.hexdigest()}


def save_state(uri: str, state: TrainingState) -> None:
    """Write the state, whole or not at all. Raises StorageError if it cannot be written."""
    history = msgspec.to_builtins(state.history)
    with storage.atomic_write(uri) as temporary, describe_os_errors(uri, "write"):
        torch.save({**structs.asdict(state), "best": structs.asdict(state.best), "history": history}, temporary)


def load_state(uri: str, identity: dict[str, Any]) -> TrainingState:
    """Read a state. Raises InputError if it is damaged or belongs to a training of another identity."""
    remedy = "remove it and train anew"
    try:
        content = torch.load(io.BytesIO(storage.read_bytes(uri)), map_location="cpu", weights_only=True)
    except (RuntimeError, ValueError, KeyError, TypeError, EOFError, pickle.UnpicklingError) as error:
        raise InputError(f"{uri} is not a whole training state ({error}); {remedy}") from None
    state = convert(content, TrainingState, where=uri, remedy=remedy)
    if differing := [name for name, value in identity.items() if state.identity.get(name) != value]:
        raise InputError(
            f"{uri} belongs to another training: {', '.join(differing)} differ; "
            "use the options of that training, or train anew without resuming"
        )
    return state
