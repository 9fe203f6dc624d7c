"""The input of the published state machine, and how it assigns files to ranks: one event per rank.

The keys and the rule of the assignment are those of UVA-MLSys/AI-for-Astronomy, so that an existing state machine can
replace one function after the other.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Annotated, Any

import msgspec
from msgspec import Meta

from .. import storage
from ..errors import InputError
from ..records import convert
from ..runs.request import require_views
from ..surveys.survey import FileOrder
from .events import RankEvent
from .run_location import normalize_result_path

IGNORED = {"data_size", "unique_id"}  # keys of the course teams' payloads that have no effect here
REQUIRED = ("bucket", "result_path", "data_bucket", "data_prefix")
COUNTS = ("file_limit", "batch_size", "world_size", "memory", "max_concurrency", "views")  # which may be text
FOLDERS = ("result_path", "data_prefix")

Count = Annotated[int, Meta(ge=1)]
Percentage = Annotated[float, Meta(ge=0, le=100)]


class Payload(msgspec.Struct, frozen=True):
    """The request for a run, first with the published keys and then with those of this program.

    Results go to `result_path` in `bucket`; the partitions are in `data_prefix` of `data_bucket`. `data_map` assigns
    them to ranks explicitly and overrides `file_limit` and `world_size`. `order` is that of the files by which
    `file_limit` selects them and ranks get them; by default it is that of the plan if there is one, else S3's, in which
    the published initializer takes them. With `fmi_enabled` the ranks share the work
    through the rendezvous server `rendezvous_endpoint` (HOST:PORT, by default the stack's). `memory` in MB is what a
    rank may use, and `tolerated_failure_percentage` of the galaxies may be missing in a run that succeeds.
    """

    bucket: str
    result_path: str
    data_bucket: str
    data_prefix: str
    file_limit: Count | None = None
    batch_size: Count | None = None
    world_size: Count | None = None
    data_map: dict[str, Any] | None = None
    fmi_enabled: bool = False
    rendezvous_endpoint: str | None = None
    object_type: str = "folder"
    S3_object_name: str = ""
    script: str = ""
    weights: str | None = None
    precision: str | None = None
    accept_precision_loss: bool = False
    views: Count | None = None
    quantiles: bool = False
    calibrate_on_spectra: bool = False
    strict: bool = False
    memory: Count | None = None
    max_concurrency: Count | None = None
    tolerated_failure_percentage: Percentage = 0.0
    order: FileOrder | None = None

    @property
    def survey(self) -> str:
        """The address of the partitions."""
        return f"s3://{self.data_bucket}/{self.data_prefix}"


def read_payload(event: Any) -> Payload:
    """Return the payload of an execution.

    Raises InputError naming the key that is missing, unknown or has an unusable value.
    """
    if not isinstance(event, dict):
        raise InputError(f"the payload is {type(event).__name__}; expected an object with bucket and result_path")
    fields = {field.name: field for field in msgspec.structs.fields(Payload)}
    if unknown := sorted(event.keys() - fields.keys() - IGNORED):
        raise InputError(f"the payload has the unknown key {unknown[0]}; expected {', '.join(sorted(fields))}")
    values: dict[str, Any] = {}
    for name in fields:
        if (value := event.get(name)) is not None:
            # One key at a time, so that messages show the value.
            where, remedy = f"the payload's {name} {value!r}", "correct it and start the execution again"
            values[name] = convert(_normalize(name, value), fields[name].type, where=where, remedy=remedy)
    if "views" in values:
        require_views(values["views"], "the payload's views")
    if missing := [name for name in REQUIRED if not values.get(name)]:
        raise InputError(f"the payload has no {missing[0]}; expected it as in the published demo_input.json")
    values["result_path"] = normalize_result_path(values["result_path"], "the payload's result_path")
    return Payload(**values)


def _normalize(name: str, value: Any) -> Any:
    """Return counts that are given as text as numbers, and folders without slashes around them."""
    if not isinstance(value, str):
        return value
    if name in COUNTS and value.isdecimal():
        return int(value)
    return value.strip("/") if name in FOLDERS else value


def assign_files(names: Sequence[str], world_size: int) -> list[list[str]]:
    """Return the files of each of at most `world_size` ranks: the files left over the ranks left, rounded up."""
    shares, start = [], 0
    for ranks_left in range(min(world_size, len(names)), 0, -1):
        step = -(-(len(names) - start) // ranks_left)
        shares.append(list(names[start : start + step]))
        start += step
    return shares


def assign_by_data_map(data_map: dict[str, Any], data_prefix: str) -> list[list[str]]:
    """Return the files of each rank of a `data_map`: one path or several by rank; a rank without files is left out.

    Raises InputError if the map holds anything else, names a file twice, or names one outside the prefix.
    """
    shares: list[list[str]] = []
    seen: set[str] = set()
    folder = f"{data_prefix}/"
    for rank, paths in sorted(data_map.items(), key=lambda entry: storage.natural_key(str(entry[0]))):
        paths = [] if paths is None else [paths] if isinstance(paths, str) else paths
        if not isinstance(paths, list) or not all(isinstance(path, str) and path.startswith(folder) for path in paths):
            raise InputError(f"data_map gives rank {rank} {paths!r}; expected paths of files in {folder}")
        for path in paths:
            if path in seen:
                raise InputError(f"data_map has {path} twice; expected each file once")
            seen.add(path)
        shares.append([path.removeprefix(folder) for path in paths])
    return [share for share in shares if share]


def make_events(payload: Payload, shares: Iterable[Sequence[str]], batch_size: int) -> list[RankEvent]:
    """Return the event of each rank as the published initializer does; one file is a string, several are a list."""
    shares = list(shares)
    events = []
    for rank, names in enumerate(shares):
        paths = [f"{payload.data_prefix}/{name}" for name in names]
        events.append(
            RankEvent(
                s3_bucket=payload.bucket,
                s3_object_name=payload.S3_object_name,
                script=payload.script,
                s3_object_type=payload.object_type,
                world_size=str(len(shares)),
                rank=str(rank),
                data_bucket=payload.data_bucket,
                data_prefix=payload.data_prefix,
                data_path=paths[0] if len(paths) == 1 else paths,
                result_path=payload.result_path,
                batch_size=batch_size,
            )
        )
    return events
