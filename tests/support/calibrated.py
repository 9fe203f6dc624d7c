"""Runs of synthetic galaxies with calibrated intervals."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from cosmicai.calibration.attach import attach
from cosmicai.models.weights import DEMO, load_weights
from cosmicai.ranks.environment import Rank
from cosmicai.runs.calibrate import calibrate_weights
from cosmicai.runs.store import RunFolder
from cosmicai.runs.summarize import summarize
from cosmicai.surveys.columns import DEGREES
from cosmicai.surveys.shard import FIELDS, Galaxies
from cosmicai.surveys.survey import Survey, open_survey, write_survey
from cosmicai.surveys.synthetic import generate_batches
from support.helpers import make_run, run_worker

POSITIONS = {"ra": DEGREES, "dec": DEGREES}


def make_galaxies(count: int, seed: int = 5) -> Galaxies:
    """Return synthetic galaxies with positions, of which the last four have a flag or no place in a calibration."""
    galaxies = Galaxies.concatenate(generate_batches(count, seed))
    galaxies.columns["ra"], galaxies.columns["dec"] = np.linspace(0, 359, count), np.linspace(-80, 80, count)
    galaxies.magnitude[-4] = np.nan  # no redshift
    galaxies.image[-3, 2] = 0  # a cutout that is not complete
    galaxies.magnitude[-2:, 2] = 39.5  # outside of every bin, and of the domain
    galaxies.redshift[-1] = np.nan
    return galaxies


def write_galaxies(folder: Path, count: int) -> Survey:
    """Write a survey of `make_galaxies` in two shards."""
    write_survey(str(folder), [make_galaxies(count)], count, count // 2 + 1, list(FIELDS), columns=POSITIONS)
    return open_survey(str(folder))


def write_plain(folder: Path) -> str:
    """Write the demo weights without their calibration and their training domain, and return their address."""
    attach(load_weights(DEMO), None, None).save(plain := str(folder / "plain.safetensors"))
    return plain


def calibrate_demo(survey: Survey, folder: Path) -> str:
    """Write demo weights that a run on a survey has calibrated, and return their address."""
    plain, weights = write_plain(folder), str(folder / "calibrated.safetensors")
    calibrate_weights(complete(survey, plain, folder / "first"), plain).weights.save(weights)
    return weights


def complete(survey: Survey, weights: str, out: Path, **options: Any) -> RunFolder:
    """Complete a run; `options` are fields of `RunRequest`."""
    run = make_run(survey, weights, str(out), **options)
    run_worker(run, Rank(threads=1))
    assert summarize(run).complete
    return run
