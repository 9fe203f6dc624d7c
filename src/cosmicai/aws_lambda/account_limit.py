"""How many functions the account runs at the same time, where that may be read."""

from __future__ import annotations

from collections.abc import Callable

from ..aws_errors import is_aws_error
from ..errors import InputError
from ..storage.s3 import make_client

TIMEOUT = 5.0  # seconds for AWS to answer, which is not reachable from every network
SMALLEST = 10  # invocations at the same time that AWS allows every account


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


def cap_concurrency(requested: int, ranks: int | None, notify: Callable[[str], None]) -> int:
    """Return how many of a run's invocations start at the same time: those requested, or what the account allows.

    `ranks` is how many there are, if that is known. AWS is asked only where its limit can matter.
    """
    needed = min(requested, ranks or requested)
    limit = read_account_limit() if needed > SMALLEST else None
    if not limit or limit >= needed:
        return requested
    notify(
        f"{limit} ranks run at a time, not {needed}: this is what the account allows; ask AWS for more (Service "
        "Quotas, Lambda, concurrent executions)"
    )
    return limit
