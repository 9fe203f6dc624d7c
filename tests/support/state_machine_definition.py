"""The definition of a state machine: substitute its placeholders, and find what AWS refuses but moto accepts."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

COMMON = {"Type", "Comment", "InputPath", "OutputPath"}
GOING_ON = {"Next", "End"}
CATCHING = {"Retry", "Catch", "ResultPath", "ResultSelector"}
FIELDS = {
    "Task": COMMON
    | GOING_ON
    | CATCHING
    | {"Resource", "Parameters", "Credentials", "TimeoutSeconds", "TimeoutSecondsPath"}
    | {"HeartbeatSeconds", "HeartbeatSecondsPath"},
    "Map": COMMON
    | GOING_ON
    | CATCHING
    | {"ItemProcessor", "ItemReader", "ItemSelector", "ItemBatcher", "ItemsPath", "ResultWriter", "Label"}
    | {"MaxConcurrency", "MaxConcurrencyPath", "ToleratedFailurePercentage", "ToleratedFailurePercentagePath"}
    | {"ToleratedFailureCount", "ToleratedFailureCountPath"},
    "Choice": COMMON | {"Choices", "Default"},
    "Pass": COMMON | GOING_ON | {"Result", "ResultPath", "Parameters"},
    "Wait": COMMON | GOING_ON | {"Seconds", "SecondsPath", "Timestamp", "TimestampPath"},
    "Succeed": COMMON,
    "Fail": {"Type", "Comment", "Error", "ErrorPath", "Cause", "CausePath"},
}
MACHINE = {"Comment", "StartAt", "States", "Version", "TimeoutSeconds", "QueryLanguage"}
PROCESSOR = {"ProcessorConfig", "StartAt", "States", "Comment"}
RETRIER = {
    "ErrorEquals",
    "IntervalSeconds",
    "MaxAttempts",
    "BackoffRate",
    "MaxDelaySeconds",
    "JitterStrategy",
    "Comment",
}
CATCHER = {"ErrorEquals", "ResultPath", "Next", "Comment"}
READER = {"Resource", "ReaderConfig", "Parameters"}
WRITER = {"Resource", "Parameters", "WriterConfig"}
EITHER = (
    ("Next", "End"), ("MaxConcurrency", "MaxConcurrencyPath"), ("ToleratedFailureCount", "ToleratedFailureCountPath"),
    ("ToleratedFailurePercentage", "ToleratedFailurePercentagePath"),
)  # fmt: skip
PLACEHOLDER = re.compile(r"\$\{(\w+)\}")


def substitute(path: Path, values: dict[str, str]) -> str:
    """Return the text with its placeholders replaced as by CloudFormation's DefinitionSubstitutions.

    Raises KeyError for a placeholder without a value, and ValueError for a value without a placeholder.
    """
    text = path.read_text()
    if unused := values.keys() - set(PLACEHOLDER.findall(text)):
        raise ValueError(f"{path.name} has no placeholder for {sorted(unused)}")
    return PLACEHOLDER.sub(lambda found: values[found[1]], text)


def find_mistakes(definition: str) -> list[str]:
    """Return what AWS would refuse in the definition, and states that cannot be reached."""
    machine = json.loads(definition)
    return [*_unknown("the state machine", machine, MACHINE), *_flow("the state machine", machine)]


def _flow(where: str, flow: dict[str, Any]) -> Iterator[str]:
    """Yield mistakes in connected states, including those within a map."""
    states: dict[str, dict[str, Any]] = flow.get("States", {})
    reached, waiting = set(), [flow.get("StartAt")]
    while waiting:
        name = waiting.pop()
        if name in states and name not in reached:
            reached.add(name)
            waiting += [target for _, target in _targets(states[name])]
    if flow.get("StartAt") not in states:
        yield f"{where} starts at {flow.get('StartAt')!r}, which is not one of its states"
    yield from (f"{name} is never reached" for name in states if name not in reached)
    for name, state in states.items():
        yield from (f"{name} has {field} {to!r}, which is not a state at the same level"
                    for field, to in _targets(state) if to not in states)  # fmt: skip
        yield from _state(name, state)


def _targets(state: dict[str, Any]) -> list[tuple[str, str]]:
    """Return the successors of a state, by field."""
    one = [(field, state[field]) for field in ("Next", "Default") if field in state]
    many = [(field, own.get("Next")) for field in ("Choices", "Catch") for own in state.get(field, [])]
    return one + many


def _state(name: str, state: dict[str, Any]) -> Iterator[str]:
    kind = state.get("Type")
    if kind not in FIELDS:
        yield f"{name} has the type {kind!r}"
        return
    yield from _unknown(name, state, FIELDS[kind])
    if "Next" in FIELDS[kind] and not GOING_ON & state.keys():
        yield f"{name} has neither Next nor End"
    yield from (f"{name} has both {one} and {other}" for one, other in EITHER if {one, other} <= state.keys())
    if len(name) > 80:
        yield f"{name} has a name of more than 80 letters"
    for field in ("Parameters", "ResultSelector", "ItemSelector"):
        yield from _paths(name, state.get(field))
    yield from _errors(f"{name}'s Retry", state.get("Retry", []), RETRIER)
    yield from _errors(f"{name}'s Catch", state.get("Catch", []), CATCHER)
    for retrier in state.get("Retry", []):
        if not _in_order(retrier):
            yield f"{name} has a Retry of odd numbers: {retrier}"
    for field, known in (("ItemReader", READER), ("ResultWriter", WRITER), ("ItemProcessor", PROCESSOR)):
        yield from _unknown(f"{name}'s {field}", state.get(field, {}), known)
    if "ItemProcessor" in state:
        yield from _flow(f"{name}'s ItemProcessor", state["ItemProcessor"])


def _unknown(where: str, found: dict[str, Any], known: set[str]) -> Iterator[str]:
    return (f"{where} has a field {field}, which AWS does not know" for field in found if field not in known)


def _paths(where: str, value: Any) -> Iterator[str]:
    """Yield fields whose name ends in `.$` without a path or an intrinsic function, and others with one."""
    if isinstance(value, list):
        for own in value:
            yield from _paths(where, own)
    for field, own in value.items() if isinstance(value, dict) else ():
        is_path = isinstance(own, str) and bool(re.match(r"\$(\.|\[|\$|$)|States\.\w+\(", own))
        if field.endswith(".$") != is_path:
            yield f"{where} has {field}: {own!r}, {'which is not a path' if field.endswith('.$') else 'a path as text'}"
        yield from _paths(where, own)


def _errors(where: str, listed: list[dict[str, Any]], known: set[str]) -> Iterator[str]:
    for number, own in enumerate(listed):
        yield from _unknown(where, own, known)
        errors = own.get("ErrorEquals")
        if not errors:
            yield f"{where} has no ErrorEquals"
        elif "States.ALL" in errors and (len(errors) > 1 or number != len(listed) - 1):
            yield f"{where} has States.ALL, which must stand alone and last"


def _in_order(retrier: dict[str, Any]) -> bool:
    interval, longest = retrier.get("IntervalSeconds", 1), retrier.get("MaxDelaySeconds", 31622400)
    attempts, rate = retrier.get("MaxAttempts", 3), retrier.get("BackoffRate", 2)
    whole = all(type(own) is int for own in (interval, longest, attempts))
    jitter = retrier.get("JitterStrategy", "NONE")
    return whole and 0 < interval < longest and attempts >= 0 and rate >= 1 and jitter in ("FULL", "NONE")
