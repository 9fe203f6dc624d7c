"""boto3 clients for one account in one region, and AWS errors described in one sentence."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from ...errors import InputError
from ...storage.s3 import client_config, s3_client

KEYS = ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN")  # boto3 prefers these to AWS_PROFILE
LIBRARIES = ("boto3", "botocore", "s3transfer")
MAX_TEXT = 400  # characters of AWS's own text in a sentence

_NO_CREDENTIALS = (
    "there are no AWS credentials; sign in with `aws configure` or `aws sso login`, or name a profile with --profile"
)
_SIGN_IN = "you are no longer signed in to AWS; sign in again, with `aws sso login` or as you did before"
_REFUSED = (
    "AWS does not accept your credentials; check them with `aws sts get-caller-identity`, and this machine's clock"
)
# By AWS's error code or botocore's class. The errors' own texts may show a signature or the output of a helper program.
_REASONS = {
    "NoCredentialsError": _NO_CREDENTIALS,
    "PartialCredentialsError": "your AWS credentials are incomplete; expected the id of an access key and its secret",
    "CredentialRetrievalError": "the program or service that provides the credentials of your profile failed; "
    "see why with `aws sts get-caller-identity`",
    "NoRegionError": "no region is given; use --region or AWS_DEFAULT_REGION, such as us-east-1",
    **dict.fromkeys(("SSOError", "SSOTokenLoadError", "UnauthorizedSSOTokenError", "TokenRetrievalError"), _SIGN_IN),
    **dict.fromkeys(("LoginError", "ExpiredToken", "ExpiredTokenException", "RequestExpired"), _SIGN_IN),
    **dict.fromkeys(("InvalidClientTokenId", "UnrecognizedClientException", "InvalidAccessKeyId"), _REFUSED),
    **dict.fromkeys(("AuthFailure", "SignatureDoesNotMatch", "InvalidSignatureException"), _REFUSED),
    **dict.fromkeys(("IncompleteSignature", "IncompleteSignatureException", "InvalidToken"), _REFUSED),
    **dict.fromkeys(("404", "NoSuchBucket"), "it does not exist; check its name and your region"),
    "403": "permission denied; ask the administrators of the account for it",
}


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
                try:
                    self._clients[name] = self._session.client(
                        name, endpoint_url=self.endpoint_url, config=client_config()
                    )
                except ValueError as error:
                    if type(error) is not ValueError:
                        raise
                    endpoint = self.endpoint_url or os.environ.get("AWS_ENDPOINT_URL")
                    raise InputError(f"{endpoint} is not an address; expected one such as https://HOST:PORT") from None
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
        if type(error).__module__.partition(".")[0] not in LIBRARIES:
            raise
        raise InputError(f"cannot {action}: {_reason(error)}") from error


def _reason(error: Exception) -> str:
    response = getattr(error, "response", None) or getattr(error, "last_response", None) or {}  # the latter of a waiter
    reported = response.get("Error", {})
    kinds = [kind.__name__ for kind in type(error).__mro__]
    if known := next((_REASONS[name] for name in (reported.get("Code"), *kinds) if name in _REASONS), None):
        return known
    if not {"ConnectionError", "HTTPClientError"}.isdisjoint(kinds):  # its text may show the password of a proxy
        url = str(getattr(error, "kwargs", {}).get("endpoint_url") or "AWS").partition("?")[0]
        return f"{url} does not answer; check the network, the region and AWS_ENDPOINT_URL"
    text = " ".join(str(reported.get("Message") or error).split())[:MAX_TEXT]
    if "ProfileNotFound" in kinds:
        return f"{text}; `aws configure list-profiles` lists your profiles"
    if str(reported.get("Code")).startswith(("AccessDenied", "Unauthorized")):
        return f"{text}; ask the administrators of the account for this permission"
    return f"{text} ({reported['Code']})" if reported.get("Code") else text
