"""Write a report: one page with everything that is known about runs, their tables as CSV and their figures."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

import pandas as pd

from cosmicai import __version__
from cosmicai.errors import InputError
from cosmicai.runs.provenance import git_commit
from cosmicai.storage.s3 import is_s3

from . import formatting, published_values
from .audit import audit
from .costs import JobResources, add_costs
from .evidence import Evidence
from .page import write_page
from .sections import build_sections
from .tables import Collection


def gather_evidence(collection: Collection, with_published: bool = True, job: JobResources | None = None) -> Evidence:
    """Return the contents of a report: the runs with their costs and their audit; `job` is that of SLURM runs.

    The published values are added as runs unless `with_published` is false, or the collection has published runs.
    """
    runs = collection.runs
    if with_published and not runs["origin"].eq("published").any():
        runs = pd.concat([runs, published_values.build_published_runs().runs], ignore_index=True)
    found = replace(collection, runs=add_costs(runs, job))
    return Evidence(found, audit(found))


def write_report(evidence: Evidence, out: str, title: str, headings: Mapping[str, str]) -> Path:
    """Write the self-contained page OUT/index.html, the tables as CSV and the figures as SVG and PNG.

    Return the path of index.html. Raises InputError as `require_local_folder`.
    """
    folder = require_local_folder(out)
    formatting.write_csv(str(folder / "ranks.csv"), evidence.collection.ranks)
    now = datetime.now(UTC).isoformat(timespec="seconds")
    commit = formatting.shorten_hashes(git_commit() or "unknown")
    facts = [f"written {now}", f"cosmicai {__version__}", f"commit {commit}"]
    return write_page(folder, title, facts, build_sections(evidence, headings))


def require_local_folder(out: str) -> Path:
    """Return the path of an output folder. Raises InputError if it is on S3 or a file."""
    if is_s3(out) or Path(out).is_file():
        raise InputError(f"{out} is not a local folder; choose another --out")
    return Path(out)
