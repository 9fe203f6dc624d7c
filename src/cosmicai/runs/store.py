"""The run folder: reads and writes everything of a run, local or on S3."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from functools import cached_property
from itertools import count
from typing import Any, TypeVar

import msgspec
from msgspec import structs

from .. import storage
from ..errors import InputError, StorageError
from ..ranks.environment import Rank
from ..records import decode_json
from ..storage.parallel import map_in_order
from ..storage.s3 import is_s3, reader_threads
from .lambda_report import InvocationReport
from .part import Part, decode_part, encode_part
from .paths import RunPaths, quantized_name
from .plan import Plan, WorkItem
from .published import RankResult
from .record import Failure, FunctionNote, Record
from .recorder import Recorder
from .summary import Summary

FEW_SHARDS = 8
REMOVE = "remove it or put back what the run wrote"

T = TypeVar("T")


def refuse(problem: str) -> None:
    """Raise InputError with this message."""
    raise InputError(problem)


def ignore(problem: str) -> None:
    """Do nothing: leave damaged files out without a message."""


class RunFolder(RunPaths):
    """Where the results of one plan lie.

    Methods that read many files call `notify` with one sentence for each that is damaged and leave it out; by default
    that is an InputError.
    """

    def claim(self, item: WorkItem, rank: Rank) -> bool:
        """Assign an item to this rank, unless another rank of its submission has it; return whether this rank has."""
        path, mine = self.claim_path(str(rank.submission), item), str(rank.rank).encode()
        return storage.create_bytes(path, mine) or storage.read_if_exists(path) == mine

    def take_over(self, item: WorkItem, rank: Rank) -> bool:
        """Claim an item whose last claimant in the submission is not at work any more; return whether this rank has it.

        Of several ranks only one succeeds. The claimant may yet turn out to be alive, and then does the same.
        """
        mine = str(rank.rank).encode()
        claims, claimant = self._last_claim(item, rank)
        if claimant == mine:
            return True
        if claimant is not None and self._is_at_work(claimant):
            return False
        return storage.create_bytes(self.claim_path(str(rank.submission), item, claims + 1), mine)

    def is_held(self, item: WorkItem, rank: Rank) -> bool:
        """Return whether another rank of this rank's submission has claimed an item and is at work."""
        _, claimant = self._last_claim(item, rank)
        return claimant not in (None, str(rank.rank).encode()) and self._is_at_work(claimant or b"")

    def _last_claim(self, item: WorkItem, rank: Rank) -> tuple[int, bytes | None]:
        """Return how often an item was claimed in the submission of a rank, and by which rank last."""
        last = None
        for claims in count():
            found = storage.read_if_exists(self.claim_path(str(rank.submission), item, claims + 1))
            if found is None:
                return claims, last
            last = found
        raise AssertionError("count() does not end")

    def _is_at_work(self, claimant: bytes) -> bool:
        attempts = self.records_of(int(claimant), ignore) if claimant.isdigit() else []
        return bool(attempts) and attempts[-1].is_at_work()

    def claim_redrive(self, execution: str, redrives: int) -> bool:
        """Return whether this is the first call after an execution was started again for the nth time."""
        return storage.create_bytes(self.path("claims", execution, str(redrives)), b"")

    def has_plan(self) -> bool:
        """Return whether there is a plan. Raises InputError if the folder cannot hold one."""
        if not is_s3(self.uri) and storage.exists(self.uri) and not storage.is_folder(self.uri):
            raise InputError(f"{self.uri} is a file; expected a folder for the run, name another")
        return storage.exists(self.plan_path)

    def write_plan(self, plan: Plan) -> bool:
        """Write the plan unless there is one, and return whether this call wrote it; the first of several succeeds."""
        return storage.create_bytes(self.plan_path, plan.to_json())

    def plan(self) -> Plan:
        """Return the plan, which never changes and is read once. Raises InputError if it does not exist."""
        return self._plan

    @cached_property
    def _plan(self) -> Plan:
        data = storage.read_if_exists(self.plan_path)
        if data is None:
            raise InputError(f"{self.uri} is not a run folder (it has no plan.json); start one with `cosmicai infer`")
        return Plan.from_json(data, self.plan_path)

    def read_quantized(self, name: str) -> bytes:
        """Return the network in int8. Raises InputError if it does not have the digest in its name."""
        data = storage.read_bytes(self.quantized_path(name))
        if name != quantized_name(data):
            raise InputError(f"{self.quantized_path(name)} is damaged; expected what the plan was made with, run anew")
        return data

    def write_quantized(self, data: bytes) -> str:
        """Write the network in int8 and return its name."""
        storage.write_bytes(self.quantized_path(name := quantized_name(data)), data)
        return name

    def parts(self, shard: int | None = None) -> set[WorkItem]:
        """Return the items that have parts, of all shards or of one."""
        begin = "" if shard is None else WorkItem(shard, 0, 0).name.partition("-")[0]
        names = (entry.name for entry in storage.list_files(self.path("parts"), begin))
        found = (WorkItem.from_name(name.removesuffix(".h5")) for name in names if name.endswith(".h5"))
        return {item for item in found if item is not None}

    def parts_of(self, items: Iterable[WorkItem]) -> set[WorkItem]:
        """Return the items that have parts, of the shards of these items at least."""
        shards = {item.shard for item in items}
        return self.parts() if len(shards) > FEW_SHARDS else set().union(*map(self.parts, shards))

    def has_part(self, item: WorkItem) -> bool:
        """Return whether the item is done."""
        return storage.exists(self.part_path(item))

    def write_part(self, plan: Plan, item: WorkItem, part: Part) -> bool:
        """Write the predictions of an item, whole or not at all, and remove its failure.

        Return whether this call wrote them: a part that another rank has written is the same and remains.
        """
        first = storage.create_bytes(self.part_path(item), encode_part(plan, item, part))
        storage.remove(self.failure_path(item))
        return first

    def read_part(self, plan: Plan, item: WorkItem) -> Part:
        """Return the predictions of an item; raises as `decode_part`."""
        path = self.part_path(item)
        return decode_part(storage.read_bytes(path), plan, item, path)

    def set_aside_part(self, item: WorkItem) -> None:
        """Rename the file of a part, so that the item counts as not done."""
        path = self.part_path(item)
        storage.write_bytes(f"{path}.damaged", storage.read_bytes(path))
        storage.remove(path)

    def has_failure(self, item: WorkItem) -> bool:
        """Return whether the item was tried without success."""
        return storage.exists(self.failure_path(item))

    def has_failed_in(self, submission: str | None, item: WorkItem) -> bool:
        """Return whether the last rank that tried the item without success was one of this submission."""
        failure = self.failure(item)
        return failure is not None and failure.submission == submission

    def write_failure(self, item: WorkItem, rank: int, reason: str, submission: str | None = None) -> None:
        """Write why an item could not be done by a rank, of this submission if it has one, and count the tries."""
        before = self.failure(item)
        failure = Failure(item.name, reason, rank, before.count + 1 if before else 1, submission)
        self.write_json(self.failure_path(item), failure)

    def failure(self, item: WorkItem) -> Failure | None:
        """Return why an item could not be done, None if it was not tried without success."""
        data = storage.read_if_exists(path := self.failure_path(item))
        return None if data is None else decode_json(data, Failure, where=path, remedy=REMOVE)

    def failures(self, notify: Callable[[str], None] = refuse) -> list[Failure]:
        """Return the failures of items that are not done, in plan order."""
        names = self._json_names("failures")
        done = {f"{item.name}.json" for item in self.parts()} if names else set()
        # A rank may fail on an item that another one has done, and may do one after its failure was listed.
        found = self._read_all("failures", [name for name in names if name not in done], Failure, notify)
        return [failure for _, failure in found]

    def records(self, notify: Callable[[str], None] = refuse) -> dict[str, Record]:
        """Return the records of all ranks and attempts by name: `0`, `1`, ... and for a second attempt `0-2`."""
        return self._read_records(self._json_names("records"), notify)

    def records_of(self, rank: int, notify: Callable[[str], None] = refuse) -> list[Record]:
        """Return the records of the attempts of a rank, in their order."""
        names = [name for name in self._json_names("records", str(rank)) if _rank_of(name) == str(rank)]
        return sorted(self._read_records(names, notify).values(), key=lambda record: record.attempt)

    def _read_records(self, names: list[str], notify: Callable[[str], None]) -> dict[str, Record]:
        records = {}
        for file, record in self._read_all("records", names, Record, notify):
            if file != f"{record.name}.json":  # else one record could stand for another, or count twice
                own = f"rank {record.rank}, attempt {record.attempt}"
                notify(f"{self.path('records', file)} cannot be used: it is the record of {own}; {REMOVE}")
            else:
                records[record.name] = record
        return records

    def functions(self, notify: Callable[[str], None] = refuse) -> list[FunctionNote]:
        """Return what the functions that planned and summarized the run on Lambda recorded of their calls."""
        names = self._json_names("functions")
        return [note for _, note in self._read_all("functions", names, FunctionNote, notify)]

    def write_function(self, note: FunctionNote) -> None:
        """Write what a call of a function that planned or summarized the run used."""
        self.write_json(self.function_path(note.function, note.invocation.request_id), note)

    def invocations(self) -> list[InvocationReport]:
        """Return what CloudWatch reports of the invocations of the functions; empty if its report was not requested."""
        data = storage.read_if_exists(path := self.invocations_path)
        return (
            []
            if data is None
            else decode_json(data, list[InvocationReport], where=path, remedy="remove it and collect it again")
        )

    def _json_names(self, folder: str, begin: str = "") -> list[str]:
        entries = storage.list_files(self.path(folder), begin)
        return [entry.name for entry in entries if entry.name.endswith(".json")]

    def _read_all(
        self, folder: str, names: list[str], kind: type[T], notify: Callable[[str], None]
    ) -> Iterator[tuple[str, T]]:
        """Yield names and contents of the files of a folder, without those that were removed since or are damaged."""
        paths = [self.path(folder, name) for name in names]
        read = map_in_order(storage.read_if_exists, paths, reader_threads(self.uri))
        for name, path, data in zip(names, paths, read, strict=True):
            if data is None:
                continue
            try:
                content = decode_json(data, kind, where=path, remedy=REMOVE)
            except InputError as error:
                notify(str(error))
            else:
                yield name, content

    def summary(self) -> Summary | None:
        """Return the summary, None if there is none. Raises InputError if it is damaged."""
        data = storage.read_if_exists(path := self.summary_path)
        remedy = f"write it again with `cosmicai summarize {self.uri}`"
        return None if data is None else decode_json(data, Summary, where=path, remedy=remedy)

    def complete_summary(self) -> Summary | None:
        """Return the summary of a run that is complete, else None."""
        summary = self.summary()
        return summary if summary and summary.complete else None

    def remove_leftovers(self) -> None:
        """Remove the temporary files of processes that were killed while they wrote into the folder."""
        storage.remove_run_leftovers(self.uri)

    def create_record(self, recorder: Recorder) -> None:
        """Write the record of a rank's next attempt and give the recorder that number, which no other process gets."""
        taken = {entry.name for entry in storage.list_files(self.path("records"), str(recorder.rank.rank))}
        for recorder.attempt in count(1):
            path = self.record_path(recorder.rank.rank, recorder.attempt)
            if storage.basename(path) not in taken and storage.create_bytes(path, _encode(recorder.record())):
                return

    def write_record(self, recorder: Recorder) -> Record:
        """Write the record of an attempt as it is now, and return it."""
        return self.amend_record(recorder.record())

    def amend_record(self, record: Record, **changes: Any) -> Record:
        """Write a record again with these fields changed, and return it."""
        amended = structs.replace(record, **changes)
        self.write_json(self.record_path(record.rank, record.attempt), amended)
        return amended

    def write_published(self, result: RankResult) -> dict[str, Any]:
        """Write the published keys of a rank where the published code does, and return them.

        Earlier versions wrote a file for each attempt; what they left of this rank is removed.
        """
        keys = result.published(self.result_path)
        self.write_json(self.published_path(result.rank), keys)
        if len(result.attempts) > 1:
            for entry in storage.list_files(self.uri, f"{result.rank}-"):
                if re.fullmatch(r"\d+-\d+\.json", entry.name):
                    with suppress(StorageError):  # a function that may not remove files
                        storage.remove(self.path(entry.name))
        return keys

    def write_json(self, path: str, value: object) -> None:
        """Write JSON, whole or not at all. Raises ValueError for NaN, which JSON does not have."""
        storage.write_bytes(path, _encode(value))


def _rank_of(name: str) -> str:
    return name.removesuffix(".json").partition("-")[0]


def _encode(value: object) -> bytes:
    return (json.dumps(value, indent=1, allow_nan=False, default=msgspec.to_builtins) + "\n").encode()
