"""Ranks that share a GPU, which NCCL refuses."""

from __future__ import annotations

from typing import Any

import pytest

from cosmicai.ranks.communicator import SingleProcessCommunicator
from cosmicai.ranks.torch import have_own_values


class Recorded(SingleProcessCommunicator):
    """Rank 0 of a group whose other ranks have given values."""

    def __init__(self, others: list[str]) -> None:
        super().__init__()
        self.others = others

    def gather(self, value: Any) -> list[Any]:
        return [value, *self.others]


@pytest.mark.parametrize(("others", "own"), [([], True), (["GPU-b", "GPU-c"], True), (["GPU-b", "GPU-a"], False)])
def test_ranks_with_one_gpu_each_are_told_from_ranks_that_share_one(others: list[str], own: bool) -> None:
    assert have_own_values(Recorded(others), "GPU-a") is own
