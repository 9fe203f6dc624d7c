"""From parts to the product: the catalogue, and a summary that counts every galaxy against the plan."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import TYPE_CHECKING, Any

from msgspec import UNSET, structs

from ..calibration.coverage import CoverageReport
from ..calibration.describe import describe_calibration
from ..calibration.records import Calibration
from ..errors import InputError, describe_os_errors
from ..storage import atomic_write
from ..storage.parallel import map_in_order
from ..storage.s3 import reader_threads
from .calibrate import calibrate_plan
from .catalogue.facts import read_facts
from .catalogue.metadata import describe_provenance
from .catalogue.writing import write_catalogue
from .cost import cost_of_run
from .figures import draw_redshifts, save_figure
from .interval_figure import draw_intervals
from .part import DamagedPartError, Part
from .plan import Plan, WorkItem
from .store import RunFolder
from .summary import Intervals, Summary, SummaryMetrics, Totals, add_up, count_coverage

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def summarize(run: RunFolder) -> Summary:
    """Write catalogue, plots, published outputs and summary.json from the parts that exist, and return the summary.

    A record or part that is damaged is left out and named in the summary; such a part is set aside, so that its item is
    done again by --resume. Raises InputError if a part is of another plan, or if the survey cannot be read any more.
    """
    left_out: list[str] = []
    plan, records = run.plan(), run.records(left_out.append)
    parts = _Parts(run, plan, run.parts(), left_out)
    calibration = _find_calibration(run, plan, parts, left_out)
    provenance = describe_provenance(plan, records.values(), calibration)
    with atomic_write(run.catalogue_path) as catalogue, describe_os_errors(run.catalogue_path, "write"):
        written = write_catalogue(catalogue, plan, parts.read, provenance, calibration)
        facts = read_facts(catalogue)
        _save_plot(draw_redshifts(catalogue, facts, provenance, written.coverage), run.plot_path)
    intervals = _describe_intervals(calibration, written.coverage) if calibration else None
    if intervals and intervals.coverage:
        figure = draw_intervals(intervals.coverage, intervals.calibrated_on, provenance)
        _save_plot(figure, run.interval_plot_path)
    if written.unreadable:
        left_out.append(_describe_unreadable(run, written.unreadable))
    coverage = count_coverage(plan, parts.done)
    coverage = structs.replace(coverage, flagged=facts.flagged, duplicate_objid=facts.duplicate_objid)
    totals = add_up(records.values())
    reported = SummaryMetrics.from_metrics(facts.metrics) if facts.metrics else None
    cost = cost_of_run(records.values(), run.functions(left_out.append), run.invocations())
    summary = Summary(
        complete=coverage.complete and not written.unreadable,
        coverage=coverage,
        metrics=reported,
        totals=totals,
        cost=cost,
        machines=tuple(sorted({record.measured_on for record in records.values()})),
        failures=tuple(run.failures(left_out.append)),
        plan_sha256=plan.digest,
        catalogue_sha256=facts.digest,
        catalogue=run.catalogue_path,
        plot=run.plot_path("png"),
        weights=plan.weights_file.label,
        weights_sha256=plan.weights_sha256,
        left_out=tuple(left_out) or UNSET,
        unchecked_parts=parts.unchecked or UNSET,
        survey_check=plan.survey_check or UNSET,
        intervals=intervals or UNSET,
    )
    # The record of an attempt that was killed at once would look like a rank without speed in the published files.
    published = [record for record in records.values() if record.galaxies]
    run.write_json(run.combined_path, list(map_in_order(run.write_published, published, reader_threads(run.uri))))
    run.write_json(run.results_path, published_results(plan, totals, reported))
    run.write_json(run.summary_path, summary)
    return summary


def _save_plot(figure: Figure, path_of: Callable[[str], str]) -> None:
    """Write a figure as PNG and PDF, to the addresses that `path_of` gives for "png" and "pdf"."""
    for kind in ("png", "pdf"):
        with atomic_write(path := path_of(kind)) as plot, describe_os_errors(path, "write"):
            save_figure(figure, plot, kind)


def _find_calibration(run: RunFolder, plan: Plan, parts: _Parts, left_out: list[str]) -> Calibration | None:
    """Return the calibration of a plan, or the one on its spectroscopic redshifts, which is written, too."""
    if not plan.calibrate_on_spectra:
        return plan.calibration
    try:
        calibration = calibrate_plan(plan, parts.read())
    except InputError as error:  # the redshifts are worth having without intervals
        left_out.append(f"intervals: {error}")
        return None
    run.write_json(run.calibration_path, calibration)
    return calibration


def _describe_intervals(calibration: Calibration, coverage: CoverageReport | None) -> Intervals:
    origin = calibration.origin
    return Intervals(
        calibrated_on=describe_calibration(calibration),
        survey=origin.survey,
        survey_digest=origin.survey_digest,
        galaxies=calibration.galaxies,
        coverage=coverage,
    )


def _describe_unreadable(run: RunFolder, reasons: Mapping[str, str]) -> str:
    """Return a sentence on the shards that could not be read again, given the reason for each."""
    first, *others = reasons.values()
    also = f", and {len(others):,} more shards of its folder" if others else ""
    return (
        f"ids, positions and other columns of a shard that cannot be read again: {first.partition(';')[0]}{also}; "
        f"put back what was there, and write the catalogue again with `cosmicai summarize {run.uri}`"
    )


class _Parts:
    """The parts of a run that can be used; one that is damaged is set aside, and named in `left_out`, when it is read.

    `done` are the items that have parts, `unchecked` counts those without a digest.
    """

    def __init__(self, run: RunFolder, plan: Plan, done: set[WorkItem], left_out: list[str]) -> None:
        self._run, self._plan, self.done, self._left_out = run, plan, done, left_out
        self.unchecked = 0

    def read(self) -> Iterator[Part | None]:
        """Yield the part of every item of the plan, in its order, None where there is none."""
        self.unchecked = 0
        for item, part in zip(
            self._plan.items, map_in_order(self._read, self._plan.items, reader_threads(self._run.uri)), strict=True
        ):
            if isinstance(part, DamagedPartError):
                self._run.set_aside_part(item)
                self._left_out.append(str(part).partition(";")[0] + "; it was set aside, finish the run with --resume")
                self.done.remove(item)
                part = None
            self.unchecked += part is not None and not part.is_checked
            yield part

    def _read(self, item: WorkItem) -> Part | DamagedPartError | None:
        if item not in self.done:
            return None
        try:
            return self._run.read_part(self._plan, item)
        except DamagedPartError as error:
            return error


def published_results(plan: Plan, totals: Totals, metrics: SummaryMetrics | None) -> dict[str, Any]:
    """Return Results.json with the keys of both published variants of it, so that the readers of both work."""
    per_batch = totals.working_seconds / totals.batches if totals.batches else 0.0
    on_gpu = plan.device == "cuda"
    return {
        "total execution time": totals.working_seconds,
        "throughput": totals.throughput_bps,
        "average execution time (milliseconds) per batch": per_batch * 1000,
        "total cpu time (second)": totals.cpu_seconds,
        "total gpu time (second)": totals.working_seconds if on_gpu else 0.0,
        "execution time per batch (second)": per_batch,
        "cpu memory (MB)": totals.peak_rss_mb,
        "gpu memory (MB)": totals.peak_gpu_mb,
        "throughput(bps)": totals.throughput_bps,
        "batch size": plan.batch_size,
        "number of batches": totals.batches,
        "device": plan.device,
        "MAE": metrics and metrics.mae,
        "MSE": metrics and metrics.mse,
        "Bias": metrics and metrics.bias,
        "Precision": metrics and metrics.precision,
        "R2": metrics and metrics.r2,
    }
