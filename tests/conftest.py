"""Fixtures of all tests. COSMICAI_FORBID_SKIPS=1 makes every skip a failure but for those in ACCEPTED."""

from __future__ import annotations

import os
import signal
import tempfile
from collections.abc import Generator
from pathlib import Path
from typing import Any

import pytest
import torch

from support.torchvision_operators import prepare_torchvision

SHARED = Path(__file__).parents[2] / "shared"
NO_GPU = "no GPU is visible to this process"
NO_BFLOAT16 = "this processor does not compute in bfloat16"
NO_SHARED = f"the published formats' fixtures are not at {SHARED}"
NO_INSTRUCTION = "the native engine needs a "  # processor with some instructions, or system that permits them
ACCEPTED = (NO_SHARED, NO_GPU, NO_BFLOAT16, NO_INSTRUCTION)

torch.set_num_threads(1)
prepare_torchvision()
# Under nohup all that the tests start would ignore hang-ups, and rightly go on after one.
signal.signal(signal.SIGHUP, signal.SIG_DFL)
# Compiled networks of tests go where pytest's own files go, one folder per process of a parallel run.
_CACHE = tempfile.TemporaryDirectory(prefix="cosmicai-test-cache-")
os.environ["COSMICAI_CACHE"] = _CACHE.name


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder ../shared beside the repository; the test is skipped where there is none."""
    if not (SHARED / "upstream").is_dir():
        pytest.skip(NO_SHARED)
    return SHARED


@pytest.fixture
def bfloat16() -> None:
    """The test is skipped where the processor does not compute in bfloat16."""
    from cosmicai.engines.openvino.processor import has_bfloat16

    if not has_bfloat16():
        pytest.skip(NO_BFLOAT16)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport() -> Generator[None, Any, Any]:
    report = yield
    expected = hasattr(report, "wasxfail") or any(reason in str(report.longrepr) for reason in ACCEPTED)
    if report.skipped and os.environ.get("COSMICAI_FORBID_SKIPS") and not expected:
        report.outcome = "failed"
    return report
