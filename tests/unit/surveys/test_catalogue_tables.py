"""Test that a catalogue is read exactly, whatever its format, and that what is unclear or damaged is refused."""

import gzip
import os
import random
import re
import sys
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from astropy.io import fits
from astropy.table import Table
from pyarrow import parquet

from cosmicai.errors import InputError
from cosmicai.surveys.ingest.catalogue_tables import TableColumn, open_catalogue
from cosmicai.surveys.ingest.fits_files import open_fits
from cosmicai.surveys.ingest.source import IngestOptions

IDS = [1237648720693755918, -(2**63), 2**63 - 1, 2**53 + 1]
TEXTS = ["GALAXY", "", "Größe", "a b"]
SMALL = np.ma.MaskedArray(np.array([7, 0, -3, 2**31 - 1], "i4"), [False, True, False, False])
BIG = np.ma.MaskedArray(np.array([2**53 + 1, 5, 0, -(2**62) - 1], "i8"), [False, False, True, False])
FLOATS = [0.1, np.nan, -1e-300, 17.25]
FLAGS = [True, False, False, True]
VECTORS = np.array([[0.1, 2, 3, 4, np.nan]] * 4) + np.arange(4)[:, None]
FORMATS = ("fits", "fits.gz", "csv", "csv.gz", "tsv", "ecsv", "parquet", "pq", "vot", "xml", "votable")
VECTOR_FORMATS = tuple(each for each in FORMATS if not each.startswith(("csv", "tsv")))


def example(vectors=True, texts=TEXTS):
    """Return the table that every format holds; FITS has no text beyond ASCII."""
    table = Table(
        {"objID": np.array(IDS), "class": np.array(texts), "small": SMALL, "big": BIG, "z": FLOATS, "clean": FLAGS},
        units={"z": "mag"}, descriptions={"z": "a number"},
    )  # fmt: skip
    if vectors:
        table["mags"] = VECTORS
    return table


def write(path, table):
    """Write a table as the format of its ending; CSV has no units, types and vectors."""
    kind = path.name.partition(".")[2]
    if kind.startswith("fits"):
        hdu = fits.table_to_hdu(table)
        for number, name in enumerate(table.colnames, 1):
            if table[name].description:
                hdu.header[f"TCOMM{number}"] = table[name].description
        fits.HDUList([fits.PrimaryHDU(), hdu]).writeto(path, checksum=True)
    elif kind.startswith(("csv", "tsv")):
        delimiter = "\t" if kind == "tsv" else ","
        lines = [delimiter.join(table.colnames), *(delimiter.join(map(spell, row)) for row in table)]
        data = ("#Table1\n" + "\n".join(lines) + "\n").encode()
        path.write_bytes(gzip.compress(data) if kind.endswith("gz") else data)
    elif kind in ("parquet", "pq"):
        columns = {name: to_arrow(table[name]) for name in table.colnames}
        fields = [pa.field(name, each.type, metadata=metadata(table[name])) for name, each in columns.items()]
        parquet.write_table(pa.table(list(columns.values()), pa.schema(fields)), path, write_page_checksum=True)
    else:
        table.write(path, format="ascii.ecsv" if kind == "ecsv" else "votable")
    return str(path)


def spell(value):
    return "" if value is np.ma.masked else str(value)


def metadata(column):
    return {"unit": str(column.unit), "description": column.description} if column.unit else None


def to_arrow(column):
    if column.ndim == 2:
        return pa.FixedSizeListArray.from_arrays(pa.array(np.asarray(column).ravel()), column.shape[1])
    return pa.array([None if each is np.ma.masked else each for each in column.tolist()], pa.from_numpy_dtype(column.dtype))  # fmt: skip  # noqa: E501


def same(found, expected):
    """Assert equal values, nulls, kinds and widths."""
    assert isinstance(found, np.ma.MaskedArray) == isinstance(expected, np.ma.MaskedArray)
    assert (found.dtype, found.shape) == (expected.dtype, expected.shape)
    assert np.ma.getmaskarray(found).tolist() == np.ma.getmaskarray(expected).tolist()
    np.testing.assert_array_equal(np.ma.filled(found, 0), np.ma.filled(expected, 0))


def read_csv(tmp_path, content, name="a", file="t.csv", **options):
    path = tmp_path / file
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return open_catalogue(str(path), **options).read([name])[name]


