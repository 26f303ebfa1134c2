"""Work in several processes: bounded in number, in time and in what a broken one can take along.

A file that ends the process which reads it, or that keeps it busy for too long, costs its own item
and no other: what was in work beside it is done again, one job at a time, until the culprit is
alone with its process.

Processes are forked from one that has imported what they need and does nothing else, so that its
start is paid once and not by each of them.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import sys
import threading
from collections.abc import Callable, Collection, Iterable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from multiprocessing.context import BaseContext
from multiprocessing.process import BaseProcess
from typing import Generic, TypeVar

JOB_S = 900.0
"""Longest time for one job; a volume takes seconds."""
_END_S = 10.0
"""Longest time that is waited for a process that was killed."""
_AHEAD = 3
"""Jobs handed out for each process: enough to keep it busy, few to lose."""
_NEEDED = ["vitrael.client.site.ingest.dicom_folder", "vitrael.client.site.ingest.prepare"]
"""What the processes of an intake run."""
_NO_WARNING = "ignore:resource_tracker:UserWarning"
"""As the option -W of the interpreter has it."""

Job = TypeVar("Job")
Result = TypeVar("Result")


@dataclass(frozen=True, slots=True)
class Lost:
    """Stands for the result of a job whose process ended or did not end."""

    why: str


def begin_early() -> None:
    """Start the process that others are forked from; it gets ready while this one goes on."""
    _context()
    if sys.platform != "win32":
        from multiprocessing import forkserver, resource_tracker  # noqa: PLC0415 - not on Windows

        # Where this process is killed, the tracker removes what it has left, and would warn of it.
        sys.warnoptions.append(_NO_WARNING)
        try:
            resource_tracker.ensure_running()
        finally:
            sys.warnoptions.remove(_NO_WARNING)
        forkserver.ensure_running()


def _context() -> BaseContext:
    if sys.platform == "win32":
        return multiprocessing.get_context("spawn")
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(_NEEDED)
    return context


class Pool(Generic[Job, Result]):
    """Runs one function over many jobs."""

    def __init__(
        self, work: Callable[[Job], Result], *, processes: int, job_s: float = JOB_S
    ) -> None:
        """Take a function that can be imported by name; with 0 processes it runs in this one."""
        self._work = work
        self._processes = processes
        self._job_s = job_s

    def run(self, jobs: Iterable[Job]) -> Iterator[tuple[Job, Result | Lost]]:
        """Yield each job with its result, in the order in which they end.

        What the function raises is raised here, and every process is then ended.
        """
        if self._processes == 0:
            yield from ((job, self._work(job)) for job in jobs)
            return
        source = iter(jobs)
        while True:
            suspects: list[Job] = []
            for job, result in self._attempt(source, processes=self._processes):
                if isinstance(result, Lost):
                    suspects.append(job)
                else:
                    yield job, result
            for job in suspects:
                yield from self._attempt(iter([job]), processes=1)
            if not suspects:
                return

    def _attempt(
        self, jobs: Iterator[Job], *, processes: int
    ) -> Iterator[tuple[Job, Result | Lost]]:
        """Run jobs until there are none or one breaks the pool; tell which were then lost."""
        others = set(multiprocessing.active_children())
        running: dict[Future[Result], Job] = {}
        pool = ProcessPoolExecutor(processes, mp_context=_context(), initializer=_begin)
        why = "reading it ended the process"
        try:
            while True:
                while len(running) < processes * _AHEAD and (job := next(jobs, None)) is not None:
                    try:
                        running[pool.submit(self._work, job)] = job
                    except BrokenProcessPool:
                        yield job, Lost(why)
                        raise
                if not running:
                    pool.shutdown(wait=True)
                    return
                done, _ = wait(running, timeout=self._job_s, return_when=FIRST_COMPLETED)
                if not done:
                    why = f"it was not read within {self._job_s:g} s"
                    break
                for future in done:
                    result = future.result()
                    yield running.pop(future), result
        except BrokenProcessPool:
            pass
        finally:
            pool.shutdown(wait=False, cancel_futures=True)
            _kill(set(multiprocessing.active_children()) - others)
        for job in running.values():
            yield job, Lost(why)


def _kill(processes: Collection[BaseProcess]) -> None:
    """End processes, and wait for it: until then they may go on writing."""
    for process in processes:
        process.kill()
    for process in processes:
        process.join(_END_S)


def _begin() -> None:
    """Leave Ctrl-C to the parent, which ends the processes; and end when it is gone."""
    os.umask(0o077)  # the process that this one was forked from may have begun with another
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    """A parent that was killed ends nothing, and its processes would wait for work for ever."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)
