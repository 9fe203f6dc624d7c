"""boto3 clients for one account in one region, and AWS errors described in one sentence."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from ...aws_errors import describe_aws_error, is_aws_error
from ...errors import InputError
from ...storage.s3 import make_client, s3_client

KEYS = ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN")  # boto3 prefers these to AWS_PROFILE


@dataclass(frozen=True)
class Account:
    """An AWS account and region; boto3 finds what is None in the usual way (AWS_PROFILE, AWS_DEFAULT_REGION)."""

    region: str | None = None
    endpoint_url: str | None = None
    profile: str | None = None

    def client(self, name: str) -> Any:
        """Return the boto3 client of a service; there is one per service.

        Raises InputError if there are no credentials, or no region or profile of that name.
        """
        if name not in self._clients:
            with describe_aws_errors("use AWS"):
                self._clients[name] = make_client(name, self._session, self.endpoint_url)
        return self._clients[name]

    @property
    def region_name(self) -> str:
        """The region that is used. Raises InputError as `client` does."""
        with describe_aws_errors("use AWS"):
            return str(self._session.region_name)

    def environment(self) -> dict[str, str]:
        """Return the environment variables that select this account."""
        variables = {
            "AWS_DEFAULT_REGION": self.region,
            "AWS_ENDPOINT_URL": self.endpoint_url,
            "AWS_PROFILE": self.profile,
        }
        return {name: value for name, value in variables.items() if value}

    def activate(self) -> None:
        """Make all clients of this process and its children use the account, also those of `cosmicai.storage`."""
        import boto3

        os.environ.update(self.environment())
        if self.endpoint_url is None:
            os.environ.pop("AWS_ENDPOINT_URL", None)
        if self.profile:
            for name in KEYS:
                os.environ.pop(name, None)
        with describe_aws_errors("use AWS"):
            boto3.setup_default_session()
        s3_client.cache_clear()

    @cached_property
    def _session(self) -> Any:
        import boto3
        from botocore.exceptions import NoCredentialsError, NoRegionError

        session = boto3.Session(profile_name=self.profile, region_name=self.region)
        if not session.region_name:
            raise NoRegionError
        if session.get_credentials() is None:
            raise NoCredentialsError
        return session

    @cached_property
    def _clients(self) -> dict[str, Any]:
        return {}


@contextmanager
def describe_aws_errors(action: str) -> Iterator[None]:
    """Turn an error of AWS or of the connection into an InputError, "cannot ACTION: REASON", without secrets."""
    try:
        yield
    except Exception as error:
        if not is_aws_error(error):
            raise
        reason = describe_aws_error(error, missing="it does not exist; check its name and your region")
        raise InputError(f"cannot {action}: {reason}") from error
