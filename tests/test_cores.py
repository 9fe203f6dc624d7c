"""How many cores are ours: cpuset and cgroup quota, against files as the kernel writes them."""

from __future__ import annotations

import math
import os
import subprocess
import sys
from pathlib import Path

import pytest

from cosmicai.ranks import cores
from cosmicai.ranks.cores import available_cores, cgroup_quota


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
    "our own": (VERSION_2, {OWN: "150000 100000\n"}, 1.5),
    "a parent's": (VERSION_2, {OWN: "max 100000\n", PARENT: "400000 100000\n"}, 4),
    "the least": (VERSION_2, {OWN: "300000 100000\n", PARENT: "200000 100000\n"}, 2),
    "inside a container": ("0::/\n", {"cpu.max": "50000 100000\n"}, 0.5),
    "our path is not visible": ("0::/elsewhere\n", {"cpu.max": "250000 100000\n"}, 2.5),
    "version 1": (VERSION_1, version_1("job/step", 200000), 2),
    "version 1, a parent's": (VERSION_1, version_1("job", 300000), 3),
    "version 1, no limit": (VERSION_1, version_1("job/step", -1), math.inf),
    "another controller": ("4:memory:/job\n", version_1("job", 1), math.inf),
    "nothing": ("", {}, math.inf),
}


@pytest.mark.parametrize(("membership", "limits", "cores"), CASES.values(), ids=CASES.keys())
def test_the_quota_is_the_least_of_our_groups(
    tmp_path: Path, membership: str, limits: dict[str, str], cores: float
) -> None:
    assert groups(tmp_path, membership, limits) == cores


def test_without_control_groups_there_is_no_limit(tmp_path: Path) -> None:
    assert cgroup_quota(tmp_path / "absent", tmp_path) == math.inf


@pytest.mark.parametrize(("quota", "expected"), [(math.inf, 6), (1.5, 2), (0.3, 1), (8, 6)])
def test_cores_are_what_cpuset_and_quota_leave(monkeypatch: pytest.MonkeyPatch, quota: float, expected: int) -> None:
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
