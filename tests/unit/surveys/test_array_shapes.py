"""Test that the same galaxies come out of every layout of arrays, exactly, or are refused in one sentence."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from cosmicai.errors import InputError
from cosmicai.surveys.ingest.gate import find_opener, ingest_files
from cosmicai.surveys.ingest.source import READ_ERRORS, IngestOptions, Source
from support.gate import ingest, refusal

ROWS, SIDE = 12, 32
RANDOM = np.random.default_rng(8)
IMAGE = RANDOM.normal(5, 2, (ROWS, 5, SIDE, SIDE)).astype(np.float32)
MAGNITUDE = 17 + np.arange(5 * ROWS).reshape(ROWS, 5) / 64
REDSHIFT = np.linspace(0.01, 0.4, ROWS)
OBJID = 2**60 + np.arange(ROWS)
RA, DEC = 150 + np.arange(ROWS) / 7, -2 + np.arange(ROWS) / 9
EBV, PLATE = np.linspace(0, 0.1, ROWS).astype(np.float32), np.arange(ROWS, dtype=np.int32) + 300
FIELDS = {"image": IMAGE, "magnitude": MAGNITUDE, "redshift": REDSHIFT, "objid": OBJID, "ra": RA, "dec": DEC}
KEPT = {"EBV": EBV, "plate": PLATE}
ZIRGU = [4, 3, 2, 1, 0]


def by_band(pattern: str, values: np.ndarray = MAGNITUDE) -> dict[str, np.ndarray]:
    return {pattern.replace("{band}", band): values[:, at] for at, band in enumerate("ugriz")}


SCALARS = {"z": REDSHIFT, "specObjID": OBJID, "ra": RA, "dec": DEC, **KEPT}
ONE_SET: dict[str, Any] = {**SCALARS, **by_band("mag_{band}")}
MANY_SETS = {
    **SCALARS, **by_band("dered_petro_{band}"), **by_band("petroMag_{band}", MAGNITUDE + 1),
    **by_band("petroMagErr_{band}", MAGNITUDE / 100), **by_band("extinction_{band}", MAGNITUDE / 50),
}  # fmt: skip
PATTERN = {"magnitude": "dered_petro_{band}"}


def structured(columns: dict[str, Any], order: str = "<") -> np.ndarray:
    """Return columns as a structured array of this byte order."""
    dtype = [(name, value.dtype.newbyteorder(order), value.shape[1:]) for name, value in columns.items()]
    array = np.zeros(ROWS, dtype)
    for name, value in columns.items():
        array[name] = value
    return array


def read(path: Path, step: int = 5, **options: Any) -> tuple[Source, dict[str, Any], dict[str, Any]]:
    """Return a source, its fields and its kept columns, which are read in step as the gate does."""
    with find_opener(path.suffix)(str(path), IngestOptions(**options)) as source:
        arrays = {**source.fields, **{f"kept {name}": array for name, array in source.columns.items()}}
        rows = source.fields["image"].shape[0]
        pieces: dict[str, list] = {name: [] for name in arrays}
        for start in range(0, rows, step):
            for name, array in arrays.items():
                try:
                    pieces[name].append(array.read_next(min(step, rows - start)))
                except READ_ERRORS as error:  # as the gate does
                    raise InputError(f"{path}: {name} is damaged") from error
        whole = {name: np.ma.concatenate(parts) for name, parts in pieces.items()}
        for name, array in arrays.items():
            if len(whole[name]) != rows:
                raise InputError("ends early")
            assert array.shape == whole[name].shape, name
        kept = {name: whole[f"kept {name}"] for name in source.columns}
        return source, {name: whole[name] for name in source.fields}, kept


def assert_good(path: Path, **options: Any) -> Source:
    """Check that a file gives the good galaxies and the two columns exactly, in whatever order its bands are."""
    source, fields, kept = read(path, keep=("EBV", "plate"), **options)
    image = fields.pop("image")
    if image.shape[1] != 5:
        image = np.moveaxis(image, -1, 1)
    if source.bands and "".join(source.bands) == "zirgu":
        image = image[:, ZIRGU]
    np.testing.assert_array_equal(image, IMAGE)
    assert set(fields) == set(FIELDS) - {"image"}
    for name, values in fields.items():
        np.testing.assert_array_equal(values, FIELDS[name], name)
        assert not np.ma.is_masked(values)
    assert {*kept} == {*KEPT}
    for name, values in kept.items():
        np.testing.assert_array_equal(values, KEPT[name], name)
        assert source.columns[name].dtype.kind == KEPT[name].dtype.kind
    everything, _, _ = read(path, keep=("all",), **options)
    assert {*KEPT} <= {*everything.columns}
    only, fields, kept = read(path, image_only=True, keep=("EBV",), **options)
    assert {*fields} == {"image"} and not kept and only.bands == source.bands
    return source


# NumPy

LAST = np.ascontiguousarray(np.moveaxis(IMAGE, 1, -1))


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
@pytest.mark.parametrize("order", "<>")
def test_a_structured_array_beside_the_cutouts_in_an_archive(tmp_path, save, order):
    save(tmp_path / "a.npz", cube=LAST.astype(f"{order}f4"), labels=structured(MANY_SETS, order))
    assert_good(tmp_path / "a.npz", names=PATTERN)
    assert_good(tmp_path / "a.npz", names={"magnitude": "labels[dered_petro_{band}]", "redshift": "labels[z]"})
    text = refusal(tmp_path, tmp_path / "a.npz")
    assert "several candidates for magnitude: labels[dered_petro_{band}], labels[petroMag_{band}]" in text
    assert "--magnitudes" in text


def test_one_set_of_magnitudes_is_found_alone_and_goes_through_the_gate(tmp_path):
    np.savez(tmp_path / "a.npz", cube=LAST, labels=structured(ONE_SET))
    assert assert_good(tmp_path / "a.npz").magnitude_bands == tuple("ugriz")
    found, _ = ingest(tmp_path, tmp_path / "a.npz")
    np.testing.assert_array_equal(found.image, IMAGE)
    np.testing.assert_array_equal(found.objid, OBJID)


def test_a_member_of_five_magnitudes_in_archives_and_files(tmp_path):
    columns = {**SCALARS, "mag": MAGNITUDE}
    np.savez(tmp_path / "a.npz", cube=LAST, labels=structured(columns, ">"))
    assert_good(tmp_path / "a.npz")
    np.save(tmp_path / "b.npy", structured({"cutout": LAST, **columns}, ">"))
    assert_good(tmp_path / "b.npy")
    np.savez(tmp_path / "c.npz", everything=structured({"cutout": LAST, **columns}))
    assert_good(tmp_path / "c.npz")
    folder = tmp_path / "set"
    folder.mkdir()
    for name, values in {"image": LAST, "labels": structured(ONE_SET), "broken": None}.items():
        np.save(folder / f"{name}.npy", values) if values is not None else (folder / "broken.npy").write_bytes(b"no")
    assert_good(folder / "image.npy")


def test_what_cannot_be_kept_is_named_and_refused_if_asked_for(tmp_path):
    table = structured({**ONE_SET, "vector": np.zeros((ROWS, 3))})
    objects = np.array([{}] * ROWS, dtype=object)
    np.savez(tmp_path / "a.npz", cube=LAST, labels=table, notes=objects, short=np.arange(3))
    source, _, kept = read(tmp_path / "a.npz", keep=("all",))
    assert {*kept} == {*KEPT}
    assert len(source.notices) == 1 and "labels[vector], notes, short cannot be kept" in source.notices[0]
    for name, said in {"vector": "has the shape (12, 3)", "notes": "is of dtype object", "short": "shape (3,)"}.items():
        with pytest.raises(InputError, match="leave it out of --keep") as caught:
            read(tmp_path / "a.npz", keep=(name,))
        assert said in str(caught.value)
    with pytest.raises(InputError, match="has no nothing"):
        read(tmp_path / "a.npz", keep=("nothing",))


def test_objects_in_a_structured_array_matter_only_if_it_is_needed(tmp_path):
    bad = np.zeros(ROWS, [("note", "O"), ("mag", "f8", (5,))])
    np.savez(tmp_path / "a.npz", cube=LAST, labels=structured(ONE_SET), other=bad)
    text = refusal(tmp_path, tmp_path / "a.npz", names={"magnitude": "other[mag]"})
    assert "pickled objects are never loaded" in text
    assert "several candidates for magnitude" in refusal(tmp_path, tmp_path / "a.npz")
    assert_good(tmp_path / "a.npz", names={"magnitude": "mag_{band}"})


def test_arrays_of_labels_of_two_samples_or_of_another_length_are_refused(tmp_path):
    np.savez(tmp_path / "a.npz", cube=LAST, labels=structured(ONE_SET), photo=structured(ONE_SET))
    assert "several candidates for magnitude: labels[mag_{band}], photo[mag_{band}]" in refusal(
        tmp_path, tmp_path / "a.npz"
    )
    np.savez(tmp_path / "a.npz", cube=LAST, labels=structured(ONE_SET)[:7])
    assert "has the shape (7, 5), image is of 12 galaxies" in refusal(tmp_path, tmp_path / "a.npz")


def test_columns_out_of_step_are_right_as_well(tmp_path):
    np.savez_compressed(tmp_path / "a.npz", cube=LAST, labels=structured(ONE_SET))
    with find_opener(".npz")(str(tmp_path / "a.npz"), IngestOptions(keep=("EBV",))) as source:
        np.testing.assert_array_equal(source.fields["ra"].read_next(ROWS), RA)
        np.testing.assert_array_equal(source.columns["EBV"].read_next(3), EBV[:3])
        np.testing.assert_array_equal(source.fields["dec"].read_next(7), DEC[:7])
        np.testing.assert_array_equal(source.columns["EBV"].read_next(9), EBV[3:])
        assert len(source.fields["ra"].read_next(1)) == 0


@pytest.mark.parametrize("statement", ["zero_point", "pixel_scale", "flux_unit"])
def test_a_statement_that_differs_between_galaxies_is_refused(tmp_path, statement):
    values: Any = np.arange(ROWS) + 22.5 if statement != "flux_unit" else np.array(["nJy", "Jy"] * 6)
    np.savez(tmp_path / "a.npz", cube=LAST, labels=structured(ONE_SET), **{statement: values})
    assert f"{statement} states several values" in refusal(tmp_path, tmp_path / "a.npz")


# HDF5


def write_h5(path: Path, items: dict[str, Any], **attributes: Any) -> Path:
    """Write datasets; a text is a soft link to its path, a tuple is a hard link."""
    with h5py.File(path, "w", libver="latest") as file:
        for name, value in items.items():
            if isinstance(value, str):
                file[name] = h5py.SoftLink(value)
            elif isinstance(value, tuple):
                file[name] = file[value[0]]
            else:
                data = np.asarray(value)
                file.create_dataset(name, data=data, fletcher32=data.shape[:1] == (ROWS,))
        file.attrs.update(attributes)
    return path


def prefixed(prefix: str, columns: dict[str, Any]) -> dict[str, Any]:
    return {f"{prefix}/{name}": value for name, value in columns.items()}


H5_LAYOUTS: dict[str, tuple[dict[str, Any], dict[str, str]]] = {
    "flat": ({"cube": LAST, **ONE_SET}, {}),
    "compound": ({"cube": LAST, "labels": structured(ONE_SET)}, {}),
    "compound, many sets": ({"cube": LAST, "labels": structured(MANY_SETS)}, PATTERN),
    "compound, pattern": ({"cube": LAST, "labels": structured(MANY_SETS)}, {"magnitude": "labels[dered_petro_{band}]"}),
    "compound, list": (
        {"cube": LAST, "labels": structured(MANY_SETS)},
        {"magnitude": "labels[dered_petro_u,dered_petro_g,dered_petro_r,dered_petro_i,dered_petro_z]"},
    ),
    "compound, vector": ({"data/cube": LAST, "data/labels": structured({**SCALARS, "mag": MAGNITUDE}, ">")}, {}),
    "compound with flux": ({"cube": LAST, "labels": structured({**ONE_SET, "flux": RA})}, {}),
    "sibling group": ({"images/cube": LAST, **prefixed("photometry", ONE_SET)}, {}),
    "sibling of another length beside": (
        {"cube": LAST, **prefixed("a", ONE_SET), "b/mag": np.zeros((3, 5))}, {}
    ),
    "rail": (
        {"cube": LAST, **prefixed("photometry", {
            **SCALARS, **by_band("mag_{band}_lsst"), **by_band("mag_err_{band}_lsst", MAGNITUDE / 99),
            "mag_y_lsst": RA, "mag_err_y_lsst": RA,
        })}, {},
    ),
    "soft links to datasets": (
        {**prefixed("v1", {"cube": LAST, **ONE_SET}), **{name: f"/v1/{name}" for name in ("cube", *ONE_SET)}}, {},
    ),
    "hard links": ({"cube": LAST, "images": ("cube",), **ONE_SET, "magnitude_u": ("mag_u",)}, {}),
    "soft link to a group": ({**prefixed("v1", {"cube": LAST, **ONE_SET}), "current": "/v1", "v1/up": "/"}, {}),
    "named by a soft link": (
        {**prefixed("v1", {"cube": LAST, **ONE_SET}), **prefixed("v2", {"cube": LAST, **ONE_SET}), "current": "/v2"},
        {"image": "current/cube"},
    ),
}  # fmt: skip


@pytest.mark.parametrize("layout", H5_LAYOUTS)
def test_layouts_of_hdf5(tmp_path, layout):
    items, names = H5_LAYOUTS[layout]
    assert_good(write_h5(tmp_path / "a.h5", items), names=names)


def test_several_groups_or_sets_of_magnitudes_are_listed(tmp_path):
    many = write_h5(tmp_path / "a.h5", {"cube": LAST, "labels": structured(MANY_SETS)})
    assert "magnitude: labels[dered_petro_{band}], labels[petroMag_{band}]" in refusal(tmp_path, many)
    two = write_h5(tmp_path / "b.h5", {"cube": LAST, "labels": structured(ONE_SET), **prefixed("cat", ONE_SET)})
    assert "several candidates for magnitude: cat/mag_{band}, labels[mag_{band}]" in refusal(tmp_path, two)
    short = write_h5(tmp_path / "c.h5", {"cube": LAST, "labels": structured(ONE_SET)[:7]})
    assert "has no magnitude" in refusal(tmp_path, short)
    images = write_h5(tmp_path / "d.h5", {"a/cube": LAST, "b/cube": LAST, "labels": structured(ONE_SET)})
    assert "several candidates for image: a/cube, b/cube" in refusal(tmp_path, images)


def test_the_group_of_the_magnitudes_is_said_and_another_sample_is_none(tmp_path):
    path = write_h5(tmp_path / "a.h5", {"cube": LAST, "labels": structured(ONE_SET)})
    assert read(path)[0].notices == (f"{path}: magnitudes are those of labels, which has as many rows as cube",)
    assert read(path, names={"magnitude": "labels[mag_{band}]"})[0].notices == ()
    other = write_h5(tmp_path / "b.h5", {"train/cube": LAST, **prefixed("test", {"cube": LAST, **ONE_SET})})
    np.testing.assert_array_equal(read(other)[1]["image"], LAST)
    assert "has no magnitude" in refusal(tmp_path, other, names={"image": "train/cube"})


def test_statements_of_hdf5_are_obeyed_beside_a_sibling_and_columns_have_units(tmp_path):
    path = write_h5(
        tmp_path / "a.h5",
        {"cube": LAST[..., ZIRGU], "labels": structured(ONE_SET)},
        bands="zirgu", flux_unit="nJy", pixel_scale=0.396,
    )  # fmt: skip
    source = assert_good(path)
    assert source.bands == tuple("zirgu") and source.flux_unit.text == "nJy" and source.pixel_scale == 0.396
    found, notices = ingest(tmp_path, path)
    np.testing.assert_array_equal(found.image, (IMAGE.astype(np.float64) * 1e-9 * 1e6 / 3.631).astype(np.float32))
    assert any("reordered" in notice for notice in notices)
    with h5py.File(path, "a") as file:
        file["exposure"] = PLATE
        file["exposure"].attrs.update(units="s", _FillValue=PLATE[2])
        file["name"] = np.array(["a", "bc"] * 6, dtype=h5py.string_dtype())
    source, _, kept = read(path, keep=("exposure", "name"))
    assert source.column_units == {"exposure": "s"}
    assert kept["exposure"].dtype.kind == "i" and kept["exposure"].mask.tolist() == [at == 2 for at in range(ROWS)]
    assert source.columns["name"].dtype.hasobject and kept["name"][1] in (b"bc", "bc")


def test_a_column_of_another_group_is_kept_if_its_path_is_given(tmp_path):
    items = {"a/cube": LAST, **prefixed("a", ONE_SET), "b/EBV": EBV + 1}
    path = write_h5(tmp_path / "a.h5", items)
    assert_good(path)
    np.testing.assert_array_equal(read(path, keep=("b/EBV",))[2]["EBV"], EBV + 1)


def test_positions_in_other_units_are_refused(tmp_path):
    path = write_h5(tmp_path / "a.h5", {"cube": LAST, **ONE_SET})
    with h5py.File(path, "a") as file:
        file["ra"].attrs["unit"] = "hourangle"
    assert "ra is in 'hourangle'; expected degrees" in refusal(tmp_path, path)


def test_a_pandas_table_without_names_is_refused(tmp_path):
    table = np.zeros(ROWS, [("index", "i8"), ("values_block_0", "f8", (9,))])
    path = write_h5(tmp_path / "a.h5", {"cube": LAST, "df/table": table})
    assert "df/table[values_block_0] holds columns of a pandas table without their names" in refusal(tmp_path, path)


# Parquet

NESTED = IMAGE.tolist()
TEXT = pa.list_(pa.string())
PICTURE = pa.list_(pa.list_(pa.float32()))


def scalars(columns: dict[str, Any] | None = None) -> dict[str, Any]:
    return {name: pa.array(value) for name, value in (columns or ONE_SET).items()}


def structs(order: str = "ugriz", images: Any = None, **other: Any) -> pa.Array:
    """Return images as structs of lists, as of the Multimodal Universe."""
    rows = [
        None if image is None else {
            "band": list(order), "flux": image, "mask": [[[True] * SIDE] * SIDE] * 5,
            "ivar": image, "psf_fwhm": [1.0] * 5, "scale": [0.396] * 5,
            **{name: part[row] for name, part in other.items()},
        }
        for row, image in enumerate(NESTED if images is None else images)
    ]  # fmt: skip
    members = [
        ("band", TEXT), ("flux", pa.list_(PICTURE)), ("mask", pa.list_(pa.list_(pa.list_(pa.bool_())))),
        ("ivar", pa.list_(PICTURE)), ("psf_fwhm", pa.list_(pa.float32())), ("scale", pa.list_(pa.float32())),
        ("unit", pa.string()),
    ]  # fmt: skip
    return pa.array(rows, pa.struct(members))


def lists_of_structs(key: str = "flux") -> pa.Array:
    rows = [
        [{"band": band, key: picture, "scale": 0.396} for band, picture in zip("ugriz", row, strict=True)]
        for row in NESTED
    ]
    return pa.array(rows, pa.list_(pa.struct([("band", pa.string()), (key, PICTURE), ("scale", pa.float32())])))


def fixed(values: np.ndarray) -> pa.Array:
    array = pa.array(values.ravel())
    for length in values.shape[:0:-1]:
        array = pa.FixedSizeListArray.from_arrays(array, length)
    return array


def flat(values: np.ndarray) -> pa.Array:
    return pa.FixedSizeListArray.from_arrays(pa.array(values.ravel()), values[0].size)


def write_parquet(path: Path, image: Any, columns: Any = None, metadata: Any = None, stated: Any = None) -> Path:
    """Write a table with an image column, whose metadata is `metadata`; that of the file is `stated`."""
    arrays = {"image": image, **scalars(columns)}
    fields = [
        pa.field(name, array.type, metadata=metadata if name == "image" else None) for name, array in arrays.items()
    ]
    table = pa.table(list(arrays.values()), schema=pa.schema(fields, metadata=stated))
    pq.write_table(table, path, row_group_size=7, write_page_checksum=True)
    return path


PARQUET_LAYOUTS: dict[str, tuple[Any, Any]] = {
    "structs of lists": (structs, None),
    "lists of structs": (lists_of_structs, None),
    "lists of structs, array": (lambda: lists_of_structs("array"), None),
    "structs, zirgu": (lambda: structs("zirgu", IMAGE[:, ZIRGU].tolist()), None),
    "nested": (lambda: pa.array(NESTED, pa.list_(PICTURE)), None),
    "nested, bands last": (lambda: pa.array(LAST.tolist(), pa.list_(PICTURE)), None),
    "nested, fixed": (lambda: fixed(IMAGE), None),
    "tensor": (lambda: pa.FixedShapeTensorArray.from_numpy_ndarray(IMAGE), None),
    "tensor, permuted": (
        lambda: pa.ExtensionArray.from_storage(
            pa.fixed_shape_tensor(pa.float32(), (SIDE, SIDE, 5), permutation=(2, 0, 1)), flat(LAST)
        ),
        None,
    ),
    "flat": (lambda: flat(IMAGE), {"shape": json.dumps([5, SIDE, SIDE])}),
    "flat lists": (
        lambda: pa.array(IMAGE.reshape(ROWS, -1).tolist(), pa.list_(pa.float32())), {"shape": "(5, 32, 32)"},
    ),
}  # fmt: skip


@pytest.mark.parametrize("layout", PARQUET_LAYOUTS)
def test_layouts_of_parquet(tmp_path, layout):
    image, metadata = PARQUET_LAYOUTS[layout]
    source = assert_good(write_parquet(tmp_path / "a.parquet", image(), metadata=metadata))
    if "structs" in layout:
        assert "".join(source.bands) in ("ugriz", "zirgu") and source.pixel_scale == pytest.approx(0.396)


def test_members_of_structs_and_other_spellings_of_the_same_types(tmp_path):
    members = {name: pa.array(value) for name, value in ONE_SET.items()}
    catalogue = pa.StructArray.from_arrays([*members.values()], [*members])
    table = pa.table({"image.v1": lists_of_structs(), "catalogue": catalogue, "name": pa.array(["a", "b", None] * 4)})
    pq.write_table(table, tmp_path / "a.parquet", use_compliant_nested_type=False)
    assert_good(tmp_path / "a.parquet", names={"image": "image.v1"})
    large = pa.large_list(pa.large_list(pa.large_list(pa.float16())))
    halves = pa.array(IMAGE.astype(np.float16).tolist(), large)
    names = pa.array(["a", "b", None] * 4).dictionary_encode()
    path = write_parquet(tmp_path / "b.parquet", halves, {**ONE_SET, "name": names})
    _, fields, kept = read(path, keep=("name",))
    np.testing.assert_array_equal(fields["image"], IMAGE.astype(np.float16))
    assert kept["name"].tolist() == ["a", "b", None] * 4
    counts = write_parquet(tmp_path / "c.parquet", fixed(np.arange(IMAGE.size, dtype=np.uint16).reshape(IMAGE.shape)))
    assert read(counts)[1]["image"].dtype == np.uint16


def test_masks_of_structs_and_a_vector_of_magnitudes(tmp_path):
    columns = {**SCALARS}
    arrays = {"image": structs(), **scalars(columns), "mag": fixed(MAGNITUDE)}
    pq.write_table(pa.table(arrays), tmp_path / "a.pq")
    source = assert_good(tmp_path / "a.pq")
    assert {*source.masks} == {"image.mask", "image.ivar"} and source.masks["image.mask"].shape == IMAGE.shape
    with find_opener(".pq")(str(tmp_path / "a.pq"), IngestOptions()) as source:
        np.testing.assert_array_equal(source.masks["image.ivar"].read_next(ROWS), IMAGE)
    for mask in ("image.mask=zero", "mask", "ivar", "image.ivar"):
        found, notices = ingest(tmp_path, tmp_path / "a.pq", mask=mask)
        np.testing.assert_array_equal(found.image, IMAGE)
        assert any(f"image.{'ivar' if 'ivar' in mask else 'mask'} is zero" in notice for notice in notices)


def test_units_and_bands_in_metadata_are_obeyed(tmp_path):
    path = write_parquet(
        tmp_path / "a.parquet", fixed(IMAGE[:, ZIRGU]), None, {"unit": "nJy"}, {"Bands": '["z","i","r","g","u"]'}
    )  # fmt: skip
    source = read(path)[0]
    assert source.flux_unit.text == "nJy" and "".join(map(str, source.bands)).replace('"', "").strip("[]") == "zirgu"
    found, _ = ingest(tmp_path, path)
    np.testing.assert_array_equal(found.image, (IMAGE.astype(np.float64) * 1e-9 * 1e6 / 3.631).astype(np.float32))
    units = write_parquet(tmp_path / "b.parquet", structs(unit=["nJy"] * ROWS))
    assert read(units)[0].flux_unit.text == "nJy"
    mixed = write_parquet(tmp_path / "c.parquet", structs(unit=["nJy"] * 8 + ["Jy"] * 4))
    assert "image[unit] of row 8 is Jy, and nJy is stated as well" in refusal(tmp_path, mixed)
    both = write_parquet(tmp_path / "d.parquet", structs(unit=["nJy"] * ROWS), stated={"flux_unit": "Jy"})
    assert "image[unit] of row 0 is nJy, and Jy is stated as well" in refusal(tmp_path, both)


def test_bands_that_differ_or_are_missing_are_refused_with_the_row(tmp_path):
    order = [list("ugriz")] * 9 + [list("zirgu")] + [list("ugriz")] * 2
    path = write_parquet(tmp_path / "a.parquet", structs(band=order))
    assert "image[band] of row 9 is z i r g u, before it is u g r i z" in refusal(tmp_path, path)
    path = write_parquet(tmp_path / "a.parquet", structs(band=[list("ugri")] * ROWS))
    assert "its bands are u g r i (z missing)" in refusal(tmp_path, path)
    path = write_parquet(tmp_path / "a.parquet", structs(band=[["u", None, "r", "i", "z"]] * ROWS))
    assert "image[band] of row 0 leaves bands out" in refusal(tmp_path, path)
    path = write_parquet(tmp_path / "a.parquet", structs(band=[list("ugriz")] * 8 + [None] * 4))
    assert "row 8 has an image and does not state its bands" in refusal(tmp_path, path)
    path = write_parquet(tmp_path / "a.parquet", structs(scale=[[0.396] * 5] * 8 + [[0.2] * 5] * 4))
    assert "image[scale] of row 8" in refusal(tmp_path, path)


@pytest.mark.parametrize("nested", [True, False])
def test_missing_images_and_pixels_become_nan(tmp_path, nested):
    images: list[Any] = [*NESTED]
    images[0], images[3] = None, [*images[3]]
    images[3][1] = None
    images[5] = [[[None, *row[1:]] for row in picture] for picture in images[5]]
    array = pa.array(images, pa.list_(PICTURE)) if nested else structs(images=images)
    _, fields, _ = read(write_parquet(tmp_path / "a.parquet", array))
    expected = IMAGE.copy()
    expected[0], expected[3, 1], expected[5, :, :, 0] = np.nan, np.nan, np.nan
    np.testing.assert_array_equal(fields["image"], expected)
    assert fields["image"].dtype == np.float32


@pytest.mark.parametrize("row", [1, 10])
def test_ragged_lists_are_refused_with_the_row(tmp_path, row):
    for change in (lambda image: image[:4], lambda image: [image[0][:3], *image[1:]]):
        images = [*NESTED]
        images[row] = change(images[row])
        path = write_parquet(tmp_path / "a.parquet", pa.array(images, pa.list_(PICTURE)))
        assert f"image of row {row} has a list of" in refusal(tmp_path, path)
        path = write_parquet(tmp_path / "b.parquet", structs(images=images))
        assert f"image[flux] of row {row} has a list of" in refusal(tmp_path, path)


def test_integers_with_nulls_stay_integers_and_text_stays_text(tmp_path):
    ids = [*OBJID.tolist()[:-1], None]
    columns = {**ONE_SET, "specObjID": ids, "plate": [None, *PLATE.tolist()[1:]], "name": ["é", None] * 6}
    path = write_parquet(tmp_path / "a.parquet", fixed(IMAGE), columns)
    source, fields, kept = read(path, keep=("plate", "name"))
    assert fields["objid"].dtype == np.int64 and fields["objid"].mask.tolist() == [False] * 11 + [True]
    assert fields["objid"][:-1].tolist() == OBJID[:-1].tolist()
    assert kept["plate"].mask[0] and kept["plate"].dtype.kind == "i"
    assert source.columns["name"].dtype == object and kept["name"].tolist() == ["é", None] * 6
    found, _ = ingest(tmp_path, path)
    assert found.objid.tolist() == [*OBJID[:-1].tolist(), -1]


def test_columns_of_parquet_have_units_and_others_are_refused(tmp_path):
    table = pa.table({"image": fixed(IMAGE), **scalars()})

    def stated(name: str, unit: str) -> Path:
        at = table.schema.get_field_index(name)
        pq.write_table(table.set_column(at, table.field(name).with_metadata({"unit": unit}), table[name]), path)
        return path

    path = tmp_path / "a.parquet"
    assert read(stated("EBV", "mag"), keep=("EBV",))[0].column_units == {"EBV": "mag"}
    assert "ra is in 'rad'; expected degrees" in refusal(tmp_path, stated("ra", "rad"))
    assert "magnitudes are in 'nJy'" in refusal(tmp_path, stated("mag_u", "nJy"))


@pytest.mark.parametrize(
    ("image", "said"),
    [
        (lambda: flat(IMAGE), "image holds lists of 5120 numbers; expected nested lists"),
        (lambda: pa.array(["a.png"] * ROWS), "image (image) is of type string; expected lists of numbers"),
        (lambda: pa.array([{"bytes": b"", "path": ""}] * ROWS), "is a struct with image[bytes], image[path], of which"),
        (lambda: pa.array([None] * ROWS, pa.list_(PICTURE)), "image has no values in any row"),
        (lambda: fixed(IMAGE[:, :4]), "image has the shape (12, 4, 32, 32)"),
        (lambda: pa.array(RA), "image (image) is of type double"),
    ],
)
def test_other_images_of_parquet_are_refused(tmp_path, image, said):
    assert said in refusal(tmp_path, write_parquet(tmp_path / "a.parquet", image()))


def test_several_sets_no_rows_and_other_files_are_refused(tmp_path):
    path = write_parquet(tmp_path / "a.parquet", fixed(IMAGE), MANY_SETS)
    assert "several candidates for magnitude: dered_petro_{band}, petroMag_{band}" in refusal(tmp_path, path)
    assert_good(path, names=PATTERN)
    pq.write_table(pq.read_table(path).slice(0, 0), path)
    assert "SOURCE has no rows" in refusal(tmp_path, path)
    path.write_bytes(b"PAR1 and nothing else PAR1")
    assert refusal(tmp_path, path) == "SOURCE is not a whole Parquet file; copy it again"


def test_a_large_row_group_is_never_in_memory(tmp_path):
    rows = 3000
    cutouts = fixed(RANDOM.normal(size=(rows, 5, SIDE, SIDE)).astype(np.float32))
    columns = {name: pa.array(np.resize(values, rows)) for name, values in ONE_SET.items()}
    pq.write_table(pa.table({"image": cutouts, **columns}), tmp_path / "a.parquet", row_group_size=rows)
    del cutouts, columns
    before, peak = pa.total_allocated_bytes(), 0
    with find_opener(".parquet")(str(tmp_path / "a.parquet"), IngestOptions()) as source:
        for _ in range(0, rows, 250):
            assert len(source.fields["image"].read_next(250)) == 250
            peak = max(peak, pa.total_allocated_bytes() - before)
    assert 0 < peak < 30e6  # of the 61 MB of the row group


# All of them


def write_whole(path: Path) -> Path:
    """Write the good galaxies with the checksums that a format has."""
    if path.suffix == ".npz":
        np.savez_compressed(path, cube=LAST, labels=structured(ONE_SET))
    elif path.suffix == ".npy":
        np.save(path, structured({"cutout": LAST, **ONE_SET}))
    elif path.suffix == ".h5":
        write_h5(path, {"cube": LAST, "labels": structured(ONE_SET)})
    else:
        write_parquet(path, structs())
    return path


def test_surveys_of_all_formats_have_the_same_digests(tmp_path):
    digests = set()
    for ending in ("npz", "npy", "h5", "parquet"):
        source, out = write_whole(tmp_path / f"a.{ending}"), tmp_path / ending
        report = ingest_files([str(source)], str(out), 1000)
        digests.add(tuple(shard.sha256 for shard in report.survey.shards))
    assert len(digests) == 1


@pytest.mark.parametrize("ending", ["npz", "npy", "h5", "parquet"])
def test_truncated_and_changed_files_are_refused_or_give_the_same(tmp_path, ending):
    path = write_whole(tmp_path / f"a.{ending}")
    whole, random = path.read_bytes(), np.random.default_rng(3)
    _, good, kept = read(path, keep=("EBV",))
    for number in range(100):
        damaged = bytearray(whole)
        if number % 2 or ending == "npy":  # a .npy file has no checksums
            damaged = damaged[: random.integers(1, len(whole))]
        else:
            damaged[random.integers(len(whole))] ^= 1 << random.integers(8)
        path.write_bytes(damaged)
        try:
            _, fields, columns = read(path, keep=("EBV",))
        except InputError as error:
            assert str(path) in str(error) or "ends early" in str(error)
            assert "\n" not in str(error)
            continue
        for name, values in {**good, **kept}.items():
            np.testing.assert_array_equal({**fields, **columns}[name], values)
