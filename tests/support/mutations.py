"""Damaged files of every format that the program reads, and what comes of reading them.

`python -m support.mutations FOLDER FIRST STOP STEP` reads mutations FIRST, FIRST + STEP, ... below STOP of the files
that `write_cases` wrote, and prints one line of JSON before and after each. A mutation that takes longer than SECONDS
or more than MEMORY ends the process.
"""

from __future__ import annotations

import gzip
import json
import re
import resource
import shutil
import signal
import sys
import traceback
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from astropy.io import fits
from astropy.table import Table
from numpy.typing import NDArray
from pyarrow import parquet
from torch.utils.data import TensorDataset

from cosmicai.errors import InputError
from cosmicai.models.weights import load_weights
from cosmicai.ranks.environment import Rank
from cosmicai.runs.part import decode_part
from cosmicai.runs.plan import Plan
from cosmicai.runs.store import RunFolder
from cosmicai.storage import read_bytes
from cosmicai.surveys.ingest.catalogue_tables import open_catalogue
from cosmicai.surveys.ingest.gate import ingest_files
from cosmicai.surveys.ingest.source import IngestOptions
from cosmicai.surveys.shard import open_shard
from cosmicai.surveys.survey import open_survey
from support.gate import COLUMNS, GOOD, ROWS, table, write_h5, write_npz
from support.helpers import make_run, make_survey, run_worker, tiny_weights

SEED = 20260
SECONDS = 20
MEMORY = 6 * 2**30  # bytes of address space, of which the libraries take 3
HEAD = 4096  # bytes at both ends of a file, in which most changes are
EXTREMES = (b"\0" * 8, b"\xff" * 8, b"\xff" * 7 + b"\x7f", b"\0" * 7 + b"\x80", (2**31 - 1).to_bytes(8, "little"))
WORDS = (
    b"9" * 400,
    b"-1",
    b"NaN",
    b"1e999",
    b"null",
    b"[" * 5000,
    b'"',
    b"\n",
    b",",
    b"<",
    b">",
    b"\xff",
    b"\0",
    b"{}",
)

Values = dict[str, NDArray[Any]]


@dataclass(frozen=True)
class Case:
    """A file, how it is read, and whether checksums cover all that is read of it."""

    file: str
    read: Callable[[Path], Values]
    is_checked: bool = False


def read_shard(path: Path) -> Values:
    with open_shard(str(path)) as shard:
        galaxies, images = shard.read(0, shard.galaxies), shard.check_images()
        if images is not None:
            assert images.add(galaxies.image) == shard.galaxies
        names = ("image", "magnitude", "redshift", "objid")
        return {name: getattr(galaxies, name) for name in names} | shard.read_columns(0, shard.galaxies)


def read_ingested(path: Path) -> Values:
    out = path.parent / "out"
    try:
        survey = ingest_files([str(path)], str(out), 1000, IngestOptions()).survey
        [batch] = survey.read_batches(1000)
        return {name: getattr(batch, name) for name in ("image", "magnitude", "redshift", "objid")}
    finally:
        shutil.rmtree(out, ignore_errors=True)


def read_weights(path: Path) -> Values:
    return load_weights(str(path)).tensors


def read_table(path: Path) -> Values:
    opened = open_catalogue(str(path))
    return opened.read(list(opened.columns))


def read_plan(path: Path) -> Values:
    return {"plan": np.array(Plan.from_json(read_bytes(str(path)), str(path)).to_json())}


def read_records(path: Path) -> Values:
    return {"record": np.array([record.galaxies for record in RunFolder(str(path.parents[1])).records().values()])}


def read_survey(path: Path) -> Values:
    return {"shards": np.array([shard.galaxies for shard in open_survey(str(path.parent)).shards])}


def read_part(path: Path) -> Values:
    plan = Plan.from_json(read_bytes(str(path.parents[1] / "plan.json")), "plan.json")
    part = decode_part(read_bytes(str(path)), plan, plan.items[0], str(path))
    return {name: getattr(part, name) for name in ("redshift_phot", "flag")}


CASES = (
    Case("partition.pt", read_shard, is_checked=True),
    Case("a.npz", read_ingested, is_checked=True),
    Case("images.npy", read_ingested),
    Case("survey/000001.h5", read_shard, is_checked=True),
    Case("a.h5", read_ingested),
    Case("a.fits", read_ingested),
    Case("sum.fits", read_ingested, is_checked=True),
    Case("a.parquet", read_ingested),
    Case("w.safetensors", read_weights),
    Case("run/plan.json", read_plan),
    Case("run/records/0.json", read_records),
    Case("survey/survey.json", read_survey),
    Case("t.csv", read_table),
    Case("t.csv.gz", read_table, is_checked=True),
    Case("t.ecsv", read_table),
    Case("t.vot", read_table),
    Case("run/parts/PART", read_part, is_checked=True),
)


