"""What a report says, section by section, from what was collected and audited."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import cached_property

import pandas as pd

from cosmicai.errors import InputError

from . import figures
from .accuracy import Accuracy, read_accuracy
from .audit import Audit, table
from .compare import MEASURES, average, headed
from .figures.style import listed
from .page import Section, Table
from .published_comparison import HEADINGS as BESIDE_HEADINGS
from .published_comparison import beside_published
from .studies import STUDIES, Study, study_table
from .tables import Collection

MOST_ACCURACIES = 3  # runs whose accuracy is drawn
_MONEY = ("dollars", "galaxies_per_dollar", "service_units")
_MEMORY = ("peak_rss_mb", "allocated_mb")
_COVERAGE = {"asked_ranks": "ranks asked for", "findings": "what was found"}
_WORST_FIRST = ("incomplete", "doubtful", "unknown", "whole")
_SETTINGS = ("data_gb", "partition_mb", "batch_size", "world_size")
_NO_TIMES = {one.column for one in MEASURES} - {
    "galaxies", "wall_seconds", "rank_seconds", "mean_cpu_seconds", "galaxies_per_second", "summed_galaxies_per_second",
}  # fmt: skip
Headings = Mapping[str, str]


@dataclass(frozen=True)
class Evidence:
    """All that a report is made from: `collection` with its costs (`costs.with_costs`)."""

    collection: Collection
    audit: Audit

    @cached_property
    def runs(self) -> pd.DataFrame:
        """The runs with their verdicts, without those that single published figures tell of."""
        runs = self.collection.runs[self.collection.runs["kind"].ne("figure")]
        return runs.assign(verdict=runs["run"].map(self.audit.verdicts))

    @cached_property
    def measured_on(self) -> str:
        """Where all of this was measured, for the small print of figures."""
        machines = [str(name) for name in self.collection.runs["machine"].dropna().unique()]
        return f"Measured on: {listed(machines)}." if machines else ""

    @cached_property
    def studies(self) -> list[tuple[Study, pd.DataFrame]]:
        """Each study with its table."""
        return [(study, study_table(study, self.collection.runs, self.audit.verdicts)) for study in STUDIES]


def sections(evidence: Evidence, headings: Headings) -> list[Section]:
    """The sections of the report; `headings` are those of the columns of runs and ranks."""
    return [
        _summary(evidence),
        _runs(evidence, headings),
        _coverage(evidence, headings),
        _accuracy(evidence, headings),
        _time(evidence, headings),
        _cost(evidence, headings),
        _studied(evidence, "memory", "Memory", _MEMORY.__contains__),
        _published(evidence),
    ]


def _summary(evidence: Evidence) -> Section:
    runs = evidence.runs
    counts = runs["verdict"].value_counts()
    told = ", ".join(f"{count:,} {verdict}" for verdict, count in counts.items())
    ours = runs[runs["origin"].eq("ours")]
    prose = [
        f"{len(runs):,} runs, {len(ours):,} of them ours, with {len(evidence.collection.ranks):,} ranks: {told}. "
        "Incomplete runs are left out of all averages and of the figures made of these.",
    ]
    if asked := ours["asked_galaxies"].sum():
        prose.append(f"Ours predicted {ours['galaxies'].sum():,} of the {asked:,} galaxies that they were asked for.")
    if figures := len(evidence.collection.runs) - len(runs):
        prose.append(
            f"{figures} published figures, each with its source, stand beside them in times, costs and memory."
        )
    if left_out := len(evidence.collection.left_out):
        prose.append(f"What was found and could not be used ({left_out:,} cases) is named under Coverage.")
    return Section("summary", "In short", prose)


def _runs(evidence: Evidence, headings: Headings) -> Section:
    place = ["origin", "platform", "device", "machine", "engine", "precision", "git_commit", "image_digest"]
    runs = evidence.runs
    machines = runs.groupby(place, dropna=False, sort=False, as_index=False).agg(
        runs=("run", "size"), ranks=("ranks", "sum"), galaxies=("galaxies", "sum"), first=("started_at", "min")
    )
    names = ["run", "verdict", "platform", "machine", "ranks", "partition_mb", "batch_size", "data_gb", "galaxies"]
    prose = ["What each rank did is in ranks.csv; `python -m analysis columns` tells what all columns mean."]
    first = ["machine", *(name for name in machines if name != "machine")]
    tables = [
        Table("machines", "Machines and code", machines, headings, first),
        Table("runs", "Runs", runs, headings, names),
    ]
    return Section("runs", "What ran where", prose, tables)


def _coverage(evidence: Evidence, headings: Headings) -> Section:
    verdicts = table(replace(evidence.collection, runs=evidence.runs), evidence.audit)
    verdicts = verdicts.sort_values("verdict", key=lambda told: told.map(_WORST_FIRST.index), kind="stable")
    left_out = pd.DataFrame(
        [(one.source, one.what, one.reason) for one in evidence.collection.left_out],
        columns=["source", "what", "reason"],
    )
    caption = "Every run, counted against what was asked for or claimed; the worst first"
    tables = [Table("coverage", caption, verdicts, {**headings, **_COVERAGE})]
    if len(left_out):
        tables.append(Table("left-out", "What was found and not used", left_out))
    prose = [
        "Whole: nothing is missing. Doubtful: its own claims contradict each other; it counts, and is marked. "
        "Incomplete: something is missing, and it is left out of averages. Unknown: there is nothing to count against."
    ]
    return Section("coverage", "Coverage", prose, tables)


def _accuracy(evidence: Evidence, headings: Headings) -> Section:
    runs = evidence.runs
    known = runs[runs["nmad"].notna()]
    names = [
        "run", "verdict", "galaxies", "r2", "mae", "mse", "bias", "nmad", "outliers", "engine", "precision", "machine",
    ]  # fmt: skip
    absent: list[str] = [] if len(known) else ["None of these runs has spectroscopic redshifts to compare with."]
    drawings = []
    for number, accuracy in enumerate(_accuracies(known, absent)):
        for draw in (figures.density, figures.dz_against_z, figures.dz_histogram, figures.by_magnitude):
            drawings.append(draw(accuracy, f"{draw.__name__}-{number + 1}"))
    prose = ["dz = (z_phot - z_spec) / (1 + z_spec); NMAD is the published precision, 1.48 median |dz - median dz|."]
    tables = [Table("accuracy", "Accuracy", known, headings, names)] if len(known) else []
    return Section("accuracy", "Accuracy", prose, tables, drawings, absent)


def _accuracies(known: pd.DataFrame, absent: list[str]) -> Iterator[Accuracy]:
    """Of the largest whole runs of ours; those that have the same survey and the same metrics are drawn once."""
    ours = known[known["origin"].eq("ours") & known["verdict"].eq("whole")]
    distinct = ours.drop_duplicates(["galaxies", "mae", "nmad"]).sort_values("galaxies", ascending=False)
    if len(distinct) > MOST_ACCURACIES:
        absent.append(f"Of {len(distinct)} runs with different redshifts the {MOST_ACCURACIES} largest are drawn.")
    for row in distinct.head(MOST_ACCURACIES).itertuples():
        try:
            yield read_accuracy(row.source, row.run)
        except InputError as error:
            absent.append(f"The accuracy of {row.run} is not drawn: {error}.")


def _time(evidence: Evidence, headings: Headings) -> Section:
    studied = _studied(evidence, "time", "Time", lambda measure: measure not in (*_MONEY, *_MEMORY))
    averages = average(evidence.runs, evidence.audit.verdicts, _SETTINGS)
    used = evidence.audit.usable(evidence.collection.runs)["run"]
    ranks = evidence.collection.ranks
    drawings = [*studied.drawings, *_of_ranks(evidence, ranks[ranks["run"].isin(used)])]
    prose = [
        "The time of a run is that of a clock, from the start of its first rank to its end. Published tables also call "
        "the sum of the ranks' own rates a throughput: here it is named so, since no clock ever saw it.",
        "Averages leave out what lies more than 1.5 interquartile ranges outside the quartiles, as the published ones "
        "do; medians, beside them, leave out nothing.",
    ]
    elsewhere = [name for name in averages if name.removesuffix("_median") in _NO_TIMES]
    shown = headed(averages.drop(columns=elsewhere))
    tables = [Table("averages", "Averages over runs of the same settings: mean (median)", shown, file=averages)]
    return Section("time", "Time", prose, tables, drawings, studied.absent)


def _of_ranks(evidence: Evidence, ranks: pd.DataFrame) -> Iterator[figures.Drawing]:
    """Where the time of ranks goes, how far they lie apart, and how much faster more of them are; of ours if any."""
    ours = evidence.runs.loc[evidence.runs["origin"].eq("ours"), "run"]
    own = ranks[ranks["run"].isin(ours)]
    shown = own if len(own) else ranks
    if shown["predict_seconds"].notna().any():
        yield figures.phases(shown, evidence.measured_on)
    if shown.groupby("run").size().gt(1).any():
        yield figures.stragglers(shown, evidence.measured_on)
    for study, points in evidence.studies:
        if study.name == "world-size-time" and _is_line(points):
            yield figures.speed_up(points, evidence.measured_on)


def _is_line(points: pd.DataFrame) -> bool:
    """Whether a study has points at two places at least."""
    return bool(points.dropna(subset=["value"])["x"].nunique() > 1)


def _studied(evidence: Evidence, name: str, title: str, takes: Callable[[str], bool]) -> Section:
    """The studies of the measures that are taken."""
    taken = [(study, points) for study, points in evidence.studies if takes(study.measure)]
    drawings = [figures.draw(study, points, evidence.measured_on) for study, points in taken if _is_line(points)]
    without = "; ".join(study.title for study, points in taken if not _is_line(points))
    told = f"Not drawn, since no two runs that may be averaged differ in what would be across: {without}."
    return Section(name, title, drawings=drawings, absent=[told] if without else [])


def _cost(evidence: Evidence, headings: Headings) -> Section:
    studied = _studied(evidence, "cost", "Cost", _MONEY.__contains__)
    runs = evidence.runs
    known = runs[runs["dollars"].notna() | runs["service_units"].notna()]
    names = ["run", "verdict", "platform", "galaxies", "memory_mb", "billed_seconds", "dollars", "dollars_source",
             "service_units", "service_units_source", "machine"]  # fmt: skip
    tables = [Table("costs", "Costs", known, headings, names)] if len(known) else []
    nothing = [] if len(known) else ["None of these runs tells what it cost."]
    return Section("cost", "Cost", (), tables, studied.drawings, [*nothing, *studied.absent])


def _published(evidence: Evidence) -> Section:
    beside = beside_published(evidence.runs, evidence.audit.verdicts)
    prose = [
        "Best against best. Machines, galaxies and settings differ, so that a ratio tells what a user gets, and not "
        "what the code alone gained; for that see `cosmicai bench`, which runs both on one machine."
    ]
    tables = [Table("beside-published", "Ours beside the published figures", beside, BESIDE_HEADINGS)]
    return Section("published", "Beside the published figures", prose, tables)
