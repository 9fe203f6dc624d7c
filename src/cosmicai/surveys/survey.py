"""A survey: an ordered set of shards in one folder or S3 prefix, described by `survey.json`.

A folder of `.h5` or `.pt` files without survey.json, or a single such file, is a survey too: its shards are taken in
natural order (1.pt, 2.pt, 10.pt), and their headers give the numbers of galaxies. Hidden files (`._1.pt`) are left
out; a copy beside its original is refused, since its galaxies would count twice.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Annotated, Any, Literal

import msgspec
import numpy as np
from msgspec import UNSET, UnsetType, structs
from numpy.typing import NDArray

from .. import storage
from ..errors import InputError, describe_os_errors
from ..records import decode_json
from ..storage.folder import atomic_folder
from ..storage.outputs import require_local, require_new_folder
from ..storage.parallel import map_in_order
from ..storage.s3 import is_s3, reader_threads
from .columns import ColumnSpec, join_specs
from .copies import find_copies
from .identity import INT64, Duplicates, ObjIds, convert_objids, count_duplicates, is_text, widest
from .shard import FIELDS, SUFFIXES, Galaxies, Shard, open_shard
from .shard_writing import write_shard

FORMAT = "cosmicai-survey/1"
UNFINISHED = "survey-unfinished"  # an object that is there while a survey is copied to S3
# Size of one galaxy in the published split: cutout and five magnitudes as float32, the redshift as float64.
# floor(MB * 2^20 / 20508) gives its files of 511, 1278, 2556, 3834 and 5113 galaxies for 10, 25, 50, 75 and 100 MB.
PUBLISHED_BYTES_PER_GALAXY = 5 * 32 * 32 * 4 + 5 * 4 + 8
COPY_BATCH = 256  # galaxies in memory at once while a survey is split again


def galaxies_per_partition(partition_mb: float) -> int:
    """Return the number of galaxies of a partition of this size in MB (2^20 bytes), as in the published data."""
    return max(1, int(partition_mb * 2**20) // PUBLISHED_BYTES_PER_GALAXY)


FileOrder = Literal["natural", "s3"]  # that of the survey (1.pt, 2.pt, 10.pt), or of S3's lists (1.pt, 10.pt, 2.pt)

Unused = Mapping[str, tuple[str, ...]]  # by kind, see `Shard`
Count = Annotated[int, msgspec.Meta(ge=0, le=2**63 - 1)]


class ShardEntry(msgspec.Struct, frozen=True, forbid_unknown_fields=True, gc=False):
    """One shard of a survey: file name, number of galaxies, size in bytes, and what stands for its content if known.

    `sha256` is that of the file, empty where unknown, and compared by `survey verify` only. `digest` (see `Shard`) and
    the `etag` of an object on S3 are compared whenever the shard is opened.
    """

    name: str
    galaxies: Count
    bytes: Count
    sha256: str = ""
    digest: str | UnsetType = UNSET
    etag: str | UnsetType = UNSET

    def matches(self, other: ShardEntry) -> bool:
        """Return whether the entries may be of the same file: what only one of them knows does not count."""
        return self.name == other.name and all(
            getattr(self, name) in (getattr(other, name), UNSET) or getattr(other, name) is UNSET
            for name in ("galaxies", "bytes", "sha256", "digest", "etag")
        )


class SurveyDescription(msgspec.Struct, frozen=True, tag_field="format", tag=FORMAT):
    """The content of `survey.json`; its shards have different names and add up to `galaxies`."""

    galaxies: Count
    shards: Annotated[tuple[ShardEntry, ...], msgspec.Meta(min_length=1)]

    def __post_init__(self) -> None:
        if len({shard.name for shard in self.shards}) != len(self.shards):
            raise ValueError("two shards have the same name")
        if (total := sum(shard.galaxies for shard in self.shards)) != self.galaxies:
            raise ValueError(f"the shards hold {total} galaxies, field galaxies says {self.galaxies}")


def describe_shards(shards: Sequence[ShardEntry]) -> bytes:
    """Return the content of the `survey.json` that describes these shards, without what only holds for one copy."""
    shards = [structs.replace(shard, etag=UNSET) for shard in shards]
    description = SurveyDescription(sum(shard.galaxies for shard in shards), tuple(shards))
    return (json.dumps(msgspec.to_builtins(description), indent=1) + "\n").encode()


@dataclass(frozen=True)
class Survey:
    """An ordered set of shards in one folder or S3 prefix.

    `notices` are sentences about what its files hold and nothing here uses, which the user should read; there are none
    where a `survey.json` describes the shards, which this program wrote then.
    """

    uri: str
    shards: tuple[ShardEntry, ...]
    notices: tuple[str, ...] = field(default=(), compare=False)

    @property
    def galaxies(self) -> int:
        """Number of galaxies in all shards."""
        return sum(shard.galaxies for shard in self.shards)

    @property
    def bytes(self) -> int:
        """Size of all shards in bytes."""
        return sum(shard.bytes for shard in self.shards)

    def shard_uri(self, shard: ShardEntry) -> str:
        """Return the address of a shard."""
        return storage.join(self.uri, shard.name)

    def open(self, shard: ShardEntry) -> Shard:
        """Open a shard. Raises InputError if it differs from its entry in number of galaxies, size or content."""
        opened = open_shard(self.shard_uri(shard))
        found, described = (opened.galaxies, opened.reader.size), (shard.galaxies, shard.bytes)
        if found != described:
            opened.__exit__()
            text = "{} galaxies in {} bytes"
            raise InputError(
                f"{opened.uri} holds {text.format(*found)}, the survey says {text.format(*described)}; "
                f"find what changed with `cosmicai survey verify {self.uri}`"
            )
        digests = (shard.digest, UNSET, opened.digest), (shard.etag, UNSET, opened.reader.etag)
        if any(expected not in accepted for expected, *accepted in digests):
            opened.__exit__()
            raise InputError(
                f"{opened.uri} was replaced: it holds other galaxies than when it was described; put the file back "
                f"that was there, or start a new run (find what changed with `cosmicai survey verify {self.uri}`)"
            )
        return opened

    def read_batches(self, size: int, columns: Mapping[str, ColumnSpec] | None = None) -> Iterator[Galaxies]:
        """Read all galaxies in order, at most `size` at a time, never across shards.

        With `columns` also these, with missing values where a shard has none.
        """
        for entry in self.shards:
            with self.open(entry) as shard:
                images = shard.check_images()
                for start in range(0, entry.galaxies, size):
                    galaxies = shard.read(start, min(start + size, entry.galaxies))
                    for name, spec in (columns or {}).items():
                        galaxies.columns[name] = read_column_as(shard, name, spec, start, start + len(galaxies))
                    if images:
                        images.add(galaxies.image)
                    yield galaxies


def open_survey(uri: str, limit: int | None = None, order: FileOrder = "natural") -> Survey:
    """Return the survey of a folder, an S3 prefix or a single file, or its first `limit` shards in this order.

    Whichever shards are selected, they have the order of the whole survey.

    Raises InputError if it does not exist, survey.json is damaged, a shard is missing or has changed in size, or if
    the name of a file says that it is a copy of another.
    """
    uri = storage.absolute(uri)
    if uri.endswith(SUFFIXES) and storage.exists(uri):
        folder = uri.rsplit("/", 1)[0] or "/"
        return describe_files(folder, [storage.basename(uri)])
    if not storage.is_folder(uri):
        if storage.exists(uri):
            raise InputError(
                f"{uri} is a file, and a survey is a folder or a .h5 or .pt file; make one with `cosmicai ingest`"
            )
        raise InputError(f"{uri} does not exist; expected a survey folder, an s3:// prefix or a .h5 or .pt file")
    files = {entry.name: entry for entry in storage.list_files(uri)}
    if UNFINISHED in files:
        raise InputError(f"{uri} was not copied entirely; remove it and ingest again")
    if not is_s3(uri):
        _require_regular(Path(uri), files.keys())
    if "survey.json" in files:
        described = _read_description(uri, files)
        selected = set(_select([shard.name for shard in described.shards], limit, order))
        return Survey(uri, tuple(shard for shard in described.shards if shard.name in selected))
    names = [name for name in files if name.endswith(SUFFIXES) and not name.startswith(".")]
    names = _select(names, limit, order)
    if not names:
        raise InputError(f"{uri} holds no galaxies; expected survey.json or files ending in {', '.join(SUFFIXES)}")
    if copies := find_copies(names):
        raise InputError(
            f"{uri} holds {' and '.join(copies)}, by their names the same galaxies more than once; remove all but one, "
            "or rename them if they hold different galaxies"
        )
    return describe_files(uri, names)


def sort_files(names: Sequence[str], order: FileOrder) -> list[str]:
    """Return the names of a survey's files, which are in its own order, in this order."""
    return sorted(names, key=storage.s3_key) if order == "s3" else list(names)


