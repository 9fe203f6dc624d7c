"""A real S3 server (moto's) on a free port, and a new bucket on it for every test that needs one.

Import `bucket_fixture` into a test module; its tests then take the argument `bucket`.
"""

from __future__ import annotations

import atexit
import logging
import secrets
from collections.abc import Iterator, Mapping
from functools import cache

import boto3
import pytest
from moto.core import DEFAULT_ACCOUNT_ID  # type: ignore[attr-defined]
from moto.s3.models import s3_backends
from moto.server import ThreadedMotoServer

from cosmicai.storage.s3 import s3_client


@cache
def server_url() -> str:
    """Return the address of this process's server, which is started by the first call."""
    return start_server()


def start_server() -> str:
    """Start a server of moto that stops when this process ends, and return its address."""
    logging.getLogger("werkzeug").setLevel(logging.ERROR)
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    atexit.register(server.stop)
    host, port = server.get_host_and_port()
    return f"http://{host}:{port}"


def use_endpoint(monkeypatch: pytest.MonkeyPatch, url: str) -> None:
    """Make boto3 of this process and its children use a server, regardless of the user's settings."""
    for name in ("AWS_PROFILE", "AWS_SESSION_TOKEN", "AWS_ENDPOINT_URL_S3", "AWS_MAX_ATTEMPTS", "AWS_REGION"):
        monkeypatch.delenv(name, raising=False)
    settings = {
        "AWS_ENDPOINT_URL": url,
        "AWS_ACCESS_KEY_ID": "testing",
        "AWS_SECRET_ACCESS_KEY": "testing",
        "AWS_DEFAULT_REGION": "us-east-1",
        "AWS_CONFIG_FILE": "/dev/null",
        "AWS_SHARED_CREDENTIALS_FILE": "/dev/null",
        "AWS_EC2_METADATA_DISABLED": "true",
        "NO_PROXY": "127.0.0.1",
    }
    for name, value in settings.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(boto3, "DEFAULT_SESSION", None)
    s3_client.cache_clear()


def fill(bucket: str, files: Mapping[str, bytes]) -> None:
    """Put many objects, by their keys, into a bucket of this process's server, without requests."""
    for key, content in files.items():
        s3_backends[DEFAULT_ACCOUNT_ID]["aws"].put_object(bucket.removeprefix("s3://"), key, content)


@pytest.fixture(name="bucket")
def bucket_fixture(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """Create an empty bucket and return its s3:// address."""
    use_endpoint(monkeypatch, server_url())
    name = f"test-{secrets.token_hex(8)}"
    s3_client().create_bucket(Bucket=name)
    yield f"s3://{name}"
    s3_client.cache_clear()
