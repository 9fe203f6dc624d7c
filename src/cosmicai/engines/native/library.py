"""Loads the compiled encoder that this processor can run, by ctypes."""

from __future__ import annotations

import ctypes
import os
import re
from functools import cache
from pathlib import Path

from .build import SOURCE, VARIANTS, Variant

HIDDEN = "COSMICAI_HIDE_CPU_FLAGS"  # instructions to pretend that the processor lacks, with commas


@cache
def read_instructions() -> frozenset[str]:
    """Return the instructions of this processor under the names of /proc/cpuinfo, without those in HIDDEN."""
    try:
        found = re.search(r"^flags\s*:(.*)$", Path("/proc/cpuinfo").read_text(), re.MULTILINE)
    except OSError:
        found = None
    hidden = os.environ.get(HIDDEN, "").split(",")
    return frozenset(found[1].split() if found else ()).difference(hidden)


def find_variant() -> Variant | None:
    """Return the first variant that is built here and that this processor can run."""
    runnable = [variant for variant in VARIANTS if read_instructions().issuperset(variant.instructions)]
    return next((variant for variant in runnable if (SOURCE / variant.file).exists()), None)


def find_problem() -> str | None:
    """Return why the native engine cannot run here, or None if it can."""
    if find_variant():
        return None
    if not any((SOURCE / variant.file).exists() for variant in VARIANTS):
        return "the native engine is not built here (g++ and `make install` build it)"
    needed = " or ".join("+".join(variant.instructions) for variant in VARIANTS)
    return f"the native engine needs a processor with {needed}"


@cache
def load_library() -> ctypes.CDLL:
    """Return the library of `find_variant`, which must exist, with the types of its functions."""
    variant = find_variant()
    assert variant, "find_problem has been asked"
    library = ctypes.CDLL(str(SOURCE / variant.file))
    pointer, size = ctypes.c_void_p, ctypes.c_size_t
    library.create_network.argtypes = [ctypes.c_int, ctypes.c_int, ctypes.c_int, pointer, size]
    library.create_network.restype = pointer
    library.destroy_network.argtypes = [pointer]
    library.destroy_network.restype = None
    library.encode.argtypes = [pointer, pointer, pointer, ctypes.c_long]
    library.encode.restype = None
    return library