def _select(names: Sequence[str], limit: int | None, order: FileOrder) -> list[str]:
    """Return the first `limit` names by an order, in the order in which they are given."""
    selected = set(sort_files(names, order)[:limit])
    return [name for name in names if name in selected]


def _require_regular(folder: Path, listed: Collection[str]) -> None:
    """Raise InputError if a pipe, a device or a link to nothing has the name of a shard: it would be left out."""
    with describe_os_errors(str(folder), "list"):
        others = [path for path in folder.iterdir() if path.name not in listed]
    for name in sorted(path.name for path in others if not (path.is_file() or path.is_dir())):
        if name == "survey.json" or (name.endswith(SUFFIXES) and not name.startswith(".")):
            raise InputError(f"{folder / name} is not a regular file; put back the file, or remove it")


def describe_files(folder: str, names: Iterable[str]) -> Survey:
    """Return the survey of these shards in a folder, from their headers. Raises InputError if a file is not a shard."""
    described = tuple(map_in_order(partial(_describe_file, folder), names, reader_threads(folder)))
    return Survey(folder, tuple(entry for entry, _ in described), tuple(_describe_unused(folder, described)))


def _describe_unused(folder: str, described: Sequence[tuple[ShardEntry, Unused]]) -> Iterator[str]:
    """Yield a sentence each about masks, redshifts and ids in shards, if there are any that only ingest uses."""
    for kind in ("mask", "redshift", "objid"):
        having = [(entry.name, unused[kind]) for entry, unused in described if kind in unused]
        if not having:
            continue
        names = ", ".join(sorted({name for _, names in having for name in names}))
        files = storage.join(folder, having[0][0])
        files += f" and {len(having) - 1:,} more of its folder" if len(having) > 1 else ""
        if kind == "mask":
            remedy = "blank the pixels it marks with `cosmicai ingest FILES --out SURVEY --mask NAME`"
        else:
            remedy = f"if it is the {kind}, use it with `cosmicai ingest FILES --out SURVEY --field {kind}=NAME`"
        yield f"{files}: {names} beside the image is not used where a file is read in place; {remedy}"


