"""The way to AWS: clients for one account in one region, and AWS's errors as sentences."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from ...errors import InputError
from ...storage.s3 import client_config, s3_client

KEYS = ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN")  # which boto3 prefers to AWS_PROFILE
LIBRARIES = ("boto3", "botocore", "s3transfer")
LONGEST = 400  # characters of AWS's own text in a sentence

_CREDENTIALS = (
    "there are no AWS credentials; sign in with `aws configure` or `aws sso login`, or name a profile with --profile"
)
_SIGN_IN = "you are no longer signed in to AWS; sign in again, with `aws sso login` or as you did before"
_REFUSED = (
    "AWS does not accept your credentials; check them with `aws sts get-caller-identity`, and this machine's clock"
)
# By AWS's code or botocore's class. What these say themselves may show a signature or what a helper program printed.
_REASONS = {
    "NoCredentialsError": _CREDENTIALS,
    "PartialCredentialsError": "your AWS credentials lack a part; expected an access key's id and its secret",
    "CredentialRetrievalError": "the program or service that gives your profile its credentials failed; "
    "see why with `aws sts get-caller-identity`",
    "NoRegionError": "no region is named; use --region or AWS_DEFAULT_REGION, such as us-east-1",
    **dict.fromkeys(("SSOError", "SSOTokenLoadError", "UnauthorizedSSOTokenError", "TokenRetrievalError"), _SIGN_IN),
    **dict.fromkeys(("LoginError", "ExpiredToken", "ExpiredTokenException", "RequestExpired"), _SIGN_IN),
    **dict.fromkeys(("InvalidClientTokenId", "UnrecognizedClientException", "InvalidAccessKeyId"), _REFUSED),
    **dict.fromkeys(("AuthFailure", "SignatureDoesNotMatch", "InvalidSignatureException"), _REFUSED),
    **dict.fromkeys(("IncompleteSignature", "IncompleteSignatureException", "InvalidToken"), _REFUSED),
    **dict.fromkeys(("404", "NoSuchBucket"), "it does not exist; check its name and your region"),
    "403": "you have no right to it; ask those who run the account for that permission",
}


@dataclass(frozen=True)
class Account:
    """Whose AWS is asked, and where; what is None is found as boto3 always does (AWS_PROFILE, AWS_DEFAULT_REGION)."""

    region: str | None = None
    endpoint_url: str | None = None
    profile: str | None = None

    def client(self, name: str) -> Any:
        """The boto3 client of a service, one for each.

        Raises InputError if there are no credentials, or no region or profile of that name.
        """
        if name not in self._clients:
            with explained_aws("use AWS"):
                try:
                    self._clients[name] = self._session.client(
                        name, endpoint_url=self.endpoint_url, config=client_config()
                    )
                except ValueError as error:
                    if type(error) is not ValueError:
                        raise
                    given = self.endpoint_url or os.environ.get("AWS_ENDPOINT_URL")
                    raise InputError(f"{given} is no address; expected one such as https://HOST:PORT") from None
        return self._clients[name]

    @property
    def where(self) -> str:
        """The region that is asked. Raises InputError as `client` does."""
        with explained_aws("use AWS"):
            return str(self._session.region_name)

    def environment(self) -> dict[str, str]:
        """The variables that say what this account says."""
        given = {"AWS_DEFAULT_REGION": self.region, "AWS_ENDPOINT_URL": self.endpoint_url, "AWS_PROFILE": self.profile}
        return {name: value for name, value in given.items() if value}

    def use(self) -> None:
        """Lets boto3's own clients, those of `cosmicai.storage` and of child processes ask this account from now on."""
        import boto3

        os.environ.update(self.environment())
        if self.endpoint_url is None:
            os.environ.pop("AWS_ENDPOINT_URL", None)
        if self.profile:
            for name in KEYS:
                os.environ.pop(name, None)
        with explained_aws("use AWS"):
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
def explained_aws(what: str) -> Iterator[None]:
    """Turns an error of AWS or on the way there into one sentence without anything secret: cannot `what`, why."""
    try:
        yield
    except Exception as error:
        if type(error).__module__.partition(".")[0] not in LIBRARIES:
            raise
        raise InputError(f"cannot {what}: {_reason(error)}") from error


def _reason(error: Exception) -> str:
    answer = getattr(error, "response", None) or getattr(error, "last_response", None) or {}  # the latter of a waiter
    told = answer.get("Error", {})
    kinds = [kind.__name__ for kind in type(error).__mro__]
    if known := next((_REASONS[name] for name in (told.get("Code"), *kinds) if name in _REASONS), None):
        return known
    if not {"ConnectionError", "HTTPClientError"}.isdisjoint(kinds):  # whose text may show a proxy's password
        url = str(getattr(error, "kwargs", {}).get("endpoint_url") or "AWS").partition("?")[0]
        return f"{url} does not answer; check the network, the region and AWS_ENDPOINT_URL"
    text = " ".join(str(told.get("Message") or error).split())[:LONGEST]
    if "ProfileNotFound" in kinds:
        return f"{text}; `aws configure list-profiles` lists yours"
    if str(told.get("Code")).startswith(("AccessDenied", "Unauthorized")):
        return f"{text}; ask those who run the account for this permission"
    return f"{text} ({told['Code']})" if told.get("Code") else text
