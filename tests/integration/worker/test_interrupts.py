"""Ctrl-C and SIGTERM come when a program looks for them, and never while it holds a lock."""

import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from cosmicai.runs.store import RunFolder
from cosmicai.worker.interrupts import STOPPING, deferred
from support.helpers import make_survey, random_galaxies, tiny_weights
from support.processes import SLOW, ended, run, start

HANDLERS = dict.fromkeys(STOPPING, signal.SIG_DFL) | {signal.SIGINT: signal.default_int_handler}


@pytest.fixture(autouse=True)
def handlers() -> Iterator[None]:
    """Handlers as in a process of its own, and afterwards those of pytest."""
    before = {number: signal.signal(number, handler) for number, handler in HANDLERS.items()}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


def are_restored() -> bool:
    return {number: signal.getsignal(number) for number in HANDLERS} == HANDLERS


@pytest.mark.parametrize("number", STOPPING)
def test_a_signal_is_raised_by_check_alone(number):
    lines = []
    with pytest.raises(KeyboardInterrupt), deferred() as check:
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


@pytest.mark.parametrize("number", STOPPING)
def test_a_signal_that_nobody_looked_for_is_raised_at_the_end_of_the_block(number):
    lines = []
    with pytest.raises(KeyboardInterrupt):
        with deferred():
            os.kill(os.getpid(), number)
            lines.append("went on")
        lines.append("not reached")
    assert lines == ["went on"]
    assert are_restored()


def test_a_block_without_signals_is_just_run():
    with deferred() as check:
        check()
        assert all(signal.getsignal(number) != handler for number, handler in HANDLERS.items())
    assert are_restored()


def test_an_error_of_the_block_is_its_own_even_after_a_signal():
    with pytest.raises(ValueError, match="mine"), deferred():
        os.kill(os.getpid(), signal.SIGINT)
        raise ValueError("mine")
    assert are_restored()


@pytest.mark.parametrize("number", STOPPING)
def test_a_signal_that_was_ignored_stays_ignored(number):
    signal.signal(number, signal.SIG_IGN)
    with deferred() as check:
        assert signal.getsignal(number) == signal.SIG_IGN
        os.kill(os.getpid(), number)
        check()
    assert signal.getsignal(number) == signal.SIG_IGN


def test_in_another_thread_nothing_is_changed():
    found: list[object] = []

    def work() -> None:
        with deferred() as check:
            check()
            found.append(are_restored())

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert found == [True]


@pytest.mark.parametrize("number", STOPPING)
def test_the_second_signal_ends_the_process_at_once(number):
    program = f"""
import os, time
from cosmicai.worker.interrupts import deferred
now = 100.0
time.monotonic = lambda: now
with deferred():
    os.kill(os.getpid(), {int(number)})
    now += 0.9
    os.kill(os.getpid(), {int(number)})
    print("an echo of the first", flush=True)
    now += 0.2
    os.kill(os.getpid(), {int(number)})
    print("not reached", flush=True)
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stdout, done.stderr) == (-number, "an echo of the first\n", "")


# Sends SIGINT to a run just after its main thread has taken the lock of a prediction that is still under way.
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


def test_an_interrupt_that_comes_while_a_lock_is_held_ends_the_run(tmp_path: Path):
    survey = make_survey(tmp_path / "survey", random_galaxies(2000), 1000).uri
    weights, out = tiny_weights(tmp_path / "w.safetensors"), tmp_path / "run"
    arguments = ("infer", survey, "--weights", weights, "--out", str(out), *SLOW)
    (tmp_path / "sitecustomize.py").write_text(IN_A_LOCK)
    path = os.pathsep.join(filter(None, [str(tmp_path), os.environ.get("PYTHONPATH")]))
    code, printed, errors = ended(start("cosmicai", *arguments, PYTHONPATH=path, TEST_RUN=str(out)))
    assert (out / "sent").exists(), "no lock was taken that late"
    assert (code, printed) == (130, "")
    assert errors.splitlines()[-1].startswith("cosmicai: interrupted") and "Traceback" not in errors
    assert 1 <= len(RunFolder(str(out)).parts()) < len(RunFolder(str(out)).plan().items)
    assert run(*arguments, "--resume").returncode == 0
