"""Test which array of a source is taken where several could be it, and that the advice of a refusal works."""

import os
from typing import Any

import h5py
import numpy as np
import pytest
from astropy.io import fits

from support.gate import COLUMNS, GOOD, ROWS, images, ingest, refusal, table, write_fits, write_h5, write_npz

OTHER = GOOD.image[::-1].copy()


def cube(image, name=""):
    return fits.ImageHDU(image, name=name)


@pytest.mark.parametrize("name", ["PSF", "ERR", "DQ", "IVAR", "WHT", "MASK", "SCI_ERR", "VAR"])
@pytest.mark.parametrize("first", [False, True])
def test_images_win_over_what_lies_beside_them(tmp_path, name, first):
    for own in ("IMAGE", "SCI", ""):
        hdus = [cube(OTHER, name), cube(GOOD.image, own)][:: 1 if first else -1]
        found = images(tmp_path, write_fits(tmp_path, fits.PrimaryHDU(), *hdus, table()))
        np.testing.assert_array_equal(found, GOOD.image)


def test_the_image_of_a_primary_hdu_wins_over_what_lies_beside_it(tmp_path):
    source = write_fits(tmp_path, fits.PrimaryHDU(GOOD.image), cube(OTHER, "PSF"), table())
    np.testing.assert_array_equal(images(tmp_path, source), GOOD.image)


@pytest.mark.parametrize("names", [("", ""), ("SCI", "SCI"), ("A", "B"), ("IMAGE", "SCI")])
def test_several_images_are_listed_and_one_can_be_chosen(tmp_path, names):
    first, second = cube(OTHER, names[0]), cube(GOOD.image, names[1])
    source = write_fits(tmp_path, fits.PrimaryHDU(), first, second, table())
    text = refusal(tmp_path, source)
    assert f"1 {names[0]}".strip() in text and f"2 {names[1]}".strip() in text and "--hdu NUMBER" in text
    np.testing.assert_array_equal(images(tmp_path, source, hdus=("2",)), GOOD.image)
    np.testing.assert_array_equal(images(tmp_path, source, names={"image": "1"}), OTHER)
    if names[0] != names[1]:
        np.testing.assert_array_equal(images(tmp_path, source, hdus=(names[1].lower(),)), GOOD.image)
    elif names[0]:
        assert "several HDUs sci: 1 SCI, 2 SCI" in refusal(tmp_path, source, hdus=("sci",))


def test_hdus_that_are_absent_are_refused_for_cubes_and_for_single_galaxies(tmp_path):
    assert "has no HDU NOISE; it has 0 PRIMARY" in refusal(tmp_path, write_fits(tmp_path), hdus=("NOISE",))
    cards = {f"MAG_{band}": 20.0 for band in "UGRIZ"}
    source = write_fits(tmp_path, fits.PrimaryHDU(GOOD.image[0]), cards=cards)
    assert "has no HDU NOISE" in refusal(tmp_path, source, hdus=("NOISE",))
    assert "has no HDU NOISE" in refusal(tmp_path, source, names={"image": "NOISE"})


def test_the_table_with_magnitudes_is_taken(tmp_path):
    other = table(flux=GOOD.magnitude, redshift=np.full(ROWS, 0.5))
    source = write_fits(tmp_path, fits.PrimaryHDU(GOOD.image), other, table(magnitude=GOOD.magnitude))
    found, notices = ingest(tmp_path, source)
    np.testing.assert_array_equal(found.magnitude, GOOD.magnitude)
    assert np.isnan(found.redshift).all()
    assert any("REDSHIFT of 1 is in another table" in notice for notice in notices)


def test_several_tables_with_magnitudes_are_listed_and_one_can_be_chosen(tmp_path):
    source = write_fits(tmp_path, fits.PrimaryHDU(GOOD.image), table(magnitude=GOOD.magnitude + 1), table())
    assert "several tables with magnitudes: 1, 2" in refusal(tmp_path, source)
    np.testing.assert_array_equal(ingest(tmp_path, source, hdus=("2",))[0].magnitude, GOOD.magnitude)


def test_columns_by_bands_are_the_magnitudes_and_z_no_redshift(tmp_path):
    for prefix in ("", "mag_"):
        columns: dict[str, Any] = {f"{prefix}{band}": GOOD.magnitude[:, i] for i, band in enumerate("ugriz")}
        found, _ = ingest(tmp_path, write_fits(tmp_path, fits.PrimaryHDU(GOOD.image), table(**columns)))
        np.testing.assert_array_equal(found.magnitude, GOOD.magnitude)
        assert np.isnan(found.redshift).all()


