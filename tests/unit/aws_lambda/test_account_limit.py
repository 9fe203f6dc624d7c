"""How many ranks of a run start at the same time where the account allows fewer than are requested."""

from __future__ import annotations

from typing import Any

import pytest
from botocore.exceptions import ClientError, EndpointConnectionError

from cosmicai.aws_lambda import account_limit
from cosmicai.aws_lambda.account_limit import cap_concurrency, read_account_limit


class Lambda:
    """Answers for its limit, or raises."""

    def __init__(self, answer: Any) -> None:
        self.answer, self.calls = answer, 0

    def __call__(self, service: str, **_: Any) -> Lambda:
        assert service == "lambda"
        return self

    def get_account_settings(self) -> Any:
        self.calls += 1
        if isinstance(self.answer, Exception):
            raise self.answer
        return self.answer


@pytest.fixture
def aws(monkeypatch: pytest.MonkeyPatch) -> Any:
    def answer(answer: Any) -> Lambda:
        stand_in = Lambda(answer)
        monkeypatch.setattr(account_limit, "make_client", stand_in)
        return stand_in

    return answer


def limits(count: int) -> Any:
    return {"AccountLimit": {"ConcurrentExecutions": 1000, "UnreservedConcurrentExecutions": count}}


@pytest.mark.parametrize(
    ("requested", "ranks", "limit", "expected"),
    [
        (100, 660, 10, 10),
        (100, None, 50, 50),
        (100, 660, 1000, 100),
        (100, 40, 50, 100),
        (5, 660, 1, 5),
        (100, 8, 1, 100),
    ],
)
def test_a_run_starts_no_more_ranks_than_the_account_allows(aws, requested, ranks, limit, expected):
    stand_in = aws(limits(limit))
    notices: list[str] = []
    assert cap_concurrency(requested, ranks, notices.append) == expected
    assert stand_in.calls == (min(requested, ranks or requested) > 10)
    said = f"{limit} ranks run at a time, not {min(requested, ranks or requested)}: this is what the account allows"
    assert [notice.startswith(said) for notice in notices] == [True] * (expected < requested)


@pytest.mark.parametrize(
    "answer",
    [
        ClientError({"Error": {"Code": "AccessDeniedException", "Message": "no"}}, "GetAccountSettings"),
        EndpointConnectionError(endpoint_url="https://lambda"),
        {},
        {"AccountLimit": {"UnreservedConcurrentExecutions": "many"}},
    ],
)
def test_a_limit_that_may_not_be_read_changes_nothing(aws, answer):
    aws(answer)
    notices: list[str] = []
    assert read_account_limit() is None
    assert cap_concurrency(100, 660, notices.append) == 100 and notices == []
