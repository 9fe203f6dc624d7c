"""FITS files: a cube of all cutouts with a table of magnitudes, or one file per galaxy with its values in the header.

Astropy is imported only when a FITS file is opened: it is optional and slow to import.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import Any

import numpy as np

from ...errors import InputError
from ..shard import BANDS
from .source import READ_ERRORS, SourceFields, find_fields, from_sliceable


@contextmanager
def open_fits(source: str, names: Mapping[str, str]) -> Iterator[SourceFields]:
    """Open a FITS file of either kind, and raise InputError if it is neither or damaged.

    It holds a cube (N, 5, H, W) and a table of N rows with MAGNITUDE (5-vector) or MAG_U ... MAG_Z and, if known,
    REDSHIFT and OBJID; or one galaxy, a cube (5, H, W) with MAG_U ... MAG_Z, REDSHIFT, OBJID in its header.
    """
    from astropy.io import fits

    with ExitStack() as stack:
        try:
            with warnings.catch_warnings():
                warnings.filterwarnings("error", "File may have been truncated")
                fields = _find_in_fits(source, stack.enter_context(fits.open(source, memmap=False)), names)
        except (*READ_ERRORS, UserWarning) as error:
            raise InputError(f"{source} is not a FITS file or is damaged ({error}); copy it again") from None
        yield fields


def _find_in_fits(source: str, file: Any, names: Mapping[str, str]) -> SourceFields:
    cube = next((hdu for hdu in file if hdu.is_image and len(hdu.shape) in (3, 4)), None)
    if cube is None:
        raise InputError(f"{source} has no image; expected a cube (N, 5, H, W), or (5, H, W) for one galaxy")
    if len(cube.shape) == 3:
        header = cube.header
        image = {"image": from_sliceable(cube.data[None])}
        values: dict[str, Any] = {name: header[name] for name in header if name}
    else:
        image = {"image": from_sliceable(cube.section)}  # a section reads rows, the file is not loaded whole
        table = next((hdu for hdu in file if not hdu.is_image), None)
        values = {} if table is None else {name.upper(): table.data[name] for name in table.columns.names}
    return image | _find_values(source, values, names, single=len(cube.shape) == 3)


def _find_values(source: str, values: dict[str, Any], names: Mapping[str, str], single: bool) -> SourceFields:
    """Return the fields other than the image from table columns, or from the header cards of a `single` galaxy."""
    bands = [f"MAG_{band.upper()}" for band in BANDS]
    if all(band in values for band in bands):
        values["MAGNITUDE"] = np.stack([np.asarray(values[band]) for band in bands], axis=-1)
    found = find_fields(source, ["image", *values], {**names, "image": "image"})
    fields = {}
    for field, name in found.items():
        if field != "image":
            array = np.asarray(values[name])
            fields[field] = from_sliceable(array[None] if single else array)
    return fields