def _describe_file(folder: str, name: str) -> tuple[ShardEntry, Unused]:
    """Return the entry of a shard, and what of it is not used."""
    with open_shard(storage.join(folder, name)) as shard:
        digest, etag = shard.digest or UNSET, shard.reader.etag or UNSET
        return ShardEntry(name, shard.galaxies, shard.reader.size, digest=digest, etag=etag), shard.unused


def _read_description(uri: str, files: dict[str, storage.Entry]) -> Survey:
    address = storage.join(uri, "survey.json")
    remedy = f'expected the "{FORMAT}" of a whole survey, write the survey again'
    shards = decode_json(storage.read_bytes(address), SurveyDescription, where=address, remedy=remedy).shards
    for shard in shards:
        if shard.name not in files or files[shard.name].bytes != shard.bytes:
            found = f"is of {files[shard.name].bytes} bytes" if shard.name in files else "is missing"
            raise InputError(
                f"{storage.join(uri, shard.name)} {found}, survey.json says {shard.bytes} bytes; copy it again"
            )
    return Survey(uri, tuple(structs.replace(shard, etag=files[shard.name].etag or UNSET) for shard in shards))


def verify_survey(survey: Survey) -> Iterator[tuple[ShardEntry, str]]:
    """Read every shard, compare it with its checksum, and yield it with a description of its problem, or "" if none.

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


@dataclass(frozen=True)
class IdentityReport:
    """The ids of a survey: in how many shards they are of which kind (`int64`, `text`, `none`), how many galaxies have
    none, and the duplicates."""

    kinds: dict[str, int]
    missing: int
    duplicates: Duplicates

    def describe(self) -> str:
        """Return what is to know about the ids, such as "text; 3 galaxies have none; every id occurs once"."""
        if self.kinds.keys() == {"none"}:
            return "none"
        kinds = [
            kind if len(self.kinds) == 1 else f"{kind} in {count} shard{'s' * (count > 1)}"
            for kind, count in self.kinds.items()
        ]
        missing = "1 galaxy has none" if self.missing == 1 else f"{self.missing:,} galaxies have none"
        return f"{', '.join(kinds)}; {missing}; {self.duplicates.describe()}"


def inspect_ids(survey: Survey) -> IdentityReport:
    """Read the ids of all galaxies of a survey and count them.

    In a survey of both kinds the digits of a number and the same text are one id, as in a catalogue. Raises InputError
    if a shard cannot be read.
    """
    dtypes = _objid_dtypes(survey)
    common = widest(dtype for dtype in dtypes if dtype is not None)
    with_ids = [entry for entry, dtype in zip(survey.shards, dtypes, strict=True) if dtype is not None]

    def read() -> Iterator[ObjIds]:
        for values in map_in_order(partial(_read_objids, survey), with_ids, reader_threads(survey.uri)):
            yield convert_objids(values, common)

    duplicates = count_duplicates(read)
    kinds = Counter("none" if dtype is None else "text" if is_text(dtype) else "int64" for dtype in dtypes)
    return IdentityReport(dict(kinds), survey.galaxies - duplicates.known, duplicates)


def _objid_dtypes(survey: Survey) -> list[np.dtype[Any] | None]:
    """Return the dtype of the ids of each shard, None for one without."""
    return list(map_in_order(partial(_objid_dtype, survey), survey.shards, reader_threads(survey.uri)))


def _objid_dtype(survey: Survey, entry: ShardEntry) -> np.dtype[Any] | None:
    with survey.open(entry) as shard:
        return shard.objid_dtype


def _read_objids(survey: Survey, entry: ShardEntry) -> ObjIds:
    with survey.open(entry) as shard:
        return np.array(shard.read_field("objid", 0, entry.galaxies))  # a copy, without what was read around it


def read_column_as(shard: Shard, name: str, spec: ColumnSpec, start: int, stop: int) -> NDArray[Any]:
    """Return rows of a column as `spec` stores it, in a survey whose shards may differ; missing if the shard has none.

    Raises as `Shard.read_field`.
    """
    own = shard.columns.get(name)
    if own is None:
        return spec.missing(stop - start)
    return spec.convert(shard.read_column(name, start, stop), own, f"{shard.uri}: {name}")


def require_new_survey(out: str) -> Path:
    """Return the path of a survey folder to write. Raises InputError if it is on S3, holds files or is a run's."""
    require_local(out, "surveys are")
    target = Path(out).absolute()
    with describe_os_errors(str(target), "write"):
        is_survey = (target / "survey.json").is_file()
    if is_survey:
        raise InputError(f"{target} is a whole survey already; use it, or choose another --out")
    return require_new_folder(out)