def refusal(path, names=(), **options):
    with pytest.raises(InputError) as caught:
        open_catalogue(str(path), **options).read(list(names))
    assert "\n" not in str(caught.value)
    return str(caught.value)


# The same table in every format.


@pytest.mark.parametrize("kind", FORMATS)
def test_the_same_table_is_the_same_in_every_format(tmp_path, kind):
    texts = ["GALAXY", "", "Groesse", "a b"] if kind.startswith("fits") else TEXTS
    vectors = kind in VECTOR_FORMATS
    table = open_catalogue(write(tmp_path / f"t.{kind}", example(vectors, texts)))
    names = ["objID", "class", "small", "big", "z", "clean"] + ["mags"] * vectors
    assert (table.rows, list(table.columns)) == (4, names)
    found = table.read(names)
    same(found["objID"], np.array(IDS))
    same(found["class"], np.array([each.encode() for each in texts]))
    is_csv = kind.startswith(("csv", "tsv"))
    same(found["small"], SMALL.astype("i8") if is_csv else SMALL)
    same(found["big"], BIG)
    same(found["z"], np.array(FLOATS))
    same(found["clean"], np.array(FLAGS))
    if vectors:
        same(found["mags"], VECTORS)
        assert table.columns["mags"].shape == (5,)
    assert table.columns["z"] == (TableColumn("z") if is_csv else TableColumn("z", "mag", (), "a number"))
    assert table.columns["objID"] == TableColumn("objID")


@pytest.mark.parametrize("kind", FORMATS)
def test_columns_are_read_by_any_case_in_the_order_that_is_asked_for(tmp_path, kind):
    table = open_catalogue(write(tmp_path / f"t.{kind}", example(False, ["a", "b", "c", "d"])))
    found = table.read(["Z", "OBJID", "z"])
    assert list(found) == ["Z", "OBJID", "z"]
    same(found["OBJID"], np.array(IDS))
    same(found["Z"], np.array(FLOATS))
    assert table.read([]) == {}
    assert refusal(table.path, ["nothing"]) == (
        f"{table.path} has no column nothing; expected one of objID, class, small, big, z, clean"
    )


@pytest.mark.parametrize("kind", FORMATS)
def test_integers_are_text_where_this_is_requested(tmp_path, kind):
    path = write(tmp_path / f"t.{kind}", example(False, ["a", "b", "c", "d"]))
    found = open_catalogue(path, text=["objid", "big"]).read(["objID", "big"])
    same(found["objID"], np.array([str(each).encode() for each in IDS]))
    same(found["big"], np.array([b"9007199254740993", b"5", b"", b"-4611686018427387905"]))
    assert "no column other" in refusal(path, text=["other"])


@pytest.mark.parametrize(
    ("kind", "dtype"),
    [
        (kind, dtype)
        for kind in ("fits", "ecsv", "parquet")
        for dtype in ("u1", "u2", "u4", "u8", "i1", "i2", "i4", "i8", "f4", "f8")
        if (kind, dtype) != ("fits", "i1")  # which astropy writes as logical
    ],
)
def test_numbers_keep_their_width(tmp_path, kind, dtype):
    limits = np.finfo(dtype) if dtype[0] == "f" else np.iinfo(dtype)
    values = np.array([limits.min, 0, 1, limits.max], dtype)
    found = open_catalogue(write(tmp_path / f"t.{kind}", Table({"a": values}))).read(["a"])["a"]
    same(found, values)


@pytest.mark.parametrize("kind", FORMATS)
def test_a_table_without_rows_has_its_columns(tmp_path, kind):
    table = open_catalogue(write(tmp_path / f"t.{kind}", example(False, ["a", "b", "c", "d"])[:0]))
    assert table.rows == 0
    assert table.read(["objID", "z"])["objID"].shape == (0,)


# CSV: what the spelling of cells says.


