"""Kinds of GPUs: what sbatch gets for each at the University of Virginia, and which are chosen."""

from __future__ import annotations

from typing import Any

import pytest

from cosmicai.errors import InputError
from cosmicai.launchers.base import RankRequest, SlurmRequest
from cosmicai.launchers.slurm import submit
from cosmicai.launchers.slurm.allocation import SlurmAllocation, resolve_resources
from cosmicai.launchers.slurm.submit import requested_options, sbatch_texts
from cosmicai.runs.store import RunFolder

# A job on one GPU of each kind by the site's public pages of May 2026, as they were reported; not read here.
PUBLISHED = {
    "mig": ("gpu-mig", "gpu:1g.24gb:1", None),
    "mig_rtxpro6000": ("gpu-mig", "gpu:1", "rtxpro6000"),
    "mig_a100": ("gpu-mig", "gpu:1g.10gb:1", None),
    "v100": ("gpu", "gpu:v100:1", None),
    "a40": ("gpu", "gpu:a40:1", None),
    "a6000": ("gpu", "gpu:a6000:1", None),
    "a100": ("gpu", "gpu:a100:1", None),
    "a100_80gb": ("gpu", "gpu:a100:1", "a100_80gb"),
    "pod": ("gpu", "gpu:a100:1", "gpupod"),
    "rtx2080": ("interactive", "gpu:rtx2080:1", None),
    "rtx3090": ("interactive", "gpu:rtx3090:1", None),
}


def allocate(*, gpus: int | None = 1, nodes: int = 1, **slurm: Any) -> SlurmAllocation:
    request = SlurmRequest(**{"site": "rivanna", "account": "stars"} | slurm)
    return resolve_resources(RankRequest(gpus=gpus, nodes=nodes), request, {"USER": "mst3k"})


def refusal(**request: Any) -> str:
    with pytest.raises(InputError) as raised:
        allocate(**request)
    return str(raised.value)


@pytest.fixture
def texts(tmp_path, monkeypatch):
    """Return the options that sbatch would get for each array of an allocation."""
    (tmp_path / "srun").write_text("#!/bin/sh\n")
    (tmp_path / "srun").chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")

    def read(allocation: SlurmAllocation) -> list[list[str]]:
        run = RunFolder(str(tmp_path / "run"))
        return [requested_options(text) for text in sbatch_texts(run, SlurmRequest(), allocation)]

    return read


@pytest.mark.parametrize("kind", PUBLISHED)
def test_what_sbatch_gets_for_each_kind_is_what_is_reported_of_the_site(texts, kind):
    partition, gres, constraint = PUBLISHED[kind]
    (options,) = texts(allocate(gpu_kind=kind))
    assert {f"--partition={partition}", f"--gres={gres}", "--account=stars", "--nodes=1"} <= set(options)
    assert [option for option in options if "constraint" in option] == [f"--constraint={constraint}"] * bool(constraint)


def test_an_array_on_slices_is_one_slice_a_job_and_no_more_jobs_at_a_time_than_a_user_may_have(texts):
    allocation = allocate(gpu_kind="mig", tasks=64)
    (options,) = texts(allocation)
    assert {"--array=0-63%14", "--cpus-per-task=2", "--mem=6500M", "--ntasks-per-node=1"} <= set(options)
    assert (allocation.service_units_per_hour, allocation.ranks, allocation.gpus) == (0.0, 64, 64)
    (options,) = texts(allocate(gpu_kind="mig", tasks=3))
    assert "--array=0-2%3" in options


def test_the_cheapest_kind_that_takes_the_job_is_the_default():
    assert allocate(tasks=4).kinds == ("mig",)
    assert allocate(gpu_kind="cheapest").kinds == ("mig",)
    assert allocate(gpus=4).kinds == ("v100",)  # a node has 4
    assert allocate(gpus=8).kinds == ("a6000",)
    assert allocate(gpus=8, nodes=2, cores=8).kinds == ("v100",)
    assert allocate(cores=8).kinds == ("v100",)  # more than come with a slice
    assert allocate(partition="interactive").kinds == ("rtx2080",)
    assert allocate(gpus=2, partition="interactive", cores=12).kinds == ("rtx2080",)
    assert allocate(gpus=None).kinds == ()


def test_the_choice_is_said_with_its_charge():
    assert allocate().notices == (
        "GPUs of kind mig are the cheapest of rivanna that take the job: 0.00 service units an hour for all jobs",
    )
    # 4 V100s at 2.096, 16 cores at 0.058 and 24,500 MB at 0.005 a GB
    units = 4 * 2.096 + 16 * 0.058 + 24500 / 1024 * 0.005
    assert allocate(gpus=4).service_units_per_hour == pytest.approx(units)
    assert allocate(gpus=4).notices[0].endswith(f": {units:.2f} service units an hour for all jobs")
    assert allocate(gpu_kind="mig").notices == ()
    assert resolve_resources(RankRequest(gpus=1), SlurmRequest(site="local", gpu_kind="a100"), {}).notices == ()


def test_jobs_that_may_be_ended_for_an_idle_gpu_are_said():
    warning = (
        "rivanna ends jobs that leave a GPU idle for 3 hours; a shorter --time is safe, since work that is left is "
        "requeued"
    )
    assert allocate(gpu_kind="mig", time="2:59:00").notices == ()
    assert allocate(gpu_kind="mig", time="2:59:01").notices == (warning,)
    assert allocate(gpus=None, time="10:00:00").notices == ()


