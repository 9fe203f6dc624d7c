"""`cosmicai bench survey-check`: how many surveys with wrong bands or units the check of a survey recognises."""

from __future__ import annotations

import dataclasses
from collections import defaultdict
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import permutations
from typing import Any

import numpy as np
from msgspec.structs import replace
from numpy.typing import NDArray

from ..measurement.machine import describe_machine
from ..measurement.table import MeasurementColumn, MeasurementTable
from ..surveys.check import SurveyCheck, check_sample
from ..surveys.check_sample import SAMPLE, Sample
from ..surveys.shard import BANDS, Galaxies
from ..surveys.synthetic import SKY_NOISE, generate_batches

SIZES = (20, 50, 200, SAMPLE)  # usable galaxies in a sample
FIRST_SEED = 1000  # of synthetic galaxies; neither the demo's nor those of the weights' training
SAMPLES = 2  # of each size and seed that are made wrong; as they are, all are checked
SOFTENING = 1e-8  # maggies, a hundred times that of SDSS
VEGA = np.array([0.91, -0.08, 0.16, 0.37, 0.54])  # magnitudes of Vega in ugriz (Blanton & Roweis 2007, table 1)
NOT_RECOGNISED = "Vega magnitudes"  # which differ by less than real surveys may
PIXEL_FIELDS = ("total", "peak", "lowest", "background", "noise", "spread", "whole")  # of a sample
ORDERS = tuple("".join(order) for order in permutations(BANDS))[1:]
# factor by which pixels are multiplied: what the check should call it
FACTORS = {
    1e-9: "maggies",
    1e-6: "units of 1e6 nanomaggies",
    1e-3: "units of 1e3 nanomaggies",
    0.1: "units of 1e1 nanomaggies",
    10.0: "units of 1e-1 nanomaggies or counts with a zero point of 25",
    10**1.8: "counts with a zero point of 27",
    1e3: "units of 1e-3 nanomaggies or counts with a zero point of 30",
    1e6: "units of 1e-6 nanomaggies",
    1e9: "units of 1e-9 nanomaggies",
    3631.0: "nJy",
    3.631: "uJy",
    3.631e-3: "mJy",
    3.631e-6: "Jy",
}
COLUMNS = (
    MeasurementColumn("name", "survey"),
    *(MeasurementColumn(f"warned_{size}", f"warned: {size}", ".1%") for size in SIZES),
    *(MeasurementColumn(f"named_{size}", f"named: {size}", ".1%") for size in SIZES),
)


@dataclass
class _Count:
    """Samples of one kind, and of how many the check warned, and said what they are."""

    samples: int = 0
    warned: int = 0
    named: int = 0

    def add(self, check: SurveyCheck, name: str) -> None:
        """Count a sample that should be called `name`."""
        self.samples += 1
        self.warned += bool(check.contradictions)
        self.named += any(name in sentence for sentence in check.contradictions)


