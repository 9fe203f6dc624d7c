"""Select the weights of a run on AWS Lambda."""

from __future__ import annotations

import hashlib
import os
import tempfile
from pathlib import Path

from .. import storage
from ..errors import InputError
from ..runs.store import RunFolder

CHECKPOINTS = "Fine_Tune_Model"  # folder in the published code on S3


def select_weights(bucket: str, code: str, named: str | None, run: RunFolder) -> str:
    """Return the address of a run's weights: those named, a checkpoint in the published `code`, or the stack's default.

    Raises InputError if there are none: demo weights are for synthetic galaxies and are used only on request.
    """
    if named:
        return named
    folder = f"s3://{bucket}/{code}/{CHECKPOINTS}"
    # Without code there is no such folder, and the function may have no permission to list it.
    checkpoints = [entry.name for entry in storage.list_files(folder) if entry.name.endswith(".pt")] if code else []
    if len(checkpoints) > 1:
        raise InputError(f"{folder} holds {len(checkpoints)} checkpoints; expected one, or name one in `weights`")
    if checkpoints:
        return _import_checkpoint(storage.join(folder, checkpoints[0]), run)
    if default := os.environ.get("COSMICAI_WEIGHTS"):
        return default
    raise InputError(
        f"there are no weights: the payload names none (`weights`), {folder if code else 'S3_object_name'} holds no "
        "checkpoint, and the stack has no DefaultWeights"
    )


def _import_checkpoint(checkpoint: str, run: RunFolder) -> str:
    """Return the address of the published checkpoint as weights in the run folder, imported unless it exists there."""
    data = storage.read_bytes(checkpoint)
    path = run.imported_weights_path(hashlib.sha256(data).hexdigest())
    if not storage.exists(path):
        from ..models.checkpoint_import import import_checkpoint

        with tempfile.TemporaryDirectory() as folder:
            local = Path(folder, storage.basename(checkpoint))
            local.write_bytes(data)
            import_checkpoint(str(local)).save(path)
    return path
