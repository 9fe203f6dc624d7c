"""What a user requests of a run, on whatever machines it will be done."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class RunRequest:
    """A survey to predict, with what, and where the results go.

    `survey` and `out` are addresses as the user wrote them; the survey `demo` is a synthetic one in the run folder.
    What is None, and the engine `auto`, is chosen where the run starts. `limit_files` keeps the first shards only.
    With `resume` the run that is in `out` already is finished. With `strict` a survey that does not look right is
    refused.
    """

    survey: str
    out: str
    weights: str
    engine: str = "auto"
    precision: str | None = None
    device: str | None = None
    batch_size: int | None = None
    limit_files: int | None = None
    accept_precision_loss: bool = False
    resume: bool = False
    strict: bool = False