def test_several_kinds_get_an_array_each_that_share_the_work(texts, tmp_path):
    allocation = allocate(gpu_kind="v100,a6000,mig", tasks=20)
    assert (allocation.kinds, allocation.ranks, allocation.gpus) == (("v100", "a6000", "mig"), 60, 60)
    assert allocation.cores == 20 * (4 + 4 + 2)
    found = [
        [option for option in options if option.startswith(("--array", "--gres", "--partition"))]
        for options in texts(allocation)
    ]
    assert found == [
        ["--array=0-19%20", "--gres=gpu:v100:1", "--partition=gpu"],
        ["--array=0-19%20", "--gres=gpu:a6000:1", "--partition=gpu"],
        ["--array=0-19%14", "--gres=gpu:1g.24gb:1", "--partition=gpu-mig"],
    ]
    scripts = list(sbatch_texts(RunFolder(str(tmp_path / "run")), SlurmRequest(), allocation))
    assert [f"COSMICAI_ARRAYS={first}/60" in text for first, text in zip((0, 20, 40), scripts, strict=True)] == [
        True
    ] * 3
    units = 20 * (2.096 + 14.273) + 80 * (0.058 + 0.383) + 20 * 6500 / 1024 * (0.005 + 0.062)
    assert allocation.service_units_per_hour == pytest.approx(units)


@pytest.mark.parametrize(
    "request_, message",
    [
        ({"gpu_kind": "h200"}, "rivanna has no GPUs of kind h200; use mig, "),
        ({"gpu_kind": "v100,v100"}, "--gpu-kind v100,v100: expected different kinds, such as v100,a6000, or cheapest"),
        ({"gpu_kind": "v100,cheapest"}, "--gpu-kind v100,cheapest: expected different kinds, "),
        ({"gpu_kind": "v100,"}, "--gpu-kind v100,: expected different kinds, "),
        ({"gpu_kind": "mig", "gpus": 2}, "a node of rivanna has 1 GPUs of kind mig and the job asks for 2; "),
        ({"gpu_kind": "mig", "gpus": 2, "nodes": 2}, "no partition of rivanna takes this job: standard has no GPUs"),
        ({"gpus": 11}, "no kind of GPU of rivanna takes this job (mig: a node of rivanna has 1 GPUs of kind mig and "),
        ({"partition": "fast"}, "rivanna has no partition fast; use standard, "),
    ],
)
def test_what_no_gpu_takes_is_refused(request_, message):
    assert refusal(**request_).startswith(message)


def test_constraints_of_the_user_and_of_the_kind_are_both_demanded(texts):
    for own, joined in (("ib", "ib&a100_80gb"), ("a|b", "(a|b)&a100_80gb"), ("a100_80gb", "a100_80gb")):
        (options,) = texts(allocate(gpu_kind="a100_80gb", constraint=own))
        assert f"--constraint={joined}" in options
    (options,) = texts(allocate(gpu_kind="a100", constraint="a|b"))
    assert "--constraint=a|b" in options


def test_mail_dependencies_and_nodes_to_avoid_reach_sbatch(texts):
    (options,) = texts(
        allocate(
            gpus=None, mail_user="me@x.edu", dependency="afterok:12_3:14,singleton", exclude="n[7-9]", nice=100,
            reservation="class", sbatch=("comment=mine", "exclusive"),
        )
    )  # fmt: skip
    assert {
        "--mail-user=me@x.edu", "--mail-type=END,FAIL", "--dependency=afterok:12_3:14,singleton", "--exclude=n[7-9]",
        "--nice=100", "--reservation=class", "--comment=mine", "--exclusive",
    } <= set(options)  # fmt: skip
    (options,) = texts(allocate(gpus=None, mail_type="fail,TIME_LIMIT_80"))
    assert "--mail-type=fail,TIME_LIMIT_80" in options


@pytest.mark.parametrize(
    "request_, message",
    [
        ({"mail_type": "END,ON"}, "--mail-type 'END,ON' has 'ON'; use any of NONE, BEGIN, END, "),
        ({"mail_type": ""}, "--mail-type '' has ''; use any of "),
        ({"mail_user": "a b"}, "--mail-user 'a b' is empty or has spaces or quotes; write it without them"),
        ({"exclude": ""}, "--exclude '' is empty or has spaces or quotes; write it without them"),
        ({"dependency": "12"}, "--dependency 12 is not a dependency; write afterok:JOB, "),
        ({"dependency": "afterok:"}, "--dependency afterok: is not a dependency; "),
        (
            {"exclude": "n1", "sbatch": ("exclude=n2",)},
            "--sbatch exclude=n2 and --exclude n1 contradict each other; use one of them",
        ),
        ({"sbatch": ("partition=gpu",)}, "--sbatch partition=gpu sets what --partition decides; use that"),
    ],
)
def test_options_that_sbatch_would_not_take_are_refused(request_, message):
    assert refusal(gpus=None, **request_).startswith(message)


def test_only_jobs_of_several_kinds_cancel_those_that_wait(monkeypatch, tmp_path):
    """Once the run is complete; before, and where SLURM decides between jobs of one kind, they stay."""
    cancelled: list[str] = []
    monkeypatch.setattr(submit, "cancel_waiting", cancelled.append)
    complete = {"here": False}
    monkeypatch.setattr(RunFolder, "complete_summary", lambda run: complete["here"] or None)
    for name, is_complete in ((None, True), ("cosmicai-x", False), ("cosmicai-x", True)):
        complete["here"] = is_complete
        with pytest.raises(SystemExit) as ended:
            submit.WorkerTask(("sh", "-c", "exit 3"), str(tmp_path), name)()
        assert ended.value.code == 3
    assert cancelled == ["cosmicai-x"]
