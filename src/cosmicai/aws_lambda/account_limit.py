"""How many functions the account runs at the same time, where that may be read."""

from __future__ import annotations

from ..aws_errors import is_aws_error
from ..errors import InputError
from ..storage.s3 import make_client

TIMEOUT = 5.0  # seconds for AWS to answer, which is not reachable from every network


def read_account_limit() -> int | None:
    """Return how many invocations at the same time the account allows those functions that have none reserved.

    None if that is not permitted (`lambda:GetAccountSettings`), or if AWS does not answer.
    """
    try:
        settings = make_client("lambda", timeout=TIMEOUT, attempts=1).get_account_settings()
        return int(settings["AccountLimit"]["UnreservedConcurrentExecutions"])
    except (InputError, KeyError, ValueError):
        return None
    except Exception as error:
        if not is_aws_error(error):
            raise
        return None


def cap_concurrency(requested: int, limit: int | None) -> tuple[int, list[str]]:
    """Return how many invocations a run starts at the same time, and a notice if it is fewer than requested."""
    if not limit or limit >= requested:
        return requested, []
    return limit, [
        f"{limit} ranks run at a time, not {requested}: this is what the account allows; ask AWS for more (Service "
        "Quotas, Lambda, concurrent executions)"
    ]
