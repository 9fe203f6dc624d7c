"""Loads the compiled encoder that this processor can run, by ctypes."""

from __future__ import annotations

import ctypes
import os
import re
from functools import cache
from pathlib import Path

from .build import SOURCE, VARIANTS, Variant

_SYS_ARCH_PRCTL, _ARCH_REQ_XCOMP_PERM, _XFEATURE_XTILEDATA = 158, 0x1023, 18  # asm/prctl.h of x86-64
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


def find_variant(precision: str) -> Variant | None:
    """Return the first variant of a precision that is built here and that this processor and system can run."""
    for variant in VARIANTS:
        runnable = variant.precision == precision and read_instructions().issuperset(variant.instructions)
        if runnable and (SOURCE / variant.file).exists():
            return variant if "amx_tile" not in variant.instructions or may_use_tiles() else None
    return None


def find_problem(precision: str) -> str | None:
    """Return why the native engine cannot compute in a precision here, or None if it can."""
    if find_variant(precision):
        return None
    variants = [variant for variant in VARIANTS if variant.precision == precision]
    if not any((SOURCE / variant.file).exists() for variant in variants):
        return f"the native engine is not built here for {precision} (g++ and `make install` build it)"
    if any(read_instructions().issuperset(variant.instructions) for variant in variants):
        return f"the native engine needs a system that permits AMX for {precision}"
    needed = " or ".join("+".join(variant.instructions) for variant in variants)
    return f"the native engine needs a processor with {needed} for {precision}"


@cache
def may_use_tiles() -> bool:
    """Request the tiles of AMX from Linux for this process and all that it forks, and return whether they are granted.

    Without the permission the first use of a tile would end the process.
    """
    status: int = ctypes.CDLL(None).syscall(_SYS_ARCH_PRCTL, _ARCH_REQ_XCOMP_PERM, _XFEATURE_XTILEDATA)
    return status == 0


@cache
def load_library(path: Path) -> ctypes.CDLL:
    """Return a compiled encoder with the types of its functions."""
    library = ctypes.CDLL(str(path))
    pointer, size = ctypes.c_void_p, ctypes.c_size_t
    library.create_network.argtypes = [ctypes.c_int, ctypes.c_int, ctypes.c_int, pointer, size]
    library.create_network.restype = pointer
    library.destroy_network.argtypes = [pointer]
    library.destroy_network.restype = None
    library.encode.argtypes = [pointer, pointer, pointer, ctypes.c_long]
    library.encode.restype = None
    return library
