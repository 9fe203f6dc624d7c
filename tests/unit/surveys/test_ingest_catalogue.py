"""Test what a catalogue and its cutouts become: nothing is wrong without a word, in values, nulls, units and order."""

import os
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from astropy.io import fits
from astropy.table import Column, MaskedColumn, Table

from cosmicai.errors import InputError
from cosmicai.surveys.columns import ColumnSpec
from cosmicai.surveys.ingest import ingest as ingest_module
from cosmicai.surveys.ingest.ingest import IngestRequest
from cosmicai.surveys.ingest.report import IngestReport, group_notices
from cosmicai.surveys.ingest.source import IngestOptions
from cosmicai.surveys.shard import Galaxies
from cosmicai.surveys.survey import open_survey
from support.gate import GOOD

GALAXIES = 150  # more than two chunks
SKY = GOOD.image[np.arange(GALAXIES) % len(GOOD)] + np.arange(GALAXIES, dtype=np.float32)[:, None, None, None]
MAGNITUDES = {f"mag_{band}": 20 + number + np.arange(GALAXIES) / 1000 for number, band in enumerate("ugriz")}


def write_cutouts(folder: Path, count: int = GALAXIES, mask: Callable[[int], Any] | None = None) -> Path:
    folder.mkdir()
    for row in range(count):
        hdus: list[Any] = [fits.PrimaryHDU(SKY[row], fits.Header({"BUNIT": "nanomaggy"}))]
        hdus += [fits.ImageHDU(mask(row), name="MASK")] if mask else []
        fits.HDUList(hdus).writeto(folder / f"{1000 + row}.fits")
    return folder


def write_table(path: Path, order: Any = slice(None), count: int = GALAXIES, **columns: Any) -> Path:
    rows = {"objid": 1000 + np.arange(GALAXIES), **MAGNITUDES, **columns}
    Table({name: values for name, values in rows.items() if values is not None})[:count][order].write(path)
    return path


def ingest(tmp_path: Path, source: Path, catalogue: Path, size: int = 70, **options: Any) -> IngestReport:
    out = tmp_path / f"out{len(list(tmp_path.glob('out*')))}"
    request = IngestRequest([str(source)], IngestOptions(**options), str(catalogue))
    return ingest_module.ingest(request, str(out), size, 1, lambda _: nullcontext(lambda _: None))


def read(report: IngestReport) -> tuple[Galaxies, dict[str, ColumnSpec]]:
    survey = open_survey(report.survey.uri)
    with survey.open(survey.shards[0]) as shard:
        specs = shard.columns
    return Galaxies.concatenate(survey.read_batches(64, specs)), specs


def test_every_cutout_comes_to_its_row_with_its_kept_values_and_nulls(tmp_path):
    order = np.random.default_rng(0).permutation(GALAXIES)
    late = np.arange(GALAXIES) > 140  # masked in the last chunk alone
    kept = {
        "small": MaskedColumn(np.arange(GALAXIES, dtype="i2"), mask=late),
        "low": MaskedColumn(np.where(np.arange(GALAXIES) == 7, -(2**31), 5).astype("i4"), mask=late),
        "odd": MaskedColumn(np.arange(GALAXIES) % 2 == 1, mask=late),
        "large": np.arange(GALAXIES, dtype="u8") + 2**63,
        "image": np.arange(GALAXIES, dtype="f4"),
        "text": np.array([f"ñ{row}" for row in range(GALAXIES)]),
    }
    catalogue = write_table(tmp_path / "rows.ecsv", order, **kept)
    report = ingest(tmp_path, write_cutouts(tmp_path / "cutouts"), catalogue, keep=tuple(kept))
    found, specs = read(report)
    np.testing.assert_array_equal(found.objid, 1000 + order)
    np.testing.assert_array_equal(found.image, SKY[order])
    np.testing.assert_array_equal(found.magnitude[:, 2], MAGNITUDES["mag_r"][order])
    assert {path: (spec.dtype.str, spec.null) for path, spec in specs.items()} == {
        "columns/small": ("<i2", -(2**15)), "columns/low": ("<i8", -(2**63)), "columns/odd": ("<i2", -(2**15)),
        "columns/large": ("<u8", None), "columns/image": ("<f4", None), "columns/text": ("|S5", None),
    }  # fmt: skip
    for name, values in kept.items():
        own, null = found.columns[f"columns/{name}"].tolist(), specs[f"columns/{name}"].null
        expected = [None if value is np.ma.masked else value for value in values[order]]
        expected = [value.encode() if isinstance(value, str) else value for value in expected]
        assert [None if null is not None and value == null else value for value in own] == expected
    np.savez(tmp_path / "arrays.npz", image=SKY[order])
    again = ingest(tmp_path, tmp_path / "arrays.npz", catalogue, keep=tuple(kept))
    assert [shard.digest for shard in again.survey.shards] == [shard.digest for shard in report.survey.shards]


