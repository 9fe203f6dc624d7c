"""Read the published comparison of processors: spreadsheets with a row per measurement.

vary_data_size.csv      seconds, memory and throughput by data size
vary_batch_size.csv     throughput by batch size

The first row of each group of repeats also states the averages over the group. These are no measurements; one that
disagrees with its rows is a contradiction of the run that states it. Times are seconds of torch's profiler on CPU or
GPU, memory is the sum of all allocations in 10^6 bytes, and throughput is in bits per second. A zero, an error such as
#DIV/0! and an empty cell all mean that nothing was measured.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from statistics import median
from typing import Any

from cosmicai.runs.record import BITS_PER_GALAXY

from ..tables import GB, LAPTOP, ONE_MACHINE, RUN_TYPES, LeftOut, MeasuredRun, Row, SourceContents, validate_row
from .averages import Cell, average_cells, describe_disagreements, parse_cell
from .source import Source
from .values import count_galaxies

PROCESSOR, SIZE, BATCH = "processor", "dataset size", "batch size"
TIMES = {"cpu": "cpu time", "cuda": "gpu time"}
MEMORIES = {"cpu": "cpu memory usage", "cuda": "gpu memory usage"}
THROUGHPUT, INFERENCE = "throughput", "inference time"
MEASURES = (*TIMES.values(), *MEMORIES.values(), THROUGHPUT)
LARGEST = 10**9  # GB of a data size and galaxies of a batch; no run comes near
CLOSE, FAR = 1.25, 10.0  # ratio within which two statements agree, and beyond which a value is another quantity
# Words in their names.
_PLATFORMS = {"lambda": ("cai", "lambda", "aws"), "slurm": ("rivanna", "hpc", "slurm"), LAPTOP: ("laptop",)}


@dataclass(frozen=True)
class Measurement:
    """A row: what it measures, and the numbers in its cells by normalized heading."""

    processor: str
    data_gb: float
    batch_size: int
    cells: Mapping[str, Cell]


def matches(source: Source) -> bool:
    """Return whether a file is of this kind, by its columns."""
    return {PROCESSOR, SIZE, BATCH} < {*map(_normalize, source.columns)}


def read(source: Source) -> SourceContents:
    """Return a run for each row that measures something; rows and columns that cannot be used are left out."""
    left_out: list[LeftOut] = []
    groups: defaultdict[tuple[str, float, int], list[Measurement]] = defaultdict(list)
    for place, row in enumerate(source.rows(), 1):
        try:
            if any(row.values()) and (one := parse_row(row)) is not None:
                groups[one.processor, one.data_gb, one.batch_size].append(one)
        except ValueError as error:
            left_out.append(LeftOut(source.uri, str(error), f"row {place}"))
    if any(row.get("") for row in source.rows()):
        left_out.append(LeftOut(source.uri, "what they measure is not stated", "columns without a heading"))
    study = "batch size" if len({batch_size for *_, batch_size in groups}) > 1 else "data size"
    measured = [one for group in groups.values() for one in build_runs(source, study, group)]
    return SourceContents(tuple(measured), tuple(left_out))


def parse_row(row: Mapping[str, str]) -> Measurement | None:
    """Return a row of the spreadsheet; None for one that has values in columns without a heading alone.

    Raises ValueError, naming the column, if it cannot be used.
    """
    texts = {_normalize(name): " ".join(text.split()) for name, text in row.items() if name}
    if not any(texts.values()):
        return None
    if not (processor := texts[PROCESSOR]):
        raise ValueError("it names no `Processor`")
    size = _parse_measured(SIZE, re.sub(r"\s*GB$", "", texts[SIZE], flags=re.IGNORECASE))
    batch = _parse_measured(BATCH, texts[BATCH])
    if size is None or batch is None or batch.value != int(batch.value) or max(size.value, batch.value) > LARGEST:
        raise ValueError("it needs a dataset size in GB and a batch size, which is a whole number")
    numbers = {name: text for name, text in texts.items() if name not in (PROCESSOR, SIZE, BATCH)}
    cells = {name: cell for name, text in numbers.items() if (cell := _parse_measured(name, text))}
    if not any(name in cells for name in (*TIMES.values(), THROUGHPUT)):
        raise ValueError("it states neither a time nor a throughput")
    return Measurement(processor, size.value, int(batch.value), cells)


def _normalize(heading: str) -> str:
    """Return a heading without its unit, in lower case, as the published ones differ in all of that."""
    return " ".join(re.sub(r"\(.*?\)", " ", heading).lower().replace("average of", "average").split())


def _parse_measured(name: str, text: str) -> Cell | None:
    """Return the number in a cell as `parse_cell` does; None also for a zero."""
    cell = parse_cell(name, text)
    return cell if cell and cell.value else None


def build_runs(source: Source, study: str, group: Sequence[Measurement]) -> Iterator[MeasuredRun]:
    """Yield the runs of repeated measurements: rows of the same processor, data size and batch size."""
    first = group[0]
    device = "cuda" if "gpu" in first.processor.lower() else "cpu"
    platform = find_platform(first.processor)
    name = f"{source.stem}/{first.processor}/{first.data_gb:g}GB/batch-{first.batch_size}"
    seconds = select_seconds(group)
    for repeat, one in enumerate(group, 1):
        values, contradictions = read_values(one, group, device)
        time = one.cells.get(seconds)
        run = {
            "run": f"{name}/{repeat}",
            "source": source.uri,
            "origin": "published",
            "kind": "platforms",
            "study": study,
            "platform": platform,
            "device": device,
            "machine": first.processor,
            "engine": "published",
            "precision": "float32",
            "data_gb": first.data_gb,
            "batch_size": first.batch_size,
            "world_size": None if platform == "lambda" else 1,
            "repeat": repeat,
            "working_seconds": None if time is None else time.value,
            **values,
        }
        validate_row(run, RUN_TYPES)
        yield MeasuredRun(run, contradictions=(*contradictions, *check_averages(one, group, device)))


def find_platform(processor: str) -> str:
    """Return the platform of a processor by its published name; one machine if that says nothing else."""
    words = processor.lower().split()
    return next((platform for platform, names in _PLATFORMS.items() if {*words} & {*names}), ONE_MACHINE)


def select_seconds(group: Sequence[Measurement]) -> str:
    """Return the column with the time of a group: that of CPU or GPU with the larger mean, as `Inference Time` has."""
    means = {name: average_cells(_collect(group, name)) for name in TIMES.values()}
    return max(TIMES.values(), key=lambda name: cell.value if (cell := means[name]) else 0.0)


def read_values(one: Measurement, group: Sequence[Measurement], device: str) -> tuple[Row, list[str]]:
    """Return CPU time, memory, rate and galaxies of a row, and what in it is contradictory and not used.

    The rate is that of the stated throughput if it agrees with the data size and a time, or if there is no time.
    """
    values: dict[str, Any] = {}
    contradictions = []
    if cpu := one.cells.get(TIMES["cpu"]):
        values["cpu_seconds"] = cpu.value
    if memory := one.cells.get(MEMORIES[device]):
        if _is_far(memory, group, MEMORIES[device]):
            typical = median(cell.value for cell in _collect(group, MEMORIES[device]))
            text = f"its `{MEMORIES[device]}` of {memory.value:,.6g} is not used, since its repeats have {typical:,.6g}"
            contradictions.append(text)
        else:
            values["allocated_mb"] = memory.value
    if throughput := one.cells.get(THROUGHPUT):
        times = [one.cells[name] for name in TIMES.values() if name in one.cells]
        bits = one.data_gb * GB * 8
        fitting = [time for time in times if 1 / CLOSE < throughput.value * time.value / bits < CLOSE]
        if times and not fitting:
            text = f"its throughput of {throughput.value:,.6g} bit/s is not used, since {one.data_gb:g} GB in "
            contradictions.append(f"{text}{times[0].value:,.6g} s are {bits / times[0].value:,.6g} bit/s")
        else:
            values["galaxies_per_second"] = throughput.value / BITS_PER_GALAXY
            values["galaxies"] = _count_galaxies(throughput, fitting[0]) if fitting else None
    return values, contradictions


def _count_galaxies(throughput: Cell, time: Cell) -> int | None:
    """Return the galaxies of a throughput and a time; None if their digits leave the number open."""
    error = (throughput.error * time.value + throughput.value * time.error) / BITS_PER_GALAXY
    return count_galaxies(throughput.value / BITS_PER_GALAXY, time.value) if error < 0.5 else None


def check_averages(one: Measurement, group: Sequence[Measurement], device: str) -> Iterable[str]:
    """Return a sentence for each average in a row that is not that of its group.

    `Inference Time` is the larger average of the times on CPU and GPU. Memories that are not used do not count.
    """
    averages: dict[str, Cell | None] = {}
    for name in MEASURES:
        cells = _collect(group, name)
        used = [cell for cell in cells if name != MEMORIES[device] or not _is_far(cell, group, name)]
        averages[f"average {name}"] = average_cells(used)
    averages[INFERENCE] = average_cells(_collect(group, select_seconds(group)))
    return describe_disagreements({name: cell for name, cell in one.cells.items() if name in averages}, averages)


def _collect(group: Sequence[Measurement], name: str) -> list[Cell]:
    return [one.cells[name] for one in group if name in one.cells]


def _is_far(cell: Cell, group: Sequence[Measurement], name: str) -> bool:
    """Return whether a number is so far from those of its repeats that it must be another quantity."""
    typical = median(other.value for other in _collect(group, name))
    return not typical / FAR < cell.value < typical * FAR