@pytest.mark.parametrize(
    ("cells", "expected"),
    [
        (["1237648720693755918", "5"], np.array([1237648720693755918, 5])),
        (["007", "1237648720693755918", "00123"], np.array([b"007", b"1237648720693755918", b"00123"])),
        (["+7", "8"], np.array([b"+7", b"8"])), (["1_000", "8"], np.array([b"1_000", b"8"])),
        (["-0", "8"], np.array([-0.0, 8])), (["9223372036854775808", "1"], np.array([b"9223372036854775808", b"1"])),
        (["-9223372036854775808"], np.array([-(2**63)])), (["007", "1.5"], np.array([b"007", b"1.5"])),
        (["1", "2.5", "1e3", "-inf", "+.5", "5."], np.array([1, 2.5, 1e3, -np.inf, 0.5, 5])),
        (["9007199254740993", "1.5"], np.array([b"9007199254740993", b"1.5"])),
        (["9007199254740992", "1.5"], np.array([2.0**53, 1.5])), (["1d5", "2"], np.array([b"1d5", b"2"])),
        (["0x10", "2"], np.array([b"0x10", b"2"])), (["1", "x"], np.array([b"1", b"x"])),
        (["true", "False", "null"], np.ma.MaskedArray([True, False, False], [False, False, True])),
        (["true", "1"], np.array([b"true", b"1"])), (["1", "NULL", "--"], np.ma.masked_equal([1, 0, 0], 0)),
        (["a", "NaN", "nan", "null"], np.array([b"a", b"", b"", b""])), (["NaN", "null"], np.array([np.nan] * 2)),
        (["1.5", "", "nan"], np.array([1.5, np.nan, np.nan])), ([" 12", "13 "], np.array([12, 13])),
        (['"007"', '"a,""b"'], np.array([b"007", b'a,"b'])), (["١٢", "3"], np.array(["١٢".encode(), b"3"])),
    ],
)  # fmt: skip
def test_numbers_of_csv_are_inferred_only_where_no_spelling_is_lost(tmp_path, cells, expected):
    same(read_csv(tmp_path, "a,b\n" + "".join(f"{cell},x\n" for cell in cells)), expected)


@pytest.mark.parametrize("last", ["007", "x", "2.5", "9223372036854775808", ""])
@pytest.mark.parametrize("first", ["", "1237648720693755918", "12", "1.50", "true"])
def test_a_column_is_one_thing_over_all_blocks(tmp_path, first, last, monkeypatch):
    monkeypatch.setattr("cosmicai.surveys.ingest.text_tables._BLOCK", 4096)
    cells = [first] * 3000 + [last] * 3000
    found = read_csv(tmp_path, "a,b\n" + "".join(f"{cell},{row}\n" for row, cell in enumerate(cells)))
    small = read_csv(tmp_path, f"a,b\n{first},1\n{last},2\n", file="small.csv")
    same(found, np.ma.concatenate([small[:1]] * 3000 + [small[1:]] * 3000).astype(small.dtype)
         if isinstance(small, np.ma.MaskedArray) else np.repeat(small, 3000))  # fmt: skip


def test_names_lines_and_quotes_of_csv_are_read_as_casjobs_and_spreadsheets_write_them(tmp_path):
    content = b"\xef\xbb\xbf#Table1\r\n\r\n# more\r\nobjid, a b ,z\r\n1,2,3\r\n\r\n4,5,6"
    path = tmp_path / "T.CSV"
    path.write_bytes(content)
    table = open_catalogue(str(path))
    assert (table.rows, list(table.columns)) == (2, ["objid", "a b", "z"])
    same(table.read(["a b"])["a b"], np.array([2, 5]))


def test_broken_csv_is_refused_with_its_line(tmp_path):
    path = tmp_path / "t.csv"
    for content, words in [
        (b"a,b\n1,2\n3\n", "Row #3: Expected 2 columns, got 1"), (b"a,b\n1,2,3\n", "Row #2: Expected 2 columns"),
        (b"a,b\n1,\xff\n", "invalid UTF8"), (b"\xff,b\n1,2\n", "utf-8"), (b'a,b\n1,"2\n3,4\n', "close the quote"),
        (b'a,b\n1,"2\n' + b"3,4\n" * 2**21, "a row of more than 4194304 bytes; close the quote"),
        (b"#Table1\n", "Empty CSV file"), (b"#T\na,b\n1,2\n3\n", "Row #4"),
        (b"a,b,a\n1,2,3\n", "two columns 'a'"), (b"", "is empty"), ("a\n1\n".encode("utf-16"), "utf-8"),
    ]:  # fmt: skip
        path.write_bytes(content)
        assert words in refusal(path, ["a"])
    path.write_bytes(b"a,b\n1\x00,2\n")
    assert "NUL" in refusal(path, ["a"])


