"""Draw the figures: each function returns a `Drawing`, which `save` writes as SVG and PNG."""

from __future__ import annotations

import os

from cosmicai.engines.openvino.compiled_cache import cache_folder
from cosmicai.ranks.container_image import image_variant

if image_variant():  # before matplotlib is imported, which would write to the home folder of the container
    os.environ.setdefault("MPLCONFIGDIR", str(cache_folder() / "matplotlib"))

from .pareto_front import draw_pareto_front
from .rank_times import draw_phases, draw_speed_up, draw_stragglers
from .redshifts import draw_by_magnitude, draw_density, draw_dz_by_redshift, draw_dz_histogram
from .storage_times import draw_storage_times
from .studies import draw_study
from .style import Drawing, save

__all__ = [
    "Drawing", "draw_by_magnitude", "draw_density", "draw_dz_by_redshift", "draw_dz_histogram", "draw_pareto_front",
    "draw_phases", "draw_speed_up", "draw_storage_times", "draw_stragglers", "draw_study", "save",
]  # fmt: skip