def test_columns_of_any_names_can_be_the_magnitudes(tmp_path):
    columns = {f"model{band}": GOOD.magnitude[:, i] for i, band in enumerate("ugriz")}
    source = write_fits(tmp_path, fits.PrimaryHDU(GOOD.image), table(**columns))
    assert "--magnitudes NAME" in refusal(tmp_path, source)
    names = {"magnitude": "modelu,modelg,modelr,modeli,modelz"}
    np.testing.assert_array_equal(ingest(tmp_path, source, names=names)[0].magnitude, GOOD.magnitude)


def test_a_vector_and_columns_of_magnitudes_are_two_candidates(tmp_path):
    columns = {f"mag_{band}": GOOD.magnitude[:, i] + 1 for i, band in enumerate("ugriz")}
    source = write_fits(tmp_path, fits.PrimaryHDU(GOOD.image), table(magnitude=GOOD.magnitude, **columns))
    assert "several candidates for magnitude: MAGNITUDE, MAG_{band}" in refusal(tmp_path, source)
    vector, _ = ingest(tmp_path, source, names={"magnitude": "MAGNITUDE"})
    np.testing.assert_array_equal(vector.magnitude, GOOD.magnitude)
    stacked, _ = ingest(tmp_path, source, names={"magnitude": "MAG_U,MAG_G,MAG_R,MAG_I,MAG_Z"})
    np.testing.assert_array_equal(stacked.magnitude, GOOD.magnitude + 1)


def test_z_beside_other_bands_is_no_redshift(tmp_path):
    bands: dict[str, Any] = {band: GOOD.magnitude[:, i] for i, band in enumerate("ugriz")}
    for write in (write_npz, write_h5):
        assert np.isnan(ingest(tmp_path, write(tmp_path, redshift=None, **bands))[0].redshift).all()
        (tmp_path / "a.h5").unlink(missing_ok=True)
        found, _ = ingest(tmp_path, write(tmp_path, redshift=None, z=GOOD.redshift))
        np.testing.assert_array_equal(found.redshift, GOOD.redshift)


@pytest.mark.parametrize(
    ("field", "alias"), [("image", "cutouts"), ("magnitude", "mags"), ("redshift", "z_spec"), ("objid", "object_id")]
)
def test_two_names_of_one_field_are_listed_and_one_can_be_chosen(tmp_path, field, alias):
    for write in (write_npz, write_h5):
        source = write(tmp_path, **{alias: COLUMNS[field][::-1].copy()})
        assert f"several candidates for {field}: " in refusal(tmp_path, source)
        found = getattr(ingest(tmp_path, source, names={field: alias})[0], field)
        np.testing.assert_array_equal(found, COLUMNS[field][::-1])


# HDF5 groups, links and compound datasets.

EMPTY: dict[str, Any] = dict.fromkeys(COLUMNS)


def grouped(group, **columns):
    return {f"{group}__{name}": value for name, value in (COLUMNS | columns).items()}


def test_fields_come_from_one_group(tmp_path):
    source = write_h5(tmp_path, **EMPTY, **grouped("b"), a__redshift=np.zeros(ROWS), a__objid=np.zeros(ROWS, int))
    found, _ = ingest(tmp_path, source)
    np.testing.assert_array_equal(found.redshift, GOOD.redshift)
    np.testing.assert_array_equal(found.objid, COLUMNS["objid"])


def test_fields_of_another_group_are_named_and_can_be_taken(tmp_path):
    source = write_h5(tmp_path, **EMPTY, **grouped("b", objid=None), a__objid=COLUMNS["objid"])
    found, notices = ingest(tmp_path, source)
    np.testing.assert_array_equal(found.objid, np.arange(ROWS))
    assert any("a/objid lie in another group" in notice for notice in notices)
    taken, _ = ingest(tmp_path, source, names={"objid": "/a/objid"})
    np.testing.assert_array_equal(taken.objid, COLUMNS["objid"])


def test_several_groups_are_listed_and_a_path_chooses(tmp_path):
    source = write_h5(tmp_path, **EMPTY, **grouped("a", image=OTHER), **grouped("b"))
    assert "several candidates for image: a/image, b/image" in refusal(tmp_path, source)
    np.testing.assert_array_equal(images(tmp_path, source, names={"image": "b/image"}), GOOD.image)


