"""List prices of AWS, and what a usage of its services costs at them.

Not included: free tier, discounts, tax, data transfer out of the region, and CloudWatch's logs.
"""

from __future__ import annotations

import math
import tomllib
from collections.abc import Mapping
from dataclasses import asdict, astuple, dataclass
from datetime import date
from functools import cache
from pathlib import Path

import msgspec

from ..errors import InputError
from ..ranks.invocation import ARCHITECTURES
from ..records import convert

PRICES = Path(__file__).with_name("prices.toml")
REGION, ARCHITECTURE = "us-east-1", "x86_64"  # where nothing else is given
FREE_EPHEMERAL_MB = 512


@dataclass(frozen=True)
class Usage:
    """Amounts of AWS services that were used; the prices have the same names. A GB is 2^30 bytes.

    Lambda: requests, memory, storage above 512 MB. Step Functions: transitions of a standard workflow. S3: PUT, COPY,
    POST and LIST requests, then GET, HEAD and all other requests, then storage. ECR: storage. Fargate: processors,
    memory.
    """

    invocations: float = 0
    gb_seconds: float = 0
    ephemeral_gb_seconds: float = 0
    transitions: float = 0
    s3_writes: float = 0
    s3_reads: float = 0
    s3_gb_months: float = 0
    ecr_gb_months: float = 0
    fargate_vcpu_hours: float = 0
    fargate_gb_hours: float = 0

    def __add__(self, other: Usage) -> Usage:
        return Usage(*map(sum, zip(astuple(self), astuple(other), strict=True)))

    def __rmul__(self, times: float) -> Usage:
        return Usage(*(times * amount for amount in astuple(self)))


@dataclass(frozen=True)
class Prices:
    """US dollars for one unit of each usage, by its name, where a source is known; `as_of` is an ISO 8601 date."""

    region: str
    architecture: str
    as_of: str
    each: Mapping[str, float]


def load_prices(region: str = REGION, architecture: str = ARCHITECTURE) -> Prices:
    """Return the list prices of a region for a processor. Raises InputError naming the known ones if it is unknown."""
    table = price_table()
    if region not in table.regions:
        known = ", ".join(table.regions)
        raise InputError(f"there are no prices for the region {region}; choose one of {known} with --region")
    if architecture not in ARCHITECTURES:
        raise InputError(f"there are no prices for {architecture}; choose one of {', '.join(ARCHITECTURES)}")
    each: dict[str, float] = {}
    for service in table.regions[region].values():
        each |= service.for_architecture(architecture)
    return Prices(region, architecture, table.as_of, each)


class _UnitPrices(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """US dollars for one unit of each usage; a price without a known source is None."""

    invocations: float | None = None
    gb_seconds: float | None = None
    ephemeral_gb_seconds: float | None = None
    transitions: float | None = None
    s3_writes: float | None = None
    s3_reads: float | None = None
    s3_gb_months: float | None = None
    ecr_gb_months: float | None = None
    fargate_vcpu_hours: float | None = None
    fargate_gb_hours: float | None = None

    def known(self) -> dict[str, float]:
        """Return the prices that are known, by usage."""
        prices = {name: getattr(self, name) for name in _UnitPrices.__struct_fields__}
        return {name: price for name, price in prices.items() if price is not None}


class _ServicePrices(_UnitPrices, frozen=True, forbid_unknown_fields=True):
    """A table of prices.toml: the prices of a service, some of which depend on the processor, and their sources."""

    sources: tuple[str, ...] = ()
    read: date | None = None
    x86_64: _UnitPrices = _UnitPrices()
    arm64: _UnitPrices = _UnitPrices()

    def for_architecture(self, architecture: str) -> dict[str, float]:
        """Return the prices for a processor, by usage."""
        return self.known() | (self.arm64 if architecture == "arm64" else self.x86_64).known()


@dataclass(frozen=True)
class PriceTable:
    """The content of prices.toml: the prices of each region by service, and their ISO 8601 date."""

    as_of: str
    regions: Mapping[str, Mapping[str, _ServicePrices]]


@cache
def price_table() -> PriceTable:
    """Return the content of prices.toml, read once."""
    table, where, remedy = tomllib.loads(PRICES.read_text()), str(PRICES), "install the program again"
    as_of = convert(table.pop("as_of", None), date, where=where, remedy=remedy)
    regions = convert(table, dict[str, dict[str, _ServicePrices]], where=where, remedy=remedy)
    return PriceTable(as_of.isoformat(), regions)


def dollars(usage: Usage, prices: Prices) -> dict[str, float]:
    """Return US dollars for each part of the usage, by its name, and their `total`.

    Raises InputError if something was used that has no price.
    """
    parts: dict[str, float] = {}
    for name, amount in asdict(usage).items():
        if amount and name not in prices.each:
            raise InputError(f"there is no price for {name} in {prices.region}; add it, with its source, to {PRICES}")
        parts[name] = amount * prices.each.get(name, 0.0)
    return parts | {"total": sum(parts.values())}


def billed_seconds(seconds: float) -> float:
    """Return the duration that Lambda bills: whole milliseconds, rounded up."""
    return math.ceil(round(seconds * 1000, 6)) / 1000  # rounded first, since 2.007 * 1000 is slightly above 2007


def invocation_gb_seconds(seconds: float, memory_mb: float) -> float:
    """Return the GB-seconds that Lambda bills for the memory of one invocation."""
    return billed_seconds(seconds) * memory_mb / 1024


def invocation_usage(seconds: float, memory_mb: float, ephemeral_mb: float = FREE_EPHEMERAL_MB) -> Usage:
    """Return the usage of one invocation of a function on Lambda, without its requests to other services."""
    above = max(0.0, ephemeral_mb - FREE_EPHEMERAL_MB)
    return Usage(1, invocation_gb_seconds(seconds, memory_mb), invocation_gb_seconds(seconds, above))
