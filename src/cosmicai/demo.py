"""The demonstration: a synthetic survey, and a fresh run on it."""

from __future__ import annotations

import shutil
from pathlib import Path

from . import storage
from .errors import InputError
from .galaxies import synthetic
from .galaxies.shard import FIELDS
from .galaxies.survey import Survey, open_survey, write_survey
from .model.weights import DEMO
from .run.begin import begin
from .run.folder import RunFolder

DEMO_SEED = 0  # the demo weights were trained on another seed
GALAXIES_PER_SHARD = 1278  # a published partition of 25 MB


def write_synthetic_survey(out: str, galaxies: int, seed: int, galaxies_per_shard: int) -> Survey:
    """Writes a survey of synthetic galaxies. Raises InputError if `out` is not empty."""
    return write_survey(out, synthetic.batches(galaxies, seed), galaxies, galaxies_per_shard, FIELDS)


def demo_run(out: str, galaxies: int) -> RunFolder:
    """The run folder OUT/run, begun anew, on the synthetic survey OUT/survey, made if it is not there.

    Raises InputError if OUT holds something else.
    """
    folder = Path(out).absolute()
    if (folder / "survey" / "survey.json").exists():
        survey = open_survey(str(folder / "survey"))
        if survey.galaxies != galaxies:
            raise InputError(f"{survey.uri} holds {survey.galaxies} galaxies, not {galaxies}; choose another --out")
    else:
        survey = write_synthetic_survey(str(folder / "survey"), galaxies, DEMO_SEED, GALAXIES_PER_SHARD)
    run = RunFolder(str(folder / "run"))
    if storage.exists(run.plan_path):
        if run.plan().survey != survey.uri:
            raise InputError(f"{run.uri} is not a demo run; choose another --out")
        shutil.rmtree(run.uri)
    return begin(survey, DEMO, run.uri)
