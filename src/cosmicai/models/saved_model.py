"""What a file of torch.save holds: a whole model, or its tensors in one of the forms in which trainings save them.

Nothing of the file is executed (see `torch_archive`).
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from ..errors import InputError, UnsafePickleError
from ..storage.ranges import RangeReader, open_ranges
from .checkpoint_modules import ALLOWED_CLASSES, Checkpoint
from .pickle_scan import CHECKPOINT_LIMITS
from .state_dict import COUNTERS, Constants, build_model, find_networks
from .torch_archive import StandIn, read_archive

# Classes of training frameworks in a checkpoint; an import needs the tensors only.
_OF_A_TRAINING = re.compile(r"names (pytorch_lightning|lightning\w*|argparse|omegaconf|timm|torch|__torch__)\.")
_OPTIONS = "give those of the published network with --heads 12 --norm-eps 1e-6, or your own; or "
SAFETENSORS_HEAD = 9  # bytes: the length of the header, then the first character of JSON


def require_model(uri: str) -> None:
    """Raise InputError unless a file holds a pickled model, with what it holds instead; nothing of it is executed."""
    with open_ranges(uri) as reader:
        read_model(uri, reader, None)


def read_model(uri: str, reader: RangeReader, constants: Constants | None) -> StandIn:
    """Return the model in a file, or the one that is built of the state dict in it and of these constants.

    Raises InputError for anything else, which says what the file is and how to get one that can be imported.
    """
    head = bytearray(min(SAFETENSORS_HEAD, reader.size))
    reader.read_into(0, memoryview(head))
    if head[8:] == b"{":  # after the length of its header
        raise InputError(
            f"{uri} is a safetensors file, which needs no import; pass it as --weights, and if that is refused, import "
            "the checkpoint that it was made from"
        )
    try:
        root = read_archive(uri, reader, ALLOWED_CLASSES, CHECKPOINT_LIMITS).root
    except UnsafePickleError as error:
        if not _OF_A_TRAINING.search(str(error)):
            raise
        raise UnsafePickleError(
            f"{error}; if you trust whoever made it, save its state dict alone where it was made, with "
            "torch.save(model.state_dict(), FILE), and import FILE"
        ) from None
    if isinstance(root, StandIn):
        if constants is not None:
            raise InputError(
                f"{uri} holds a whole model, which has its own number of heads and eps; leave out --heads and "
                "--norm-eps"
            )
        return root
    if isinstance(root, Mapping):
        return _build_model(uri, root, constants)
    raise Checkpoint(uri, reader).mismatch(f"it holds a {type(root).__name__}, not a model")


def _build_model(uri: str, root: Mapping[Any, Any], constants: Constants | None) -> StandIn:
    networks = list(find_networks(root))
    if not networks or constants is None:
        options = _OPTIONS if len(networks) == 1 else ""
        raise InputError(
            f"{uri} holds {_describe_dictionary(root)}, expected a model: a state dict lacks the sizes and "
            f"constants of its network; {options}load it into the published ViT_Astro, save that whole with "
            "torch.save(model, FILE), and import FILE with `cosmicai weights import`"
        )
    if len(networks) > 1:
        names = [network.where or "the file itself" for network in networks]
        raise InputError(
            f"{uri} holds {_describe_dictionary(root)}: several networks ({', '.join(names)}), expected one; save the "
            "one that you want alone, with torch.save(STATE_DICT, FILE), and import FILE"
        )
    [network] = networks
    if others := [name for name in network.others if name not in COUNTERS]:
        raise InputError(
            f"{uri} holds tensors beside the network {network.where}: {', '.join(others[:5])}; expected a state dict "
            "of the network alone, save that with torch.save(STATE_DICT, FILE) and import FILE"
        )
    return build_model(network.tensors, constants)


def _describe_dictionary(root: Mapping[Any, Any]) -> str:
    """Return what a dictionary is that was saved in place of a model, with the prefix of its names that torch added."""
    names = [str(name) for name in root]
    shown = ", ".join(names[:3])[:120] or "empty"
    if "pytorch-lightning_version" in root:
        return f"a checkpoint of Lightning ({shown}), whose network is the dictionary state_dict"
    inner = [name for name in names if isinstance(root.get(name), Mapping)]
    if networks := [name for name in inner if name in ("state_dict", "model", "model_state_dict", "ema", "model_ema")]:
        return f"a training's checkpoint ({shown}), whose network is the dictionary {' or '.join(networks)}"
    for prefix, origin in (("module.", "DataParallel"), ("_orig_mod.", "torch.compile")):
        if names and all(name.startswith(prefix) for name in names):
            return f"a dictionary ({shown}), a state dict from {origin}, which put {prefix} before all names"
    return f"a dictionary ({shown})"
