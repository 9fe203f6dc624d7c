"""Surveys in a bucket, runs of the pipeline over them, and assertions on their outcome."""

from __future__ import annotations

import io
import json
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow.parquet

from support.helpers import make_survey, random_galaxies, run, tiny_weights
from support.pipeline import Cloud, Execution

BATCH = 64  # otherwise the inner batch, which decides the last bits, is chosen by a measurement


@dataclass(frozen=True)
class Sky:
    """A survey and tiny weights in a folder, and the digest of the catalogue that one local process makes from them."""

    folder: Path
    galaxies: int
    partitions: int
    digest: str

    @property
    def names(self) -> list[str]:
        """The files of the partitions, in order."""
        return sorted(path.name for path in (self.folder / "survey").glob("*.h5"))

    def upload(self, cloud: Cloud, prefix: str) -> None:
        """Upload the survey and the weights to the bucket."""
        for path in (self.folder / "survey").iterdir():
            cloud.s3.put_object(Bucket=cloud.bucket, Key=f"{prefix}/{path.name}", Body=path.read_bytes())
        weights = (self.folder / "w.safetensors").read_bytes()
        cloud.s3.put_object(Bucket=cloud.bucket, Key="weights/w.safetensors", Body=weights)


def make_sky(folder: Path, partitions: int, per_partition: int, *, first: int | None = None) -> Sky:
    """Create a sky of random galaxies in a new folder; with `first`, only files that are numbered from there on."""
    folder.mkdir()
    galaxies = partitions * per_partition
    make_survey(folder / "survey", random_galaxies(galaxies), per_partition)
    if first is not None:
        (folder / "survey/survey.json").unlink()
        for number, path in enumerate(sorted((folder / "survey").iterdir()), first):
            path.rename(path.with_name(f"{number}.h5"))
    weights = tiny_weights(folder / "w.safetensors")
    out = folder / "calm"
    options = ("--weights", weights, "--out", str(out), "--batch-size", str(BATCH))
    done = run("infer", str(folder / "survey"), *options)
    assert done.returncode == 0, done.stderr
    return Sky(folder, galaxies, partitions, json.loads((out / "summary.json").read_text())["catalogue_sha256"])


def make_payload(cloud: Cloud, prefix: str, result_path: str, **more: Any) -> dict[str, Any]:
    """Return the payload of an execution on a sky under this prefix."""
    return {
        "bucket": cloud.bucket, "data_bucket": cloud.bucket, "data_prefix": prefix, "result_path": result_path,
        "weights": f"s3://{cloud.bucket}/weights/w.safetensors", "batch_size": BATCH, **more,
    }  # fmt: skip


def assert_complete(cloud: Cloud, execution: Execution, sky: Sky) -> dict[str, Any]:
    """Assert that a run has all galaxies of the sky once, as one local process predicts them; return its summary."""
    assert execution.status == "SUCCEEDED", (execution, cloud.logs())
    summary = assert_coverage(cloud, execution, sky.galaxies, 0)
    assert execution.output["complete"] is summary["complete"] is True
    assert summary["catalogue_sha256"] == sky.digest
    assert read_objids(cloud, execution) == list(range(1000, 1000 + sky.galaxies))
    return summary


def assert_coverage(cloud: Cloud, execution: Execution, done: int, missing: int) -> dict[str, Any]:
    """Assert the numbers of done and missing galaxies in the output and files of a run; return its summary."""
    output = execution.output
    assert output["coverage"].items() >= {
        "asked": done + missing, "done": done, "missing": missing, "duplicate": 0, "unplanned_parts": 0
    }.items()  # fmt: skip
    summary = cloud.json(_key(output["summary"]))
    assert summary["coverage"].items() >= output["coverage"].items()
    assert len(read_objids(cloud, execution)) == done + missing
    return summary


def read_objids(cloud: Cloud, execution: Execution) -> list[int]:
    """Return the object ids of the catalogue, in its order."""
    data = cloud.read(_key(execution.output["catalogue"]))
    return pyarrow.parquet.read_table(io.BytesIO(data))["objid"].to_pylist()


def read_records(cloud: Cloud, result_path: str) -> dict[str, dict[str, Any]]:
    """Return the records of all attempts of ranks by name."""
    found = cloud.keys(f"{result_path}/records/")
    return {Path(key).stem: cloud.json(key) for key in found}


def count_deliveries(cloud: Cloud, result_path: str) -> Counter[tuple[int, str | None]]:
    """Count the invocations of infer by rank and error (None if it succeeded)."""
    calls = [call for call in cloud.invocations(result_path) if call.function == "infer"]
    return Counter((int(call.event["RANK"]), call.answer["errorType"] if call.failed else None) for call in calls)


def compute_published_rows(combined: list[dict[str, Any]]) -> list[dict[str, float]]:
    """Return what the published stats.py computes per entry: times and memory of a rank, and the bits it read."""
    rows = []
    for entry in combined:
        seconds, memory = float(entry["total_cpu_time (seconds)"]), float(entry["total_cpu_memory (MB)"])
        rows.append({"seconds": seconds, "memory": memory, "bits": entry["throughput_bps"] * seconds})
        rows[-1] |= {name: float(entry[f"s3_{name}_time"]) for name in ("total", "avg", "min", "max")}
    return rows


def find_leaks(cloud: Cloud, prefix: str = "") -> list[str]:
    """Return the logs, and the objects under a prefix of the bucket, that contain a credential of the functions."""
    found = [name for name, text in cloud.logs().items() if any(secret in text for secret in cloud.secrets)]
    wanted = [secret.encode() for secret in cloud.secrets]
    return found + [key for key in cloud.keys(prefix) if any(secret in cloud.read(key) for secret in wanted)]


def _key(uri: str) -> str:
    return uri.removeprefix("s3://").partition("/")[2]