def test_columns_are_listed_up_to_forty_and_names_that_differ_in_case_are_told_apart(tmp_path):
    path = tmp_path / "t.csv"
    path.write_text(",".join(f"c{i}" for i in range(50)) + "\n" + ",".join("1" * 50) + "\n")
    assert refusal(path, ["z"]).endswith("c38, c39 and 10 more")
    path.write_text("Z,z\n1,2\n")
    assert open_catalogue(str(path)).read(["z"])["z"] == [2]
    path.write_text("Zz,zZ\n1,2\n")
    assert "may be Zz or zZ" in refusal(path, ["zz"])


# FITS.


def write_hdus(path, *hdus):
    fits.HDUList([fits.PrimaryHDU(), *hdus]).writeto(path, overwrite=True)
    return path


def test_the_table_of_a_fits_file_is_the_only_one_or_the_one_that_is_chosen(tmp_path):
    one, two = (
        fits.table_to_hdu(Table({"a": [value]}, meta={"EXTNAME": name})) for value, name in [(1, "X"), (2, "Y")]
    )
    path = write_hdus(tmp_path / "t.fits", one, fits.ImageHDU(np.zeros((2, 2))), two)
    assert "has several tables: 1 X, 3 Y; choose one" in refusal(path)
    assert [open_catalogue(str(path), hdu=name).read(["a"])["a"][0] for name in ("x", "1", "Y", "3")] == [1, 1, 2, 2]
    assert "no table 2; it has 1 X, 3 Y" in refusal(path, hdu="2")
    assert "has no table" in refusal(write_hdus(path))
    (tmp_path / "t.csv").write_text("a\n1\n")
    assert "one table, not several" in refusal(tmp_path / "t.csv", hdu="1")


def test_values_of_fits_are_those_that_the_header_states(tmp_path):
    columns = [
        fits.Column("null", "K", null=-99, array=np.array([2**62 + 1, -99])), fits.Column("flag", "L"),
        fits.Column("text", "6A"), fits.Column("i8", "B", bzero=-128, array=np.array([-128, 127], "i1")),
        fits.Column("u64", "K", bzero=2**63, array=np.array([2**64 - 1, 0], "u8")),
        fits.Column("matrix", "6D", dim="(2,3)"), fits.Column("texts", "6A", dim="(3,2)"), fits.Column("bits", "3X"),
        fits.Column("complex", "C"), fits.Column("ragged", "PJ()", array=np.array([[1], [1, 2]], object)),
    ]  # fmt: skip
    hdu = fits.BinTableHDU.from_columns(columns, nrows=2)
    path = write_hdus(tmp_path / "t.fits", hdu)
    data = bytearray(path.read_bytes())
    start = fits.info(path, output=False) and fits.open(path)[1].fileinfo()["datLoc"]
    data[start + 8 : start + 15] = b"Tab\0cd "
    data[start + hdu.header["NAXIS1"] + 8] = 0
    path.write_bytes(data)
    found = open_catalogue(str(path)).read(["null", "flag", "text", "u64"])
    same(found["null"], np.ma.MaskedArray([2**62 + 1, 0], [False, True]))
    same(found["flag"], np.ma.MaskedArray([True, False], [False, True]))
    same(found["text"], np.array([b"ab", b""]))
    same(found["u64"], np.array([2**64 - 1, 0], "u8"))
    same(open_catalogue(str(path)).read(["i8"])["i8"], np.array([-128, 127], "i1"))
    assert open_catalogue(str(path)).columns["matrix"].shape == (3, 2)
    for name in ("matrix", "texts", "bits", "complex", "ragged"):
        assert f"{name} h" in refusal(path, [name])
    data[start + 8] = ord("?")
    path.write_bytes(data)
    assert "other than T and F" in refusal(path, ["flag"])


