"""Whose AWS a run is on: found when it begins, and again from its folder alone."""

from __future__ import annotations

import os
from urllib.parse import urlsplit

from ...errors import InputError
from ..request import CloudRequest
from ..submission import CloudRun
from .clients import KEYS, Account


def asked(request: CloudRequest) -> Account:
    """The account that is asked for, with what boto3 would find itself, so that a run's folder can name it.

    Raises InputError if there is no way to it, or its address is not fit to be written down.
    """
    endpoint = request.endpoint_url
    if endpoint and urlsplit(endpoint).username is not None:
        raise InputError(
            "--endpoint-url holds a user's name or password, which a run's folder would show; use one without"
        )
    # boto3 takes keys before a profile unless that is named in the call.
    own = None if KEYS[0] in os.environ else os.environ.get("AWS_PROFILE")
    return _used(Account(request.region, endpoint, request.profile or own))


def reached(submitted: CloudRun) -> Account:
    """The account of a run. Raises InputError if there is no way to it."""
    return _used(Account(submitted.region, submitted.endpoint_url, submitted.profile))


def _used(account: Account) -> Account:
    account.use()
    return account
