"""Small networks, surveys and command lines that many tests need."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import torch

from cosmicai.models.astromae import AstroMAE
from cosmicai.models.config import AstroMAEConfig, InceptionConfig
from cosmicai.models.weights import from_network
from cosmicai.ranks.environment import Rank
from cosmicai.runs.demo import demo_run
from cosmicai.runs.store import RunFolder
from cosmicai.runs.summary import summarize
from cosmicai.surveys import shard
from cosmicai.surveys.shard import Galaxies
from cosmicai.surveys.survey import Survey, write_survey
from cosmicai.worker.loop import work

TINY = AstroMAEConfig(
    width=16, depth=1, heads=2, attention_width=16, attention_scale=8**-0.5, mlp_width=32,
    convolution_width=32, convolution_groups=(4, 4), projection_width=16, vit_head=(16,), stem_channels=4,
    inception_stages=((InceptionConfig(2, 2, 2, 2, 2, 2),),), inception_head=(16,), magnitude_head=(16, 16),
    redshift_head=(16, 1),
)  # fmt: skip
FIELDS = tuple(shard.FIELDS)


def random_galaxies(count: int, seed: int = 0) -> Galaxies:
    """Noise in the shape of galaxies; objid numbers them from 1000."""
    rng = np.random.default_rng(seed)
    return Galaxies(
        rng.normal(size=(count, 5, 32, 32)).astype(np.float32),
        rng.uniform(15, 22, (count, 5)),
        rng.uniform(0.01, 0.5, count),
        np.arange(1000, 1000 + count),
    )


def make_survey(out: Path, galaxies: Galaxies, per_shard: int) -> Survey:
    """A survey of these galaxies."""
    return write_survey(str(out), [galaxies], len(galaxies), per_shard, FIELDS)


def tiny_weights(path: Path, seed: int = 0) -> str:
    """Random weights of a tiny AstroMAE."""
    torch.manual_seed(seed)
    from_network(AstroMAE(TINY), {}).save(str(path))
    return str(path)


def finished_demo(out: Path, galaxies: int) -> RunFolder:
    """A complete run OUT/run on so many synthetic galaxies, by one thread."""
    demo = demo_run(str(out), galaxies)
    work(demo, Rank(threads=1))
    summarize(demo)
    return demo


def run(
    *arguments: str, module: str = "cosmicai", cwd: Path | None = None, **environment: str
) -> subprocess.CompletedProcess[str]:
    """Runs `python -m MODULE ARGUMENTS` and waits for it."""
    return subprocess.run(
        [sys.executable, "-m", module, *arguments],
        capture_output=True,
        text=True,
        env=os.environ | environment,
        cwd=cwd,
    )