def test_masks_that_astropy_writes_beside_parquet_columns_are_obeyed(tmp_path):
    hidden = np.arange(5) == 3
    columns = {name: MaskedColumn(values, mask=np.arange(GALAXIES) == 3) for name, values in MAGNITUDES.items()}
    columns["flag"] = MaskedColumn(np.arange(GALAXIES, dtype="i4"), mask=np.arange(GALAXIES) == 3)
    catalogue = write_table(tmp_path / "rows.parquet", count=5, **columns)
    report = ingest(tmp_path, write_cutouts(tmp_path / "cutouts", 5), catalogue, keep=("all",))
    found, specs = read(report)
    np.testing.assert_array_equal(np.isnan(found.magnitude), np.tile(hidden[:, None], 5))
    np.testing.assert_array_equal(found.columns["columns/flag"], [0, 1, 2, -(2**31), 4])
    assert not any(name.endswith("mask") for name in specs)


def test_integer_positions_with_nulls_are_missing_and_other_units_refused(tmp_path):
    cutouts = write_cutouts(tmp_path / "cutouts", 5)
    ra = MaskedColumn(np.arange(GALAXIES), mask=np.arange(GALAXIES) == 3)
    found, _ = read(ingest(tmp_path, cutouts, write_table(tmp_path / "a.csv", count=5, ra=ra, dec=np.arange(GALAXIES))))
    np.testing.assert_array_equal(found.columns["ra"], [0, 1, 2, np.nan, 4])
    np.testing.assert_array_equal(found.columns["dec"], [0, 1, 2, np.nan, 4])
    angles = {"raj": Column(np.arange(GALAXIES) / 10, unit="deg"), "ra": Column(np.arange(GALAXIES) / 200, unit="rad")}
    catalogue = write_table(tmp_path / "a.ecsv", count=5, **angles, dec=np.arange(GALAXIES))
    with pytest.raises(InputError, match=r"a\.ecsv: ra is in 'rad'; expected degrees, convert it"):
        ingest(tmp_path, cutouts, catalogue)
    found, specs = read(ingest(tmp_path, cutouts, catalogue, names={"ra": "raj"}, keep=("ra",)))
    assert (specs["ra"].unit, specs["columns/ra"].unit) == ("deg", "rad")
    np.testing.assert_array_equal(found.columns["ra"], np.arange(5) / 10)
    np.testing.assert_array_equal(found.columns["columns/ra"], np.arange(5) / 200)


def test_the_order_of_a_vector_of_magnitudes_may_be_said(tmp_path):
    cutouts = write_cutouts(tmp_path / "cutouts", 5)
    vector = np.stack([MAGNITUDES[f"mag_{band}"] for band in "zirgu"], axis=1)
    catalogue = write_table(tmp_path / "v.fits", count=5, mag=vector, **dict.fromkeys(MAGNITUDES))
    found, _ = read(ingest(tmp_path, cutouts, catalogue, magnitude_bands="zirgu"))
    np.testing.assert_array_equal(found.magnitude, np.stack([MAGNITUDES[f"mag_{band}"][:5] for band in "ugriz"], 1))
    with pytest.raises(InputError, match="its magnitudes are five columns, in the order u g r i z, which contradicts"):
        ingest(tmp_path, cutouts, write_table(tmp_path / "five.fits", count=5), magnitude_bands="zirgu")


