"""The way to S3: addresses and the client."""

from __future__ import annotations

import os
from functools import cache
from typing import Any

from .errors import StorageError


def is_s3(uri: str) -> bool:
    """Whether the address is one of S3."""
    return uri.startswith("s3://")


@cache
def s3_client() -> Any:
    """One boto3 client for the process, with adaptive retries (8 unless AWS_MAX_ATTEMPTS says otherwise)."""
    import boto3
    from botocore.config import Config

    retries = {"mode": "adaptive"} | ({} if "AWS_MAX_ATTEMPTS" in os.environ else {"max_attempts": 8})
    return boto3.client("s3", config=Config(retries=retries))


def s3_parts(uri: str) -> tuple[str, str]:
    """Bucket and key of an s3:// address. Raises StorageError if there is no bucket."""
    bucket, _, key = uri.removeprefix("s3://").partition("/")
    if not bucket:
        raise StorageError(f"{uri} names no bucket; expected s3://BUCKET/PREFIX")
    return bucket, key
