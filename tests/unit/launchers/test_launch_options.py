"""Options of `python -m launch`: which launcher and which run they request."""

from __future__ import annotations

import re
from typing import Any

import click
import pytest
from click.testing import CliRunner

from cosmicai.cli import launch_options
from cosmicai.cli.launch import run as run_command
from cosmicai.errors import InputError
from cosmicai.launchers.base import MAX_LOCAL_RANKS, CloudRequest, LaunchRequest, RankRequest, SlurmRequest
from cosmicai.runs.request import RunRequest

SURVEY = ("sky", "--out", "run", "--weights", "w")
NEEDS_SURVEY = "needs a SURVEY: a folder, an s3:// prefix, a .h5 or .pt file, or `demo` (synthetic galaxies)"


@pytest.fixture
def parse(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Parses the arguments of `launch run`; returns the launcher's name and the request, and the notices."""
    notices: list[str] = []
    monkeypatch.setattr(launch_options, "notify", notices.append)
    monkeypatch.delenv("COSMICAI_IMAGE", raising=False)
    monkeypatch.delenv("AWS_ENDPOINT_URL", raising=False)

    def parse(*arguments: str) -> tuple[str, LaunchRequest, list[str]]:
        notices.clear()
        with run_command.make_context("run", list(arguments)) as context:
            name, request = launch_options.parse_launch_options(context.params)
        return name, request, notices

    return parse


def test_ranks_on_this_machine(parse):
    name, request, notices = parse(*SURVEY, "--procs", "3", "--batch-size", "7", "--resume")
    assert name == "local" and not notices
    run = RunRequest("sky", "run", "w", batch_size=7, device="cpu", resume=True)
    assert request == LaunchRequest(run, RankRequest(procs=3))


def test_every_launcher_has_its_request(parse):
    assert parse(*SURVEY)[:2] == ("local", LaunchRequest(RunRequest("sky", "run", "w")))
    assert parse(*SURVEY, "--mpi", "--gpus", "4", "--nodes", "2")[:2] == (
        "mpi", LaunchRequest(RunRequest("sky", "run", "w", device="cuda"), RankRequest(gpus=4, nodes=2)),
    )  # fmt: skip
    assert parse(*SURVEY, "--slurm", "--gpus", "4", "--array", "8", "--wait")[:2] == (
        "slurm",
        LaunchRequest(RunRequest("sky", "run", "w"), RankRequest(gpus=4), SlurmRequest(tasks=8), wait=True),
    )
    rules = ("--mem-per-cpu", "500", "--qos", "long", "--constraint", "a", "--reservation", "r", "--sbatch", "nice=9")
    assert parse(*SURVEY, "--slurm", *rules, "--sbatch", "exclude=n7")[1].slurm == SlurmRequest(
        mem_per_cpu=500, qos="long", constraint="a", reservation="r", sbatch=("nice=9", "exclude=n7")
    )
    assert parse(*SURVEY, "--cloud", "--memory", "2048", "--detach")[:2] == (
        "aws", LaunchRequest(RunRequest("sky", "run", "w"), cloud=CloudRequest(memory=2048), detach=True),
    )  # fmt: skip


def test_metrics_are_served_by_a_launcher_of_this_machine(parse):
    for launcher in ((), ("--mpi",)):
        assert parse(*SURVEY, *launcher, "--metrics-port", "9100")[1].metrics_port == "9100"
    with pytest.raises(InputError) as raised:
        parse(*SURVEY, "--slurm", "--metrics-port", "9100")
    assert str(raised.value) == (
        "--metrics-port is for ranks that are started here; where SLURM starts them use "
        "`python -m launch status RUN --watch --metrics FILE.prom`"
    )
    with pytest.raises(
        InputError, match=r"^--cloud and --metrics-port contradict each other; on AWS there is one rank"
    ):
        parse(*SURVEY, "--cloud", "--metrics-port", "9100")


def test_every_launcher_gets_the_views_and_what_the_catalogue_says_of_intervals(parse):
    options = ("--views", "8", "--quantiles", "--calibrate-on-spectra")
    run = RunRequest("sky", "run", "w", views=8, quantiles=True, calibrate_on_spectra=True)
    for launcher in ((), ("--mpi",), ("--slurm",), ("--cloud",)):
        assert parse(*SURVEY, *options, *launcher)[1].run == run
    assert parse(*SURVEY, "--views", "1")[1].run == RunRequest("sky", "run", "w", views=1)
    for refused in ("3", "0", "-1", "eight", "8.0"):
        with pytest.raises(click.BadParameter, match=f"^'{refused}' is not one of '1', '8'"):
            parse(*SURVEY, "--views", refused)


@pytest.mark.parametrize("options", [("--procs", "4"), (), ("--slurm",), ("--procs", "2", "--dry-run")])
def test_without_a_survey_the_demo_runs_in_a_new_folder(parse, options):
    folders = set()
    for _ in range(2):
        _, request, notices = parse(*options)
        run = request.run
        assert (run.survey, run.weights, run.resume) == ("demo", "demo", False)
        assert re.fullmatch(r"runs/launch-\d{8}T\d{6}-[0-9a-f]{4}", run.out)
        assert notices == [f"no SURVEY is given: predicting synthetic galaxies with the demo weights, into {run.out}"]
        folders.add(run.out)
    assert len(folders) == 2


def test_gpus_of_the_demo_are_those_of_this_machine(parse, monkeypatch):
    monkeypatch.setattr("cosmicai.launchers.local.resources.count_visible_gpus", lambda: 4)
    name, request, [_] = parse("--gpus", "4")
    assert (name, request.ranks, request.run.device) == ("local", RankRequest(gpus=4), "cuda")
    monkeypatch.setattr("cosmicai.launchers.local.resources.count_visible_gpus", lambda: 0)
    with pytest.raises(
        InputError, match=r"^--gpus 4: this machine shows no GPUs; run on its \d+ CPU cores with --procs N$"
    ):
        parse("--gpus", "4")


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (("--procs", "2", "--out", "x"), f"--out {NEEDS_SURVEY}"),
        (("--weights", "w.safetensors"), f"--weights {NEEDS_SURVEY}"),
        (("--limit-files", "2"), f"--limit-files {NEEDS_SURVEY}"),
        (("--resume",), f"--resume {NEEDS_SURVEY}"),
        (("--cloud",), f"--cloud {NEEDS_SURVEY}"),
        (("sky", "--procs", "2"), "--out is missing; name the run folder: a new local folder or s3:// prefix"),
        (("demo",), "--out is missing; name the run folder: a new local folder or s3:// prefix"),
    ],
)
def test_half_of_a_run_is_one_sentence(parse, arguments, sentence):
    with pytest.raises(InputError) as raised:
        parse(*arguments)
    assert str(raised.value) == sentence


