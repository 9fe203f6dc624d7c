"""How a run begins: from what the user asked for to a plan that is never changed."""

from __future__ import annotations

from collections.abc import Callable

from .. import storage
from ..engines.registry import choose
from ..errors import InputError
from ..models.weights import find_weights
from ..surveys.survey import Survey
from .plan import Asked, Plan
from .precision import settle_precision
from .schedule import cut
from .store import RunFolder


def begin(
    survey: Survey,
    weights: str,
    out: str,
    *,
    engine: str = "auto",
    precision: str | None = None,
    device: str | None = None,
    batch_size: int | None = None,
    limit_files: int | None = None,
    accept_precision_loss: bool = False,
    resume: bool = False,
    ranks: int = 1,
    elsewhere: bool = False,
    approve: Callable[[Plan], None] = lambda plan: None,
    tell: Callable[[str], None] = lambda notice: None,
) -> RunFolder:
    """Makes the run folder and its plan for so many `ranks`, or joins the one that is there with `resume`.

    What is None, and the engine `auto`, is chosen here and told; with `resume` the plan decides. If the run is to begin
    `elsewhere`, where other engines may be, only what can be told here is checked and no plan made. Nothing is written
    before all is known to work and `approve` has seen the plan without raising. Raises InputError if the weights or the
    engine cannot be used, a reduced precision changes the redshifts too much, or the folder belongs to another plan.
    """
    if (batch_size is not None and batch_size < 1) or (limit_files is not None and limit_files < 1):
        raise InputError("--batch-size and --limit-files must be at least 1")
    run, file, shards = RunFolder(storage.absolute(out)), find_weights(weights), survey.shards[:limit_files]
    named = None if engine == "auto" else engine
    asked = Asked(survey.uri, shards, file.uri, file.sha256, named, precision, device, batch_size)
    if run.has_plan():
        return _join(run, asked, resume)
    if not any(shard.galaxies for shard in shards):
        raise InputError(f"{survey.uri} holds no galaxies; nothing to do")
    if elsewhere:
        return run
    choice, size, notices = choose(file, engine, precision, device, batch_size)
    for notice in notices:
        tell(notice)
    settled = settle_precision(run, Survey(survey.uri, shards), file, choice, precision, accept_precision_loss, tell)
    plan = Plan(
        survey.uri, shards, file.uri, file.sha256, choice.engine, settled.choice.precision, choice.device, size,
        choice.inner_batch, settled.check, settled.quantized, cut(shards, size, choice.inner_batch, ranks),
    )  # fmt: skip
    approve(plan)
    return run if run.write_plan(plan) else _join(run, asked, resume)


def _join(run: RunFolder, asked: Asked, resume: bool) -> RunFolder:
    if different := run.plan().differences(asked):
        raise InputError(
            f"{run.uri} belongs to another plan (it differs in {', '.join(different)}); choose another --out"
        )
    if not resume:
        raise InputError(f"{run.uri} already holds this run; finish it with --resume or choose another --out")
    return run
