"""Start a run: from a user's request to a plan that is never changed."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from .. import storage
from ..calibration.records import Calibration, trust_of
from ..engines.registry import LARGEST_BATCH_SIZE, choose_engine
from ..errors import InputError
from ..models.weights import WeightsFile, find_weights
from ..storage.outputs import require_folder
from ..surveys.check import check_survey, inspect_survey
from ..surveys.check_record import require_consistent, warnings
from ..surveys.survey import FileOrder, Survey
from .plan import Plan, PlanRequest
from .precision import select_precision
from .request import RunRequest, require_views
from .schedule import split_work
from .store import RunFolder

_CALIBRATE = (
    "for a survey with spectroscopic redshifts add --calibrate-on-spectra, or write calibrated weights with "
    "`cosmicai calibrate`"
)


def create_run(
    request: RunRequest,
    survey: Survey,
    *,
    ranks: int = 1,
    approve: Callable[[Plan], None] = lambda plan: None,
    notify: Callable[[str], None] = lambda notice: None,
    inspect: bool = True,
    order: FileOrder | None = None,
) -> RunFolder:
    """Make the run folder and its plan for a number of ranks, or join the run that is there if it is to be resumed.

    `survey` is the opened survey of the request, whose files were selected in this `order`. What the request leaves
    open is chosen on this machine and reported through `notify`; a plan that is there already decides instead. Nothing
    is written before everything is known to work and `approve` has accepted the plan without raising. A sample of the
    survey is checked first (`surveys.check`), unless `inspect` is false. Raises InputError if the weights or the engine
    cannot be used, if a reduced precision changes the redshifts too much, if the folder belongs to another plan, or if
    the request is strict and the survey contradicts itself.
    """
    run, weights, planned, has_plan = _validate(request, survey, order)
    if has_plan:
        return run
    trust = trust_of(weights.notes, weights.uri)
    calibration, calibration_notices = _choose_calibration(request, trust.calibration)
    sample = replace(survey, shards=planned.shards)
    check = check_survey(sample) if inspect else None
    if check and request.strict:
        require_consistent(check, survey.uri)
    choice, size, notices = choose_engine(
        weights, request.engine, request.precision, request.device, request.batch_size
    )
    for notice in notices:
        notify(notice)
    selected = select_precision(run, sample, weights, choice, request.precision, request.accept_precision_loss, notify)
    plan = Plan(
        survey.uri, planned.shards, weights.uri, weights.sha256, choice.engine, selected.choice.precision,
        choice.device, size, choice.inner_batch, selected.check, selected.quantized,
        split_work(planned.shards, size, choice.inner_batch, ranks), check, planned.views or 1,
        bool(planned.quantiles), bool(planned.calibrate_on_spectra), weights.network, calibration, trust.domain,
        order or "natural",
    )  # fmt: skip
    approve(plan)
    odd = warnings(check, survey.uri) if check else ()
    for warning in (*calibration_notices, *sample.notices, *odd):  # last, where it is seen, and not of refused runs
        notify(warning)
    return run if run.write_plan(plan) else _join(run, planned, request.resume)


def _choose_calibration(
    request: RunRequest, calibration: Calibration | None
) -> tuple[Calibration | None, tuple[str, ...]]:
    """Return the calibration that a run uses, and what there is to say of it.

    Raises InputError if quantiles are requested and there will be none.
    """
    if request.calibrate_on_spectra:
        return None, ()
    views = request.views or 1
    reason = "the weights have no calibration"
    if calibration is not None and calibration.origin.views != views:
        reason = f"the calibration of the weights is for {calibration.origin.views} views of a cutout, not {views}"
        calibration = None
    if calibration is not None:
        return calibration, ()
    if request.quantiles:
        raise InputError(f"--quantiles cannot be had: {reason}; {_CALIBRATE}")
    return None, (f"no intervals: {reason}; {_CALIBRATE}",)


def validate_request(request: RunRequest, survey: Survey, notify: Callable[[str], None] = lambda notice: None) -> None:
    """Check what can be known about a run that will start on another machine, where other engines may be.

    Nothing is written. What is odd about the survey of a new run is reported through `notify`. Raises InputError if the
    weights cannot be used, if the survey holds no galaxies or, with a strict request, contradicts itself, or if the run
    folder belongs to another plan or may not be resumed.
    """
    _, _, planned, has_plan = _validate(request, survey)
    if not has_plan:
        inspect_survey(replace(survey, shards=planned.shards), request.strict, notify)


def _validate(
    request: RunRequest, survey: Survey, order: FileOrder | None = None
) -> tuple[RunFolder, WeightsFile, PlanRequest, bool]:
    """Return the run folder, the weights, the request in the terms of a plan, and whether the folder has one."""
    limit, size = request.limit_files, request.batch_size
    if (size is not None and size < 1) or (limit is not None and limit < 1):
        raise InputError("--batch-size and --limit-files must be at least 1")
    if size is not None and size > LARGEST_BATCH_SIZE:
        raise InputError(f"--batch-size {size} is too large; expected at most {LARGEST_BATCH_SIZE} galaxies")
    views = None if request.views is None else require_views(request.views)
    run, weights = RunFolder(storage.absolute(request.out)), find_weights(request.weights)
    planned = PlanRequest(
        survey.uri, survey.shards[:limit], weights.uri, weights.sha256,
        None if request.engine == "auto" else request.engine, request.precision, request.device, size, views,
        request.quantiles or None, request.calibrate_on_spectra or None, order,
    )  # fmt: skip
    _require_utf8(survey.uri, run.uri, weights.uri, *(shard.name for shard in planned.shards))
    if has_plan := run.has_plan():
        _join(run, planned, request.resume)
    else:
        require_folder(run.uri)
    if not has_plan and not any(shard.galaxies for shard in planned.shards):
        raise InputError(f"{survey.uri} holds no galaxies; nothing to do")
    return run, weights, planned, has_plan


def _require_utf8(*names: str) -> None:
    """Raise InputError for a name of a file or folder that is not UTF-8, which a plan cannot hold."""
    for name in names:
        try:
            name.encode()
        except UnicodeEncodeError:
            shown = name.encode(errors="backslashreplace").decode()
            raise InputError(f"the name {shown} is not UTF-8, which a plan cannot hold; rename the folder") from None


def _join(run: RunFolder, planned: PlanRequest, resume: bool) -> RunFolder:
    if different := run.plan().differences(planned):
        raise InputError(
            f"{run.uri} belongs to another plan (it differs in {', '.join(different)}); choose another --out"
        )
    if not resume:
        raise InputError(f"{run.uri} already holds this run; finish it with --resume or choose another --out")
    return run