@pytest.mark.parametrize("options", [(), ("--procs", "2"), ("--slurm",), ("--cloud",), ("--procs", "2", "--resume")])
def test_weights_are_required_for_galaxies_of_a_user(parse, options):
    with pytest.raises(click.UsageError, match="--weights is missing; name the weights file, since `--weights demo`"):
        parse("sky", "--out", "run", *options)
    assert parse("demo", "--out", "run", *options)[1].run.weights == "demo"
    assert parse("sky", "--out", "run", "--weights", "demo", *options)[1].run.weights == "demo"


def test_the_notice_comes_before_anything_else(monkeypatch):
    class Started(Exception):
        """The run would start."""

    def start(name: str) -> None:
        raise Started

    monkeypatch.setattr("cosmicai.launchers.registry.launcher_by_name", start)
    group = click.Group(commands={"run": run_command})
    result = CliRunner().invoke(group, ["run", "--procs", "4"])
    assert isinstance(result.exception, Started)
    assert result.output.startswith(
        "no SURVEY is given: predicting synthetic galaxies with the demo weights, into runs/"
    )


def test_more_ranks_than_a_node_can_start_are_refused() -> None:
    assert RankRequest(procs=MAX_LOCAL_RANKS).per_node == MAX_LOCAL_RANKS == 4096
    assert RankRequest(procs=2 * MAX_LOCAL_RANKS, nodes=2).per_node == MAX_LOCAL_RANKS
    with pytest.raises(InputError, match="4097 ranks on one node are requested; expected at most 4096"):
        _ = RankRequest(procs=MAX_LOCAL_RANKS + 1).per_node