def bench_survey_check(seeds: int, notify: Callable[[str], None]) -> MeasurementTable:
    """Check samples of synthetic galaxies as they are, in all wrong orders of the bands, in other units, and so on.

    The galaxies are the same on every machine.
    """
    counts: defaultdict[str, dict[int, _Count]] = defaultdict(lambda: {size: _Count() for size in SIZES})
    for seed in range(FIRST_SEED, FIRST_SEED + seeds):
        galaxies = Galaxies.concatenate(generate_batches(SAMPLE, seed))
        versions = [(kind, name, _measure(wrong)) for kind, name, wrong in _scale_otherwise(galaxies)]
        plain = {"right": _measure(galaxies), "right, as crowded fields are": _measure(_crowd(galaxies, seed))}
        for size in SIZES:
            for number in range(SAMPLE // size):
                rows = slice(number * size, (number + 1) * size)
                for kind, right in plain.items():
                    counts[kind][size].add(check_sample(right.rows(rows)), "")
                if number >= SAMPLES:
                    continue
                for kind, right in plain.items():
                    for wrong, name, sample in _reorder(right.rows(rows)):
                        counts[kind.replace("right", wrong)][size].add(check_sample(sample), name)
                for kind, name, version in versions:
                    counts[kind][size].add(check_sample(version.rows(rows)), name)
        notify(f"measured seed {seed} of {FIRST_SEED} to {FIRST_SEED + seeds - 1}")
    table = [{"name": kind} | _summarize(kind, by_size) for kind, by_size in counts.items()]
    facts = {"seeds": seeds, "first_seed": FIRST_SEED}
    return MeasurementTable("Check of surveys", COLUMNS, table, describe_machine(), facts)


def _summarize(kind: str, by_size: dict[int, _Count]) -> dict[str, Any]:
    """Return the columns of a kind of survey; what is right needs no name."""
    row: dict[str, Any] = {}
    for size, count in by_size.items():
        row[f"samples_{size}"] = count.samples
        row[f"warned_{size}"] = count.warned / count.samples
        row[f"named_{size}"] = None if kind.startswith(("right", NOT_RECOGNISED)) else count.named / count.samples
    return row


def _crowd(galaxies: Galaxies, seed: int) -> Galaxies:
    """Return galaxies as they can be in real fields, where pixels and magnitudes differ by tenths.

    The sky is twice as noisy. Cutouts miss up to half of the light, alike in all bands; in a third of them a neighbour
    of another colour adds up to as much light again. Bands are calibrated within 0.05 mag, magnitudes within 0.1 mag.
    """
    rng = np.random.default_rng([seed, 1])
    count = len(galaxies)
    light = rng.uniform(0.5, 1, (count, 1)) + np.where(rng.random((count, 1)) < 1 / 3, rng.uniform(0, 1, (count, 5)), 0)
    image = galaxies.image * light[:, :, None, None].astype(np.float32)
    noise = SKY_NOISE.astype(np.float32)[:, None, None] * np.sqrt(np.float32(3))
    image += noise * rng.standard_normal(image.shape, np.float32)
    magnitude = galaxies.magnitude + rng.normal(0, 0.05, 5) + rng.normal(0, 0.1, (count, 5))
    return _with(galaxies, image, magnitude)


def _measure(galaxies: Galaxies) -> Sample:
    return Sample.measure(galaxies.image, galaxies.magnitude, galaxies.redshift)


def _reorder(sample: Sample) -> Iterator[tuple[str, str, Sample]]:
    """Yield the kind of mistake, what the check should say of it, and the sample with bands in another order."""
    for order in ORDERS:
        bands = [BANDS.index(band) for band in order]
        pixels = {name: getattr(sample, name)[:, bands] for name in PIXEL_FIELDS}
        magnitude = {"magnitude": sample.magnitude[:, bands]}
        said = f"look as if their bands were in the order {order}"
        yield "pixels in another order", f"the pixels {said}", replace(sample, **pixels)
        yield "magnitudes in another order", f"the magnitudes {said}", replace(sample, **magnitude)
        said = f"as if the bands of pixels and magnitudes were in the order {order}"
        yield "both in the same other order", said, replace(sample, **pixels, **magnitude)


def _scale_otherwise(galaxies: Galaxies) -> Iterator[tuple[str, str, Galaxies]]:
    """Yield the kind of mistake, what the check should say of it, and the galaxies with other pixels or magnitudes."""
    image, magnitude = galaxies.image, galaxies.magnitude
    for factor, name in FACTORS.items():
        yield f"pixels times {factor:.4g} ({name})", name, _with(galaxies, image * np.float32(factor))
    flux = 10 ** ((22.5 - magnitude) / 2.5)
    yield "fluxes for magnitudes", "look like fluxes", _with(galaxies, magnitude=flux)
    softened = -2.5 / np.log(10) * (np.arcsinh(flux * 1e-9 / (2 * SOFTENING)) + np.log(SOFTENING))
    yield f"asinh magnitudes of softening {SOFTENING:g}", "asinh magnitudes", _with(galaxies, magnitude=softened)
    yield "magnitudes of other galaxies", "different galaxies", _with(galaxies, magnitude=np.roll(magnitude, 1, axis=0))
    lowest, highest = image.min(axis=(2, 3), keepdims=True), image.max(axis=(2, 3), keepdims=True)
    yield "each cutout from 0 to 1", "normalised", _with(galaxies, (image - lowest) / (highest - lowest))
    mean, scatter = image.mean(axis=(2, 3), keepdims=True), image.std(axis=(2, 3), keepdims=True)
    yield "each cutout of mean 0, scatter 1", "standardised", _with(galaxies, (image - mean) / scatter)
    yield NOT_RECOGNISED, "", _with(galaxies, magnitude=magnitude - VEGA)
    yield "background of 0.5 per pixel", "included the background", _with(galaxies, image + np.float32(0.5))


def _with(
    galaxies: Galaxies, image: NDArray[np.float32] | None = None, magnitude: NDArray[np.float64] | None = None
) -> Galaxies:
    """Return the galaxies with other pixels or magnitudes."""
    return dataclasses.replace(
        galaxies,
        image=galaxies.image if image is None else image,
        magnitude=galaxies.magnitude if magnitude is None else magnitude,
    )
