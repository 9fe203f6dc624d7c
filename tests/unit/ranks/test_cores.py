"""Available cores by affinity and by quota of control groups, from files as the kernel writes them."""

from __future__ import annotations

import math
import os
import subprocess
import sys
from pathlib import Path

import pytest

from cosmicai.ranks import cores
from cosmicai.ranks.cores import allowed_cores, available_cores, cgroup_quota, control_groups, pin_to_cores


def groups(tmp_path: Path, membership: str, limits: dict[str, str]) -> float:
    (tmp_path / "cgroup").write_text(membership)
    for name, text in limits.items():
        path = tmp_path / "sys" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return cgroup_quota(tmp_path / "cgroup", tmp_path / "sys")


VERSION_2, VERSION_1 = "0::/system.slice/job_7\n", "4:memory:/job\n2:cpu,cpuacct:/job/step\n1:cpuset:/\n"
OWN, PARENT = "system.slice/job_7/cpu.max", "system.slice/cpu.max"


def version_1(folder: str, quota: int) -> dict[str, str]:
    return {f"cpu/{folder}/cpu.cfs_quota_us": f"{quota}\n", f"cpu/{folder}/cpu.cfs_period_us": "100000\n"}


CASES = {
    "no limit": (VERSION_2, {OWN: "max 100000\n"}, math.inf),
    "its own": (VERSION_2, {OWN: "150000 100000\n"}, 1.5),
    "a parent's": (VERSION_2, {OWN: "max 100000\n", PARENT: "400000 100000\n"}, 4),
    "the smallest": (VERSION_2, {OWN: "300000 100000\n", PARENT: "200000 100000\n"}, 2),
    "inside a container": ("0::/\n", {"cpu.max": "50000 100000\n"}, 0.5),
    "its path is not visible": ("0::/elsewhere\n", {"cpu.max": "250000 100000\n"}, 2.5),
    "version 1": (VERSION_1, version_1("job/step", 200000), 2),
    "version 1, a parent's": (VERSION_1, version_1("job", 300000), 3),
    "version 1, no limit": (VERSION_1, version_1("job/step", -1), math.inf),
    "another controller": ("4:memory:/job\n", version_1("job", 1), math.inf),
    "no groups": ("", {}, math.inf),
}


@pytest.mark.parametrize(("membership", "limits", "cores"), CASES.values(), ids=CASES.keys())
def test_the_quota_is_the_smallest_of_all_groups(
    tmp_path: Path, membership: str, limits: dict[str, str], cores: float
) -> None:
    assert groups(tmp_path, membership, limits) == cores


def test_without_control_groups_there_is_no_limit(tmp_path: Path) -> None:
    assert cgroup_quota(tmp_path / "absent", tmp_path) == math.inf


@pytest.mark.parametrize(("quota", "expected"), [(math.inf, 6), (1.5, 2), (0.3, 1), (8, 6)])
def test_cores_are_limited_by_affinity_and_quota(monkeypatch: pytest.MonkeyPatch, quota: float, expected: int) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: set(range(6)))
    monkeypatch.setattr(cores, "cgroup_quota", lambda: quota)
    assert available_cores() == expected


def test_a_process_bound_to_one_processor_has_one_core() -> None:
    one = min(os.sched_getaffinity(0))
    code = (
        f"import os; os.sched_setaffinity(0, {{{one}}}); from cosmicai.ranks.cores import *; print(available_cores())"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "1\n"


def test_control_groups_are_its_own_and_all_parents(tmp_path: Path) -> None:
    (tmp_path / "cgroup").write_text("3:cpu,cpuacct:/job/step\n2:memory:/job\n1:name=systemd:/init\n0::/slice\n")
    found = {
        controller: [
            (version, folder.relative_to(tmp_path / "sys").as_posix())
            for version, folder in control_groups(controller, tmp_path / "cgroup", tmp_path / "sys")
        ]
        for controller in ("cpu", "memory", "pids")
    }
    version_2 = [(2, "slice"), (2, ".")]
    assert found == {
        "cpu": [(1, "cpu/job/step"), (1, "cpu/job"), (1, "cpu"), *version_2],
        "memory": [(1, "memory/job"), (1, "memory"), *version_2],
        "pids": version_2,
    }
    assert list(control_groups("cpu", tmp_path / "absent", tmp_path)) == []


def test_allowed_cores_are_those_of_the_affinity_in_order(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: {8, 1, 33, 2})
    assert allowed_cores() == [1, 2, 8, 33]


@pytest.mark.parametrize(("processors", "expected"), [(5, 5), (None, 1)])
def test_without_affinity_all_cores_are_available(
    monkeypatch: pytest.MonkeyPatch, processors: int | None, expected: int
) -> None:
    monkeypatch.delattr(os, "sched_getaffinity")
    monkeypatch.setattr(os, "cpu_count", lambda: processors)
    monkeypatch.setattr(cores, "cgroup_quota", lambda: math.inf)
    assert allowed_cores() == []
    assert available_cores() == expected


@pytest.mark.parametrize(
    ("variables", "expected"),
    [
        ({"COSMICAI_CORES": "3"}, [{3}]),
        ({"COSMICAI_CORES": "0,5,17"}, [{0, 5, 17}]),
        ({"COSMICAI_CORES": ""}, []),
        ({}, []),
    ],
)
def test_a_process_is_bound_to_the_cores_that_the_launcher_lists(
    monkeypatch: pytest.MonkeyPatch, variables: dict[str, str], expected: list[set[int]]
) -> None:
    bound: list[set[int]] = []
    monkeypatch.setattr(os, "sched_setaffinity", lambda process, listed: bound.append(listed))
    pin_to_cores(variables)
    assert bound == expected


def test_a_pinned_process_stays_on_its_cores() -> None:
    last = max(os.sched_getaffinity(0))
    code = (
        "import os; from cosmicai.ranks.cores import *; pin_to_cores(os.environ); "
        "print(allowed_cores(), available_cores())"
    )
    environment = os.environ | {"COSMICAI_CORES": str(last)}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env=environment)
    assert done.stdout == f"[{last}] 1\n"
