"""What every reader of HDF5 needs: what a file states, what is read in place, and what the library's errors mean."""

from __future__ import annotations

import errno
import re
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import numpy as np

from ..errors import InputError, describe_os_error, os_error_number
from .bands import BAND_NAMES, BANDS, band_letter, order_to_ugriz, parse_bands
from .field_names import find_likely
from .hdf5_absence import EXAMPLES, files_of, find_absence
from .mask_arrays import fits_image, is_mask
from .units import ZERO_POINT_NAMES, FluxUnit, check_pixel_scale, nanomaggies_per_unit, require_magnitudes

_FLUX_UNIT_NAMES = ("bunit", "flux_unit", "flux_units", "image_unit", "image_units")
_UNIT_NAMES = ("unit", "units", *_FLUX_UNIT_NAMES)
PIXEL_SCALE_NAMES = ("pixel_scale", "pixscale", "pixel_scale_arcsec", "pixelscale", "arcsec_per_pixel", "pixsize")
_NUMBER = re.compile(r"\s*([+-]?[\d.]+(?:[eE][+-]?\d+)?)\s*(?:arcsec\S*|\"|mag\S*)?\s*")
_PACKING_NAMES = ("_unsigned", "scale_factor", "add_offset", "_fillvalue", "missing_value")
_OF_DAMAGED_FILES = (errno.EINVAL, errno.EFAULT, errno.EFBIG, errno.EOVERFLOW, errno.ESPIPE)  # impossible places
_PIECE = 2**16  # rows of a dataset of bands that are read at once


class KnownObjects:
    """An open HDF5 file that is only read: h5py needs 0.1 ms whenever an object or attribute of it is looked up."""

    def __init__(self, file: Any) -> None:
        self._file, self._objects = file, dict[str, Any]()
        self.attrs = dict(file.attrs)
        self._names = tuple(file)

    def __getitem__(self, name: str) -> Any:
        if name not in self._objects:
            self._objects[name] = self._file[name]
        return self._objects[name]

    def get(self, name: str, default: Any = None, *, getlink: bool = False) -> Any:
        """Return an object, or its link, as `h5py.Group.get` does."""
        if getlink:
            return self._file.get(name, getlink=True)
        try:
            return self[name]
        except KeyError:
            return default

    def __contains__(self, name: str) -> bool:
        return name in self._names if "/" not in name else name in self._file

    def __iter__(self) -> Iterator[str]:
        return iter(self._names)


def explain_hdf5_error(uri: str, error: Exception) -> str:
    """Return one sentence that says what an error of h5py at opening or reading a file means, and what to do."""
    text = str(error).replace("\n", " ")
    number = os_error_number(error)
    if number in (errno.EAGAIN, errno.ENOLCK) or "unable to lock file" in text:
        return (
            f"{uri} is locked: another program has it open for writing, or the file system has no locks; wait until it "
            "is closed, or set HDF5_USE_FILE_LOCKING=FALSE if nobody writes to it"
        )
    if number == errno.ENOENT or isinstance(error, FileNotFoundError):
        return f"{uri} does not exist; check the path"
    if number and number not in _OF_DAMAGED_FILES:
        return f"cannot read {uri}: {describe_os_error(error, 'read')}"
    problem = "is truncated" if "truncated" in text else "is not an HDF5 file or is damaged"
    return f"{uri} {problem}; expected image and magnitude, copy it again"


def find_unknown_filter(dataset: Any) -> str | None:
    """Return which filter of a dataset is not installed here, None if its values can be decoded."""
    import h5py

    filters = dataset.id.get_create_plist()
    codes = [filters.get_filter(number)[0] for number in range(filters.get_nfilters())]
    unknown = [str(code) for code in codes if not h5py.h5z.filter_avail(code)]
    if not unknown:
        return None
    return (
        f"is compressed by HDF5 filter {', '.join(unknown)}, which is not installed here; rewrite the file without it "
        "(h5repack -f NONE), or install its plugin (hdf5plugin) and set HDF5_PLUGIN_PATH"
    )


def read_attribute(scopes: Iterable[Any], names: tuple[str, ...]) -> Any | None:
    """Return the first attribute with one of these names, whatever their letter case, as a plain value; else None.

    An array whose elements are all the same counts as that element.
    """
    for attributes in scopes:
        for key in attributes:
            if key.lower() in names and getattr(value := attributes[key], "shape", ()) is not None:
                return plain_value(value)
    return None


def plain_value(value: Any) -> Any:
    """Return a value of an attribute or a small array: as text if it is bytes, the element if all are the same."""
    if isinstance(value, np.ndarray | np.generic) and value.size and (value == value.flat[0]).all():
        value = value.flat[0].item() if isinstance(value.flat[0], np.generic) else value.flat[0]
    return value.decode("utf-8", "replace") if isinstance(value, bytes) else value


def to_number(value: Any) -> float | None:
    """Return a stated value as a number, which may be text such as "0.262 arcsec"; None if it is none."""
    if isinstance(value, str) and (match := _NUMBER.fullmatch(value)):
        try:
            return float(match[1])
        except ValueError:
            return None
    return float(value) if isinstance(value, int | float) and not isinstance(value, bool) else None


def stated_flux_unit(scopes: list[Any]) -> FluxUnit:
    """Return the unit of pixels that attributes state: `scopes` are those of the image, its group and the file."""
    unit = read_attribute(scopes[:1], _UNIT_NAMES)
    if unit is None:  # a unit of a whole file may be that of anything, unless it is one of flux
        unit = read_attribute(scopes[1:], _FLUX_UNIT_NAMES)
    return FluxUnit("" if unit is None else str(unit), to_number(read_attribute(scopes, ZERO_POINT_NAMES)))