def write_survey(
    out: str,
    batches: Iterable[Galaxies],
    galaxies: int,
    galaxies_per_shard: int,
    fields: Iterable[str],
    objid_dtype: np.dtype[Any] = INT64,
    columns: Mapping[str, ColumnSpec] | None = None,
) -> Survey:
    """Write a survey folder of `galaxies` galaxies, whole or not at all, holding one batch in memory.

    `fields` names the datasets of its shards, `objid_dtype` is int64 or `S<n>` for ids of at most n bytes, and
    `columns` are those that the batches carry.
    Raises InputError if `out` is on S3 or holds files already, at the beginning or, because another process wrote them
    meanwhile, at the end; StorageError if it cannot be written.
    """
    target = require_new_survey(out)
    if galaxies == 0:
        raise InputError(f"nothing to write to {target}: the source holds no galaxies")
    fields = tuple(fields)
    # The digest of a file is taken beside the writing of the next one.
    with atomic_folder(target) as temporary, ThreadPoolExecutor(1, "sha256") as hasher:
        stream, written = _BatchStream(batches), []
        for number, start in enumerate(range(0, galaxies, galaxies_per_shard), start=1):
            path, count = temporary / f"{number:06d}.h5", min(galaxies_per_shard, galaxies - start)
            digest = write_shard(path, stream.read(count), count, fields, objid_dtype, columns)
            written.append((path, count, hasher.submit(storage.sha256, str(path)), digest))
        shards = tuple(
            ShardEntry(path.name, count, path.stat().st_size, sha256.result(), digest)
            for path, count, sha256, digest in written
        )
        storage.write_bytes(str(temporary / "survey.json"), describe_shards(shards))
    return Survey(str(target), shards)


def resplit_survey(survey: Survey, out: str, galaxies_per_shard: int) -> Survey:
    """Write the galaxies of a survey as a new one with shards of this size; raises as `write_survey`.

    Ids become text if those of any shard are; columns that only some shards have are missing in the others' rows. What
    is not used of the survey is not in the new one, and its notices say so.
    """
    found: set[str] = set()
    dtypes, specs = [], []
    for entry in survey.shards:  # the shards may come from several sources
        with survey.open(entry) as shard:
            found |= shard.fields.keys()
            dtypes.append(shard.objid_dtype)
            specs.append((shard.uri, shard.columns))
    columns = join_specs(specs)
    fields = [name for name in FIELDS if name in found]
    objid_dtype = widest(dtype for dtype in dtypes if dtype is not None)
    batches = survey.read_batches(COPY_BATCH, columns)
    written = write_survey(out, batches, survey.galaxies, galaxies_per_shard, fields, objid_dtype, columns)
    return replace(written, notices=survey.notices)


class _BatchStream:
    """A stream of batches that can be split at any row."""

    def __init__(self, batches: Iterable[Galaxies]) -> None:
        self._batches = iter(batches)
        self._remainder: Galaxies | None = None

    def read(self, count: int) -> Iterator[Galaxies]:
        while count > 0:
            batch = self._remainder if self._remainder is not None else next(self._batches, None)
            if batch is None:
                return
            yield batch[:count]
            self._remainder = batch[count:] if len(batch) > count else None
            count -= min(count, len(batch))
