"""Draw the time that ranks spent in requests to S3: total, mean, least and largest."""

from __future__ import annotations

import numpy as np
import pandas as pd

from ..formatting import count_noun, format_statistic, join_texts
from .style import (
    TICK,
    Drawing,
    add_legend,
    create_figure,
    finish_drawing,
    get_series_style,
    label_axes,
    mark_empty,
    set_logarithmic,
)  # fmt: skip

TITLE = "Time of requests to S3"
MAX_RUNS = 8
MEASURES = {
    "s3_seconds": "total,\nall ranks",
    "s3_max_seconds": "largest\nof a rank",
    "s3_mean_seconds": "mean\nof a rank",
    "s3_min_seconds": "least\nof a rank",
}


def draw_storage_times(runs: pd.DataFrame, name: str = "storage-times") -> Drawing:
    """Draw the seconds of requests to S3 of each run, a series per run and a place per measure of MEASURES.

    `runs` has RUN_COLUMNS and `verdict`; runs that state no such times have no series, nor have incomplete ones, whose
    totals would be too small. Of more than MAX_RUNS runs those with the most ranks are drawn.
    """
    known = runs[runs[[*MEASURES]].notna().all(axis=1)]
    whole = known[known["verdict"].ne("incomplete")]
    shown = whole.sort_values("ranks", ascending=False, kind="stable").head(MAX_RUNS)
    left_out = len(known) - len(whole)
    notes = [
        "Total: all requests of all ranks. Others: the longest, mean and shortest request of a rank, mean over ranks.",
        f"{count_noun(left_out, 'incomplete run')} left out." if left_out else "",
        f"{count_noun(len(whole) - len(shown), 'more run')} not drawn." if len(whole) > len(shown) else "",
    ]
    figure = create_figure()
    axes = figure.add_subplot()
    label_axes(axes, "", "seconds of requests to S3")
    if shown.empty:
        mark_empty(axes, reason := "no run that is not incomplete states the times of its requests to S3")
        return finish_drawing(figure, name, TITLE, f"Nothing is drawn: {reason}.", shown, notes)
    places = np.arange(len(MEASURES))
    captions = []
    for number, run in enumerate(shown.to_dict("records")):
        style, seconds = get_series_style(number), [run[measure] for measure in MEASURES]
        axes.plot(
            places + 0.5 * (number + 1) / (len(shown) + 1) - 0.25, seconds, linestyle="none", marker=style.marker,
            markersize=7, color=style.color, label=_name_run(run),
        )  # fmt: skip
        texts = (
            f"{heading.partition(',')[0].split()[0]} {format_statistic(value, 1)} s"
            for heading, value in zip(MEASURES.values(), seconds, strict=True)
        )
        captions.append(f"{_name_run(run)}: {', '.join(texts)}")
    axes.set_xticks(places, [*MEASURES.values()], fontsize=TICK)
    axes.set_xlim(-0.5, len(MEASURES) - 0.5)
    axes.margins(y=0.1)
    set_logarithmic(axes, "y")
    add_legend(axes, axes.lines)
    return finish_drawing(
        figure, name, TITLE, f"Seconds of requests to S3. {join_texts(captions)}.", shown, notes
    )  # fmt: skip


def _name_run(run: dict[str, object]) -> str:
    """Return the name of a run with its number of ranks, if that is known."""
    return f"{run['run']}" if pd.isna(run["ranks"]) else f"{run['run']} ({run['ranks']:,} ranks)"
