"""Build the sections of a report from collected and audited runs."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace

import pandas as pd

from cosmicai.errors import InputError

from . import figures
from .accuracy import Accuracy, read_accuracy
from .audit import tabulate_audit
from .compare import MEASURES, average, format_averages
from .evidence import Evidence
from .page import Section, Table
from .published_comparison import HEADINGS as COMPARISON_HEADINGS
from .published_comparison import compare_with_published
from .verdict import MACHINE_HEADINGS, build_verdict, tabulate_machines

MAX_ACCURACIES = 3  # runs whose accuracy is drawn
_MONEY = ("dollars", "galaxies_per_dollar", "service_units")
_MEMORY = ("peak_rss_mb", "allocated_mb")
_COVERAGE = {"asked_ranks": "planned ranks", "findings": "findings"}
_WORST_FIRST = ("incomplete", "doubtful", "unknown", "whole")
_SETTINGS = ("data_gb", "partition_mb", "batch_size", "world_size")
_OTHER_MEASURES = {one.column for one in MEASURES} - {
    "galaxies", "wall_seconds", "rank_seconds", "mean_cpu_seconds", "galaxies_per_second", "summed_galaxies_per_second",
}  # fmt: skip
Headings = Mapping[str, str]
_INTERVALS = {
    "interval_galaxies": "galaxies",
    "coverage_68": "in 68%",
    "coverage_68_error": "+-",
    "width_68": "mean width of 68%",
    "coverage_95": "in 95%",
    "coverage_95_error": "+-",
    "width_95": "mean width of 95%",
}
_CALIBRATIONS = {
    "calibrated_on": "calibrated on",
    "outside_galaxies": "galaxies outside of the domain",
    "outside_coverage_68": "of these in 68%",
    "outside_coverage_95": "of these in 95%",
}
_ACCURACY_FIGURES = {
    "density": figures.draw_density,
    "dz_against_z": figures.draw_dz_by_redshift,
    "dz_histogram": figures.draw_dz_histogram,
    "by_magnitude": figures.draw_by_magnitude,
}


def build_sections(evidence: Evidence, headings: Headings) -> list[Section]:
    """Return the sections of the report; `headings` are those of the columns of runs and ranks."""
    return [
        build_verdict(evidence),
        _build_runs(evidence, headings),
        _build_coverage(evidence, headings),
        _build_accuracy(evidence, headings),
        _build_time(evidence, headings),
        _build_cost(evidence, headings),
        _build_studies(evidence, "memory", "Memory", _MEMORY.__contains__),
        _build_published(evidence),
    ]


def _build_runs(evidence: Evidence, headings: Headings) -> Section:
    runs = evidence.runs
    names = ["run", "verdict", "platform", "machine", "ranks", "partition_mb", "batch_size", "data_gb", "galaxies",
             "weights_name"]  # fmt: skip
    prose = ["The ranks are listed in ranks.csv; `python -m analysis columns` explains all columns."]
    tables = [
        Table("machines", "Machines and code", tabulate_machines(runs), {**headings, **MACHINE_HEADINGS}),
        Table("runs", "Runs", runs, headings, names),
    ]
    if len(checked := runs[runs["survey_check"].notna()]):
        names = ["run", "survey_check"]
        tables.append(Table("survey-checks", "Whether the surveys looked right", checked[names], headings, names))
    return Section("runs", "Machines and runs", prose=prose, tables=tables)


def _build_coverage(evidence: Evidence, headings: Headings) -> Section:
    verdicts = tabulate_audit(replace(evidence.collection, runs=evidence.runs), evidence.audit)
    verdicts = verdicts.sort_values("verdict", key=lambda verdict: verdict.map(_WORST_FIRST.index), kind="stable")
    left_out = pd.DataFrame(
        [(one.source, one.what, one.reason) for one in evidence.collection.left_out],
        columns=["source", "what", "reason"],
    )
    caption = "Every run, compared with its plan or its stated size; the worst first"
    tables = [Table("coverage", caption, verdicts, {**headings, **_COVERAGE})]
    if len(left_out):
        tables.append(Table("left-out", "What was found but not used", left_out))
    prose = [
        "Whole: nothing is missing. Doubtful: its own statements contradict each other; it is used, and marked. "
        "Incomplete: something is missing, and it is left out of averages. Unknown: there is nothing to compare with."
    ]
    return Section("coverage", "Coverage", prose=prose, tables=tables)


def _build_accuracy(evidence: Evidence, headings: Headings) -> Section:
    runs = evidence.runs
    known = runs[runs["nmad"].notna()]
    names = [
        "run", "verdict", "galaxies", "r2", "mae", "mse", "bias", "nmad", "outliers", "engine", "precision", "machine",
        "weights_name",
    ]  # fmt: skip
    not_shown: list[str] = [] if len(known) else ["None of these runs has spectroscopic redshifts to compare with."]
    drawings = []
    for number, accuracy in enumerate(_read_accuracies(known, not_shown)):
        for name, draw in _ACCURACY_FIGURES.items():
            drawings.append(draw(accuracy, runs, f"{name}-{number + 1}"))
    prose = ["dz = (z_phot - z_spec) / (1 + z_spec); NMAD is the published precision, 1.48 median |dz - median dz|."]
    tables = [Table("accuracy", "Accuracy", known, headings, names)] if len(known) else []
    if len(calibrated := runs[runs["calibrated_on"].notna()]):
        prose.append(
            "Intervals: the fraction of galaxies whose spectroscopic redshift is in theirs, with its standard error. "
            "Galaxies that calibrated intervals are never among them; those outside of the training domain are, and "
            "are shown by themselves, too."
        )
        for name, caption, columns in (
            ("intervals", "Coverage of intervals", _INTERVALS),
            ("calibrations", "What calibrated them, and galaxies outside of the training domain", _CALIBRATIONS),
        ):
            tables.append(Table(name, caption, calibrated[["run", *columns]], {**headings, **columns}))
    return Section("accuracy", "Accuracy", (), prose, tables, drawings, not_shown)


def _read_accuracies(known: pd.DataFrame, not_shown: list[str]) -> Iterator[Accuracy]:
    """Yield the accuracy of our largest whole runs, one of each group with equal galaxies and metrics."""
    ours = known[known["origin"].eq("ours") & known["verdict"].eq("whole")]
    distinct = ours.drop_duplicates(["galaxies", "mae", "nmad"]).sort_values("galaxies", ascending=False)
    if len(distinct) > MAX_ACCURACIES:
        not_shown.append(
            f"Only the {MAX_ACCURACIES} largest of {len(distinct)} runs with different redshifts are drawn."
        )
    for row in distinct.head(MAX_ACCURACIES).itertuples():
        try:
            yield read_accuracy(row.source, row.run)
        except InputError as error:
            not_shown.append(f"The accuracy of {row.run} is not drawn: {error}.")


def _build_time(evidence: Evidence, headings: Headings) -> Section:
    studied = _build_studies(evidence, "time", "Time", lambda measure: measure not in (*_MONEY, *_MEMORY))
    averages = average(evidence.runs, evidence.audit.verdicts, _SETTINGS)
    used = evidence.audit.usable(evidence.collection.runs)["run"]
    ranks = evidence.collection.ranks
    drawings = [*studied.drawings, *_draw_ranks(evidence, ranks[ranks["run"].isin(used)])]
    prose = [
        "The time of a run is wall-clock time, from the start of its first rank to its end. Published tables call the "
        "sum of the ranks' own rates throughput; here it is called a sum of rates, since it was never measured.",
        "Averages leave out values more than 1.5 interquartile ranges outside the quartiles, as the published ones do; "
        "the medians next to them use all values.",
    ]
    dropped = [name for name in averages if name.removesuffix("_median") in _OTHER_MEASURES]
    shown = format_averages(averages.drop(columns=dropped))
    tables = [Table("averages", "Averages over runs of the same settings: mean (median)", shown, file=averages)]
    return Section("time", "Time", (), prose, tables, drawings, studied.not_shown)


def _draw_ranks(evidence: Evidence, ranks: pd.DataFrame) -> Iterator[figures.Drawing]:
    """Yield figures of the phases, spread and speed-up of ranks, of ours if there are any, and of their times on S3."""
    ours = evidence.runs.loc[evidence.runs["origin"].eq("ours"), "run"]
    own = ranks[ranks["run"].isin(ours)]
    shown = own if len(own) else ranks
    if shown["predict_seconds"].notna().any():
        yield figures.draw_phases(shown, evidence.runs)
    if shown.groupby("run").size().gt(1).any():
        yield figures.draw_stragglers(shown, evidence.runs)
    for study, points in evidence.studies:
        if study.name == "world-size-time" and _is_line(points):
            yield figures.draw_speed_up(points)
    if evidence.runs["s3_mean_seconds"].notna().any():
        yield figures.draw_storage_times(evidence.runs)


def _is_line(points: pd.DataFrame) -> bool:
    """Return whether a study has points at two or more places."""
    return bool(points.dropna(subset=["value"])["x"].nunique() > 1)


def _build_studies(evidence: Evidence, name: str, title: str, shows: Callable[[str], bool]) -> Section:
    """Return a section with the studies of the measures for which `shows` is true."""
    shown = [(study, points) for study, points in evidence.studies if shows(study.measure)]
    drawings = [figures.draw_study(study, points) for study, points in shown if _is_line(points)]
    without = "; ".join(study.title for study, points in shown if not _is_line(points))
    reason = f"Not drawn, since no two runs that may be averaged differ in the setting of the x axis: {without}."
    return Section(name, title, drawings=drawings, not_shown=[reason] if without else [])


def _build_cost(evidence: Evidence, headings: Headings) -> Section:
    studied = _build_studies(evidence, "cost", "Cost", _MONEY.__contains__)
    runs = evidence.runs
    known = runs[runs["dollars"].notna() | runs["service_units"].notna()]
    names = ["run", "verdict", "platform", "galaxies", "memory_mb", "billed_seconds", "dollars", "dollars_source",
             "service_units", "service_units_source", "machine"]  # fmt: skip
    tables = [Table("costs", "Costs", known, headings, names)] if len(known) else []
    no_costs = [] if len(known) else ["None of these runs states its cost."]
    return Section("cost", "Cost", (), (), tables, studied.drawings, [*no_costs, *studied.not_shown])


def _build_published(evidence: Evidence) -> Section:
    comparison = compare_with_published(evidence.runs, evidence.audit.verdicts)
    prose = [
        "The best of ours and the best published value of each measure. Machines, galaxies and settings differ, so "
        "that a ratio includes more than the gain of the code; `cosmicai bench` compares both codes on one machine."
    ]
    tables = [Table("beside-published", "Our runs and the published values", comparison, COMPARISON_HEADINGS)]
    return Section("published", "Comparison with published values", prose=prose, tables=tables)
