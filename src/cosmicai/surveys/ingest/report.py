"""What ingest has to say: how many galaxies lack what, and what was done with the data."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from ..bands import BANDS
from ..identity import count_duplicates
from ..quality import has_constant_edge, has_unusable_pixel, is_usable_magnitude
from ..shard import Galaxies
from ..survey import Survey

_ALIKE = 3  # notices that differ in numbers alone, which are printed one by one
_MOST = 50  # notices on the sources of an ingest
_VARYING = re.compile(r"[+-]?\d+(\.\d+)?(e[+-]?\d+)?")


@dataclass(frozen=True)
class IngestReport:
    """A survey that was written, and sentences about its galaxies, which the user should read."""

    survey: Survey
    notices: tuple[str, ...]


@dataclass
class Tally:
    """Counts of the galaxies that pass the gate, and notices with the source of each."""

    notices: list[tuple[str, str]] = field(default_factory=list)
    missing: NDArray[np.int64] = field(default_factory=lambda: np.zeros(len(BANDS), np.int64))
    unusable: int = 0
    incomplete: int = 0
    unknown: int = 0
    unplaced: int = 0

    def add(self, batch: Galaxies) -> None:
        """Count a batch of galaxies."""
        self.missing += np.count_nonzero(~is_usable_magnitude(batch.magnitude), axis=0)
        unusable = has_unusable_pixel(batch.image)
        self.unusable += int(np.count_nonzero(unusable))
        self.incomplete += int(np.count_nonzero(has_constant_edge(batch.image) & ~unusable))
        self.unknown += int(np.count_nonzero(np.isnan(batch.redshift)))
        self.unplaced += int(np.count_nonzero(np.isnan(batch.columns["ra"]))) if "ra" in batch.columns else 0

    def merge(self, other: Tally) -> None:
        """Add the counts and notices of other galaxies."""
        self.notices += other.notices
        self.missing += other.missing
        self.unusable += other.unusable
        self.incomplete += other.incomplete
        self.unknown += other.unknown
        self.unplaced += other.unplaced

    def report(self, survey: Survey, has_redshift: bool) -> IngestReport:
        """Return the report about a survey whose galaxies were all counted."""
        notices = group_notices(self.notices)
        if self.missing.any():
            bands = ", ".join(f"{band} {count:,}" for band, count in zip(BANDS, self.missing, strict=True) if count)
            notices.append(f"magnitudes that are missing or outside 5 to 40, by band: {bands}")
        if self.unusable:
            notices.append(f"cutouts with pixels that are NaN, infinite or beyond 1e12: {self.unusable:,}")
        if self.incomplete:
            notices.append(f"cutouts with a band, or an edge of it, that is constant: {self.incomplete:,}")
        if has_redshift and self.unknown:
            notices.append(f"spectroscopic redshifts that are no number between -0.01 and 10: {self.unknown:,}")
        if self.unplaced:
            notices.append(
                f"positions that are missing, or not ra from -180 to 360 and dec -90 to 90: {self.unplaced:,}"
            )
        duplicates = count_duplicates(lambda: _read_objids(survey))
        if duplicates.ids:
            notices.append(f"objid: {duplicates.describe()}")
        return IngestReport(survey, tuple(notices))


def group_notices(notices: Iterable[tuple[str, str]]) -> list[str]:
    """Return each notice once, with the number of sources that have the same and the first of them.

    Of many notices that differ in numbers alone, the first stands for all.
    """
    sources: dict[str, list[str]] = {}
    for source, text in notices:
        sources.setdefault(text.removeprefix(f"{source}: "), []).append(source)
    kinds: dict[str, list[str]] = {}
    for text in sources:
        kinds.setdefault(_VARYING.sub("0", text), []).append(text)
    sentences = []
    for texts in kinds.values():
        if len(texts) > _ALIKE:
            found = [source for text in texts for source in sources[text]]
            sentences.append(f"{len(found):,} sources, each with values of its own, the first {found[0]}: {texts[0]}")
            continue
        for text in texts:
            found = sources[text]
            first = found[0] if len(found) == 1 else f"{len(found):,} sources, the first {found[0]}"
            sentences.append(f"{first}: {text}")
    if len(sentences) > _MOST:
        left = len(sentences) - _MOST
        sentences[_MOST:] = [f"{left:,} more notices of other kinds; ingest fewer files to read them"]
    return sentences


def _read_objids(survey: Survey) -> Iterator[NDArray[np.int64] | NDArray[np.bytes_]]:
    for entry in survey.shards:
        with survey.open(entry) as shard:
            yield shard.read_field("objid", 0, entry.galaxies)
