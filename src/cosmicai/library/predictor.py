"""Redshifts of arrays, without a survey and a run folder."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from numbers import Integral
from os import PathLike
from types import TracebackType
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ..calibration.intervals import predict_quantiles
from ..calibration.records import INTERVAL_LEVELS, LEVELS, TrainingDomain, trust_of
from ..engines.base import Engine, choose_concurrency, split_rows
from ..engines.registry import choose_engine, open_engine
from ..errors import InputError
from ..models.weights import find_weights
from ..ranks.cores import available_cores
from ..runs.part import Part, concatenate_parts
from ..runs.request import require_views
from ..storage.parallel import map_in_order
from ..surveys.bands import BANDS
from ..surveys.ingest.pixels import PixelConversion, to_cutouts
from ..surveys.quality import Flag, blank_unusable
from ..surveys.shard import IMAGE_SHAPE
from ..surveys.units import FluxUnit, nanomaggies_per_unit, require_magnitudes
from ..worker.loop import predict_rows

CLOSED = "this Predictor is closed; open another one"


@dataclass(frozen=True)
class Prediction:
    """Redshifts (N,) float32, NaN where there is none, and flags (N,) uint8 that say why (see `surveys.quality`).

    `quantiles` (N, 25) float32 are those of the redshifts at the LEVELS (25,), NaN where there is no redshift or no
    calibration for it; they are None for weights without a calibration.
    `spread` (N,) float32 is the standard deviation of the redshifts of all views, None with one view.
    """

    redshift: NDArray[np.float32]
    flag: NDArray[np.uint8]
    quantiles: NDArray[np.float32] | None = None
    spread: NDArray[np.float32] | None = None

    def interval(self, percent: int) -> NDArray[np.float32]:
        """Return the bounds (N, 2) of the intervals that hold the redshift with 68 or 95 percent probability.

        Raises InputError for another percentage, or if the weights have no calibration.
        """
        if self.quantiles is None:
            raise InputError("the weights have no calibration; write calibrated ones with `cosmicai calibrate`")
        if percent not in INTERVAL_LEVELS:
            raise InputError(f"percent is {percent!r}; expected {' or '.join(map(str, INTERVAL_LEVELS))}")
        return self.quantiles[:, [LEVELS.index(level) for level in INTERVAL_LEVELS[percent]]]


class Predictor:
    """A network that stays open, to predict many arrays; a context manager.

        with Predictor("astromae.safetensors") as predictor:
            prediction = predictor.predict(images, magnitudes)

    Several threads may use one at the same time. `weights` is the address of a weights file, or `demo` for weights that
    were trained on synthetic galaxies. `engine`, `precision`, `device` and `batch_size` are those of `cosmicai infer`;
    the precision is float32 unless another one is requested, and is not checked here. `views` is 1, or 8 to average
    over the rotations by right angles and reflections of each cutout. `threads` is the number of cores to use, by
    default all that this process may use.

    Raises InputError if the weights cannot be used, if the engine does not exist or cannot run here, or if `views` or
    another number cannot be used.
    """

    def __init__(
        self,
        weights: str | PathLike[str],
        *,
        engine: str = "auto",
        precision: str = "float32",
        device: str | None = None,
        batch_size: int | None = None,
        views: int = 1,
        threads: int | None = None,
    ) -> None:
        if precision == "int8":
            raise InputError("int8 is calibrated on a survey; use cosmicai.infer, or another precision")
        for name, number in (("batch_size", batch_size), ("threads", threads)):
            if number is not None and not (isinstance(number, Integral) and number >= 1):
                raise InputError(f"{name} is {number!r}; expected an integer of at least 1, or None")
        self._views = require_views(views, "views")
        threads, self.weights = threads or available_cores(), find_weights(str(weights))
        trust = trust_of(self.weights.notes, self.weights.uri)
        self._calibration, self._domain = trust.calibration, trust.domain
        choice, size, _ = choose_engine(self.weights, engine, precision, device, batch_size)
        self._rows, calls = choose_concurrency(choice, threads, size)
        self._size, self._calls = size, calls
        self._engine: Engine | None = open_engine(choice, self.weights, threads)

    def predict(self, images: ArrayLike, magnitudes: ArrayLike) -> Prediction:
        """Return the redshifts and flags of galaxies.

        `images` (N, 5, H, W) are cutouts in the bands u, g, r, i, z, in nanomaggies, at SDSS's 0.396 arcsec per pixel,
        with the galaxy in the middle; sides above 32 pixels are cropped to their centre. `magnitudes` (N, 5) are those
        of the same bands. Both may be of any dtype of numbers, and masked: what is masked is missing. Units of astropy
        are obeyed: fluxes per unit of frequency become nanomaggies. A galaxy with a pixel or a magnitude that cannot be
        used has NaN, and a flag that says why.

        Raises InputError if the shapes, dtypes or units are others, or if the Predictor is closed.
        """
        engine = self._engine
        if engine is None:
            raise InputError(CLOSED)
        image, magnitude = _check_images(images), _check_magnitudes(magnitudes)
        factor = nanomaggies_per_unit("predict", FluxUnit(_unit(images)))
        conversion = PixelConversion(factor=1.0 if factor is None else factor)
        if len(image) != len(magnitude):
            raise InputError(f"images are of {len(image)} galaxies, magnitudes of {len(magnitude)}; expected as many")
        ranges = [
            slice(start + part.start, start + part.stop)
            for batch in split_rows(len(image), self._size)
            for start, length in [(batch.start, batch.stop - batch.start)]
            for part in split_rows(length, self._rows)
        ]
        predict_range = partial(_predict_range, engine, self._views, self._domain, image, magnitude, conversion)
        parts = list(map_in_order(predict_range, ranges, self._calls))
        if not parts:
            none = np.empty(0, np.float32)
            parts = [Part(none, np.empty(0, np.uint8), none if self._views > 1 else None)]
        found = concatenate_parts(parts)
        if self._calibration is None:
            return Prediction(found.redshift_phot, found.flag, None, found.redshift_spread)
        redshift = found.redshift_phot.astype(np.float64)
        quantiles = predict_quantiles(self._calibration, magnitude, redshift)
        has_none = np.isfinite(redshift) & np.isnan(quantiles[:, 0])
        flag = found.flag | has_none * np.uint8(Flag.NOT_CALIBRATED)
        return Prediction(found.redshift_phot, flag, quantiles, found.redshift_spread)

    def close(self) -> None:
        """Release the network; other threads end what they have begun. To close again does nothing."""
        self._engine = None

    def __enter__(self) -> Predictor:
        if self._engine is None:
            raise InputError(CLOSED)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def predict(
    images: ArrayLike, magnitudes: ArrayLike, *, weights: str | PathLike[str], **options: Any
) -> NDArray[np.float32]:
    """Return the redshifts (N,) float32 of cutouts (N, 5, H, W) and magnitudes (N, 5); NaN where there is none.

    Opens the network for this call alone: use `Predictor` for many arrays, or if the flags matter. Arguments and errors
    are those of `Predictor` and `Predictor.predict`.
    """
    with Predictor(weights, **options) as predictor:
        return predictor.predict(images, magnitudes).redshift


def _predict_range(
    engine: Engine,
    views: int,
    domain: TrainingDomain | None,
    image: NDArray[Any],
    magnitude: NDArray[np.float64],
    conversion: PixelConversion,
    rows: slice,
) -> Part:
    cutout, own = to_cutouts(image[rows], conversion), magnitude[rows].copy()
    if np.shares_memory(cutout, image):  # blank_unusable writes
        cutout = cutout.copy()
    flag = blank_unusable(cutout, own)
    return Part(*predict_rows(engine, cutout, own, flag, views, domain))


def _check_images(images: ArrayLike) -> NDArray[Any]:
    image, side = _to_numbers(images, "images"), IMAGE_SHAPE[-1]
    shape = image.shape
    if len(shape) == 4 and shape[1] != len(BANDS) and shape[3] == len(BANDS):
        raise InputError(f"images are {shape}; expected (N, 5, H, W), as np.moveaxis(images, -1, 1) makes them")
    if len(shape) != 4 or shape[1] != len(BANDS) or shape[2] != shape[3]:
        raise InputError(f"images are {shape}; expected (N, 5, H, W) in the bands {', '.join(BANDS)}, H = W >= {side}")
    if shape[2] < side + shape[2] % 2:
        least = side + shape[2] % 2
        raise InputError(f"images are of {shape[2]} pixels a side; expected at least {least}, cut out a larger part")
    return image


def _check_magnitudes(magnitudes: ArrayLike) -> NDArray[np.float64]:
    magnitude = _to_numbers(magnitudes, "magnitudes")
    require_magnitudes("predict", _unit(magnitudes))
    if magnitude.ndim != 2 or magnitude.shape[1] != len(BANDS):
        raise InputError(f"magnitudes are {magnitude.shape}; expected (N, 5), one each in {', '.join(BANDS)}")
    return magnitude.astype(np.float64, copy=False)


def _unit(values: ArrayLike) -> str:
    """Return the unit of an array of astropy, empty for any other."""
    return str(getattr(values, "unit", None) or "") if isinstance(values, np.ndarray) else ""


def _to_numbers(values: ArrayLike, name: str) -> NDArray[Any]:
    """Return values as a plain array, with NaN where they are masked. Raises InputError if they are no numbers."""
    mask = getattr(values, "mask", False) if isinstance(values, np.ndarray) else False  # numpy's, or astropy's
    try:
        array = np.asarray(getattr(values, "unmasked", values))
    except ValueError:
        raise InputError(f"{name} are of different shapes; expected one array") from None
    if array.dtype.names is not None:
        raise InputError(f"{name} are a table; expected one array, as np.column_stack makes it of columns")
    if array.dtype.kind not in "iuf":
        raise InputError(f"{name} are of dtype {array.dtype}; expected real numbers")
    if not np.any(mask):
        return array
    return np.where(mask, np.nan, array if array.dtype.kind == "f" else array.astype(np.float64))