def test_compressed_and_doubled_and_edited_tables_are_refused(tmp_path):
    hdu = fits.table_to_hdu(Table({"a": [1]}))
    hdu.header["ZTABLE"] = True
    assert "uncompress it with funpack" in refusal(write_hdus(tmp_path / "t.fits.fz", hdu))
    hdu = fits.table_to_hdu(Table({"a": [5]}))
    image = fits.CompImageHDU(np.arange(10000, dtype="i4").reshape(100, 100))
    same(open_catalogue(str(write_hdus(tmp_path / "i.fz", image, hdu))).read(["a"])["a"], np.array([5]))
    path = write_hdus(tmp_path / "t.fits", fits.table_to_hdu(Table({"a": [1], "b": [2]})))
    path.write_bytes(path.read_bytes().replace(b"'b       '", b"'a       '"))
    assert "two columns" in refusal(path)
    path = tmp_path / "sum.fits"
    write(path, Table({"a": [1]}))
    data = bytearray(path.read_bytes())
    data[-2880] ^= 1
    path.write_bytes(data)
    assert "differs from the DATASUM" in refusal(path)


@pytest.mark.parametrize("stored", [b"T", b"\0"])
def test_logical_values_are_no_magnitudes_of_cutouts(tmp_path, stored):
    columns = [fits.Column(f"MAG_{band}", "L", array=[True]) for band in "UGRIZ"]
    hdus = fits.ImageHDU(np.zeros((1, 5, 32, 32), "f4"), name="IMAGE"), fits.BinTableHDU.from_columns(columns)
    path = write_hdus(tmp_path / "t.fits", *hdus)
    path.write_bytes(path.read_bytes().replace(b"TTTTT", stored * 5))
    with pytest.raises(InputError, match="magnitude is of dtype bool"), open_fits(str(path), IngestOptions()):
        pass


def test_a_header_after_which_astropy_begins_again_for_ever_is_refused(tmp_path):
    path = write_hdus(tmp_path / "t.fits", fits.table_to_hdu(Table({"a": [1]})))
    path.write_bytes(path.read_bytes().replace(b"'BINTABLE'", b"'BINTABLE "))
    assert "the header of HDU 1 is damaged" in refusal(path)


# Parquet, ECSV, VOTable.


def test_columns_of_parquet_of_every_kind_of_text_and_vector_are_read_and_others_refused(tmp_path):
    vectors = pa.array([[1, 2], None, [3, None]], pa.list_(pa.int64(), 2))
    table = pa.table(
        {
            "dict": pa.array(["x", None, "yy"]).dictionary_encode(),
            "large": pa.array(["x", "", None], pa.large_string()),
            "binary": pa.array([b"x", b"y", None]), "vector": vectors, "half": pa.array([1.5, None, 2], pa.float16()),
            "flag": pa.array([True, None, False]), "null": pa.nulls(3),
            "decimal": pa.array([1, 2, 3], pa.decimal128(20, 2)),
            "list": pa.array([[1], [2], [3]]), "date": pa.array([1, 2, 3], pa.date32()),
            "struct": pa.array([{"a": 1}] * 3), "u.64": pa.array([2**64 - 1, 0, None], pa.uint64()),
        }
    )  # fmt: skip
    path = tmp_path / "t.parquet"
    parquet.write_table(table, path)
    opened = open_catalogue(str(path))
    found = opened.read(["dict", "large", "binary", "vector", "half", "null", "u.64", "flag"])
    same(found["dict"], np.array([b"x", b"", b"yy"]))
    same(found["large"], np.array([b"x", b"", b""]))
    same(found["binary"], np.array([b"x", b"y", b""]))
    same(found["vector"], np.ma.masked_equal([[1, 2], [0, 0], [3, 0]], 0))
    same(found["half"], np.array([1.5, np.nan, 2], np.float16))
    same(found["null"], np.array([np.nan] * 3))
    same(found["flag"], np.ma.MaskedArray([True, False, False], [False, True, False]))
    same(found["u.64"], np.ma.MaskedArray(np.array([2**64 - 1, 0, 0], np.uint64), [False, False, True]))
    assert "decimal is of type decimal128(20, 2); expected numbers" in refusal(path, ["decimal"])
    assert "list is of type list" in refusal(path, ["list"])
    assert "date is of type date32" in refusal(path, ["date"])
    assert "struct is of type struct" in refusal(path, ["struct"])
    parquet.write_table(pa.table([[1], [2]], ["a", "a"]), path)
    assert "two columns 'a'" in refusal(path, ["a"])


def test_text_of_parquet_that_is_not_utf8_or_too_long_is_refused(tmp_path):
    path = tmp_path / "t.parquet"
    parquet.write_table(pa.table({"bad": pa.array([b"\xff"])}), path)
    assert "bad holds text that is not UTF-8" in refusal(path, ["bad"])
    parquet.write_table(pa.table({"long": pa.array(["x" * 2**20, *[""] * 1024])}), path)
    assert "long holds a text of 1048576 bytes" in refusal(path, ["long"])


