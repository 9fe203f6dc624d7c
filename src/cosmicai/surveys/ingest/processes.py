"""Several processes that read files, with their results in order."""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager

from ...errors import StorageError
from .single_files import CHUNK, Chunk, ChunkResult, ReadChunk, Run

_FEW = 4 * CHUNK  # galaxies for which starting processes takes longer than reading
_AHEAD = 2  # chunks per process that are being read or wait to be written


def count_processes(processes: int, galaxies: int) -> int:
    """Return how many of these processes read files of one galaxy each: for few galaxies one, which is this process."""
    return 1 if galaxies <= _FEW else processes


@contextmanager
def reading_processes(processes: int, galaxies: int) -> Iterator[Run]:
    """Yield a function that applies another one to chunks in this many processes, and yields the results in order.

    With one process, or for few galaxies, this process does it. Raises StorageError if a process is killed. Ctrl-C is
    for this process alone, and the others end with it, even if it is killed.
    """
    if count_processes(processes, galaxies) == 1:
        yield map
        return
    with ProcessPoolExecutor(processes, multiprocessing.get_context("spawn"), _end_with_parent) as pool:

        def run(read: ReadChunk, chunks: Iterable[Chunk]) -> Iterator[ChunkResult]:
            pending: deque[Future[ChunkResult]] = deque()
            for chunk in chunks:
                with _without_interrupts():  # the processes, which are started by and by, never see them
                    pending.append(pool.submit(read, chunk))
                if len(pending) > _AHEAD * processes:
                    yield pending.popleft().result()
            while pending:
                yield pending.popleft().result()

        try:
            yield run
        except BrokenProcessPool:
            raise StorageError(
                "a process that read files was killed, perhaps for want of memory; run the same command again, which "
                "goes on where this one ended, with fewer --processes"
            ) from None
        finally:
            pool.shutdown(cancel_futures=True)


@contextmanager
def _without_interrupts() -> Iterator[None]:
    """Let Ctrl-C wait while the block runs; processes that are started meanwhile do not notice it at all."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _end_with_parent() -> None:
    """End this process when the one that started it has ended: else it would wait for work for ever."""
    parent = multiprocessing.parent_process()
    assert parent is not None

    def watch() -> None:
        parent.join()
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()
