"""From what the user asked for to an engine; each is imported only when it is needed."""

from __future__ import annotations

import ctypes
import sys
from importlib.util import find_spec
from pathlib import Path

from ..errors import InputError
from ..models.weights import WeightsFile
from ..ranks.image_identity import image_variant
from .base import Choice, Engine

ENGINES = ("auto", "openvino", "cuda", "reference")
PRECISIONS = {
    "openvino": ("float32", "bfloat16", "int8"),
    "cuda": ("bfloat16", "tf32", "float32"),
    "reference": ("float32",),
}  # the first of each is its default
DEVICES = {"openvino": ("cpu",), "cuda": ("cuda",), "reference": ("cpu", "cuda")}
BATCH_SIZE = {"cpu": 512, "cuda": 4096}


def choose(
    weights: WeightsFile, engine: str, precision: str | None, device: str | None, batch_size: int | None
) -> tuple[Choice, int, list[str]]:
    """The engine that will run here and all that decides its numbers, the batch size, and what the user should know.

    None, and the engine `auto`, leave it to us. Raises InputError if what is asked for does not exist or cannot run
    here, or the weights cannot be used.
    """
    notices = []
    if device == "cuda" or (device is None and engine in ("auto", "cuda")):
        _require_image_for_gpus()
    if engine == "auto":
        engine, why = _automatic(device)
        notices.append(f"engine {engine}: {why}")
    if engine not in PRECISIONS:
        raise InputError(f"there is no engine {engine!r}; expected one of {', '.join(ENGINES)}")
    device = device or DEVICES[engine][0]
    precision = precision or PRECISIONS[engine][0]
    for what, asked, offered in (("precision", precision, PRECISIONS), ("device", device, DEVICES)):
        if asked not in offered[engine]:
            raise InputError(f"the engine {engine} has no {what} {asked}; expected {' or '.join(offered[engine])}")
    batch_size = batch_size or BATCH_SIZE[device]
    if engine == "openvino":
        if missing := missing_for_openvino():
            raise InputError(f"{missing}; use --engine reference")
        from .openvino.engine import choose_openvino

        choice, notice = choose_openvino(weights, precision, batch_size)
        notices += [notice] if notice else []
    elif engine == "cuda":
        from .cuda import choose_cuda

        choice = choose_cuda(weights, precision, batch_size)
    else:
        from .reference import choose_reference

        choice = choose_reference(weights, device, batch_size)
    return choice, batch_size, notices


def open_engine(choice: Choice, weights: WeightsFile, threads: int, quantized: bytes | None = None) -> Engine:
    """Loads the network, `quantized` in its int8 form, into the chosen engine. Raises InputError if it cannot run."""
    if choice.engine == "openvino":
        from .openvino.engine import OpenVINOEngine

        return OpenVINOEngine(weights, choice, threads, quantized)
    if choice.engine == "cuda":
        from .cuda import CudaEngine

        return CudaEngine(weights.load(), choice.precision, choice.inner_batch)
    if choice.engine == "reference":
        from .reference import ReferenceEngine

        return ReferenceEngine(weights, choice, threads)
    raise InputError(f"there is no engine {choice.engine!r}; the run was planned with another version of this program")


def _automatic(device: str | None) -> tuple[str, str]:
    """The fastest engine that can run here, and why it was taken."""
    gpus = visible_gpus()
    if device != "cpu" and gpus:
        import torch

        if torch.cuda.is_available():
            return "cuda", f"{gpus} GPU{'s are' if gpus > 1 else ' is'} visible"
    if device == "cuda":
        return "cuda", "a GPU was asked for"
    why = "no GPU is visible" if not gpus else "the CPU was asked for" if device else "this torch is for CPUs alone"
    missing = missing_for_openvino()
    return ("reference", f"{why}, and {missing}") if missing else ("openvino", why)


def _require_image_for_gpus() -> None:
    """Raises InputError in an image that was built without CUDA, if there are GPUs that it cannot use."""
    gpus = visible_gpus() if image_variant() == "cpu" else 0
    if gpus:
        raise InputError(
            f"{gpus} GPU{'s are' if gpus > 1 else ' is'} visible and this image was built without CUDA; build another "
            "with containers/build.sh --variant cuda, or compute on the CPU with --device cpu"
        )


def missing_for_openvino() -> str | None:
    """Why OpenVINO cannot run here, None if it can. It would wait forever for facts about the processor in /proc."""
    if not find_spec("openvino"):
        return "OpenVINO is not installed"
    if sys.platform == "linux" and not Path("/proc/cpuinfo").exists():
        return "OpenVINO needs /proc, which is not mounted"
    return None


def visible_gpus() -> int:
    """How many GPUs the CUDA driver shows to this process, found without torch."""
    try:
        driver = ctypes.CDLL("libcuda.so.1")
    except OSError:
        return 0
    count = ctypes.c_int()
    return count.value if driver.cuInit(0) == driver.cuDeviceGetCount(ctypes.byref(count)) == 0 else 0
