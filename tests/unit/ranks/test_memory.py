"""Available memory of system and control groups, from files as the kernel writes them."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import pytest

from cosmicai.ranks import memory
from cosmicai.ranks.cores import control_groups
from cosmicai.ranks.memory import available_memory_mb, memory_of_ranks_mb

MB = 2**20
MEMINFO = (
    "MemTotal:       16318532 kB\nMemFree:          512000 kB\nMemAvailable:    8192000 kB\nHugePages_Total:       0\n"
)
FREE = 8000.0  # of MEMINFO
OWN_2, OWN_1 = "0::/user.slice/job\n", "9:cpu,cpuacct:/other\n5:memory:/slurm/job\n1:name=systemd:/\n"
NO_LIMIT_1 = 9223372036854771712  # as version 1 writes it


def version_2(folder: str, limit: int | str, used: int, cached: int) -> dict[str, str]:
    statistics = f"anon {used // 2}\nfile {used // 2}\ninactive_anon 0\ninactive_file {cached}\nactive_file 4096\n"
    return {
        f"{folder}/memory.max": f"{limit}\n",
        f"{folder}/memory.current": f"{used}\n",
        f"{folder}/memory.stat": statistics,
    }


def version_1(folder: str, limit: int, used: int, cached: int, with_children: int) -> dict[str, str]:
    statistics = (
        f"cache {cached}\nrss 4096\ninactive_file {cached}\ntotal_cache 1\ntotal_inactive_file {with_children}\n"
    )
    return {
        f"memory/{folder}/memory.limit_in_bytes": f"{limit}\n",
        f"memory/{folder}/memory.usage_in_bytes": f"{used}\n",
        f"memory/{folder}/memory.stat": statistics,
    }


CASES = {
    "no groups": ("", {}, FREE),
    "no limit": (OWN_2, version_2("user.slice/job", "max", 300 * MB, 0), FREE),
    "its own": (OWN_2, version_2("user.slice/job", 1000 * MB, 300 * MB, 0), 700),
    "cached files can be evicted": (OWN_2, version_2("user.slice/job", 1000 * MB, 900 * MB, 850 * MB), 950),
    "a parent's": (
        OWN_2,
        version_2("user.slice/job", "max", 300 * MB, 0) | version_2("user.slice", 2000 * MB, 500 * MB, 100 * MB),
        1600,
    ),
    "the smallest": (
        OWN_2,
        version_2("user.slice/job", 900 * MB, 100 * MB, 0) | version_2("user.slice", 2000 * MB, 1500 * MB, 0),
        500,
    ),
    "more than the system has": (OWN_2, version_2("user.slice/job", 64000 * MB, 300 * MB, 0), FREE),
    "less than a megabyte": (OWN_2, version_2("user.slice/job", 1000 * MB, 1000 * MB - MB // 2, 0), 0.5),
    "inside a container": ("0::/\n", version_2(".", 512 * MB, 12 * MB, 0), 500),
    "its path is not visible": ("0::/elsewhere/x\n", version_2(".", 512 * MB, 12 * MB, 0), 500),
    "a group without all its files": (OWN_2, {"user.slice/job/memory.max": "1048576\n"}, FREE),
    "version 1": (OWN_1, version_1("slurm/job", 1000 * MB, 400 * MB, 0, 0), 600),
    "version 1, no limit": (OWN_1, version_1("slurm/job", NO_LIMIT_1, 400 * MB, 0, 0), FREE),
    "version 1, a parent's": (OWN_1, version_1("slurm", 1500 * MB, 400 * MB, 0, 0), 1100),
    "version 1, files cached by its children": (OWN_1, version_1("slurm", 1500 * MB, 400 * MB, 1 * MB, 50 * MB), 1150),
    "version 1, another group's": (OWN_1, version_1("other", 1 * MB, 0, 0, 0), FREE),
}


@pytest.mark.parametrize(("membership", "files", "expected"), CASES.values(), ids=CASES.keys())
def test_available_memory_is_the_smallest_of_system_and_groups(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, membership: str, files: dict[str, str], expected: float
) -> None:
    (tmp_path / "meminfo").write_text(MEMINFO)
    (tmp_path / "cgroup").write_text(membership)
    for name, text in files.items():
        path = tmp_path / "sys" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    patched = partial(control_groups, membership=tmp_path / "cgroup", mount_point=tmp_path / "sys")
    monkeypatch.setattr(memory, "control_groups", patched)
    assert available_memory_mb(tmp_path / "meminfo") == expected


@pytest.mark.parametrize("text", [None, "", "MemTotal: 16 kB\n", "MemAvailable: much\n", "no colon\n"])
def test_available_memory_is_unknown_without_meminfo(tmp_path: Path, text: str | None) -> None:
    if text is not None:
        (tmp_path / "meminfo").write_text(text)
    assert available_memory_mb(tmp_path / "meminfo") is None


def test_this_machine_has_available_memory() -> None:
    total = int(Path("/proc/meminfo").read_text().split()[1]) / 1024
    free = available_memory_mb()
    assert free is not None and 0 < free < total


def test_memory_of_ranks_is_that_of_the_first_plus_each_further_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory, "MEASURED_MB", {"abacus": (300.0, 50.0)})
    assert [memory_of_ranks_mb("abacus", ranks) for ranks in (1, 2, 16)] == [300, 350, 1050]
    assert memory_of_ranks_mb("openvino", 2) is None
