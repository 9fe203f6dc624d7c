"""Compiles the encoder, once for each precision and set of instructions: `python -m cosmicai.engines.native.build`.

setup.py calls it too, before the package can be imported, so that it uses the standard library alone. Without a C++
compiler nothing is built, and the engine `native` is not available.
"""

from __future__ import annotations

import os
import platform
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

SOURCE = Path(__file__).resolve().parent
# Contraction into fused multiply-add is what makes it fast; no option changes what NaN or infinity do.
OPTIONS = ("-O3", "-std=c++17", "-fPIC", "-shared", "-ffp-contract=fast", "-fno-math-errno", "-Wall", "-Wno-psabi")


@dataclass(frozen=True)
class Variant:
    """The encoder in one precision, for processors with some `instructions`, as /proc/cpuinfo names them."""

    precision: str
    name: str
    instructions: tuple[str, ...]
    options: tuple[str, ...]

    @property
    def file(self) -> str:
        """Name of its library."""
        return f"encoder-{self.precision}-{self.name}.so"


_AVX512 = Variant(
    "float32",
    "avx512",
    ("avx512f", "avx512dq", "avx512bw", "avx512vl", "fma"),
    ("-mavx512f", "-mavx512dq", "-mavx512bw", "-mavx512vl", "-mfma", "-mprefer-vector-width=512"),
)
_AMX = (*_AVX512.instructions, "avx512_bf16", "amx_tile", "amx_bf16"), (*_AVX512.options, "-mavx512bf16")
# The first of a precision that a processor can run is used. TILE_PARTS is explained in vectors.h.
VARIANTS = (
    _AVX512,
    Variant("float32", "avx2", ("avx2", "fma"), ("-mavx2", "-mfma")),
    Variant("bf16x3", "amx", _AMX[0], (*_AMX[1], "-DTILE_PARTS=2")),
    Variant("bfloat16", "amx", _AMX[0], (*_AMX[1], "-DTILE_PARTS=1")),
)
# Twins of those with AMX for the tests, which run on any processor with AVX2, and slowly.
PLAIN_VARIANTS = tuple(
    Variant(precision, "plain", ("avx2", "fma"), ("-O2", "-mavx2", "-mfma", f"-DTILE_PARTS={parts}", "-DPLAIN_TILES"))
    for precision, parts in (("bf16x3", 2), ("bfloat16", 1))
)


def find_compiler() -> str | None:
    """Return the C++ compiler: CXX, or else g++; None if there is none, or if this is no x86-64 with Linux."""
    if sys.platform != "linux" or platform.machine() != "x86_64":
        return None
    return shutil.which(os.environ.get("CXX") or "g++")


def compile_all(folder: Path, variants: tuple[Variant, ...] = VARIANTS) -> list[Path]:
    """Compile variants into a folder and return their paths; none without a compiler.

    Raises CalledProcessError if the compiler fails.
    """
    compiler = find_compiler()
    if compiler is None:
        return []
    running = []
    for variant in variants:
        partial = folder / f".{variant.file}.partial-{os.getpid()}"
        command = [compiler, *OPTIONS, *variant.options, str(SOURCE / "encoder.cpp"), "-o", str(partial)]
        running.append((partial, folder / variant.file, subprocess.Popen(command)))
    for partial, path, process in running:
        if process.wait():
            raise subprocess.CalledProcessError(process.returncode, process.args)
        partial.replace(path)  # a library that is loaded stays what it is
    return [path for _, path, _ in running]


if __name__ == "__main__":
    print("\n".join(map(str, compile_all(SOURCE))) or "there is no C++ compiler; the engine `native` is not built")
