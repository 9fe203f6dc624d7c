"""What this machine's processor computes fast in OpenVINO, and the settings that all of its networks share."""

from __future__ import annotations

import ctypes
import json
import os
import re
from contextlib import suppress
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import openvino as ov
from openvino import opset13 as op

from .graph import VERSION

HINTS = {"float32": "f32", "bfloat16": "bf16"}  # always stated: OpenVINO's own default is bfloat16
M_MMAP_THRESHOLD, M_ARENA_MAX = -3, -8  # malloc.h of glibc


@cache
def get_core() -> ov.Core:
    """Return the OpenVINO core of this process.

    Compiling frees arrays of many sizes. With a fixed threshold glibc returns large blocks to the system; otherwise
    they leave holes of some hundred megabytes in its heap. One arena is enough, since threads hardly allocate while
    they compute.
    """
    with suppress(AttributeError, OSError):
        library = ctypes.CDLL(None)
        library.mallopt(M_MMAP_THRESHOLD, 2**20)
        library.mallopt(M_ARENA_MAX, 1)
    return ov.Core()


@cache
def describe_processor() -> str:
    """Return all that a compiled network depends on besides the network itself, as one text."""
    facts = [str(get_core().get_property("CPU", name)) for name in ("FULL_DEVICE_NAME", "OPTIMIZATION_CAPABILITIES")]
    return json.dumps([ov.__version__, VERSION, *facts, os.environ.get("ONEDNN_MAX_CPU_ISA", "")])


@cache
def has_bfloat16() -> bool:
    """Return whether this processor computes in bfloat16.

    This compiles a small matrix product, since a processor may report bfloat16 and yet not support it.
    """
    if "BF16" not in get_core().get_property("CPU", "OPTIMIZATION_CAPABILITIES"):
        return False
    x = op.parameter([16, 16], np.float32)
    product = ov.Model([op.matmul(x, op.constant(np.ones((16, 16), np.float32)), False, True)], [x], "product")
    try:
        get_core().compile_model(product, "CPU", cpu_settings("bfloat16", 1))
    except RuntimeError:
        return False
    return True


@cache
def has_fast_int8() -> bool:
    """Return whether this processor is faster in int8 than in float32, as x86 is with AVX-512 or VNNI (1.4 to 1.7 x).

    With AVX2 alone int8 takes 1.5 times as long as float32.
    """
    try:
        flags = set(re.findall(r"avx512f|avx_vnni", Path("/proc/cpuinfo").read_text()))
    except OSError:
        return False
    return bool(flags) and os.environ.get("ONEDNN_MAX_CPU_ISA", "") not in ("SSE41", "AVX", "AVX2")


def cpu_settings(precision: str, streams: int) -> dict[str, Any]:
    """Return OpenVINO's settings for `streams` streams of one thread each, in "float32" or "bfloat16"."""
    return {
        "INFERENCE_PRECISION_HINT": HINTS[precision],
        "PERFORMANCE_HINT": "THROUGHPUT",
        "NUM_STREAMS": streams,
        "INFERENCE_NUM_THREADS": streams,
        "ENABLE_CPU_PINNING": False,  # all ranks of a machine would be pinned to its first cores
    }
