"""What the retry rules of the state machine wait for, simulated second by second without AWS."""

from __future__ import annotations

import heapq
import json
import random
from pathlib import Path
from typing import Any

import pytest

MACHINE = json.loads((Path(__file__).parents[3] / "aws" / "state_machine.asl.json").read_text())
STATES = {**MACHINE["States"], **MACHINE["States"]["Infer"]["ItemProcessor"]["States"]}
FUNCTIONS = ("Initialize", "Infer one rank", "Summarize")
THROTTLED = "Lambda.TooManyRequestsException"
HISTORY = 25_000  # events that an execution may have; each attempt of a task makes three
SECONDS, RANKS = 300.0, 660


class Attempts:
    """The attempts of one task, by the rules of Amazon States Language: the first retrier that names the error waits.

    `wait` returns None once a task has used all of that retrier's attempts and fails.
    """

    def __init__(self, state: str, generator: random.Random) -> None:
        self._retriers: list[dict[str, Any]] = STATES[state]["Retry"]
        self._used = [0] * len(self._retriers)
        self._random = generator

    def wait(self, error: str) -> float | None:
        for number, rule in enumerate(self._retriers):
            if error in rule["ErrorEquals"] or rule["ErrorEquals"] == ["States.ALL"]:
                if self._used[number] >= rule.get("MaxAttempts", 3):
                    return None
                pause = rule.get("IntervalSeconds", 1) * rule.get("BackoffRate", 2) ** self._used[number]
                pause = min(pause, rule.get("MaxDelaySeconds", pause))
                self._used[number] += 1
                return self._random.uniform(0, pause) if rule.get("JitterStrategy") == "FULL" else pause
        return None


@pytest.mark.parametrize("state", FUNCTIONS)
@pytest.mark.parametrize("error", ["CodeArtifactUserPendingException", "ResourceNotReadyException",
                                   "ResourceConflictException"])  # fmt: skip
def test_a_function_that_was_idle_for_weeks_is_waited_for(state, error):
    generator = random.Random(0)
    for idle in (3, 40, 110, 175):
        for _ in range(100):
            attempts, now = Attempts(state, generator), 0.0
            while now < idle:
                pause = attempts.wait(f"Lambda.{error}")
                assert pause is not None, f"{state} fails after {now:.0f} s"
                now += pause


@pytest.mark.parametrize("state", FUNCTIONS)
def test_an_error_of_the_function_itself_is_not_repeated_for_long(state):
    attempts, now = Attempts(state, random.Random(0)), 0.0
    while (pause := attempts.wait("Exception")) is not None:
        now += pause
    assert now < 10


@pytest.mark.parametrize("allowed", [10, 100, 1000])
@pytest.mark.parametrize("max_concurrency", [100, 1000])
def test_no_rank_is_lost_however_few_functions_the_account_runs_at_once(allowed, max_concurrency):
    generator = random.Random(0)
    waiting = list(range(RANKS))[::-1]
    events: list[tuple[float, int, str]] = []  # when, which rank, and what: an attempt or its end
    attempts = {rank: Attempts("Infer one rank", generator) for rank in range(RANKS)}
    tries = dict.fromkeys(range(RANKS), 0)
    running, completed, ended = 0, [], 0.0

    def start(now: float) -> None:
        if waiting:
            heapq.heappush(events, (now, waiting.pop(), "attempt"))

    for _ in range(max_concurrency):
        start(0.0)
    while events:
        now, rank, what = heapq.heappop(events)
        if what == "end":
            running, ended = running - 1, now
            completed.append(rank)
            start(now)
            continue
        tries[rank] += 1
        if running < allowed:
            running += 1
            heapq.heappush(events, (now + SECONDS, rank, "end"))
            continue
        pause = attempts[rank].wait(THROTTLED)
        assert pause is not None, f"rank {rank} fails after {tries[rank]} attempts"
        heapq.heappush(events, (now + pause, rank, "attempt"))
    assert sorted(completed) == list(range(RANKS))
    assert max(tries.values()) * 3 < HISTORY
    rounds = -(-RANKS // min(allowed, max_concurrency))
    assert rounds * SECONDS <= ended <= rounds * (SECONDS + 60), "a free place is taken within a minute"


def test_what_is_repeated_until_an_account_has_a_place_fits_into_the_history_of_an_execution():
    for state in FUNCTIONS:
        [rule] = [rule for rule in STATES[state]["Retry"] if THROTTLED in rule["ErrorEquals"]]
        assert rule["MaxAttempts"] * 3 < HISTORY