def write_cases(folder: Path) -> None:
    """Write the files of all cases to a new folder."""
    folder.mkdir()
    fields = (GOOD.image, GOOD.magnitude, GOOD.redshift)
    torch.save(TensorDataset(*map(torch.from_numpy, fields)), folder / "partition.pt")
    write_npz(folder)
    columns: Values = {"image": GOOD.image, "magnitude": GOOD.magnitude, "redshift": GOOD.redshift}
    rows = np.zeros(ROWS, [(name, values.dtype, values.shape[1:]) for name, values in columns.items()])
    for name, values in columns.items():
        rows[name] = values
    np.save(folder / "images.npy", rows)
    write_h5(folder)
    hdus = fits.HDUList([fits.PrimaryHDU(GOOD.image), table()])
    hdus.writeto(folder / "a.fits")
    hdus.writeto(folder / "sum.fits", checksum=True)
    arrays = {name: pa.array(values) for name, values in COLUMNS.items() if values.ndim == 1}
    arrays |= {name: pa.FixedShapeTensorArray.from_numpy_ndarray(COLUMNS[name]) for name in ("image", "magnitude")}
    parquet.write_table(pa.table(arrays), folder / "a.parquet", write_page_checksum=True)
    objects = Table({"objID": GOOD.objid, "z": GOOD.redshift, "class": [f"G{number}" for number in range(ROWS)]})
    objects.write(folder / "t.csv", format="ascii.csv")
    (folder / "t.csv.gz").write_bytes(gzip.compress((folder / "t.csv").read_bytes()))
    objects.write(folder / "t.ecsv", format="ascii.ecsv")
    objects.write(folder / "t.vot", format="votable")
    survey, weights = make_survey(folder / "survey", GOOD, 5), tiny_weights(folder / "w.safetensors")
    run = make_run(survey, weights, str(folder / "run"), engine="reference")
    run_worker(run, Rank())
    [*_, part] = sorted((folder / "run/parts").iterdir(), reverse=True)
    part.rename(folder / "run/parts/PART")


def mutate(data: bytes, random: np.random.Generator) -> bytes:
    """Return bytes with one or three changes: flipped bits, other bytes, numbers or words, pieces lost or doubled."""
    for _ in range(1 if random.random() < 0.7 else 3):
        end = len(data)
        at = int(random.integers(end + 1))
        if random.random() < 0.7:  # in the headers at both ends
            at = int(random.choice([random.integers(min(end, HEAD) + 1), end - random.integers(min(end, HEAD) + 1)]))
        length = int(random.integers(1, 200))
        kind = random.integers(9)
        if kind < 3 and at < end:
            data = data[:at] + bytes([data[at] ^ 1 << int(random.integers(8))]) + data[at + 1 :]
        elif kind == 3:
            data = data[:at] + random.bytes(int(random.integers(1, 9))) + data[at + 8 :]
        elif kind == 4:
            extreme = EXTREMES[random.integers(len(EXTREMES))][: 2 ** int(random.integers(4))]
            data = data[:at] + extreme + data[at + len(extreme) :]
        elif kind == 5:
            data = data[:at] + WORDS[random.integers(len(WORDS))] + data[at + int(random.integers(4)) :]
        elif kind == 6:
            data = data[:at] if random.random() < 0.3 else data[:at] + data[at + length :]
        elif kind == 7:
            data = data[: at + length] + data[at:]
        elif numbers := list(re.finditer(rb"\d+", data)):
            number = numbers[random.integers(len(numbers))]
            other = str(random.choice([0, 1, int(random.integers(10 ** len(number[0][:9]))), -1])).encode()
            data = data[: number.start()] + other + data[number.end() :]
    return data


def outcome(case: Case, path: Path, expected: Values) -> str:
    """Return "same", "other" or "refused" for what comes of a damaged file, or else what is wrong with that."""
    try:
        found = case.read(path)
    except InputError as error:
        text = str(error)
        is_sentence = "\n" not in text and (str(path) in text or str(path.parent) in text)
        return "refused" if is_sentence else f"no sentence that names the file: {text}"
    except BaseException:
        return traceback.format_exc()
    is_same = found.keys() == expected.keys() and all(
        found[name].dtype == values.dtype
        and np.array_equal(np.ma.filled(found[name], 0), np.ma.filled(values, 0), equal_nan=values.dtype.kind in "fc")
        for name, values in expected.items()
    )
    if not is_same and case.is_checked:
        return "other values in spite of checksums"
    return "same" if is_same else "other"


def main(folder: Path, first: int, stop: int, step: int) -> None:
    """Read mutations and print what comes of each."""
    warnings.simplefilter("ignore")
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
    originals = {case: (folder / case.file).read_bytes() for case in CASES}
    expected = {case: case.read(folder / case.file) for case in CASES}
    for number in range(first, stop, step):
        case, random = CASES[number % len(CASES)], np.random.default_rng([SEED, number])
        path = folder / case.file
        path.write_bytes(mutate(originals[case], random))
        print(json.dumps([number, case.file, "begins"]), flush=True)
        signal.alarm(SECONDS)
        found = outcome(case, path, expected[case])
        signal.alarm(0)
        print(json.dumps([number, case.file, found]), flush=True)
        path.unlink()
        path.write_bytes(originals[case])


if __name__ == "__main__":
    main(Path(sys.argv[1]), *map(int, sys.argv[2:5]))
