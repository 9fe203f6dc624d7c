"""Calibrate the weights of a run on its spectroscopic redshifts."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from ..calibration.attach import attach, describe_source, sample_survey
from ..calibration.describe import describe_domain, describe_fit
from ..calibration.domain import measure_domain
from ..calibration.fit import fit_calibration
from ..calibration.records import Calibration, trust_of
from ..errors import InputError
from ..models.weights import SHORT_DIGEST, Weights, check_architecture, find_weights
from ..surveys.survey import Survey
from .catalogue.spectra import read_spectroscopic_sample
from .part import Part
from .plan import Plan
from .store import RunFolder


@dataclass(frozen=True)
class CalibratedWeights:
    """Weights with a calibration, and what there is to say of it in lines."""

    weights: Weights
    lines: tuple[str, ...]


def calibrate_weights(run: RunFolder, uri: str) -> CalibratedWeights:
    """Return the weights at an address with intervals calibrated on a run of them, and the domain if they have none.

    Raises InputError if the run is of another network or on its training galaxies, or has too few galaxies with
    spectroscopic redshifts.
    """
    plan, file = run.plan(), find_weights(uri)
    planned = plan.weights_file
    if file.key != planned.key and file.sha256 != planned.sha256:
        raise InputError(
            f"{run.uri} was made with other weights ({planned.label}, SHA-256 {planned.sha256[:SHORT_DIGEST]}); "
            f"expected a run of {uri}, or --weights {planned.uri}"
        )
    weights = file.load()
    check_architecture(weights)
    domain, survey = trust_of(weights.notes, uri).domain, Survey(plan.survey, plan.shards)
    source = describe_source(survey, plan.views)
    if domain and domain.purpose == "training" and domain.survey_digest == source.survey_digest:
        raise InputError(
            f"{run.uri} is on the survey that {uri} was trained on, whose redshifts the network knows: intervals would "
            "be too narrow; expected galaxies that the training has not seen (`cosmicai train` calibrates on those "
            "that it held out)"
        )
    done = run.parts()
    parts = (run.read_part(plan, item) if item in done else None for item in plan.items)
    calibration = calibrate_plan(plan, parts)
    domain = domain or measure_domain(source, "calibration", sample_survey(survey))
    lines = [*describe_fit(calibration), *(describe_domain(domain) if domain else ())]
    return CalibratedWeights(attach(weights, calibration, domain), tuple(lines))


def calibrate_plan(plan: Plan, parts: Iterable[Part | None]) -> Calibration:
    """Return the calibration on one half of the galaxies of a plan that have a spectroscopic redshift.

    `parts` are those of all items of the plan in its order, None where there is none. Raises InputError if there are
    too few such galaxies.
    """
    origin = describe_source(Survey(plan.survey, plan.shards), plan.views)
    return fit_calibration(read_spectroscopic_sample(plan, parts), origin)
