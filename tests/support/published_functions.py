"""Stand-ins for the published functions: what they read, answer and write, without their network.

They behave as the functions of UVA-MLSys/AI-for-Astronomy do, also where that is odd: files are taken in the order in
which S3 lists them, and the summarizer takes one page of whatever JSON has a key that begins with the result path.
"""

from __future__ import annotations

import json
from typing import Any

from cosmicai.runs.record import BITS_PER_GALAXY
from cosmicai.storage.s3 import s3_client
from cosmicai.surveys.shard import open_shard

SECONDS_PER_GALAXY = 0.00468  # of CPU time


def initialize(payload: dict[str, Any]) -> dict[str, Any]:
    """Assign a partition to each rank, write payload.json into the bucket, and answer with the events."""
    prefix = f"{payload['data_prefix']}/"
    listed = s3_client().list_objects_v2(Bucket=payload["data_bucket"], Prefix=prefix)
    paths = [item["Key"] for item in listed["Contents"]][: int(payload["file_limit"])]
    body = [
        {
            "S3_BUCKET": payload["bucket"], "S3_OBJECT_NAME": payload["S3_object_name"], "SCRIPT": payload["script"],
            "S3_OBJECT_TYPE": payload["object_type"], "WORLD_SIZE": str(len(paths)), "RANK": str(rank),
            "DATA_BUCKET": payload["data_bucket"], "DATA_PREFIX": payload["data_prefix"], "DATA_PATH": path,
            "RESULT_PATH": payload["result_path"], "BATCH_SIZE": payload["batch_size"],
        }
        for rank, path in enumerate(paths)
    ]  # fmt: skip
    _write(payload["bucket"], "payload.json", {**payload, "body": body})
    return {"statusCode": 200, "body": body}


def infer(event: dict[str, Any]) -> dict[str, Any]:
    """Write the record of a rank, with the published keys alone."""
    with open_shard(f"s3://{event['DATA_BUCKET']}/{event['DATA_PATH']}") as shard:
        galaxies = shard.galaxies
    seconds = galaxies * SECONDS_PER_GALAXY
    record = {
        "total_cpu_time (seconds)": seconds,
        "total_cpu_memory (MB)": 71461.283356,
        "execution_time (seconds/batch)": seconds / galaxies * event["BATCH_SIZE"],
        "num_batches": -(-galaxies // event["BATCH_SIZE"]),
        "batch_size": event["BATCH_SIZE"],
        "device": "cpu",
        "throughput_bps": galaxies / seconds * BITS_PER_GALAXY,
        "sample_persec": galaxies / seconds,
        "result_path": event["RESULT_PATH"],
        "data_path": event["DATA_PATH"],
    }
    _write(event["S3_BUCKET"], f"{event['RESULT_PATH']}/{event['RANK']}.json", record)
    return {"statusCode": 200, "body": "done"}


def summarize(answer: dict[str, Any]) -> dict[str, Any]:
    """Concatenate every JSON file of one page of keys that begin with the result path."""
    bucket, result_path = answer["body"][0]["S3_BUCKET"], answer["body"][0]["RESULT_PATH"]
    listed = s3_client().list_objects_v2(Bucket=bucket, Prefix=result_path).get("Contents", [])
    records: list[Any] = []
    for key in [item["Key"] for item in listed if item["Key"].endswith(".json")]:
        content = json.loads(s3_client().get_object(Bucket=bucket, Key=key)["Body"].read())
        records += content if isinstance(content, list) else [content]
    _write(bucket, f"{result_path}/combined_data.json", records)
    return {"statusCode": 200, "body": "done"}


def _write(bucket: str, key: str, content: Any) -> None:
    s3_client().put_object(Bucket=bucket, Key=key, Body=json.dumps(content).encode())
