"""What published records of this program say of themselves, in one key more than the published worker writes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from cosmicai.runs.published import OWN_KEY

from ..tables import Row
from .run_folder import find_platform
from .values import get_integer, get_number, get_text


def describe_run(records: Sequence[Any]) -> Row:
    """Return where and how a run was made, if all of its records are of this program; else nothing.

    Raises ValueError, naming the key, if a record says something unusable of itself.
    """
    own = [record.get(OWN_KEY) if isinstance(record, dict) else None for record in records]
    described = [_describe(values) for values in own if isinstance(values, dict)]
    if len(described) < len(records):
        return {}
    common = {name: {values[name] for values in described} for name in described[0]}
    machines = {"machine": "; ".join(sorted(filter(None, common.pop("machine"))))}
    world_size = max(get_integer(values, "world_size") for values in own if values)
    settings = {name: values.pop() if len(values) == 1 else None for name, values in common.items()}
    return {"origin": "ours", "world_size": world_size, **machines, **settings}


def _describe(values: Mapping[str, Any]) -> dict[str, str | None]:
    texts = {name: get_text(values, name) for name in ("platform", "machine", "engine", "precision")}
    cluster = get_text(values, "cluster") if values.get("cluster") is not None else None
    return {**texts, "platform": find_platform(texts["platform"], cluster, None)}


def describe_rank(record: Mapping[str, Any], row: Row) -> Row:
    """Return what the record of a rank says by the wall clock, if it is of this program; else nothing.

    `row` has its published values. Raises ValueError, naming the key, if something is unusable.
    """
    own = record.get(OWN_KEY)
    if not isinstance(own, dict):
        return {}
    return {
        "rank": get_integer(own, "rank"),
        "seconds": get_number(own, "seconds"),
        "galaxies_per_second": get_number(own, "galaxies_per_second"),
        "allocated_mb": None,  # the published key has what the program used, not what it was given
        "peak_rss_mb": row["allocated_mb"],
    }
