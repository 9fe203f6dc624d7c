"""Test that ids and redshifts of other names are named where they are left out, in every format."""

from __future__ import annotations

import h5py
import numpy as np
import pytest
from astropy.io import fits

from cosmicai.surveys.field_names import find_likely
from cosmicai.surveys.ingest.names import OPTIONS
from cosmicai.surveys.survey import open_survey
from support.gate import GOOD, ingest, table, write_fits, write_h5, write_npz

IDS = GOOD.objid + 7


@pytest.mark.parametrize(
    "name",
    ["specobjid", "TARGETID", "source_id", "galaxy_id", "coadd_object_id", "SDSS_objID", "photoobjid", "name", "ids",
     "photometry/id", "galaxies[thing_id]"],
)  # fmt: skip
def test_names_of_ids(name):
    assert find_likely("objid", [name]) == [name]


@pytest.mark.parametrize("name", ["fluid", "grid", "z", "flux", "band_names", "filename", "valid", "ra", "mjd"])
def test_names_of_no_ids(name):
    assert find_likely("objid", [name]) == []


@pytest.mark.parametrize(
    "name", ["z", "Z_SPEC", "SPEC_Z", "z_best", "ZHELIO", "true_redshift", "redshift_true", "zspec", "specz", "z_cmb"]
)
def test_names_of_redshifts(name):
    assert find_likely("redshift", [name]) == [name]


@pytest.mark.parametrize("name", ["z_phot", "redshift_err", "photo_redshift", "zwarning", "mag_z", "z_err", "size"])
def test_names_of_no_spectroscopic_redshifts(name):
    assert find_likely("redshift", [name]) == []


def test_z_among_the_bands_is_no_redshift():
    assert find_likely("redshift", [*"UGRIZ", "zspec"]) == ["zspec"]


@pytest.mark.parametrize(
    ("field", "name", "values"), [("objid", "targetid", IDS), ("redshift", "z_best", GOOD.redshift)]
)
def test_ingest_names_an_id_or_a_redshift_of_another_name(tmp_path, field, name, values):
    columns = {"magnitude": GOOD.magnitude, name: values}
    rows = np.zeros(len(values), [("image", "f4", GOOD.image.shape[1:]), ("magnitude", "f8", 5), (name, values.dtype)])
    rows["image"], rows["magnitude"], rows[name] = GOOD.image, GOOD.magnitude, values
    np.save(tmp_path / "rows.npy", rows)
    sources = [
        write_h5(tmp_path, **{field: None, name: values}),
        write_npz(tmp_path, **{field: None, name: values}),
        write_fits(tmp_path, fits.PrimaryHDU(GOOD.image), table(**columns)),
        tmp_path / "rows.npy",
    ]
    for source in sources:
        shown = name.upper() if source.suffix == ".fits" else name
        found, notices = ingest(tmp_path, source)
        expected = np.arange(len(values)) if field == "objid" else np.full(len(values), np.nan)
        np.testing.assert_array_equal(getattr(found, field), expected)
        remedy = f"name it with {OPTIONS[field]} NAME if it is one"
        assert f"{source} has no {field} by a known name, and {shown} is not used; {remedy}" in notices
        found, notices = ingest(tmp_path, source, names={field: name})
        np.testing.assert_array_equal(getattr(found, field), values)
        assert not [notice for notice in notices if f"has no {field}" in notice]


@pytest.mark.parametrize(
    ("field", "name", "values"),
    [
        ("objid", "id", IDS),
        ("objid", "object_id", IDS),
        ("redshift", "z_spec", GOOD.redshift),
        ("redshift", "z", GOOD.redshift),
    ],
)
def test_files_read_in_place_name_an_id_or_a_redshift_of_another_name(tmp_path, field, name, values):
    source = write_h5(tmp_path, **{field: None, name: values})
    assert open_survey(str(tmp_path)).notices == (
        f"{source}: {name} beside the image is not used where a file is read in place; if it is the {field}, use it "
        f"with `cosmicai ingest FILES --out SURVEY --field {field}=NAME`",
    )
    with h5py.File(source, "a") as file:
        file[field] = values
    assert open_survey(str(tmp_path)).notices == ()


def test_what_has_no_value_per_galaxy_is_not_named(tmp_path):
    write_h5(tmp_path, objid=None, redshift=None, id=np.arange(3), z=np.float64(0.1), name=np.zeros((12, 2)))
    assert open_survey(str(tmp_path)).notices == ()
