"""The demonstration: a synthetic survey, and a new run on it."""

from __future__ import annotations

import secrets
import shlex
import shutil
from pathlib import Path

from .. import storage
from ..errors import InputError
from ..models.weights import DEMO
from ..storage.outputs import require_output_folder
from ..storage.ranges import open_ranges
from ..storage.s3 import is_s3
from ..surveys.shard import SUFFIXES
from ..surveys.survey import Survey, open_survey
from ..surveys.synthetic import write_synthetic_survey
from .create import create_run
from .request import RunRequest
from .store import RunFolder

DEMO_SEED = 0  # the demo weights were trained on another seed
GALAXIES_PER_SHARD = 1278  # a published partition of 25 MB


def make_demo_survey(folder: str, galaxies: int = 4096) -> Survey:
    """Return the synthetic survey in this folder, written if it does not exist; one of several callers writes it.

    Raises InputError if the folder holds something else, or would be on S3.
    """
    target = Path(folder)
    if is_s3(folder):
        raise InputError(f"the survey `{DEMO}` is written into the run folder; choose a local --out")
    if not (target / "survey.json").exists():
        temporary = target.with_name(f"{target.name}.{secrets.token_hex(4)}")
        write_synthetic_survey(str(temporary), galaxies, DEMO_SEED, GALAXIES_PER_SHARD)
        try:
            temporary.rename(target)
        except OSError:  # another process was faster, or the folder holds something else, which opening it reports
            shutil.rmtree(temporary)
    return open_survey(folder)


def open_named_survey(name: str, out: str) -> Survey:
    """Return the survey at this address; `demo` is a synthetic one in the run folder `out`.

    Raises InputError as `open_survey` and `make_demo_survey` do, and for a file of a kind that needs `cosmicai ingest`.
    """
    if name == DEMO:
        return make_demo_survey(storage.join(storage.absolute(out), "survey"))
    if not name.endswith(SUFFIXES) and storage.exists(name) and not storage.is_folder(name):
        with open_ranges(name):  # which says so if the file may not be read
            pass
        kind = storage.basename(name).lstrip(".").partition(".")[2] or "without a suffix"
        raise InputError(
            f"{name} is a single file ({kind}), and a survey is a folder or a file ending in {', '.join(SUFFIXES)}; "
            f"{_remedy(name)}"
        )
    return open_survey(name)


def _remedy(name: str) -> str:
    """Return what to do with a file that is not a survey."""
    if storage.basename(name) == "survey.json":
        return "name the folder that holds it"
    return f"convert it with `cosmicai ingest {shlex.quote(name)} --out SURVEY` and name SURVEY here"


def create_demo_run(out: str, galaxies: int) -> RunFolder:
    """Create the run OUT/run anew, on the synthetic survey OUT/survey, which is written if it does not exist.

    Raises InputError if OUT holds something else.
    """
    require_output_folder(out)
    folder = Path(out).absolute()
    survey = make_demo_survey(str(folder / "survey"), galaxies)
    if survey.galaxies != galaxies:
        raise InputError(f"{survey.uri} holds {survey.galaxies} galaxies, not {galaxies}; choose another --out")
    run = RunFolder(str(folder / "run"))
    if storage.exists(run.plan_path):
        if run.plan().survey != survey.uri:
            raise InputError(f"{run.uri} is not a demo run; choose another --out")
        shutil.rmtree(run.uri)
    return create_run(RunRequest(survey.uri, run.uri, DEMO), survey)


def describe_next_steps(out: str) -> tuple[str, ...]:
    """Return in lines what to do after the demo in the folder `out`: look at it, read it, use one's own galaxies."""
    run = str(Path(out) / "run")
    return (
        "",
        "These galaxies are synthetic, as are those that the weights were trained on: the numbers above say",
        "nothing about real ones. Next:",
        f"look at       {run}/inference.png",
        f"in Python     import cosmicai; print(cosmicai.read_catalogue({run!r}))",
        "your galaxies cosmicai ingest CUTOUTS --catalogue TABLE --out survey",
        "              cosmicai infer survey --weights WEIGHTS --out run",
    )
