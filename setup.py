"""Compiles the native encoder into the package where there is a C++ compiler; everything else is in pyproject.toml."""

from __future__ import annotations

import runpy
from pathlib import Path

from setuptools import Distribution, setup
from setuptools.command.bdist_wheel import bdist_wheel
from setuptools.command.build_py import build_py

NATIVE = "cosmicai/engines/native"
BUILD = runpy.run_path(str(Path(__file__).parent / "src" / NATIVE / "build.py"), run_name="build")


class BuildWithEncoder(build_py):
    """Also compiles the encoder: into the wheel, or into the source for an editable installation."""

    def run(self) -> None:
        """Build the package."""
        super().run()
        folder = Path("src" if self.editable_mode else self.build_lib, NATIVE)
        for path in BUILD["compile_all"](folder):
            self.announce(f"compiled {path}", 2)


class PlatformWheel(bdist_wheel):
    """A wheel for this platform and any Python: the libraries are no extension modules."""

    def get_tag(self) -> tuple[str, str, str]:
        """Return the tags of the wheel's name."""
        return ("py3", "none", super().get_tag()[2])


class WithLibraries(Distribution):
    """A distribution with compiled libraries, if there is a compiler."""

    def has_ext_modules(self) -> bool:
        """Return whether the wheel is for one platform only."""
        return BUILD["find_compiler"]() is not None


setup(cmdclass={"build_py": BuildWithEncoder, "bdist_wheel": PlatformWheel}, distclass=WithLibraries)
