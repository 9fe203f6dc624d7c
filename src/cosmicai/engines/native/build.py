"""Compiles the encoder, once for each set of instructions: `python -m cosmicai.engines.native.build`.

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
    """The encoder for processors with some `instructions`, as /proc/cpuinfo names them."""

    name: str
    instructions: tuple[str, ...]
    options: tuple[str, ...]

    @property
    def file(self) -> str:
        """Name of its library."""
        return f"encoder-{self.name}.so"


# The first that a processor can run is used.
VARIANTS = (
    Variant(
        "avx512",
        ("avx512f", "avx512dq", "avx512bw", "avx512vl", "fma"),
        ("-mavx512f", "-mavx512dq", "-mavx512bw", "-mavx512vl", "-mfma", "-mprefer-vector-width=512"),
    ),
    Variant("avx2", ("avx2", "fma"), ("-mavx2", "-mfma")),
)


def find_compiler() -> str | None:
    """Return the C++ compiler: CXX, or else g++; None if there is none, or if this is no x86-64 with Linux."""
    if sys.platform != "linux" or platform.machine() != "x86_64":
        return None
    return shutil.which(os.environ.get("CXX") or "g++")


def compile_all(folder: Path) -> list[Path]:
    """Compile all variants into a folder and return their paths; none without a compiler.

    Raises CalledProcessError if the compiler fails.
    """
    compiler = find_compiler()
    if compiler is None:
        return []
    running = []
    for variant in VARIANTS:
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
