"""The registry of engines: choose one for a request and open it.

Each engine is imported only when it is used, since torch and OpenVINO take seconds to import.
"""

from __future__ import annotations

import ctypes
import sys
from importlib.util import find_spec
from pathlib import Path

from ..errors import InputError
from ..models.weights import WeightsFile
from ..ranks.container_image import image_variant
from .base import Engine, EngineChoice

ENGINES = ("auto", "openvino", "native", "cuda", "reference")
PRECISIONS = {
    "openvino": ("float32", "bfloat16", "int8"),
    "native": ("float32", "bf16x3", "bfloat16"),
    "cuda": ("bfloat16", "tf32", "float32"),
    "reference": ("float32",),
}  # the first of each is its default
DEVICES = {"openvino": ("cpu",), "native": ("cpu",), "cuda": ("cuda",), "reference": ("cpu", "cuda")}
BATCH_SIZE = {"cpu": 512, "cuda": 4096}
LARGEST_BATCH_SIZE = 2**16  # galaxies, 1.3 GB of cutouts; a larger one would be paid for in memory


def choose_engine(
    weights: WeightsFile, engine: str, precision: str | None, device: str | None, batch_size: int | None
) -> tuple[EngineChoice, int, list[str]]:
    """Return the engine for a request with all that decides its numbers, the batch size, and notices for the user.

    None means the default, and `auto` the fastest engine of this machine. Raises InputError if the request names
    something that does not exist or cannot run here, or if the weights cannot be used.
    """
    notices = []
    if device == "cuda" or (device is None and engine in ("auto", "cuda")):
        _require_image_for_gpus()
    if engine == "auto":
        engine, reason = _choose_automatically(device)
        notices.append(f"engine {engine}: {reason}")
    if engine not in PRECISIONS:
        raise InputError(f"there is no engine {engine!r}; expected one of {', '.join(ENGINES)}")
    device = device or DEVICES[engine][0]
    precision = precision or PRECISIONS[engine][0]
    for option, requested, offered in (("precision", precision, PRECISIONS), ("device", device, DEVICES)):
        if requested not in offered[engine]:
            expected = " or ".join(offered[engine])
            raise InputError(f"the engine {engine} has no {option} {requested}; expected {expected}")
    batch_size = batch_size or BATCH_SIZE[device]
    if engine in ("openvino", "native"):
        if problem := find_openvino_problem():
            raise InputError(f"{problem}; use --engine reference")
        if engine == "native":
            from .native.engine import choose_native

            choice, notice = choose_native(weights, precision, batch_size)
        else:
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


def open_engine(choice: EngineChoice, weights: WeightsFile, threads: int, quantized: bytes | None = None) -> Engine:
    """Load the network into the chosen engine, with its int8 form in `quantized`.

    Raises InputError if the engine cannot run here or the weights cannot be used.
    """
    another = "the run was planned with another version of this program"
    if choice.engine not in PRECISIONS:
        raise InputError(f"there is no engine {choice.engine!r}; {another}")
    for option, planned, offered in (("precision", choice.precision, PRECISIONS), ("device", choice.device, DEVICES)):
        if planned not in offered[choice.engine]:
            raise InputError(f"the engine {choice.engine} has no {option} {planned!r}; {another}")
    if choice.engine == "openvino":
        from .openvino.engine import OpenVINOEngine

        return OpenVINOEngine(weights, choice, threads, quantized)
    if choice.engine == "native":
        from .native.engine import NativeEngine

        return NativeEngine(weights, choice, threads)
    if choice.engine == "cuda":
        from .cuda import CudaEngine

        return CudaEngine(weights.load(), choice.precision, choice.inner_batch)
    from .reference import ReferenceEngine

    return ReferenceEngine(weights, choice, threads)


def _choose_automatically(device: str | None) -> tuple[str, str]:
    """Return the fastest engine that can run here, and the reason for it."""
    gpus = count_visible_gpus()
    if device != "cpu" and gpus:
        import torch

        if torch.cuda.is_available():
            return "cuda", f"{gpus} GPU{'s are' if gpus > 1 else ' is'} visible"
    if device == "cuda":
        return "cuda", "a GPU was requested"
    reason = "no GPU is visible" if not gpus else "the CPU was requested" if device else "this torch supports CPUs only"
    problem = find_openvino_problem()
    return ("reference", f"{reason}, and {problem}") if problem else ("openvino", reason)


def _require_image_for_gpus() -> None:
    """Raise InputError in an image that was built without CUDA if GPUs are visible, which it would leave idle."""
    gpus = count_visible_gpus() if image_variant() == "cpu" else 0
    if gpus:
        raise InputError(
            f"{gpus} GPU{'s are' if gpus > 1 else ' is'} visible and this image was built without CUDA; build another "
            "with containers/build.sh --variant cuda, or compute on the CPU with --device cpu"
        )


def find_openvino_problem() -> str | None:
    """Return why OpenVINO cannot run here, or None if it can. Without /proc/cpuinfo it would wait forever."""
    if not find_spec("openvino"):
        return "OpenVINO is not installed"
    if sys.platform == "linux" and not Path("/proc/cpuinfo").exists():
        return "OpenVINO needs /proc, which is not mounted"
    return None


def count_visible_gpus() -> int:
    """Return the number of GPUs that the CUDA driver shows to this process, without importing torch."""
    try:
        driver = ctypes.CDLL("libcuda.so.1")
    except OSError:
        return 0
    count = ctypes.c_int()
    return count.value if driver.cuInit(0) == driver.cuDeviceGetCount(ctypes.byref(count)) == 0 else 0
