"""Test the audit: each check on small artificial runs, with and without the defect, and the published data."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from analysis.audit import CHECKS, Audit, audit, tabulate_audit
from analysis.collect import collect
from analysis.findings import Finding, Severity
from analysis.tables import GALAXY_BYTES, GB, RANK_COLUMNS, RUN_COLUMNS, Collection, LeftOut, make_table

NOON = datetime(2026, 1, 1, 12, tzinfo=UTC)
PUBLISHED = {
    "run": "p", "source": "/data/p/combined_data.json", "origin": "published", "kind": "combined",
    "study": "data size", "platform": "lambda", "device": "cpu", "precision": "float32",
}  # fmt: skip
OURS = {
    "run": "o", "source": "/data/o", "origin": "ours", "kind": "run", "study": "single", "platform": "laptop",
    "device": "cpu", "precision": "float32", "asked_galaxies": 1000, "galaxies": 1000, "duplicate": 0, "complete": True,
}  # fmt: skip


def collection(
    *runs: dict[str, Any], ranks: list[dict[str, Any]] | None = None, left_out: tuple[LeftOut, ...] = ()
) -> Collection:
    return Collection(make_table(runs, RUN_COLUMNS), make_table(ranks or [], RANK_COLUMNS), left_out)


def list_findings(audited: Audit) -> list[tuple[str, str, str, str]]:
    return [(one.run, one.severity.value, one.check, one.text) for one in audited.findings]


def only(audited: Audit, name: str = "p") -> tuple[str, str, str, str]:
    """Return the verdict of the run, and the only finding: severity, check, text."""
    [(run, severity, check, text)] = list_findings(audited)
    assert run == name
    return audited.verdicts[name], severity, check, text


def test_no_runs_have_no_findings():
    audited = audit(collection())
    assert audited.findings == () and len(audited.verdicts) == 0 and len(tabulate_audit(collection(), audited)) == 0


@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.__name__)
def test_no_check_finds_anything_in_whole_runs_or_empty_columns(check):
    whole = collection(
        OURS | {"wall_seconds": 30.0, "working_seconds": 29.0},
        PUBLISHED | {"data_gb": 1.0, "partition_mb": 100.0, "ranks": 11, "asked_ranks": 11, "galaxies": 56_243},
        {"run": "empty"},
        ranks=[
            {"run": "o", "rank": 0, "attempt": 1, "state": "finished", "item": "/survey", "started_at": NOON,
             "ended_at": NOON + timedelta(seconds=30), "galaxies": 500, "batches": 5, "batch_size": 128,
             "load_seconds": 1.0, "read_seconds": 2.0, "predict_seconds": 26.0, "write_seconds": 1.0, "seconds": 29.0,
             "cpu_seconds": 50.0, "galaxies_per_second": 17.2},
            {"run": "o", "rank": 1, "attempt": 1, "state": "finished", "item": "/survey", "galaxies": 500,
             "batches": 4, "batch_size": 128},
            *({"run": "p", "rank": rank, "item": f"{rank}.pt", "galaxies": 5113, "batches": 10, "batch_size": 512}
              for rank in range(11)),
            {"run": "empty", "rank": 0},
        ],
    )  # fmt: skip
    assert list(check(whole)) == []
    assert list(audit(whole).verdicts) == ["whole", "whole", "unknown"]


@pytest.mark.parametrize(
    ("ranks", "planned", "expected"),
    [
        (328, 328, None),
        (8, 328, ("incomplete", "loss", "ranks", "8 of 328 ranks are there")),
        (321, 328, ("incomplete", "loss", "ranks", "321 of 328 ranks are there")),
        (329, 328, ("doubtful", "doubt", "ranks", "329 ranks are there, where 328 are expected")),
        (
            320,
            328,
            ("doubtful", "doubt", "ranks", "320 of 328 ranks are there, which are 8 GB only if a GB is 1000 MB"),
        ),
        (8, None, None),
        (None, 328, None),
    ],
)
def test_ranks_are_compared_with_the_planned_ones(ranks, planned, expected):
    run = PUBLISHED | {"data_gb": 8.0, "partition_mb": 25.0, "ranks": ranks, "asked_ranks": planned}
    audited = audit(collection(run))
    if expected is None:
        assert audited.findings == ()
        assert audited.verdicts["p"] == ("unknown" if ranks is None or planned is None else "whole")
    else:
        assert only(audited) == expected


PARTITION = round(100 * 2**20 / GALAXY_BYTES)  # 5,110 galaxies
DECIMAL, NOMINAL, BINARY = (round(10 * gb / GALAXY_BYTES) for gb in (10**9, 1000 * 2**20, GB))


@pytest.mark.parametrize(
    ("galaxies", "verdict"),
    [
        (BINARY + PARTITION - 5, "whole"),
        (BINARY + PARTITION + 5, "doubtful"),
        (NOMINAL - PARTITION + 5, "whole"),
        (NOMINAL - PARTITION - 5, "doubtful"),
        (DECIMAL - PARTITION + 5, "doubtful"),
        (DECIMAL - PARTITION - 5, "incomplete"),
        (None, "unknown"),
    ],
)
def test_galaxies_are_compared_with_the_data_size(galaxies, verdict):
    run = PUBLISHED | {"data_gb": 10.0, "partition_mb": 100.0, "galaxies": galaxies}
    audited = audit(collection(run))
    assert audited.verdicts["p"] == verdict
    assert [one.check for one in audited.findings] == ["galaxies"] * (verdict in ("doubtful", "incomplete"))


def test_the_texts_about_galaxies_contain_the_numbers():
    run = PUBLISHED | {"data_gb": 10.0, "partition_mb": 100.0}
    short, shorter, more = (audit(collection(run | {"galaxies": count})) for count in (490_000, 480_000, 530_000))
    assert (
        only(short)[3] == "490,000 galaxies are there, where 10 GB are about 523,266, or 487,329 if a GB is 10^9 bytes"
    )
    assert only(more)[3] == "530,000 galaxies are there, more than 10 GB hold: about 523,266"
    assert only(shorter)[3] == "480,000 galaxies are there, where 10 GB are about 523,266"


def test_without_a_partition_each_gb_may_end_with_a_whole_batch():
    run = PUBLISHED | {"kind": "endless", "data_gb": 1024.0, "batch_size": 512}
    of_batches = 1024 * 103 * 512  # as published: 52,326.6 galaxies are 103 batches
    assert audit(collection(run | {"galaxies": of_batches})).verdicts["p"] == "whole"
    assert audit(collection(run | {"galaxies": of_batches + 110_000})).verdicts["p"] == "doubtful"


def test_own_runs_are_compared_with_their_plan_and_not_with_a_data_size():
    run = OURS | {"data_gb": 10.0, "partition_mb": 100.0, "galaxies": 1, "asked_galaxies": 509_000}
    assert [one.check for one in audit(collection(run)).findings] == ["plan coverage"]


@pytest.mark.parametrize(
    ("galaxies", "expected"),
    [
        (659_857, None),
        (659_817, ("whole", "remark", "total", "659,817 galaxies are there, 40 fewer than the 659,857 of the paper, "
                   "as in every whole run")),
        (659_816, ("incomplete", "loss", "total", "659,816 galaxies are there, where the paper states 659,857")),
        (659_858, ("doubtful", "doubt", "total", "659,858 galaxies are there, where the paper states 659,857")),
    ],
)  # fmt: skip
def test_the_total_data_set_is_compared_exactly(galaxies, expected):
    run = PUBLISHED | {"data_gb": 12.6, "partition_mb": 100.0, "ranks": 130, "galaxies": galaxies}
    audited = audit(collection(run))
    if expected is None:
        assert audited.findings == () and audited.verdicts["p"] == "whole"
    else:
        assert only(audited) == expected


@pytest.mark.parametrize(("partition", "files"), [(25.0, 517), (50.0, 259), (75.0, 173), (100.0, 130)])
def test_the_number_of_files_of_the_total_data_set(partition, files):
    run = PUBLISHED | {"data_gb": 12.6, "partition_mb": partition}
    assert audit(collection(run | {"ranks": files})).findings == ()
    assert only(audit(collection(run | {"ranks": files - 1})))[3] == f"{files - 1} of {files} ranks are there"
    assert audit(collection(run | {"ranks": 5, "origin": "ours"})).findings == ()  # 12.6 GB of anything


@pytest.mark.parametrize(
    ("run", "severity", "text"),
    [
        ({"data_gb": 256.0, "partition_mb": 100.0}, "loss", "where about 2,622 are expected"),
        ({"asked_ranks": 1024}, "loss", "where about 1,024 are expected"),
        ({}, "doubt", "the expected number is not known"),
        ({"data_gb": 256.0, "partition_mb": 100.0, "ranks": 999}, None, None),
        ({"data_gb": 100.0, "partition_mb": 100.0}, None, None),  # 1,000 files if a GB is 1000 MB
        ({"asked_ranks": 1000}, None, None),
        ({"data_gb": 256.0, "partition_mb": 100.0, "origin": "ours"}, None, None),
    ],
)
def test_exactly_one_page_of_ranks_is_a_page_limit(run, severity, text):
    audited = audit(collection(PUBLISHED | {"ranks": 1000} | run))
    pages = [one for one in audited.findings if one.check == "page limit"]
    assert [one.severity.value for one in pages] == [severity] * (severity is not None)
    assert all(text in one.text and one.text.startswith("exactly 1,000 ranks") for one in pages)


@pytest.mark.parametrize(
    ("run", "severity"),
    [
        ({"data_gb": 100.0}, "remark"),
        ({"data_gb": 10.0}, "doubt"),
        ({"asked_ranks": 3}, "loss"),
        ({"asked_ranks": 2}, "doubt"),
        ({}, "doubt"),
    ],
)
def test_files_that_several_ranks_read(run, severity):
    items = ["1.pt", "2.pt", "1.pt", None]
    ranks = [{"run": "p", "rank": rank, "item": item} for rank, item in enumerate(items)]
    audited = audit(collection(PUBLISHED | run, ranks=ranks))
    text = "3 ranks read 2 files, so that galaxies count more than once"
    assert list_findings(audited) == [("p", severity, "repeated files", text)]
    assert audit(collection(PUBLISHED | run | {"origin": "ours"}, ranks=ranks)).findings == ()  # the survey
    assert audit(collection(PUBLISHED | run, ranks=ranks[:2])).findings == ()


def test_an_own_run_without_all_galaxies_states_whether_ranks_may_still_be_running():
    short = OURS | {"galaxies": 600, "complete": False}
    ended = [
        {"run": "o", "rank": 0, "attempt": 1, "state": "running"},  # killed, since there is a second attempt
        {"run": "o", "rank": 0, "attempt": 2, "state": "finished"},
        {"run": "o", "rank": 1, "attempt": 1, "state": "finished"},
    ]
    running = [*ended, {"run": "o", "rank": 2, "attempt": 1, "state": "running"}]
    for ranks, why in (
        ([], "no rank has started"),
        (ended, "all its ranks have ended"),
        (running, "1 of 3 ranks have not ended: they are still running, or were killed"),
    ):
        expected = ("incomplete", "loss", "plan coverage", f"600 of 1,000 galaxies are there; {why}")
        assert only(audit(collection(short, ranks=ranks)), "o") == expected


def test_an_own_run_with_all_galaxies_may_hold_duplicates_or_be_incomplete():
    twice = audit(collection(OURS | {"duplicate": 12, "complete": False}))
    assert only(twice, "o") == ("incomplete", "loss", "plan coverage", "12 galaxies are there more than once")
    unexplained = audit(collection(OURS | {"complete": False}))
    text = "its summary does not report it as complete"
    assert only(unexplained, "o") == ("incomplete", "loss", "plan coverage", text)


@pytest.mark.parametrize(("number", "subject"), [(1, "1 id is"), (1234, "1,234 ids are")])
def test_ids_that_several_rows_of_a_catalogue_have_are_doubtful(number, subject):
    text = f"{subject} in its catalogue more than once, so that galaxies may count twice"
    audited = audit(collection(OURS | {"duplicate_objid": number}))
    assert only(audited, "o") == ("doubtful", "doubt", "duplicate ids", text)
    assert audit(collection(OURS | {"duplicate_objid": 0})).findings == ()


def test_mixed_batch_sizes():
    sizes = [265, 512, 265, 265, None]
    ranks = [{"run": "p", "rank": rank, "batch_size": size} for rank, size in enumerate(sizes)]
    audited = audit(collection(PUBLISHED | {"data_gb": 1.0}, ranks=ranks))
    text = "its ranks have batches of different sizes: 3 of 265, 1 of 512 galaxies"
    assert only(audited) == ("doubtful", "doubt", "mixed batch sizes", text)


@pytest.mark.parametrize(
    ("batch_size", "galaxies", "origin", "needed"),
    [
        (1, 1253, "published", "1,253"),
        (128, 1253, "published", "10"),
        (16, 1253, "published", None),
        (16, 1249, "published", None),
        (16, 1248, "published", "78"),
        (128, 1253, "ours", None),  # an own run may end each item with a batch that is not full
        (15, 1253, "ours", "84"),
    ],
)
def test_batches_must_hold_the_galaxies(batch_size, galaxies, origin, needed):
    ranks = [
        {"run": "p", "rank": 0, "batches": 79, "batch_size": batch_size, "galaxies": galaxies},
        {"run": "p", "rank": 1, "batches": 79, "batch_size": batch_size, "galaxies": 79 * batch_size},
    ]
    audited = audit(collection(PUBLISHED | {"origin": origin}, ranks=ranks))
    text = f"{galaxies:,} galaxies in batches of {batch_size} are {needed} batches, not 79 (1 of its ranks)"
    assert list_findings(audited) == ([("p", "doubt", "batches", text)] if needed else [])


def test_the_only_rank_of_a_run_has_its_galaxies():
    rank = {"run": "p", "rank": 0, "batches": 79, "batch_size": 128}
    run = PUBLISHED | {"galaxies": 1253, "ranks": 1}
    text = "1,253 galaxies in batches of 128 are 10 batches, not 79 (1 of its ranks)"
    assert only(audit(collection(run, ranks=[rank])))[3] == text
    assert audit(collection(run | {"ranks": 2}, ranks=[rank, rank])).findings == ()


def test_repeats_with_different_numbers_of_galaxies():
    def repeats(**changes: Any) -> Collection:
        pairs = [(2, 408_960, 320), (1, 408_960, 320), (3, 419_184, 328)]
        runs = [
            PUBLISHED | {"run": f"8GB/{repeat}", "repeat": repeat, "galaxies": galaxies, "ranks": ranks} | changes
            for repeat, galaxies, ranks in pairs
        ]
        return collection(*runs)

    text = "repeats hold different numbers of galaxies: 408,960 in repeat 1, 408,960 in repeat 2, 419,184 in repeat 3"
    assert list_findings(audit(repeats())) == [(f"8GB/{repeat}", "doubt", "repeats", text) for repeat in (2, 1, 3)]
    with_files = list_findings(audit(repeats(asked_ranks=328, data_gb=8.0, partition_mb=25.0)))
    assert {run for run, *_ in with_files} == {"8GB/1", "8GB/2"}  # the third has all planned ranks
    assert audit(repeats(galaxies=408_960)).findings == ()
    assert audit(repeats(repeat=None)).findings == ()
    assert [one.check for one in audit(repeats(galaxies=659_817, data_gb=12.6)).findings] == ["total"] * 3


def test_repeats_are_of_the_same_settings():
    runs = [PUBLISHED | {"run": f"{size}", "repeat": 1, "galaxies": size, "batch_size": size} for size in (32, 64)]  # type: ignore[misc]
    assert audit(collection(*runs)).findings == ()


def test_records_that_were_left_out_belong_to_the_run_of_their_file():
    left = (
        LeftOut("/data/p/combined_data.json", "it has no `num_batches`", "record 3"),
        LeftOut("/data/p/combined_data.json", "it has no `num_batches`", "record 7"),
        LeftOut("/data/o/plan.json", "field state is missing", "record 1-2"),
        LeftOut("/data/other.json", "it is not JSON"),
        LeftOut("/data/table.csv", "its `run` is 'x'", "row 2"),
    )
    table_rows = [PUBLISHED | {"run": name, "kind": "durations", "source": "/data/table.csv"} for name in ("a", "b")]
    assert list_findings(audit(collection(PUBLISHED, OURS, *table_rows, left_out=left))) == [
        ("p", "doubt", "left out", "left out: record 3 and 1 more: it has no `num_batches`"),
        ("o", "doubt", "left out", "left out: record 1-2: field state is missing"),
    ]
    logs = [PUBLISHED | {"run": name, "kind": "log", "source": "/data/other.json"} for name in ("a", "b")]
    assert audit(collection(*logs, left_out=left)).findings == ()  # the run is not known
    # A row that was left out of a table with one other row may belong to another run.
    assert audit(collection(table_rows[0], left_out=left)).findings == ()


def span(run: str, rank: int, seconds: float, predict: float) -> dict[str, Any]:
    ended = NOON + timedelta(seconds=seconds)
    return {"run": run, "rank": rank, "started_at": NOON, "ended_at": ended, "predict_seconds": predict,
            "start_seconds": 100.0, "state": "finished"}  # fmt: skip


def test_contradictory_clocks():
    ranks = [span("o", 0, 100.0, 101.9), span("o", 1, 100.0, 102.1), span("o", 2, -0.5, 0.0), span("o", 3, 10.0, 12.0)]
    assert list_findings(audit(collection(OURS, ranks=ranks))) == [
        ("o", "doubt", "clock", "1 rank ended before they started, first rank 2"),
        ("o", "doubt", "clock", "2 ranks worked longer than they existed, first rank 1: 102.1 s of 100.0 s"),
    ]


def test_a_run_is_not_shorter_than_its_ranks():
    timed = OURS | {"wall_seconds": 100.0, "working_seconds": 101.0, "slowest_seconds": 101.9}
    assert audit(collection(timed)).findings == ()
    text = "its slowest rank worked for 103.0 s, longer than the whole run took: 100.0 s"
    assert only(audit(collection(timed | {"slowest_seconds": 103.0})), "o") == ("doubtful", "doubt", "clock", text)
    text = "its ranks worked for 102.5 s, longer than the whole run took: 100.0 s"
    assert only(audit(collection(timed | {"working_seconds": 102.5})), "o")[3] == text


def test_a_rate_over_cpu_time_is_doubtful_if_the_wall_clock_time_differs():
    run = PUBLISHED | {"galaxies": 1253, "cpu_seconds": 112.79, "wall_seconds": 923.5, "ranks": 1,
                       "summed_galaxies_per_second": 11.109, "galaxies_per_second": 1253 / 923.5}  # fmt: skip
    text = "its rate is over 112.8 s of CPU time, where its wall-clock time is 923.5 s"
    assert list_findings(audit(collection(run))) == [("p", "doubt", "CPU time", text)]
    for honest in ({"wall_seconds": 120.0}, {"summed_galaxies_per_second": 1253 / 923.5}, {"ranks": 2}):
        assert audit(collection(run | honest)).findings == ()


def test_ranks_without_wall_clock_time_are_reported_once():
    runs = [PUBLISHED | {"run": name} for name in ("a", "b", "c")]
    ranks = [{"run": name, "rank": rank, "cpu_seconds": 5.0} for name in ("a", "b", "c") for rank in (0, 1)]
    audited = audit(collection(*runs, ranks=[*ranks[:4], *(rank | {"seconds": 5.0} for rank in ranks[4:])]))
    text = "in 2 of 3 runs with records the ranks have no wall-clock time: their rates are galaxies over CPU time"
    assert list_findings(audited) == [("", "remark", "CPU time", text)]
    assert list(audited.verdicts) == ["unknown"] * 3


def test_a_stated_rate_is_compared_with_the_fastest_such_run_with_a_wall_clock_time():
    galaxies = 1024 * GB / GALAXY_BYTES
    arrays = [
        PUBLISHED | {"run": f"array/{wall}", "kind": "array", "platform": "slurm", "data_gb": 1024.0,
                     "wall_seconds": wall} for wall in (1500.0, 1353.0)
    ]  # fmt: skip
    stated = PUBLISHED | {"kind": "statistics", "platform": "slurm", "data_gb": 1024.0}
    stated |= {"summed_galaxies_per_second": 2_036_431.0}
    text = "2,036,431 galaxies/s are stated, where the fastest such run with a wall-clock time reached 39,603: "
    text += "array/1353.0"
    assert only(audit(collection(*arrays, stated))) == ("doubtful", "doubt", "rate", text)
    possible = {"summed_galaxies_per_second": 9.9 * galaxies / 1353}
    for other in (possible, {"data_gb": 1000.0}, {"platform": "lambda"}, {"device": "cuda"}):
        assert audit(collection(*arrays, stated | other)).findings == ()
    # The rates of ranks that worked at once may add up to more than that of the whole run with its start-up.
    assert audit(collection(*arrays, stated, ranks=[{"run": "p", "rank": 0}])).findings == ()


@pytest.mark.parametrize(
    ("run", "rate", "most"),
    [
        ({}, 3460.0, "3,459"),  # 3 cores * 256 GFLOP/s / 0.222 GFLOP
        ({}, 3450.0, None),
        ({"platform": "slurm"}, 450_000.0, "442,811"),
        ({"platform": "slurm"}, 440_000.0, None),
        ({"device": "cuda"}, 10_000.0, None),
        ({"precision": "bfloat16"}, 10_000.0, None),
    ],
)
def test_no_rank_on_a_cpu_is_faster_than_its_arithmetic(run, rate, most):
    ranks = [
        {"run": "p", "rank": 4, "galaxies_per_second": rate},
        {"run": "p", "rank": 5, "galaxies_per_second": 200.0},
    ]
    audited = audit(collection(PUBLISHED | run, ranks=ranks))
    text = (
        f"rank 4 states {rate:,.0f} galaxies/s, where 0.222 GFLOP per galaxy allow any such CPU at most {most} "
        "(1 of its ranks)"
    )
    assert list_findings(audited) == ([("p", "doubt", "rate", text)] if most else [])


def test_the_worst_finding_decides_and_unknown_runs_are_usable():
    worst = PUBLISHED | {"run": "lossy", "ranks": 5, "asked_ranks": 10, "source": "s"}
    runs = (worst, OURS, PUBLISHED)
    batches = [{"run": "lossy", "rank": rank, "batch_size": size} for rank, size in enumerate((32, 64))]
    found_all = collection(*runs, ranks=batches)
    audited = audit(found_all)
    assert audited.verdicts.to_dict() == {"lossy": "incomplete", "o": "whole", "p": "unknown"}
    assert list(audited.usable(found_all.runs)["run"]) == ["o", "p"]
    text = "5 of 10 ranks are there; its ranks have batches of different sizes: 1 of 32, 1 of 64 galaxies"
    shown = tabulate_audit(found_all, audited)
    assert list(shown) == ["run", "kind", "ranks", "asked_ranks", "galaxies", "verdict", "findings"]
    assert list(shown["findings"].fillna("")) == [text, "", ""]
    assert list(shown["verdict"]) == ["incomplete", "whole", "unknown"]
    assert audited.findings[0] == Finding("lossy", Severity.LOSS, "ranks", "5 of 10 ranks are there")


@pytest.fixture(scope="module")
def published(shared: Path) -> tuple[Collection, Audit]:
    everything = collect([str(shared / "published")])
    return everything, audit(everything)


def findings_of(audited: Audit, run: str) -> dict[str, tuple[str, str]]:
    return {one.check: (one.severity.value, one.text) for one in audited.findings if one.run == run}


@pytest.mark.parametrize(
    ("run", "verdict", "expected"),
    [
        ("total/1", "incomplete", {
            "ranks": ("loss", "122 of 130 ranks are there"),
            "total": ("loss", "618,913 galaxies are there, where the paper states 659,857"),
        }),
        ("total/2", "incomplete", {
            "ranks": ("loss", "8 of 130 ranks are there"),
            "total": ("loss", "40,904 galaxies are there, where the paper states 659,857"),
        }),
        ("total/3", "whole", {
            "total": ("remark", "659,817 galaxies are there, 40 fewer than the 659,857 of the paper, as in every "
                      "whole run"),
        }),
        ("total100GB/1", "doubtful", {
            "galaxies": ("doubt", "4,987,095 galaxies are there, where 100 GB are about 5,232,660, "
                         "or 4,873,294 if a GB is 10^9 bytes"),
            "repeated files": ("remark", "983 ranks read 130 files, so that galaxies count more than once"),
        }),
        *(
            (f"total{size}GB/1", "incomplete", {
                "galaxies": ("loss", f"{galaxies} galaxies are there, where {size} GB are about {claim}"),
                "page limit": ("loss", "exactly 1,000 ranks are there, as many as S3 lists at once, "
                               f"where about {files} are expected"),
                "repeated files": ("remark", "1,000 ranks read 130 files, so that galaxies count more than once"),
            })
            for size, galaxies, claim, files in (
                (256, "5,074,016", "13,395,610", "2,622"),
                (512, "5,074,016", "26,791,219", "5,243"),
                (768, "5,074,016", "40,186,829", "7,865"),
                (1000, "5,078,889", "52,326,600", "10,240"),
            )
        ),
    ],
)  # fmt: skip
def test_the_published_cases_of_100_mb(published, run, verdict, expected):
    _, audited = published
    name = f"lambda/partition-100MB/{run}"
    assert (audited.verdicts[name], findings_of(audited, name)) == (verdict, expected)


def test_the_published_cases_of_25_mb(published):
    _, audited = published
    of_tree = {run: verdict for run, verdict in audited.verdicts.items() if "/partition-25MB/" in run}
    doubtful = {run.removeprefix("lambda/partition-25MB/") for run, verdict in of_tree.items() if verdict == "doubtful"}
    assert doubtful == {
        "1GB/3", "8GB/1", "8GB/2", *(f"{size}GB/{repeat}" for size in (2, 4, 6, 10) for repeat in (1, 2, 3))
    }  # fmt: skip
    assert set(of_tree.values()) == {"doubtful", "whole"}
    assert findings_of(audited, "lambda/partition-25MB/8GB/2") == {
        "ranks": ("doubt", "320 of 328 ranks are there, which are 8 GB only if a GB is 1000 MB"),
        "repeats": ("doubt", "repeats hold different numbers of galaxies: 408,960 in repeat 1, 408,960 in repeat 2, "
                    "419,184 in repeat 3"),
    }  # fmt: skip
    assert findings_of(audited, "lambda/partition-25MB/8GB/3") == {}
    assert {findings_of(audited, f"lambda/partition-25MB/total/{repeat}")["total"][0] for repeat in (1, 2, 3)} == {
        "remark"
    }


def test_the_verdicts_on_all_published_records_of_lambda(published):
    found_all, audited = published
    shown = tabulate_audit(found_all, audited)
    trees = shown[shown["run"].str.contains("/partition-")]
    counts = trees["verdict"].value_counts().to_dict()
    assert counts == {"whole": 85, "doubtful": 16, "incomplete": 6}
    losses = audited.usable(found_all.runs)["run"]
    assert len(set(trees["run"]) - set(losses)) == 6


def test_without_the_table_of_files_only_the_repeats_show_the_contradiction(shared):
    audited = audit(collect([str(shared / "published" / "lambda" / "partition-25MB" / "8GB")]))
    assert audited.verdicts.to_dict() == {"1": "doubtful", "2": "doubtful", "3": "doubtful"}


def test_the_published_cases_of_rivanna_and_laptop(published):
    _, audited = published
    course = findings_of(audited, "rivanna/course_25MB_8GB_batch256")
    text = "its ranks have batches of different sizes: 327 of 265, 1 of 512 galaxies"
    assert course == {"mixed batch sizes": ("doubt", text)}
    text = "2,036,431 galaxies/s are stated, where the fastest such run with a wall-clock time reached 39,603: "
    text += "rivanna/slurm_array_total_execution_time/100MB/1024GB/world-256/2"
    assert findings_of(audited, "rivanna/slurm_mpi_style_result_stats/1024GB/3") == {"rate": ("doubt", text)}
    series = "laptop/batch_series/results_series_2_batch_{}_Results"
    assert findings_of(audited, series.format(1)) == {
        "batches": ("doubt", "1,253 galaxies in batches of 1 are 1,253 batches, not 79 (1 of its ranks)"),
        "CPU time": ("doubt", "its rate is over 112.8 s of CPU time, where its wall-clock time is 923.5 s"),
    }
    checks = {size: sorted(findings_of(audited, series.format(size))) for size in (1, 2, 4, 8, 16, 32, 64, 128)}
    # 79 batches are those of 16 in 1,253 galaxies.
    assert checks == {size: ["CPU time"] if size == 16 else ["CPU time", "batches"] for size in checks}
    assert {audited.verdicts[f"rivanna/gpu_infinite_1TB@{size}GB"] for size in (1, 100, 1024)} == {"whole"}


def test_published_records_on_lambda_have_no_wall_clock_seconds(published):
    found_all, audited = published
    [remark] = [one for one in audited.findings if not one.run]
    of_records = found_all.ranks["run"].isin(found_all.runs.loc[found_all.runs["kind"] == "combined", "run"])
    assert found_all.ranks.loc[of_records, "seconds"].isna().all()
    untimed = found_all.ranks.loc[found_all.ranks["seconds"].isna() & found_all.ranks["cpu_seconds"].notna(), "run"]
    assert remark.text.startswith(f"in {untimed.nunique()} of {found_all.ranks['run'].nunique()} runs with records")
    assert untimed.nunique() >= 117
