"""Small networks, surveys, runs, records and command lines that many tests need."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch
from msgspec import structs

from cosmicai.engines.base import EngineChoice
from cosmicai.models.astromae import AstroMAE
from cosmicai.models.config import AstroMAEConfig, InceptionConfig
from cosmicai.models.weights import extract_weights
from cosmicai.ranks.environment import Rank
from cosmicai.ranks.invocation import InvocationRecord
from cosmicai.runs.create import create_run
from cosmicai.runs.demo import create_demo_run
from cosmicai.runs.record import Record
from cosmicai.runs.recorder import Recorder
from cosmicai.runs.request import RunRequest
from cosmicai.runs.store import RunFolder
from cosmicai.runs.summarize import summarize
from cosmicai.runs.summary import Coverage, Summary, add_up
from cosmicai.surveys import shard
from cosmicai.surveys.shard import Galaxies
from cosmicai.surveys.survey import Survey, write_survey
from cosmicai.worker import loop
from cosmicai.worker.sources import select_source

TINY = AstroMAEConfig(
    width=16, depth=1, heads=2, attention_width=16, attention_scale=8**-0.5, mlp_width=32,
    convolution_width=32, convolution_groups=(4, 4), projection_width=16, vit_head=(16,), stem_channels=4,
    inception_stages=((InceptionConfig(2, 2, 2, 2, 2, 2),),), inception_head=(16,), magnitude_head=(16, 16),
    redshift_head=(16, 1),
)  # fmt: skip
FIELDS = tuple(shard.FIELDS)


def random_galaxies(count: int, seed: int = 0) -> Galaxies:
    """Return noise in the shape of galaxies; objid numbers them from 1000."""
    rng = np.random.default_rng(seed)
    return Galaxies(
        rng.normal(size=(count, 5, 32, 32)).astype(np.float32),
        rng.uniform(15, 22, (count, 5)),
        rng.uniform(0.01, 0.5, count),
        np.arange(1000, 1000 + count),
    )


def flagged_galaxies(count: int) -> Galaxies:
    """Return `random_galaxies`, more than 100, of which three have a flag: numbers 3, 70 and 100."""
    galaxies = random_galaxies(count)
    galaxies.image[3, 0, 5, 5] = np.nan
    galaxies.magnitude[70, 2] = -9999
    galaxies.image[100, 4] = 0
    return galaxies


def make_survey(out: Path, galaxies: Galaxies, per_shard: int) -> Survey:
    """Write a survey of these galaxies and return it."""
    return write_survey(str(out), [galaxies], len(galaxies), per_shard, FIELDS)


def tiny_weights(path: Path, seed: int = 0) -> str:
    """Write random weights of a tiny AstroMAE and return their path."""
    torch.manual_seed(seed)
    extract_weights(AstroMAE(TINY), {}).save(str(path))
    return str(path)


def make_run(survey: Survey, weights: str, out: str, *, ranks: int = 1, **options: Any) -> RunFolder:
    """Create a run for a number of ranks; `options` are fields of `RunRequest`, and `notify` receives notices."""
    notify = options.pop("notify", lambda notice: None)
    return create_run(RunRequest(survey.uri, out, weights, **options), survey, ranks=ranks, notify=notify)


def run_worker(run_folder: RunFolder, rank: Rank, schedule: str = "dynamic") -> Record:
    """Run one rank of a run that cannot communicate with the others, and return its record."""
    return loop.run(run_folder, rank, select_source(run_folder, rank, schedule))


def make_record(rank: int = 0, world_size: int = 1, **changes: Any) -> Record:
    """Return the record of a rank that has begun on this machine, with these fields changed."""
    choice = EngineChoice("openvino", "float32", "cpu", 64)
    recorder = Recorder(Rank(rank, max(world_size, rank + 1)), 512, choice, None, "run", "survey")
    return structs.replace(recorder.record(), **changes)


def make_invocation(request_id: str, seconds: float, **changes: Any) -> InvocationRecord:
    """Return an invocation of 2 GB as records have it, with these fields changed."""
    invocation = InvocationRecord(request_id, "cosmicai-infer", 2048, 512, "us-east-1", "x86_64", False, seconds)
    return structs.replace(invocation, **changes)


def make_summary(**changes: Any) -> Summary:
    """Return the summary of a complete run of no galaxies, with these fields changed."""
    coverage = Coverage(planned=0, completed=0, missing=0, duplicate=0, missing_items=(), unplanned_parts=0, flagged={})
    summary = Summary(
        complete=True, coverage=coverage, metrics=None, totals=add_up([]), cost=None, machines=(), failures=(),
        plan_sha256="0" * 64, catalogue_sha256="0" * 64, catalogue="run/catalogue.parquet", plot="run/inference.png",
    )  # fmt: skip
    return structs.replace(summary, **changes)


def complete_demo(out: Path, galaxies: int) -> RunFolder:
    """Complete a run OUT/run on this number of synthetic galaxies, with one thread, and return it."""
    demo = create_demo_run(str(out), galaxies)
    run_worker(demo, Rank(threads=1))
    summarize(demo)
    return demo


def run(
    *arguments: str, module: str = "cosmicai", cwd: Path | None = None, **environment: str
) -> subprocess.CompletedProcess[str]:
    """Run `python -m MODULE ARGUMENTS` and return when it has ended."""
    return subprocess.run(
        [sys.executable, "-m", module, *arguments],
        capture_output=True,
        text=True,
        env=os.environ | environment,
        cwd=cwd,
    )
