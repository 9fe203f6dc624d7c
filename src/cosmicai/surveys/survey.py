"""A survey: an ordered set of shards in one folder or S3 prefix, described by `survey.json`.

A folder of `.h5` or `.pt` files without survey.json, or a single such file, is a survey too: its shards are taken in
natural order (1.pt, 2.pt, 10.pt) and their galaxies counted from their headers.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path

from .. import storage
from ..errors import InputError, explained
from ..storage.parallel import in_order
from ..storage.s3 import is_s3, requests_at_once
from .shard import FIELDS, SUFFIXES, Galaxies, Shard, open_shard, write_shard

FORMAT = "cosmicai-survey/1"
# What the published split counted for one galaxy: cutout and five magnitudes as float32, the redshift as float64.
# floor(MB * 2^20 / 20508) gives its files of 511, 1278, 2556, 3834 and 5113 galaxies for 10, 25, 50, 75 and 100 MB.
PUBLISHED_BYTES_PER_GALAXY = 5 * 32 * 32 * 4 + 5 * 4 + 8
COPY_BATCH = 256  # galaxies in memory at once while a survey is cut anew


def galaxies_per_partition(partition_mb: float) -> int:
    """Galaxies of a partition of this size in MB (2^20 bytes), as the published data were split."""
    return max(1, int(partition_mb * 2**20) // PUBLISHED_BYTES_PER_GALAXY)


@dataclass(frozen=True, slots=True)
class ShardEntry:
    """One shard of a survey; `sha256` is empty where nobody computed it."""

    name: str
    galaxies: int
    bytes: int
    sha256: str = ""


@dataclass(frozen=True)
class Survey:
    """The shards under one address, in order."""

    uri: str
    shards: tuple[ShardEntry, ...]

    @property
    def galaxies(self) -> int:
        """Galaxies of all shards."""
        return sum(shard.galaxies for shard in self.shards)

    @property
    def bytes(self) -> int:
        """Bytes of all shards."""
        return sum(shard.bytes for shard in self.shards)

    def shard_uri(self, shard: ShardEntry) -> str:
        """Where a shard lies."""
        return storage.join(self.uri, shard.name)

    def open(self, shard: ShardEntry) -> Shard:
        """Opens a shard. Raises InputError if it is not what the survey says."""
        opened = open_shard(self.shard_uri(shard))
        found, told = (opened.galaxies, opened.reader.size), (shard.galaxies, shard.bytes)
        if found != told:
            opened.__exit__()
            what = "{} galaxies in {} bytes"
            raise InputError(
                f"{opened.uri} holds {what.format(*found)}, the survey says {what.format(*told)}; "
                f"find what changed with `cosmicai survey verify {self.uri}`"
            )
        return opened

    def batches(self, size: int) -> Iterator[Galaxies]:
        """All galaxies in order, at most `size` at a time, never across shards."""
        for entry in self.shards:
            with self.open(entry) as shard:
                for start in range(0, entry.galaxies, size):
                    yield shard.read(start, min(start + size, entry.galaxies))


def open_survey(uri: str, limit: int | None = None) -> Survey:
    """The survey of a folder, an S3 prefix or a single file; of no more than its first `limit` shards.

    Raises InputError if there is nothing, if survey.json is damaged, or if shards are missing or changed in size.
    """
    uri = storage.absolute(uri)
    if uri.endswith(SUFFIXES) and storage.exists(uri):
        folder = uri.rsplit("/", 1)[0] or "/"
        return Survey(folder, (_entry(folder, storage.basename(uri)),))
    if not storage.is_folder(uri):
        raise InputError(f"{uri} does not exist; expected a survey folder, an s3:// prefix or a .h5 or .pt file")
    files = {entry.name: entry.bytes for entry in storage.list_files(uri)}
    if "survey.json" in files:
        described = _from_description(uri, files)
        return Survey(uri, described.shards[:limit])
    names = [name for name in files if name.endswith(SUFFIXES)]
    if not names:
        raise InputError(f"{uri} holds no galaxies; expected survey.json or files ending in {', '.join(SUFFIXES)}")
    return Survey(uri, entries(uri, names[:limit]))


def entries(folder: str, names: Iterable[str]) -> tuple[ShardEntry, ...]:
    """These files of a folder as shards, galaxies counted from their headers. Raises InputError if one is no shard."""
    return tuple(in_order(partial(_entry, folder), names, requests_at_once(folder)))


def _entry(folder: str, name: str) -> ShardEntry:
    with open_shard(storage.join(folder, name)) as shard:
        return ShardEntry(name, shard.galaxies, shard.reader.size)


def _from_description(uri: str, files: dict[str, int]) -> Survey:
    address = storage.join(uri, "survey.json")
    try:
        described = json.loads(storage.read_bytes(address))
        if described["format"] != FORMAT:
            raise InputError(f'{address}: format is {described["format"]!r}; expected "{FORMAT}"')
        shards = tuple(ShardEntry(**shard) for shard in described["shards"])
        _check_description(shards, described["galaxies"])
    except (ValueError, KeyError, TypeError) as error:
        raise InputError(f"{address} is damaged ({error!r}); write the survey again") from None
    for shard in shards:
        if files.get(shard.name) != shard.bytes:
            found = f"is of {files[shard.name]} bytes" if shard.name in files else "is missing"
            raise InputError(
                f"{storage.join(uri, shard.name)} {found}, survey.json says {shard.bytes} bytes; copy it again"
            )
    return Survey(uri, shards)


def _check_description(shards: tuple[ShardEntry, ...], galaxies: object) -> None:
    for shard in shards:
        numbers = (shard.galaxies, shard.bytes)
        texts = (shard.name, shard.sha256)
        if not all(type(number) is int and number >= 0 for number in numbers) or not all(type(t) is str for t in texts):
            raise ValueError(f"shard {shard.name!r} is not described by a name, two whole numbers and a checksum")
    if not shards or len({shard.name for shard in shards}) != len(shards):
        raise ValueError("it names no shard, or one twice")
    if sum(shard.galaxies for shard in shards) != galaxies:
        raise ValueError(f"its shards do not add up to {galaxies} galaxies")


def verify(survey: Survey) -> Iterator[tuple[ShardEntry, str]]:
    """Reads every shard and compares it with its checksum: yields (shard, what is wrong), "" where all is well.

    Raises InputError for a survey without checksums.
    """
    if not all(shard.sha256 for shard in survey.shards):
        raise InputError(
            f"{survey.uri} has no checksums to compare with; only surveys with a survey.json have them, make one with "
            f"`cosmicai split {survey.uri} --out SURVEY`"
        )
    for shard in survey.shards:
        try:
            survey.open(shard).__exit__()
            digest = storage.sha256(survey.shard_uri(shard))
        except InputError as error:
            yield shard, str(error)
            continue
        yield shard, "" if digest == shard.sha256 else f"its SHA-256 is {digest}, survey.json says {shard.sha256}"


def write_survey(
    out: str, batches: Iterable[Galaxies], galaxies: int, galaxies_per_shard: int, fields: Iterable[str]
) -> Survey:
    """Writes a survey folder of this many galaxies, whole or not at all, holding one batch in memory.

    Raises InputError if `out` is on S3 or holds files already, StorageError if it cannot be written.
    """
    if is_s3(out):
        raise InputError(f"{out}: surveys are written to a local folder; write one there and copy it to S3")
    target = Path(out).absolute()
    if target.exists() and (not target.is_dir() or any(target.iterdir())):
        raise InputError(f"{target} exists and is not empty; choose another --out or remove it")
    if galaxies == 0:
        raise InputError(f"nothing to write to {target}: the source holds no galaxies")
    beside = target.with_name(f"{target.name}.partial-survey")
    fields = tuple(fields)
    try:
        with explained(str(target), "write"):
            shutil.rmtree(beside, ignore_errors=True)
            beside.mkdir(parents=True)
        stream = _Stream(batches)
        shards = []
        for number, start in enumerate(range(0, galaxies, galaxies_per_shard), start=1):
            path, count = beside / f"{number:06d}.h5", min(galaxies_per_shard, galaxies - start)
            write_shard(path, stream.take(count), count, fields)
            shards.append(ShardEntry(path.name, count, path.stat().st_size, storage.sha256(str(path))))
        described = {"format": FORMAT, "galaxies": galaxies, "shards": [asdict(shard) for shard in shards]}
        storage.write_bytes(str(beside / "survey.json"), (json.dumps(described, indent=1) + "\n").encode())
        with explained(str(target), "write"):
            beside.replace(target)
    except BaseException:
        shutil.rmtree(beside, ignore_errors=True)
        raise
    return Survey(str(target), tuple(shards))


def resplit(survey: Survey, out: str, galaxies_per_shard: int) -> Survey:
    """Writes the galaxies of a survey as a new one with shards of this size; raises as `write_survey`."""
    found: set[str] = set()
    for entry in survey.shards:  # the shards may come from several sources
        with survey.open(entry) as shard:
            found |= shard.fields.keys()
    fields = [name for name in FIELDS if name in found]
    return write_survey(out, survey.batches(COPY_BATCH), survey.galaxies, galaxies_per_shard, fields)


class _Stream:
    """Cuts a stream of batches at any row."""

    def __init__(self, batches: Iterable[Galaxies]) -> None:
        self._batches = iter(batches)
        self._rest: Galaxies | None = None

    def take(self, count: int) -> Iterator[Galaxies]:
        while count > 0:
            batch = self._rest if self._rest is not None else next(self._batches, None)
            if batch is None:
                return
            yield batch[:count]
            self._rest = batch[count:] if len(batch) > count else None
            count -= min(count, len(batch))
