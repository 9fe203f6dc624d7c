"""The run folder: the one class that knows every path of a run, local or on S3."""

from __future__ import annotations

import hashlib
import io
import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cached_property
from itertools import count
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .. import storage
from ..errors import InputError
from ..ranks.environment import Rank
from ..storage.parallel import in_order
from ..storage.s3 import is_s3, requests_at_once
from .plan import Plan, WorkItem
from .record import Recorder, published

PART_COLUMNS = {"objid": "<i8", "redshift_phot": "<f4", "redshift_spec": "<f8", "flag": "|u1"}
PART_FORMAT = "cosmicai-part/1"
FEW_SHARDS = 8


@dataclass(frozen=True)
class Part:
    """The predictions of one work item: objid (N,) int64, redshift_phot (N,) float32, redshift_spec (N,) float64 (NaN
    where unknown), flag (N,) uint8 (see `galaxies.quality`)."""

    objid: NDArray[np.int64]
    redshift_phot: NDArray[np.float32]
    redshift_spec: NDArray[np.float64]
    flag: NDArray[np.uint8]


def quantized_name(data: bytes) -> str:
    """File name of a network in int8."""
    return f"int8-{hashlib.sha256(data).hexdigest()[:16]}.zip"


def record_name(rank: int, attempt: int) -> str:
    """What a record is called: `3`, or `3-2` for the second attempt of rank 3."""
    return str(rank) if attempt == 1 else f"{rank}-{attempt}"


