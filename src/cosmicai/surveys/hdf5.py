"""What every reader of HDF5 needs: absent data, data in other files, and what an error of the library means."""

from __future__ import annotations

import errno
import math
import re
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import InputError
from .bands import BAND_NAMES, BANDS, order_to_ugriz, parse_bands
from .units import ZERO_POINT_NAMES, FluxUnit, check_pixel_scale, nanomaggies_per_unit, require_magnitudes

_UNIT_NAMES = ("unit", "units", "bunit", "flux_unit", "flux_units")
_PIXEL_SCALE_NAMES = ("pixel_scale", "pixscale", "pixel_scale_arcsec")
_PACKING_NAMES = ("scale_factor", "add_offset", "_fillvalue", "missing_value")
_EXAMPLE = 3  # names that a message lists


def explain_hdf5_error(uri: str, error: Exception) -> str:
    """Return one sentence that says what an error of h5py at opening or reading a file means, and what to do."""
    text = str(error).replace("\n", " ")
    number = getattr(error, "errno", None) or _errno_in(text)
    if number in (errno.EACCES, errno.EPERM) or isinstance(error, PermissionError):
        return f"{uri} cannot be read: permission denied; change its permissions"
    if number in (errno.EAGAIN, errno.EWOULDBLOCK) or "unable to lock file" in text:
        return (
            f"{uri} is locked: another program has it open for writing, or the file system has no locks; wait until it "
            "is closed, or set HDF5_USE_FILE_LOCKING=FALSE if nobody writes to it"
        )
    if number == errno.ENOENT or isinstance(error, FileNotFoundError):
        return f"{uri} does not exist; check the path"
    problem = "is truncated" if "truncated" in text else "is not an HDF5 file or is damaged"
    return f"{uri} {problem}; expected image and magnitude, copy it again"


def _errno_in(text: str) -> int | None:
    match = re.search(r"errno = (\d+)", text)
    return int(match[1]) if match else None


def find_external(dataset: Any, linked: str, allowed: bool) -> str | None:
    """Return what is wrong with a dataset whose data lie in other files, None if they do not, or may and are all there.

    `linked` is the name of the file that an external link led to, or empty. Data in other files could be any file of
    this machine, so that they are read only if the user allows it.
    """
    files = _files_of(dataset)
    if linked:
        files = [linked, *files]
    if not files:
        return None
    shown = ", ".join(files[:_EXAMPLE]) + ", ..." * (len(files) > _EXAMPLE)
    if not allowed:
        return f"lies in other files ({shown}); read them with --allow-external if you trust the file"
    folder = Path(dataset.file.filename).parent
    lengths = {name: length for name, _, length in dataset.external or ()}
    for name in files:
        path = Path(name) if Path(name).is_absolute() else folder / name
        if not path.is_file():
            return f"needs the file {name}, which does not exist; restore it"
        if name in lengths and _external_bytes(dataset) > _available_bytes(dataset, folder):
            return f"needs more bytes than the file {name} holds; copy it again"
    if dataset.is_virtual:
        return _find_virtual_gap(dataset, folder)
    return None


def _files_of(dataset: Any) -> list[str]:
    """Return the other files in which the data of a dataset lie."""
    names: list[str] = []
    if dataset.external:
        names += [str(name) for name, _, _ in dataset.external]
    if dataset.is_virtual:
        names += [source.file_name for source in dataset.virtual_sources() if source.file_name != "."]
    return list(dict.fromkeys(names))


def _external_bytes(dataset: Any) -> int:
    return int(dataset.size) * int(dataset.dtype.itemsize)


def _available_bytes(dataset: Any, folder: Path) -> int:
    total = 0
    for name, offset, length in dataset.external:
        path = Path(name) if Path(name).is_absolute() else folder / name
        total += max(0, min(length, path.stat().st_size - offset))
    return total


def _find_virtual_gap(dataset: Any, folder: Path) -> str | None:
    """Return which part of a virtual dataset has no source, None if every element has one."""
    import h5py

    mapped = 0
    for source in dataset.virtual_sources():
        mapped += source.vspace.get_select_npoints()
        if source.file_name == ".":
            if source.dset_name not in dataset.file:
                return f"needs {source.dset_name} of the same file, which is missing"
            continue
        path = Path(source.file_name) if Path(source.file_name).is_absolute() else folder / source.file_name
        with h5py.File(path, "r") as file:
            if source.dset_name not in file:
                return f"needs {source.dset_name} of {source.file_name}, which is missing; restore it"
    return None if mapped >= dataset.size else "has elements without a source; write the file again"


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


