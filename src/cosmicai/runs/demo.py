"""The demonstration: a synthetic survey, and a fresh run on it."""

from __future__ import annotations

import secrets
import shutil
from pathlib import Path

from .. import storage
from ..errors import InputError
from ..models.weights import DEMO
from ..storage.s3 import is_s3
from ..surveys import synthetic
from ..surveys.shard import FIELDS
from ..surveys.survey import Survey, open_survey, write_survey
from .create import begin
from .store import RunFolder

DEMO_SEED = 0  # the demo weights were trained on another seed
GALAXIES_PER_SHARD = 1278  # a published partition of 25 MB


def write_synthetic_survey(out: str, galaxies: int, seed: int, galaxies_per_shard: int) -> Survey:
    """Writes a survey of synthetic galaxies. Raises InputError if `out` is not empty."""
    return write_survey(out, synthetic.batches(galaxies, seed), galaxies, galaxies_per_shard, FIELDS)


def demo_survey(folder: str, galaxies: int = 4096) -> Survey:
    """The synthetic survey in this folder, made if it is not there; of several who make it at once the first does.

    Raises InputError if the folder holds something else, or would be on S3.
    """
    target = Path(folder)
    if is_s3(folder):
        raise InputError(f"the survey `{DEMO}` is written into the run folder; choose a local --out")
    if not (target / "survey.json").exists():
        own = target.with_name(f"{target.name}.{secrets.token_hex(4)}")
        write_synthetic_survey(str(own), galaxies, DEMO_SEED, GALAXIES_PER_SHARD)
        try:
            own.rename(target)
        except OSError:  # somebody was faster, or something else is there, as opening it will tell
            shutil.rmtree(own)
    return open_survey(folder)


def named_survey(name: str, out: str) -> Survey:
    """The survey at this address; `demo` is a synthetic one in the run folder `out`. Raises InputError as both do."""
    return demo_survey(storage.join(storage.absolute(out), "survey")) if name == DEMO else open_survey(name)


def demo_run(out: str, galaxies: int) -> RunFolder:
    """The run folder OUT/run, begun anew, on the synthetic survey OUT/survey, made if it is not there.

    Raises InputError if OUT holds something else.
    """
    folder = Path(out).absolute()
    survey = demo_survey(str(folder / "survey"), galaxies)
    if survey.galaxies != galaxies:
        raise InputError(f"{survey.uri} holds {survey.galaxies} galaxies, not {galaxies}; choose another --out")
    run = RunFolder(str(folder / "run"))
    if storage.exists(run.plan_path):
        if run.plan().survey != survey.uri:
            raise InputError(f"{run.uri} is not a demo run; choose another --out")
        shutil.rmtree(run.uri)
    return begin(survey, DEMO, run.uri)