@dataclass(frozen=True)
class RunFolder:
    """Where one plan's results live."""

    uri: str

    def path(self, *names: str) -> str:
        """Address of something in the folder."""
        return storage.join(self.uri, *names)

    @property
    def launcher_path(self) -> str:
        """Who is at work on the run."""
        return self.path("launcher.json")

    @property
    def plan_path(self) -> str:
        """What will be done."""
        return self.path("plan.json")

    @property
    def catalogue_path(self) -> str:
        """The product."""
        return self.path("catalogue.parquet")

    def quantized_path(self, name: str) -> str:
        """The network in int8."""
        return self.path("network", name)

    def imported_weights_path(self, sha256: str) -> str:
        """The published checkpoint with this digest, of a run in the cloud, as a weights file."""
        return self.path("network", f"{sha256[:16]}.safetensors")

    @property
    def accounting_path(self) -> str:
        """What SLURM counted."""
        return self.path("accounting.json")

    @property
    def summary_path(self) -> str:
        """Coverage, metrics, totals."""
        return self.path("summary.json")

    @property
    def plot_path(self) -> str:
        """Photometric against spectroscopic redshift."""
        return self.path("inference.png")

    @property
    def combined_path(self) -> str:
        """The published keys of all ranks."""
        return self.path("combined_data.json")

    @property
    def results_path(self) -> str:
        """The published metrics."""
        return self.path("Results.json")

    def published_path(self, record: str) -> str:
        """The published keys of one rank, by the name of its record."""
        return self.path(f"{record}.json")

    def log_path(self, rank: int) -> str:
        """What a rank printed."""
        return self.path("logs", f"{rank}.log")

    def submission_path(self, name: str) -> str:
        """What was submitted to SLURM."""
        return self.path("submissions", f"{name}.json")

    def submission_paths(self) -> list[str]:
        """All that was submitted to SLURM."""
        entries = storage.list_files(self.path("submissions"))
        return [self.path("submissions", entry.name) for entry in entries if entry.name.endswith(".json")]

    def submission_folder(self, name: str) -> str:
        """What the jobs of a submission printed."""
        return self.path("submissions", name)

    def record_path(self, rank: int, attempt: int) -> str:
        """How one attempt of a rank went."""
        return self.path("records", f"{record_name(rank, attempt)}.json")

    def part_path(self, item: WorkItem) -> str:
        """The predictions of an item."""
        return self.path("parts", f"{item.name}.h5")

    @property
    def invocations_path(self) -> str:
        """What CloudWatch says of the calls of Lambda's functions."""
        return self.path("invocations.json")

    @property
    def cloud_path(self) -> str:
        """Where in the cloud the run is that this folder is a copy of."""
        return self.path("cloud.json")

    @property
    def payload_path(self) -> str:
        """The published payload of a run in the cloud, with the files of each rank."""
        return self.path("payload.json")

    @property
    def map_items_path(self) -> str:
        """What each rank of a run in the cloud is called with."""
        return self.path("items.json")

    def failure_path(self, item: WorkItem) -> str:
        """Why an item could not be done."""
        return self.path("failures", f"{item.name}.json")

    def claim(self, item: WorkItem, rank: Rank) -> bool:
        """Gives an item to this rank, and to no other one of its submission; says whether it is this rank's."""
        path, mine = self.path("claims", str(rank.submission), item.name), str(rank.rank).encode()
        return storage.create_bytes(path, mine) or storage.read_if_there(path) == mine

    def claim_redrive(self, execution: str, redrives: int) -> bool:
        """Whether this is the first to see that an execution was started again for the so-many-th time."""
        return storage.create_bytes(self.path("claims", execution, str(redrives)), b"")

    def has_plan(self) -> bool:
        """Whether there is a plan. Raises InputError if the folder cannot hold one."""
        if not is_s3(self.uri) and storage.exists(self.uri) and not storage.is_folder(self.uri):
            raise InputError(f"{self.uri} is a file; expected a folder for the run, choose another --out")
        return storage.exists(self.plan_path)

    def write_plan(self, plan: Plan) -> bool:
        """Writes the plan if there is none yet; of several writers the first succeeds. Says whether this one did."""
        return storage.create_bytes(self.plan_path, plan.to_json().encode())

    def plan(self) -> Plan:
        """The folder's plan, which never changes and is read once. Raises InputError if there is none."""
        return self._plan

    @cached_property
    def _plan(self) -> Plan:
        data = storage.read_if_there(self.plan_path)
        if data is None:
            raise InputError(f"{self.uri} is not a run folder (it has no plan.json); start one with `cosmicai infer`")
        return Plan.from_json(data.decode(), self.plan_path)

    def read_quantized(self, name: str) -> bytes:
        """The network in int8, of which the name tells the digest. Raises InputError if it is damaged."""
        data = storage.read_bytes(self.quantized_path(name))
        if name != quantized_name(data):
            raise InputError(f"{self.quantized_path(name)} is damaged; expected what the plan was made with, run anew")
        return data

    def write_quantized(self, data: bytes) -> str:
        """Writes the network in int8; returns its name."""
        storage.write_bytes(self.quantized_path(name := quantized_name(data)), data)
        return name

    def parts(self, shard: int | None = None) -> set[WorkItem]:
        """The items whose parts exist, of all shards or of one."""
        begin = "" if shard is None else WorkItem(shard, 0, 0).name.partition("-")[0]
        names = (entry.name for entry in storage.list_files(self.path("parts"), begin))
        found = (WorkItem.from_name(name.removesuffix(".h5")) for name in names if name.endswith(".h5"))
        return {item for item in found if item is not None}

    def parts_of(self, items: Iterable[WorkItem]) -> set[WorkItem]:
        """Those parts that exist of the shards of these items, without a look at all others if they are few."""
        shards = {item.shard for item in items}
        return self.parts() if len(shards) > FEW_SHARDS else set().union(*map(self.parts, shards))

    def has_part(self, item: WorkItem) -> bool:
        """Whether the item is done."""
        return storage.exists(self.part_path(item))

    def has_failure(self, item: WorkItem) -> bool:
        """Whether the item was tried in vain."""
        return storage.exists(self.failure_path(item))

    def write_part(self, plan: Plan, item: WorkItem, part: Part) -> bool:
        """Writes an item's predictions, whole or not at all; a failure noted earlier is forgotten.

        Says whether this was done now: what is there already, by another rank, is the same and remains.
        """
        import h5py

        buffer = io.BytesIO()
        with h5py.File(buffer, "w") as file:
            file.attrs.update(format=PART_FORMAT, plan=plan.digest, shard=plan.shards[item.shard].name)
            file.attrs.update(start=item.start, stop=item.stop)
            for name, dtype in PART_COLUMNS.items():
                file.create_dataset(name, data=getattr(part, name), dtype=dtype)
        first = storage.create_bytes(self.part_path(item), buffer.getvalue())
        storage.remove(self.failure_path(item))
        return first

    def read_part(self, plan: Plan, item: WorkItem) -> Part:
        """The predictions of an item. Raises InputError if the file is damaged or belongs to another plan."""
        import h5py

        path = self.part_path(item)
        try:
            with h5py.File(io.BytesIO(storage.read_bytes(path)), "r") as file:
                sound = file.attrs["plan"] == plan.digest and len(file["objid"]) == item.galaxies
                columns = {name: file[name][:] for name in PART_COLUMNS}
        except (OSError, KeyError) as error:
            raise InputError(f"{path} is damaged ({error}); remove it and finish the run with --resume") from None
        if not sound or any(len(column) != item.galaxies for column in columns.values()):
            raise InputError(f"{path} belongs to another plan; remove it and finish the run with --resume")
        return Part(**columns)

    def write_failure(self, item: WorkItem, rank: int, reason: str) -> None:
        """Notes why an item could not be done, and how often."""
        before = self.failure(item) or {"count": 0}
        noted = {"item": item.name, "reason": reason, "rank": rank, "count": before["count"] + 1}
        self.write_json(self.failure_path(item), noted)

    def failure(self, item: WorkItem) -> dict[str, Any] | None:
        """Why an item could not be done, if that is noted."""
        noted = storage.read_if_there(self.failure_path(item))
        return None if noted is None else dict(json.loads(noted))

    def failures(self) -> list[dict[str, Any]]:
        """What could not be done, in plan order; not what has been done since, by a rank that died just then too."""
        names = [entry.name for entry in storage.list_files(self.path("failures")) if entry.name.endswith(".json")]
        done = {f"{item.name}.json" for item in self.parts()} if names else set()
        found = (storage.read_if_there(self.path("failures", name)) for name in names if name not in done)
        return [json.loads(data) for data in found if data is not None]  # one may have been mended meanwhile

    def records(self) -> dict[str, dict[str, Any]]:
        """The records of all ranks and attempts by name: `0`, `1`, ... and for a second attempt `0-2`."""
        found = self._read_all("records")
        return {name.removesuffix(".json"): record for name, record in found}

    def records_of(self, rank: int) -> list[dict[str, Any]]:
        """The records of a rank's attempts, in their order."""
        names = [entry.name.removesuffix(".json") for entry in storage.list_files(self.path("records"), str(rank))]
        attempts = [int(name.partition("-")[2] or 1) for name in names if name.partition("-")[0] == str(rank)]
        return [json.loads(storage.read_bytes(self.record_path(rank, number))) for number in sorted(attempts)]

    def functions(self) -> list[dict[str, Any]]:
        """What the functions that planned and summarized the run on Lambda noted of their own calls."""
        return [note for _, note in self._read_all("functions")]

    def write_function(self, name: str, note: dict[str, Any]) -> None:
        """Notes a call of a function that planned or summarized."""
        self.write_json(self.path("functions", f"{name}-{note['lambda']['request_id']}.json"), note)

    def invocations(self) -> list[dict[str, Any]]:
        """What CloudWatch says of the calls of Lambda's functions; empty if nobody has asked it."""
        data = storage.read_if_there(self.invocations_path)
        return [] if data is None else list(json.loads(data))

    def _read_all(self, folder: str) -> Iterator[tuple[str, Any]]:
        """Names and contents of the JSON files in a folder of ours."""
        names = [entry.name for entry in storage.list_files(self.path(folder)) if entry.name.endswith(".json")]
        paths = (self.path(folder, name) for name in names)
        read = in_order(storage.read_bytes, paths, requests_at_once(self.uri))
        return ((name, json.loads(data)) for name, data in zip(names, read, strict=True))

    def summary(self) -> dict[str, Any] | None:
        """The summary, if there is one."""
        data = storage.read_if_there(self.summary_path)
        return None if data is None else dict(json.loads(data))

    def complete_summary(self) -> dict[str, Any] | None:
        """The summary of a run that is complete, else None."""
        summary = self.summary()
        return summary if summary and summary["complete"] else None

    def create_record(self, recorder: Recorder) -> None:
        """Writes the record of a rank's next attempt and gives it that number, which no other process then gets."""
        taken = {entry.name for entry in storage.list_files(self.path("records"), str(recorder.rank.rank))}
        for recorder.attempt in count(1):
            path = self.record_path(recorder.rank.rank, recorder.attempt)
            if storage.basename(path) not in taken and storage.create_bytes(path, _json(recorder.record())):
                return

    def write_record(self, recorder: Recorder) -> dict[str, Any]:
        """Writes the record of an attempt as it is now, and returns it."""
        record = recorder.record()
        self.write_json(self.record_path(recorder.rank.rank, recorder.attempt), record)
        return record

    def amend_record(self, record: dict[str, Any], **more: Any) -> dict[str, Any]:
        """Writes the record of an attempt again with what was learnt after it, and returns it."""
        amended = record | more
        self.write_json(self.record_path(record["rank"], record["attempt"]), amended)
        return amended

    def write_published(self, record: dict[str, Any]) -> dict[str, Any]:
        """Writes the published keys of a record where the published code does, and returns them."""
        keys = published(record)
        self.write_json(self.published_path(record_name(record["rank"], record["attempt"])), keys)
        return keys

    def write_json(self, path: str, value: object) -> None:
        """Writes JSON, whole or not at all; a NaN would be none and is a ValueError."""
        storage.write_bytes(path, _json(value))


def _json(value: object) -> bytes:
    return (json.dumps(value, indent=1, allow_nan=False) + "\n").encode()