def test_a_mask_beside_each_cutout_is_used_with_a_catalogue(tmp_path):
    def corner(row: int) -> Any:
        return np.pad(np.ones((1, 1), np.uint8), ((row, 31 - row), (row, 31 - row)))

    cutouts = write_cutouts(tmp_path / "cutouts", 3, corner)
    found, _ = read(ingest(tmp_path, cutouts, write_table(tmp_path / "rows.fits", count=3), mask="MASK"))
    expected = np.stack([np.tile(corner(row).astype(bool), (5, 1, 1)) for row in range(3)])
    np.testing.assert_array_equal(np.isnan(found.image), expected)


def test_columns_keep_their_whole_names_or_are_left_out_with_a_word(tmp_path):
    cutouts = write_cutouts(tmp_path / "cutouts", 3)
    extra = {"S/N": np.arange(GALAXIES), "x[y]": np.arange(GALAXIES)}
    catalogue = write_table(tmp_path / "rows.parquet", count=3, **extra)
    report = ingest(tmp_path, cutouts, catalogue, keep=("all",))
    assert [path for path in read(report)[1] if "mag" not in path] == ["columns/x[y]"]
    assert report.notices[0] == (
        f"{catalogue}: S/N hold several values per galaxy, or have a name that none can have here, and are not kept"
    )
    with pytest.raises(InputError, match="a kept column cannot be named 'S/N'; expected no slash and no comma"):
        ingest(tmp_path, cutouts, catalogue, keep=("S/N",))
    with pytest.raises(InputError, match=r"has no nope, it holds .*; name the field with --keep NAME$"):
        ingest(tmp_path, cutouts, catalogue, keep=("nope",))


def test_a_catalogue_among_the_cutouts_is_no_cutout(tmp_path):
    cutouts = write_cutouts(tmp_path / "cutouts", 3)
    report = ingest(tmp_path, cutouts, write_table(cutouts / "0.fits", count=3))
    np.testing.assert_array_equal(read(report)[0].objid, [1000, 1001, 1002])
    assert not any("left out" in notice for notice in report.notices)


def test_a_folder_that_cannot_be_read_is_refused(tmp_path, monkeypatch):
    cutouts = write_cutouts(tmp_path / "cutouts", 2)
    (cutouts / "b").mkdir()
    scandir = os.scandir

    def refuse(path: Any) -> Any:
        if str(path).endswith("/b"):
            raise PermissionError(13, "Permission denied", str(path))
        return scandir(path)

    monkeypatch.setattr("os.scandir", refuse)
    with pytest.raises(InputError, match=r"cutouts/b cannot be read: Permission denied; its galaxies would be missing"):
        ingest(tmp_path, cutouts, write_table(tmp_path / "rows.fits", count=2))


def test_many_notices_with_values_of_their_own_are_one():
    notices = [(f"{row}.fits", f"{row}.fits: pixels are converted (times {row / 8:g})") for row in range(80_000)]
    assert group_notices(notices) == [
        "80,000 sources, each with values of its own, the first 0.fits: pixels are converted (times 0)"
    ]
    assert group_notices(notices[:2]) == [
        "0.fits: pixels are converted (times 0)", "1.fits: pixels are converted (times 0.125)"
    ]  # fmt: skip
    letters = [(f"{row}.fits", "".join(chr(97 + int(digit)) for digit in str(row))) for row in range(1000)]
    assert len(group_notices(letters)) == 51
    assert group_notices(letters)[-1] == "950 more notices of other kinds; ingest fewer files to read them"