def test_units_of_parquet_that_astropy_wrote_are_found(tmp_path):
    path = tmp_path / "t.parquet"
    example().write(path)
    table = open_catalogue(str(path))
    assert table.columns["z"] == TableColumn("z", "mag", (), "a number")
    same(table.read(["mags"])["mags"], VECTORS)


def test_cells_of_ecsv_that_are_not_what_its_header_states_are_refused(tmp_path):
    head = "# %ECSV 1.0\n# ---\n# datatype:\n# - {name: a, datatype: KIND}\n# - {name: b, datatype: string}\n"
    path = tmp_path / "t.ecsv"
    for kind, cell in [("int16", "70000"), ("int64", "1.5"), ("float64", "x"), ("bool", "2"), ("uint8", "-1")]:
        path.write_text(head.replace("KIND", kind) + f"a b\n{cell} x\n")
        assert f"{path}: a is not {kind.replace('float64', 'double')} as its header states" in refusal(path, ["a"])
    path.write_text(head.replace("KIND", "int64") + 'a b\n007 "nan"\n"" " x "\n')
    found = open_catalogue(str(path)).read(["a", "b"])
    same(found["a"], np.ma.MaskedArray([7, 0], [False, True]))
    same(found["b"], np.array([b"nan", b" x "]))
    path.write_text(head.replace("KIND", "complex128") + "a b\n1 x\n")
    assert "not supported" in refusal(path, ["a"])
    path.write_text(head.replace("KIND", "int8") + "b a\n1 x\n")
    assert "its rows have" in refusal(path)
    path.write_text("a b\n1 x\n")
    assert "does not begin with" in refusal(path)


@pytest.mark.parametrize("layout", ["tabledata", "binary", "binary2"])
def test_every_layout_of_a_votable_is_read(tmp_path, layout):
    path = tmp_path / "t.vot"
    table = Table({"id": IDS, "s": TEXTS, "i": [1, 2, 3, 4], "z": FLOATS, "v": VECTORS})
    table.write(path, format="votable", tabledata_format=layout)
    found = open_catalogue(str(path)).read(["z", "s", "id", "v"])
    same(found["id"], np.array(IDS))
    same(found["s"], np.array([each.encode() for each in TEXTS]))
    same(found["z"], np.array(FLOATS))
    same(found["v"], VECTORS)
    if layout != "tabledata":
        before, rows, after = re.split(rb"(?<=base64.>)|(?=</STREAM>)", path.read_bytes())
        before = before.replace(b"<TABLE>", b'<TABLE nrows="4">')
        path.write_bytes(before + b"".join(rows.split())[:-80] + after)
        assert "rows where it states 4" in refusal(path)


def test_tables_of_a_votable_are_chosen_and_what_lies_elsewhere_is_refused(tmp_path):
    path = tmp_path / "t.xml"
    one = (
        '<TABLE name="{0}"><FIELD name="a" datatype="int"/><FIELD name="a b" datatype="short" unit="mag"/><FIELD '
        'name="r" datatype="int" arraysize="*"/><FIELD name="f" datatype="boolean"/><FIELD name="c" datatype="char" '
        'arraysize="*"/><DATA><TABLEDATA><TR><TD>{1}</TD><TD></TD><TD>1 2</TD><TD>?</TD><TD/></TR></TABLEDATA></DATA>'
        "</TABLE>"
    )
    start = '<?xml version="1.0"?><VOTABLE version="1.4" xmlns="http://www.ivoa.net/xml/VOTable/v1.3"><RESOURCE>'
    path.write_text(start + one.format("X", 1) + one.format("Y", 2) + "</RESOURCE></VOTABLE>")
    assert "several tables: 0 X, 1 Y" in refusal(path)
    table = open_catalogue(str(path), hdu="Y")
    same(table.read(["a"])["a"], np.array([2], "i4"))
    same(table.read(["a b"])["a b"], np.ma.MaskedArray(np.array([0], "i2"), [True]))
    same(table.read(["f"])["f"], np.ma.MaskedArray([False], [True]))
    same(table.read(["c"])["c"], np.array([b""]))
    assert table.columns["a b"].unit == "mag"
    assert "r holds object" in refusal(path, ["r"], hdu="1")
    stream = (
        '<TABLE><FIELD name="a" datatype="int"/><DATA><BINARY><STREAM\n type="x" href="file:///etc/passwd"/></BINARY>'
    )
    path.write_text(start + stream + "</DATA></TABLE></RESOURCE></VOTABLE>")
    assert "refers to another file" in refusal(path)
    path.write_bytes(gzip.compress(path.read_bytes()))
    assert "is not a VOTable in UTF-8" in refusal(path)


