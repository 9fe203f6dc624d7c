"""What stands in the head of a catalogue: its provenance, and the descriptions that tools of astronomy read.

In Parquet these are key-value metadata: `cosmicai.*`; `table_meta_yaml`, by which astropy gives columns their units and
descriptions; and `IVOA.VOTable-Parquet.*` (VOTable in Parquet 1.0, an IVOA note of 2025), a VOTable without rows.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, datetime
from typing import Any
from xml.etree import ElementTree

import pyarrow as pa

from ...calibration.describe import describe_calibration
from ...calibration.records import Calibration
from ...surveys.quality import FLAG_MEANINGS, NO_REDSHIFT, Flag
from ..plan import Plan
from ..record import Record
from .columns import Column

PREFIX = "cosmicai."
DESCRIPTIONS = "table_meta_yaml"
VOTABLE = "IVOA.VOTable-Parquet.content"
VOTABLE_VERSION = "IVOA.VOTable-Parquet.version"
NAMESPACE = "http://www.ivoa.net/xml/VOTable/v1.3"
SYNTHETIC = "the weights were trained on synthetic galaxies; their redshifts of real ones mean nothing"
FRAME = "icrs"


def describe_provenance(
    plan: Plan, records: Iterable[Record], calibration: Calibration | None = None
) -> dict[str, str]:
    """Return where the redshifts of a run come from, by names of metadata without their prefix.

    There are no addresses, and nothing of how the work was cut: the same redshifts come with the same text, but for
    the date, wherever they were computed by the same program. Several commits, images or precisions are all named.
    """
    weights, ranks = plan.weights_file, list(records)
    found = {
        "weights": weights.label,
        "weights_sha256": weights.sha256,
        "plan": plan.inputs_digest,
        "survey": plan.survey.rstrip("/").rpartition("/")[2],
        "engine": plan.engine,
        "precision": _join(record.precision for record in ranks) or plan.precision,
        "views": str(plan.views) if plan.views > 1 else "",
        "git_commit": _join(record.git_commit for record in ranks),
        "image_digest": _join(record.image_digest for record in ranks),
        "date": datetime.now(UTC).date().isoformat(),
        "calibration": describe_calibration(calibration) if calibration else "",
        "synthetic": SYNTHETIC if weights.is_demo else "",
        "flags": describe_flags(),
    }
    return {name: text for name, text in found.items() if text}


def _join(values: Iterable[str | None]) -> str:
    return ", ".join(sorted({value for value in values if value}))


def describe_flags() -> str:
    """Return the bits of the column `flag` and their meanings in one line."""
    bits = [f"{bit:d} {bit.name}: {meaning}" for bit, meaning in FLAG_MEANINGS.items()]
    blank = ", ".join(f"{bit:d}" for bit in Flag if bit & (NO_REDSHIFT | Flag.NOT_DONE))
    return f"{'; '.join(bits)}. With {blank} there is no redshift; the others warn."


def parquet_metadata(columns: Sequence[Column], provenance: Mapping[str, str]) -> dict[str, str]:
    """Return the key-value metadata of a Parquet file with these columns."""
    nullable = [_describe_for_pandas(column) for column in columns if column.null is not None]
    pandas = {"columns": nullable, "index_columns": [], "column_indexes": [], "pandas_version": "2"}
    widths = {f"table::len::{column.name}": str(max(1, column.width)) for column in columns if column.is_text}
    return {
        **{PREFIX + name: text for name, text in provenance.items()},
        DESCRIPTIONS: to_yaml(describe_table(columns, provenance)),
        VOTABLE_VERSION: "1.0",
        VOTABLE: ElementTree.tostring(build_votable(columns, provenance), "unicode"),
        **({"pandas": json.dumps(pandas)} if nullable else {}),
        **widths,  # of texts, else astropy would guess them with a warning
    }


def _describe_for_pandas(column: Column) -> dict[str, Any]:
    """Return what makes pandas read integers with missing values as integers; it would round them to floats."""
    name = str(column.type)
    own = {"pandas_type": name, "numpy_type": name.replace("i", "I", 1).replace("uI", "UI"), "metadata": None}
    return {"name": column.name, "field_name": column.name} | own


def read_provenance(schema: pa.Schema) -> dict[str, str]:
    """Return the provenance in the metadata of a catalogue; one of an earlier version has little of it."""
    metadata = {name.decode(): text.decode() for name, text in (schema.metadata or {}).items()}
    return {name.removeprefix(PREFIX): text for name, text in metadata.items() if name.startswith(PREFIX)}


def to_yaml(value: Any) -> str:
    """Return a value as YAML in one line: as JSON, which YAML includes, so that no library of YAML is needed."""
    return json.dumps(value, ensure_ascii=False)


def describe_table(columns: Sequence[Column], provenance: Mapping[str, str]) -> dict[str, Any]:
    """Return columns and provenance as in the header of an ECSV file."""
    described = []
    for column in columns:
        datatype = {"double": "float64", "float": "float32"}.get(str(column.type), str(column.type))
        notes = {"unit": column.unit, "datatype": datatype, "description": column.description}
        described.append({"name": column.name} | {name: text for name, text in notes.items() if text})
    return {"datatype": described, "meta": dict(provenance)}


# Arrow's types in VOTable, which has no others: the next larger one, and digits for what is beyond `long`.
DATATYPES = {
    "bool": "boolean", "uint8": "unsignedByte", "int8": "short", "int16": "short", "uint16": "int", "int32": "int",
    "uint32": "long", "int64": "long", "float": "float", "double": "double",
}  # fmt: skip
DIGITS = 20  # of a uint64


def build_votable(columns: Sequence[Column], provenance: Mapping[str, str]) -> ElementTree.Element:
    """Return a VOTable 1.4 with one table that has no rows yet."""
    root = ElementTree.Element("VOTABLE", version="1.4", xmlns=NAMESPACE)
    resource = ElementTree.SubElement(root, "RESOURCE", type="results")
    has_position = any(column.ucd.startswith("pos.eq") for column in columns)
    if has_position:
        ElementTree.SubElement(resource, "COOSYS", ID=FRAME, system="ICRS")
    table = ElementTree.SubElement(resource, "TABLE", name="catalogue")
    for name, text in provenance.items():
        ElementTree.SubElement(table, "PARAM", name=name, datatype="char", arraysize="*", value=text)
    for column in columns:
        table.append(_build_field(column))
    return root


def _build_field(column: Column) -> ElementTree.Element:
    datatype = DATATYPES.get(str(column.type))
    given = {"name": column.name, "datatype": datatype or "char"}
    if datatype is None:
        given["arraysize"] = str(max(1, column.width) if column.is_text else DIGITS)
    given |= {name: text for name, text in (("unit", column.unit), ("ucd", column.ucd)) if text}
    if column.ucd.startswith("pos.eq"):
        given["ref"] = FRAME
    field = ElementTree.Element("FIELD", given)
    if column.description:
        ElementTree.SubElement(field, "DESCRIPTION").text = column.description
    return field
