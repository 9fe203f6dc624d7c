"""Fixtures of all tests. COSMICAI_FORBID_SKIPS=1 makes every skip a failure, but for the want of ../shared."""

from __future__ import annotations

import os
from collections.abc import Generator
from pathlib import Path
from typing import Any

import pytest
import torch

SHARED = Path(__file__).parents[2] / "shared"
NO_SHARED = f"the published formats' fixtures are not at {SHARED}"

torch.set_num_threads(1)


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder ../shared beside the repository; the test is skipped where there is none."""
    if not (SHARED / "upstream").is_dir():
        pytest.skip(NO_SHARED)
    return SHARED


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport() -> Generator[None, Any, Any]:
    report = yield
    expected = hasattr(report, "wasxfail") or NO_SHARED in str(report.longrepr)
    if report.skipped and os.environ.get("COSMICAI_FORBID_SKIPS") and not expected:
        report.outcome = "failed"
    return report
