"""The AWS account of a run: from the options when the run begins, later from its folder."""

from __future__ import annotations

import os
from urllib.parse import urlsplit

from ...errors import InputError
from ..base import CloudRequest
from ..submission import CloudRun
from .clients import KEYS, Account


def account_for_request(request: CloudRequest) -> Account:
    """Activate and return the requested account, with the profile that boto3 would find, for the run folder to name.

    Raises InputError if the account cannot be used, or if its endpoint holds credentials, which must not be written.
    """
    endpoint = request.endpoint_url
    if endpoint and urlsplit(endpoint).username is not None:
        raise InputError(
            "--endpoint-url holds a user name or password, which the run folder would show; use an address without them"
        )
    # boto3 prefers keys to a profile unless the profile is given explicitly.
    own = None if KEYS[0] in os.environ else os.environ.get("AWS_PROFILE")
    return _activate(Account(request.region, endpoint, request.profile or own))


def account_for_run(submitted: CloudRun) -> Account:
    """Activate and return the account of a run. Raises InputError if it cannot be used."""
    return _activate(Account(submitted.region, submitted.endpoint_url, submitted.profile))


def _activate(account: Account) -> Account:
    account.activate()
    return account
