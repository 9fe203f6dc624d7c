"""The published state machine's input, and what it makes of it: one event for each rank.

The keys and the rule by which files are dealt to ranks are those of UVA-MLSys/AI-for-Astronomy, so that an existing
state machine can change one function after the other.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, fields
from typing import Any

from .. import storage
from ..errors import InputError

# Keys of the course teams' payloads that decide nothing here.
PASSED_ON = {"data_size", "unique_id"}


@dataclass(frozen=True)
class Payload:
    """What is asked of a run, in the published names and then in ours.

    `bucket` and `result_path` say where results go, `data_bucket` and `data_prefix` where the partitions lie;
    `data_map` deals them to ranks by hand, whatever `file_limit` and `world_size` say. With `fmi_enabled` the ranks
    talk to each other, having met at `rendezvous_endpoint` (HOST:PORT, by default the stack's). `memory` in MB is what
    a worker may use, `tolerated_failure_percentage` of the galaxies may be missing in a run that succeeds.
    """

    bucket: str
    result_path: str
    data_bucket: str
    data_prefix: str
    file_limit: int | None = None
    batch_size: int | None = None
    world_size: int | None = None
    data_map: dict[str, Any] | None = None
    fmi_enabled: bool = False
    rendezvous_endpoint: str | None = None
    object_type: str = "folder"
    S3_object_name: str = ""
    script: str = ""
    weights: str | None = None
    precision: str | None = None
    accept_precision_loss: bool = False
    memory: int | None = None
    max_concurrency: int | None = None
    tolerated_failure_percentage: float = 0.0

    @property
    def run(self) -> str:
        """Where the run folder lies."""
        return f"s3://{self.bucket}/{self.result_path}"

    @property
    def survey(self) -> str:
        """Where the partitions lie."""
        return f"s3://{self.data_bucket}/{self.data_prefix}"


def read_payload(event: Any) -> Payload:
    """The payload of an execution. Raises InputError naming the key that is missing, unknown or no such value."""
    if not isinstance(event, dict):
        raise InputError(f"the payload is {type(event).__name__}; expected an object with bucket and result_path")
    known = {field.name for field in fields(Payload)}
    if unknown := sorted(event.keys() - known - PASSED_ON):
        raise InputError(f"the payload has the unknown key {unknown[0]}; expected {', '.join(sorted(known))}")
    values = {name: _READ[name](name, event[name]) for name in known & event.keys() if event[name] is not None}
    if missing := [name for name in ("bucket", "result_path", "data_bucket", "data_prefix") if not values.get(name)]:
        raise InputError(f"the payload has no {missing[0]}; expected it as in the published demo_input.json")
    return Payload(**values)


def deal(names: Sequence[str], world_size: int) -> list[list[str]]:
    """These files in the shares of at most so many ranks: each gets the files left over the ranks left, rounded up."""
    shares, start = [], 0
    for left in range(min(world_size, len(names)), 0, -1):
        step = -(-(len(names) - start) // left)
        shares.append(list(names[start : start + step]))
        start += step
    return shares


def dealt_by_hand(data_map: dict[str, Any], data_prefix: str) -> list[list[str]]:
    """The names of each rank's files as a `data_map` has them: by rank, one path or several; without files no rank.

    Raises InputError if it is something else, or a file is there twice or lies elsewhere.
    """
    shares: list[list[str]] = []
    seen: set[str] = set()
    for rank, paths in sorted(data_map.items(), key=lambda entry: storage.natural_key(str(entry[0]))):
        paths = [] if paths is None else [paths] if isinstance(paths, str) else paths
        folder = f"{data_prefix}/"
        if not isinstance(paths, list) or not all(isinstance(path, str) and path.startswith(folder) for path in paths):
            raise InputError(f"data_map gives rank {rank} {paths!r}; expected paths of files in {folder}")
        for path in paths:
            if path in seen:
                raise InputError(f"data_map has {path} twice; expected each file once")
            seen.add(path)
        shares.append([path.removeprefix(folder) for path in paths])
    return [share for share in shares if share]


def events(payload: Payload, shares: Iterable[Sequence[str]], batch_size: int) -> list[dict[str, Any]]:
    """What each rank is called with, as the published initializer returns it; one file is a string, several a list."""
    shares = list(shares)
    found = []
    for rank, names in enumerate(shares):
        paths = [f"{payload.data_prefix}/{name}" for name in names]
        found.append(
            {
                "S3_BUCKET": payload.bucket,
                "S3_OBJECT_NAME": payload.S3_object_name,
                "SCRIPT": payload.script,
                "S3_OBJECT_TYPE": payload.object_type,
                "WORLD_SIZE": str(len(shares)),
                "RANK": str(rank),
                "DATA_BUCKET": payload.data_bucket,
                "DATA_PREFIX": payload.data_prefix,
                "DATA_PATH": paths[0] if len(paths) == 1 else paths,
                "RESULT_PATH": payload.result_path,
                "BATCH_SIZE": batch_size,
            }
        )
    return found


def _text(name: str, value: Any) -> str:
    if not isinstance(value, str):
        raise InputError(f"the payload's {name} is {value!r}; expected text")
    return value


def _folder(name: str, value: Any) -> str:
    return _text(name, value).strip("/")


def _count(name: str, value: Any) -> int:
    """A whole number of at least 1, which the published payload also gives as text."""
    if isinstance(value, bool) or not str(value).isdecimal() or int(value) < 1:
        raise InputError(f"the payload's {name} is {value!r}; expected a whole number of at least 1")
    return int(value)


def _percentage(name: str, value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value <= 100:
        raise InputError(f"the payload's {name} is {value!r}; expected a number from 0 to 100")
    return float(value)


def _flag(name: str, value: Any) -> bool:
    if not isinstance(value, bool):
        raise InputError(f"the payload's {name} is {value!r}; expected true or false")
    return value


def _map(name: str, value: Any) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise InputError(f"the payload's {name} is {value!r}; expected the files of each rank")
    return value


_READ: dict[str, Callable[[str, Any], Any]] = {
    **dict.fromkeys(
        (
            "bucket",
            "data_bucket",
            "object_type",
            "S3_object_name",
            "script",
            "weights",
            "rendezvous_endpoint",
        ),
        _text,
    ),
    **dict.fromkeys(("result_path", "data_prefix"), _folder),
    **dict.fromkeys(("file_limit", "batch_size", "world_size", "memory", "max_concurrency"), _count),
    "precision": _text,
    "accept_precision_loss": _flag,
    "fmi_enabled": _flag,
    "tolerated_failure_percentage": _percentage,
    "data_map": _map,
}