def find_absence(dataset: Any) -> str | None:
    """Return in which way values of a dataset were never written, None if all are there.

    What was never written reads as the fill value, mostly 0. Chunks that were not allocated are known to the file. In a
    contiguous dataset they are not: there, rows at its end that hold the fill value alone are taken for them, as a
    cutout with noise never does.
    """
    if not dataset.shape or not dataset.size or dataset.is_virtual or dataset.external:
        return None
    if dataset.chunks:
        expected = math.prod(-(-size // chunk) for size, chunk in zip(dataset.shape, dataset.chunks, strict=True))
        found = dataset.id.get_num_chunks()
        return (
            None
            if found >= expected
            else f"is unfinished: {expected - found:,} of {expected:,} chunks were never written"
        )
    if dataset.id.get_offset() is None and dataset.id.get_storage_size() == 0:
        return "was never written"
    if dataset.ndim < 3:
        return None
    rows, fill = len(dataset), dataset.fillvalue
    blank = 0
    while blank < rows and np.all(dataset[rows - 1 - blank] == fill):
        blank += 1
    if not blank:
        return None
    last = f"row {rows - 1} holds" if blank == 1 else f"rows {rows - blank:,} to {rows - 1:,} hold"
    return (
        f"looks unfinished: {last} nothing but {fill:g}, as if the program that wrote it was stopped; write it again, "
        "or leave these rows out"
    )


def read_attribute(scopes: list[Any], names: tuple[str, ...]) -> Any | None:
    """Return the first attribute with one of these names, whatever their letter case, as a plain value; else None."""
    for attributes in scopes:
        for key in attributes:
            if key.lower() in names:
                value = attributes[key]
                return value.item() if isinstance(value, np.ndarray | np.generic) and value.size == 1 else value
    return None


def read_number(scopes: list[Any], names: tuple[str, ...]) -> float | None:
    """Return the first attribute with one of these names as a number, None if there is none or it is not a number."""
    value = read_attribute(scopes, names)
    return float(value) if isinstance(value, int | float) and not isinstance(value, bool) else None


def stated_flux_unit(scopes: list[Any]) -> FluxUnit:
    """Return the unit of pixels that attributes state: `scopes` are those of the image, its group and the file."""
    return FluxUnit(_to_text(read_attribute(scopes[:1], _UNIT_NAMES)), read_number(scopes, ZERO_POINT_NAMES))


def stated_magnitude_unit(attributes: Any) -> str:
    """Return the unit that the attributes of the magnitudes state, or an empty text."""
    return _to_text(read_attribute([attributes], _UNIT_NAMES))


def stated_pixel_scale(scopes: list[Any]) -> float | None:
    """Return the side of a pixel in arcsec that attributes state, None if they state none."""
    return read_number(scopes, _PIXEL_SCALE_NAMES)


def stated_bands(uri: str, scopes: list[Any], datasets: dict[str, Any]) -> tuple[str, ...]:
    """Return the bands that attributes, or datasets beside the image by their names, state; empty if none do.

    Raises InputError if they state several orders.
    """
    try:
        for attributes in scopes:
            for key in attributes:
                if key.lower() in BAND_NAMES and (stated := parse_bands(attributes[key])):
                    return stated
        for name, dataset in datasets.items():
            is_statement = name.lower() in BAND_NAMES and dataset.size <= 2**20
            if is_statement and (stated := parse_bands(dataset[()])):
                return stated
    except ValueError as error:
        raise InputError(f"{uri}: it states {error}; expected one order, split the file by it") from None
    return ()


def _to_text(value: Any | None) -> str:
    return "" if value is None else value.decode("utf-8", "replace") if isinstance(value, bytes) else str(value)


def require_own_data(uri: str, file: Any, fields: list[str]) -> None:
    """Raise InputError if fields of an HDF5 file that is read in place are links to other files, or lie in others."""
    import h5py

    for name in fields:
        link = file.get(name, getlink=True)
        if isinstance(link, h5py.ExternalLink):
            others = [str(link.filename)]
        else:
            others = _files_of(item) if isinstance(item := file[name], h5py.Dataset) else []
        if others:
            raise InputError(
                f"{uri}: {name} lies in other files ({', '.join(others[:_EXAMPLE])}); "
                f"{_convert(uri, ' --allow-external')}"
            )


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
    check_pixel_scale(uri, stated_pixel_scale(scopes), accept=False, resample=False)


def _convert(uri: str, option: str = "") -> str:
    return f"convert the file with `cosmicai ingest {uri} --out SURVEY{option}`"
