"""Test that single galaxies have the position that their header states, in degrees ICRS, or none."""

import astropy.units as u
import numpy as np
import pytest
from astropy.coordinates import FK4, Galactic, SkyCoord
from astropy.io import fits
from astropy.wcs import WCS

from cosmicai.surveys.ingest.fits_positions import parse_angle
from support.fits_shapes import CARDS, header, image_table, open_one
from support.gate import GOOD, ROWS

SCALE = 0.396 / 3600
ANGLE = np.deg2rad(30)
TURNED = {
    "CD1_1": -SCALE * np.cos(ANGLE), "CD1_2": SCALE * np.sin(ANGLE),
    "CD2_1": SCALE * np.sin(ANGLE), "CD2_2": SCALE * np.cos(ANGLE),
}  # fmt: skip


def cards(ra=150.1, dec=2.2, types=("RA---TAN", "DEC--TAN"), at=(40.5, -3.25), **more):
    return {
        "CTYPE1": types[0], "CTYPE2": types[1], "CRVAL1": ra, "CRVAL2": dec, "CRPIX1": at[0], "CRPIX2": at[1],
        **TURNED, **more,
    }  # fmt: skip


def position(path, size=64, **more):
    """Return the position of a file with these cards, and the notices of its source."""
    image = np.zeros((5, size, size), np.float32)
    fits.PrimaryHDU(image, header(CARDS | more)).writeto(path, overwrite=True)
    values, source = open_one(path)
    assert ("ra" in values) == ("dec" in values)
    found = (values["ra"].tolist()[0], values["dec"].tolist()[0]) if "ra" in values else None
    return found, " ".join(source.notices)


@pytest.mark.parametrize("size", [63, 64])
@pytest.mark.parametrize(("ra", "dec"), [(150.1, 2.2), (359.9999, -89.9), (0.0001, 60.0), (10.0, 90.0)])
@pytest.mark.parametrize("axes", [("RA---TAN", "DEC--TAN"), ("RA---SIN", "DEC--SIN"), ("DEC--TAN", "RA---TAN")])
def test_the_centre_is_that_of_the_pixel_grid_by_the_wcs(tmp_path, size, ra, dec, axes):
    values = (ra, dec) if axes[0].startswith("RA") else (dec, ra)
    given = cards(*values, axes)
    found, _ = position(tmp_path / "a.fits", size, **given)
    expected = WCS(header(given)).pixel_to_world((size - 1) / 2, (size - 1) / 2).icrs
    there = SkyCoord(*found, unit="deg")
    assert there.separation(expected).to(u.arcsec).value < 1e-6
    assert 0 <= found[0] < 360


def test_positions_in_other_frames_are_converted(tmp_path):
    plain = {"at": (32.5, 32.5)}
    found, _ = position(tmp_path / "a.fits", **cards(**plain, RADESYS="FK5", EQUINOX=2000.0))
    assert found == pytest.approx((150.1, 2.2), abs=1e-12)
    found, _ = position(tmp_path / "a.fits", **cards(**plain, RADESYS="FK4", EQUINOX=1950.0))
    expected = SkyCoord(150.1, 2.2, unit="deg", frame=FK4(equinox="B1950")).icrs
    assert found == pytest.approx((expected.ra.deg, expected.dec.deg), abs=1e-9)
    found, _ = position(tmp_path / "a.fits", **cards(**plain, types=("GLON-TAN", "GLAT-TAN")))
    expected = SkyCoord(150.1, 2.2, unit="deg", frame=Galactic()).icrs
    assert found == pytest.approx((expected.ra.deg, expected.dec.deg), abs=1e-9)
    for frame in ({"RADESYS": "GAPPT"}, {"EPOCH": 2015.5}):  # the second is rather a date of the observation
        found, notices = position(tmp_path / "a.fits", **cards(**plain), **frame)
        assert found is None and "the WCS gives no position that is known in ICRS" in notices
    found, _ = position(tmp_path / "a.fits", **cards(**plain, RADESYS="ICRS", EPOCH=2015.5))
    assert found == pytest.approx((150.1, 2.2), abs=1e-12)


