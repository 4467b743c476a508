"""Work that threads do ahead of its use, in order."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from queue import Queue
from threading import Event, Thread
from typing import TypeVar

_AHEAD = 4
"""Results that wait, for each worker."""

J = TypeVar("J")
T = TypeVar("T")


def prefetch(jobs: Iterable[J], work: Callable[[J], T], workers: int) -> Iterator[T]:
    """Yields ``work(job)`` for all jobs, in order; threads work ahead, and take the jobs from their source.

    Threads are enough for pictures: Pillow decodes outside Python's global lock.

    Args:
        jobs: May be slow to give the next one.
        work: Runs in a worker; what it raises is raised here.
        workers: Threads; 0 does everything at the moment it is asked for.
    """
    if not workers:
        yield from map(work, jobs)
        return
    results: Queue[Future[T] | None] = Queue(_AHEAD * workers)
    stop = Event()

    def feed() -> None:
        try:
            for job in jobs:
                if stop.is_set():
                    return
                results.put(pool.submit(work, job))
            results.put(None)
        except BaseException as error:
            failed: Future[T] = Future()
            failed.set_exception(error)
            results.put(failed)

    with ThreadPoolExecutor(workers, "bitlab-decode") as pool:
        feeder = Thread(target=feed, name="bitlab-feed", daemon=True)
        feeder.start()
        try:
            while (result := results.get()) is not None:
                yield result.result()
        finally:
            stop.set()
            while feeder.is_alive():  # it may wait for room
                while not results.empty():
                    results.get()
                feeder.join(0.01)
