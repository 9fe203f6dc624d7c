"""The figures: each function draws one and returns a `Drawing`, which `save` writes as SVG and PNG."""

from __future__ import annotations

import os

from cosmicai.engines.openvino.compiled_cache import cache_folder
from cosmicai.ranks.image_identity import image_variant

if image_variant():  # before matplotlib is first imported: in a container it would write to the home
    os.environ.setdefault("MPLCONFIGDIR", str(cache_folder() / "matplotlib"))

from .accuracy import by_magnitude, density, dz_against_z, dz_histogram
from .candidates import pareto
from .ranks import phases, speed_up, stragglers
from .studies import draw
from .style import Drawing, save

__all__ = [
    "Drawing", "by_magnitude", "density", "draw", "dz_against_z", "dz_histogram", "pareto", "phases", "save",
    "speed_up", "stragglers",
]  # fmt: skip