def test_links_within_a_file_are_followed_and_loops_end(tmp_path):
    source = write_h5(tmp_path, image=None, data__pixels=GOOD.image)
    with h5py.File(source, "r+") as file:
        file["image"] = h5py.SoftLink("/data/pixels")
        file["data/loop"], file["data/root"] = file["data"], file["/"]
    np.testing.assert_array_equal(images(tmp_path, source), GOOD.image)


def test_external_links_need_permission_and_a_file(tmp_path):
    with h5py.File(tmp_path / "data.h5", "w") as file:
        file["g/image"] = GOOD.image
    source = write_h5(tmp_path, image=None)
    for target, group in (("/g/image", ""), ("/g", "g/")):
        with h5py.File(source, "r+") as file:
            file["image" if not group else "g"] = h5py.ExternalLink("data.h5", target)
        names = {"image": f"{group}image", "magnitude": "magnitude"}
        text = refusal(tmp_path, source, names=names)
        assert "lies in other files (data.h5); read them with --allow-external" in text
        found = images(tmp_path, source, names=names, allow_external=True)
        np.testing.assert_array_equal(found, GOOD.image)
    (tmp_path / "data.h5").unlink()
    assert "image (image) is a link to data.h5:/g/image" in refusal(tmp_path, source, allow_external=True)
    os.mkfifo(tmp_path / "data.h5")
    assert "image (image) is a link to data.h5:/g/image" in refusal(tmp_path, source, allow_external=True)


def test_a_compound_dataset_holds_all_fields_and_masks(tmp_path):
    spoiled = np.zeros(GOOD.image.shape, "u1")
    spoiled[2, 3, 4, 5] = 1
    values = {**COLUMNS, "mask": spoiled}
    rows = np.zeros(ROWS, [(name, value.dtype, value.shape[1:]) for name, value in values.items()])
    for name, value in values.items():
        rows[name] = value
    source = write_h5(tmp_path, **EMPTY, galaxies=rows)
    found, _ = ingest(tmp_path, source, mask="galaxies[mask]")
    np.testing.assert_array_equal(found.image, np.where(spoiled, np.nan, GOOD.image))
    np.testing.assert_array_equal(found.objid, COLUMNS["objid"])


# What is no file.


@pytest.mark.parametrize("suffix", [".npz", ".npy", ".h5", ".fits", ".fits.gz", ".pt"])
def test_pipes_devices_folders_and_dangling_links_are_refused(tmp_path, suffix):
    make = {"regular": os.mkfifo, "file": os.mkdir, "exist": lambda path: path.symlink_to("gone")}
    for word, create in make.items():
        path = tmp_path / f"{word}_image{suffix}"
        create(path)
        assert word in refusal(tmp_path, path)
    (tmp_path / f"zero_image{suffix}").symlink_to("/dev/zero")
    assert "is not a regular file" in refusal(tmp_path, tmp_path / f"zero_image{suffix}")


def test_a_pipe_in_the_place_of_a_sibling_is_not_waited_for(tmp_path):
    np.save(tmp_path / "image.npy", GOOD.image)
    os.mkfifo(tmp_path / "magnitude.npy")
    assert "has no magnitudes" in refusal(tmp_path, tmp_path / "image.npy")


def test_sources_of_several_kinds_become_one_survey(tmp_path):
    folders = [tmp_path / name for name in "abc"]
    for folder in folders:
        folder.mkdir()
    janskys = (GOOD.image * 3.631).astype(np.float32)  # microjanskys
    sources = [
        write_npz(folders[0], redshift=None, bands="zirgu", image=np.ascontiguousarray(GOOD.image[:, ::-1])),
        write_h5(folders[1], {"image": {"unit": "uJy"}}, image=janskys, objid=None),
        write_fits(folders[2]),
    ]
    found, notices = ingest(tmp_path, *sources)
    np.testing.assert_allclose(found.image, np.tile(GOOD.image, (3, 1, 1, 1)), rtol=3e-7)
    np.testing.assert_array_equal(found.magnitude, np.tile(GOOD.magnitude, (3, 1)))
    np.testing.assert_array_equal(found.redshift, [*[np.nan] * ROWS, *GOOD.redshift, *GOOD.redshift])
    np.testing.assert_array_equal(found.objid, [*COLUMNS["objid"], *[-1] * ROWS, *COLUMNS["objid"]])
    assert any(f"{ROWS} ids occur more than once" in notice for notice in notices)