@pytest.mark.parametrize(
    ("field", "cell", "version"),
    [
        ('datatype="long"', "9223372036854775808", "1.4"), ('datatype="short"', "-32769", "1.4"),
        ('datatype="int"', "", "1.1"), ('datatype="char" arraysize="2"', "abc", "1.4"),
        ('datatype="unicodeChar"', "abc", "1.4"), ('datatype="int"', "1.5", "1.4"), ('datatype="float"', "x", "1.4"),
    ],
)  # fmt: skip
def test_cells_of_a_votable_that_astropy_would_change_are_refused(tmp_path, field, cell, version):
    path = tmp_path / "t.vot"
    path.write_text(
        f'<VOTABLE version="{version}"><RESOURCE><TABLE><FIELD name="a" {field}/><DATA><TABLEDATA><TR><TD>{cell}</TD>'
        "</TR></TABLEDATA></DATA></TABLE></RESOURCE></VOTABLE>"
    )
    problem = "has a value that its column cannot hold" if cell != "1.5" else "invalid literal for int"
    assert problem in refusal(path, ["a"])


# Files that are none.


@pytest.mark.parametrize("kind", FORMATS)
def test_what_is_no_file_of_this_kind_is_refused(tmp_path, kind):
    path = tmp_path / f"t.{kind}"
    assert "does not exist" in refusal(path)
    path.mkdir()
    assert "is a folder" in refusal(path)
    path.rmdir()
    os.mkfifo(path)
    assert "is a pipe" in refusal(path)
    path.unlink()
    path.touch()
    assert "is empty" in refusal(path)
    path.write_bytes(bytes(random.Random(0).randbytes(5000)))
    assert str(path) in refusal(path)
    if os.geteuid():
        path.chmod(0)
        assert "permission denied" in refusal(path)


def test_an_unknown_ending_is_refused_with_those_that_are_known():
    assert refusal("x.dat") == (
        "x.dat is of an unknown kind; expected a catalogue ending in .fits, .fit, .fits.gz, .fz, .csv, .csv.gz, .tsv, "
        ".ecsv, .parquet, .pq, .vot, .votable, .xml"
    )


@pytest.mark.parametrize("kind", ["fits", "ecsv", "vot"])
def test_a_missing_astropy_is_left_to_the_command_line_which_says_what_to_install(tmp_path, monkeypatch, kind):
    path = write(tmp_path / f"t.{kind}", example(False, ["a", "b", "c", "d"]))
    for name in [each for each in sys.modules if each.partition(".")[0] == "astropy"]:
        monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(ModuleNotFoundError, match="astropy"):
        open_catalogue(path)


def damage(random_, data):
    """Return bytes cut off or with up to four bits flipped."""
    data = bytearray(data)
    if random_.random() < 0.3:
        return bytes(data[: random_.randrange(len(data))])
    for _ in range(random_.randint(1, 4)):
        data[random_.randrange(len(data))] ^= 1 << random_.randrange(8)
    return bytes(data)


@pytest.mark.parametrize("kind", FORMATS)
def test_damage_is_refused_where_the_format_can_tell_and_never_a_traceback(tmp_path, kind):
    whole = Path(write(tmp_path / f"t.{kind}", example(kind in VECTOR_FORMATS, ["a", "b", "c", "d"])))
    data, random_ = whole.read_bytes(), random.Random(len(kind))
    names = ["objID", "class", "small", "big", "z", "clean"]
    expected = open_catalogue(str(whole)).read(names)
    can_tell = kind in ("fits", "csv.gz")  # by checksums of all bytes that hold values
    for _ in range(100):
        whole.write_bytes(damage(random_, data))
        try:
            found = open_catalogue(str(whole)).read(names)
        except InputError as error:
            assert str(whole) in str(error)
            continue
        if can_tell:
            for name in names:
                same(found[name], expected[name])