def stated_magnitude_unit(attributes: Any) -> str:
    """Return the unit that the attributes of the magnitudes state, or an empty text."""
    unit = read_attribute([attributes], _UNIT_NAMES)
    return "" if unit is None else str(unit)


def stated_pixel_scale(scopes: list[Any]) -> float | None:
    """Return the side of a pixel in arcsec that attributes state, None if they state none."""
    return to_number(read_attribute(scopes, PIXEL_SCALE_NAMES))


def stated_bands(uri: str, scopes: list[Any], datasets: dict[str, Any]) -> tuple[str, ...]:
    """Return the bands that attributes, or datasets beside the image by their names, state; empty if none do.

    The attributes of the first scope that has any count. Raises InputError if there are several orders.
    """
    found: set[tuple[str, ...]] = set()
    try:
        for attributes in scopes:
            found |= {parse_bands(attributes[key]) for key in attributes if key.lower() in BAND_NAMES}
            if found - {()}:
                break
        for name, dataset in datasets.items():
            if name.lower() in BAND_NAMES:
                found |= _parse_dataset(dataset)
        orders = {tuple(map(band_letter, names)): names for names in found - {()}}
        if len(orders) > 1:
            raise ValueError(" and ".join(" ".join(names) for names in sorted(orders)[:2]))
    except ValueError as error:
        raise InputError(f"{uri}: it states {error}; expected one order of bands, split the file by it") from None
    return next(iter(orders.values()), ())


def _parse_dataset(dataset: Any) -> set[tuple[str, ...]]:
    if not dataset.shape:
        return {parse_bands(dataset[()])}
    return {parse_bands(dataset[start : start + _PIECE]) for start in range(0, len(dataset), _PIECE)}


def require_own_data(uri: str, file: Any, fields: list[str]) -> None:
    """Raise InputError if fields of an HDF5 file that is read in place are links to other files, or lie in others."""
    import h5py

    for name in fields:
        link = file.get(name, getlink=True)
        if isinstance(link, h5py.ExternalLink):
            others = [str(link.filename)]
        else:
            others = files_of(item) if isinstance(item := file[name], h5py.Dataset) else []
        if others:
            raise InputError(
                f"{uri}: {name} lies in other files ({', '.join(others[:EXAMPLES])}); "
                f"{_convert(uri, ' --allow-external')}"
            )


def find_unused(file: Any, fields: list[str], image: tuple[int, ...]) -> dict[str, tuple[str, ...]]:
    """Return the datasets of an HDF5 file read in place that are not used, and may be masks, redshifts or ids.

    These are the names of masks of the image, which has this shape, and of what may be the redshift or the objid where
    the file has none by our names. Links to other files are not followed: they could lead to any file of this machine.
    """
    import h5py

    def has_shape(name: str, is_right: Callable[[tuple[int, ...]], bool]) -> bool:
        if isinstance(file.get(name, getlink=True), h5py.ExternalLink):
            return True
        item = file.get(name)
        return isinstance(item, h5py.Dataset) and item.shape is not None and is_right(item.shape)

    others = sorted(name for name in file if name not in fields)
    found = {"mask": [name for name in others if is_mask(name) and has_shape(name, lambda one: fits_image(one, image))]}
    for field in ("redshift", "objid"):
        likely = find_likely(field, others) if field not in fields else []
        found[field] = [name for name in likely if has_shape(name, lambda one: one == image[:1])]
    return {kind: tuple(names) for kind, names in found.items() if names}


def require_plain(uri: str, file: Any, fields: list[str]) -> None:
    """Raise InputError if an HDF5 file of another program cannot be read in place as it is.

    That is so if fields were never written entirely, or if the file states bands, units, a pixel scale or packed values
    that only ingest obeys. `fields` are there and of the right shape.
    """
    import h5py

    datasets = {name: item for name in file if isinstance(item := file.get(name), h5py.Dataset)}
    for name in fields:
        dataset = datasets[name]
        if problem := find_absence(dataset):
            raise InputError(f"{uri}: {name} {problem}")
        if read_attribute([dataset.attrs], _PACKING_NAMES) is not None:
            raise InputError(f"{uri}: {name} is packed ({', '.join(dataset.attrs)}); {_convert(uri)}")
    scopes = [datasets["image"].attrs, file.attrs]
    bands = stated_bands(uri, scopes, {name: item for name, item in datasets.items() if name not in fields})
    if bands and order_to_ugriz(uri, bands) != tuple(range(len(BANDS))):
        raise InputError(f"{uri}: its bands are in the order {' '.join(bands)}; {_convert(uri)}")
    if nanomaggies_per_unit(uri, unit := stated_flux_unit(scopes)) not in (None, 1):
        raise InputError(f"{uri}: pixels are in {unit.text}, expected nanomaggies; {_convert(uri)}")
    require_magnitudes(uri, stated_magnitude_unit(datasets["magnitude"].attrs))
    magnitude_bands = stated_bands(uri, [datasets["magnitude"].attrs], {})
    if magnitude_bands and order_to_ugriz(f"{uri}: magnitude", magnitude_bands) != tuple(range(len(BANDS))):
        raise InputError(f"{uri}: its magnitudes are in the order {' '.join(magnitude_bands)}; {_convert(uri)}")
    check_pixel_scale(uri, stated_pixel_scale(scopes), accept=False, resample=False)


def _convert(uri: str, option: str = "") -> str:
    return f"convert the file with `cosmicai ingest {uri} --out SURVEY{option}`"