def test_without_a_celestial_wcs_there_is_no_position(tmp_path):
    path = tmp_path / "a.fits"
    assert position(path)[0] is None
    assert position(path, CTYPE1="LINEAR", CTYPE2="LINEAR", CDELT1=1.0, CDELT2=1.0)[0] is None
    assert position(path, CD1_1=-SCALE, CD2_2=SCALE)[0] is None
    assert position(path, **cards(types=("RA---XYZ", "DEC--XYZ")))[0] is None
    assert position(path, **cards(ra=float("1e300")))[0] is None


@pytest.mark.parametrize(
    ("ra", "dec", "expected"),
    [
        (150.1, 2.2, (150.1, 2.2)), (150, 2, (150, 2)), ("150.1", "+2.2", (150.1, 2.2)),
        ("10:00:24", "+02:12:00", (150.1, 2.2)), ("10 00 24.0", "-00 12 00.0", (150.1, -0.2)),
        ("10h00m24s", "2d12m00s", (150.1, 2.2)), ("somewhere", 2.2, None), (400.0, 2.2, None), (150.1, 95.0, None),
        ("10:61:00", "2.2", None), (True, 2.2, None),
    ],
)  # fmt: skip
def test_cards_are_degrees_or_sexagesimal_or_left_out_with_a_notice(tmp_path, ra, dec, expected):
    found, notices = position(tmp_path / "a.fits", RA=ra, DEC=dec)
    assert found == (None if expected is None else pytest.approx(expected, abs=1e-12))
    assert ("are not used; no position is taken" in notices) == (expected is None)


def test_one_of_two_cards_and_hours_are_left_out(tmp_path):
    assert position(tmp_path / "a.fits", RA=150.1)[0] is None
    found, notices = position(tmp_path / "a.fits", RA=(10.5, "[h] right ascension"), DEC=2.2)
    assert found is None and "no right ascension and declination in degrees" in notices


def test_cards_of_a_telescope_are_no_position_of_the_galaxy(tmp_path):
    inside, notices = position(tmp_path / "a.fits", **cards(at=(32.5, 32.5)), RA=150.101, DEC=2.2)
    assert inside == (150.101, 2.2) and not notices
    found, notices = position(tmp_path / "a.fits", **cards(at=(32.5, 32.5)), RA=151.0, DEC=2.0)
    assert found == pytest.approx((150.1, 2.2)) and "the centre of the cutout by its WCS is taken" in notices


def test_cards_of_other_names_can_be_given(tmp_path):
    path = tmp_path / "a.fits"
    fits.PrimaryHDU(GOOD.image[0], header(CARDS | {"PLUG_RA": 10.5, "PLUG_DEC": -3.5})).writeto(path)
    values, _ = open_one(path, names={"ra": "PLUG_RA", "dec": "PLUG_DEC"})
    assert (values["ra"].tolist(), values["dec"].tolist()) == ([10.5], [-3.5])


def test_columns_of_positions_are_degrees_or_are_left_out(tmp_path):
    path = tmp_path / "a.fits"
    hdu = image_table(slice(0, ROWS), {})
    for unit, factor in (("deg", 1), ("rad", 180 / np.pi), ("pix", None)):
        hdu.columns["ra"].unit = hdu.columns["dec"].unit = unit
        fits.HDUList([fits.PrimaryHDU(GOOD.image), hdu]).writeto(path, overwrite=True)
        values, source = open_one(path)
        if factor is None:
            assert "ra" not in values and any("ra is not in degrees" in notice for notice in source.notices)
        else:
            np.testing.assert_allclose(values["ra"], np.arange(ROWS) * 1.5 * factor, rtol=1e-12)


def test_angles_of_text_are_exact():
    assert parse_angle("12:34:56.7", True) == pytest.approx((12 + 34 / 60 + 56.7 / 3600) * 15, abs=1e-12)
    assert parse_angle("-00:30:00", False) == -0.5
    assert parse_angle("24:00:01", True) is None and parse_angle("-91:00:00", False) is None
