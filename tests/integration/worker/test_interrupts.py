"""Ctrl-C and SIGTERM are raised where a program checks for them, and never while it holds a lock."""

import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from cosmicai.runs.store import RunFolder
from cosmicai.worker.interrupts import STOP_SIGNALS, defer_interrupts
from support.helpers import make_survey, random_galaxies, tiny_weights
from support.processes import SLOW, run, start, wait_for_end

HANDLERS = dict.fromkeys(STOP_SIGNALS, signal.SIG_DFL) | {signal.SIGINT: signal.default_int_handler}


@pytest.fixture(autouse=True)
def handlers() -> Iterator[None]:
    """Set the handlers of a fresh process, and afterwards those of pytest again."""
    before = {number: signal.signal(number, handler) for number, handler in HANDLERS.items()}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


def are_restored() -> bool:
    return {number: signal.getsignal(number) for number in HANDLERS} == HANDLERS


@pytest.mark.parametrize("number", STOP_SIGNALS)
def test_a_signal_is_raised_by_the_check_only(number):
    lines = []
    with pytest.raises(KeyboardInterrupt), defer_interrupts() as check:
        check()
        os.kill(os.getpid(), number)
        lines.append("went on")
        try:
            check()
        except KeyboardInterrupt:
            lines.append("raised")
            raise
    assert lines == ["went on", "raised"]
    assert are_restored()


@pytest.mark.parametrize("number", STOP_SIGNALS)
def test_an_unchecked_signal_is_raised_at_the_end_of_the_block(number):
    lines = []
    with pytest.raises(KeyboardInterrupt):
        with defer_interrupts():
            os.kill(os.getpid(), number)
            lines.append("went on")
        lines.append("not reached")
    assert lines == ["went on"]
    assert are_restored()


def test_a_block_without_signals_runs_normally():
    with defer_interrupts() as check:
        check()
        assert all(signal.getsignal(number) != handler for number, handler in HANDLERS.items())
    assert are_restored()


def test_an_exception_of_the_block_is_raised_even_after_a_signal():
    with pytest.raises(ValueError, match="of the block"), defer_interrupts():
        os.kill(os.getpid(), signal.SIGINT)
        raise ValueError("of the block")
    assert are_restored()


@pytest.mark.parametrize("number", STOP_SIGNALS)
def test_an_ignored_signal_remains_ignored(number):
    signal.signal(number, signal.SIG_IGN)
    with defer_interrupts() as check:
        assert signal.getsignal(number) == signal.SIG_IGN
        os.kill(os.getpid(), number)
        check()
    assert signal.getsignal(number) == signal.SIG_IGN


def test_in_another_thread_handlers_are_unchanged():
    found: list[object] = []

    def enter_block() -> None:
        with defer_interrupts() as check:
            check()
            found.append(are_restored())

    thread = threading.Thread(target=enter_block)
    thread.start()
    thread.join()
    assert found == [True]


@pytest.mark.parametrize("number", STOP_SIGNALS)
def test_a_second_signal_terminates_the_process_at_once(number):
    program = f"""
import os, time
from cosmicai.worker.interrupts import defer_interrupts
now = 100.0
time.monotonic = lambda: now
with defer_interrupts():
    os.kill(os.getpid(), {int(number)})
    now += 0.9
    os.kill(os.getpid(), {int(number)})
    print("the same signal again", flush=True)
    now += 0.2
    os.kill(os.getpid(), {int(number)})
    print("not reached", flush=True)
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stdout, done.stderr) == (-number, "the same signal again\n", "")


# Sends SIGINT to a run just after its main thread has acquired the lock of a prediction that is still running.
IN_A_LOCK = """
import os, signal, sys, threading
from concurrent.futures import Future
from pathlib import Path

if "infer" in sys.orig_argv:
    enter, sent = threading.Condition.__enter__, []

    def interrupted(condition):
        entered = enter(condition)
        future = sys._getframe(1).f_locals.get("self")
        if (
            not sent
            and threading.get_ident() == threading.main_thread().ident
            and isinstance(future, Future)
            and future._state == "RUNNING"
            and any(Path(os.environ["TEST_RUN"], "parts").glob("*.h5"))
        ):
            sent.append(True)
            Path(os.environ["TEST_RUN"], "sent").touch()
            os.kill(os.getpid(), signal.SIGINT)
        return entered

    threading.Condition.__enter__ = interrupted
"""


def test_an_interrupt_while_a_lock_is_held_ends_the_run(tmp_path: Path):
    survey = make_survey(tmp_path / "survey", random_galaxies(2000), 1000).uri
    weights, out = tiny_weights(tmp_path / "w.safetensors"), tmp_path / "run"
    arguments = ("infer", survey, "--weights", weights, "--out", str(out), *SLOW)
    (tmp_path / "sitecustomize.py").write_text(IN_A_LOCK)
    path = os.pathsep.join(filter(None, [str(tmp_path), os.environ.get("PYTHONPATH")]))
    code, printed, errors = wait_for_end(start("cosmicai", *arguments, PYTHONPATH=path, TEST_RUN=str(out)))
    assert (out / "sent").exists(), "no lock was acquired after the first part"
    assert (code, printed) == (130, "")
    assert errors.splitlines()[-1].startswith("cosmicai: interrupted") and "Traceback" not in errors
    assert 1 <= len(RunFolder(str(out)).parts()) < len(RunFolder(str(out)).plan().items)
    assert run(*arguments, "--resume").returncode == 0
