"""Progress of other processes, which goes on while a storage does not answer for the moment."""

from __future__ import annotations

import threading

import pytest

from cosmicai.console import progress
from cosmicai.console.progress import poll_progress
from cosmicai.errors import StorageError


def test_an_error_of_the_storage_that_passes_ends_nothing(monkeypatch, capsys):
    monkeypatch.setattr(progress, "POLL_INTERVAL", 0.001)
    monkeypatch.setattr(progress, "POLL_FACTOR", 0)
    calls, recovered = [], threading.Event()

    def count() -> int:
        calls.append(1)
        if 2 <= len(calls) <= 4:
            raise StorageError("cannot list s3://bucket/run/parts: AWS gets more requests than it accepts")
        if len(calls) > 5:
            recovered.set()
        return len(calls)

    with poll_progress(100, count):
        assert recovered.wait(30)
    assert "Traceback" not in capsys.readouterr().err


def test_the_first_count_may_fail_as_every_reading_of_the_run(monkeypatch):
    def count() -> int:
        raise StorageError("gone")

    with pytest.raises(StorageError, match="gone"), poll_progress(100, count):
        pass
