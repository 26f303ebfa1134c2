"""One file that ends or blocks its process costs one item."""

from __future__ import annotations

import math
import multiprocessing
import operator
import os
import time
from functools import partial
from typing import Any

import pytest

from vitrael.client.site.ingest.pool import Lost, Pool

Call = partial[Any]


def outcomes(pool: Pool[Call, Any], jobs: list[Call]) -> list[Any]:
    """Return the results in the order of the jobs."""
    found = list(pool.run(jobs))
    return [next(result for job, result in found if job is wanted) for wanted in jobs]


def test_a_job_that_kills_its_process_is_lost_alone() -> None:
    jobs = [partial(pow, n, 2) for n in range(6)]
    killer: Call = partial(os._exit, 9)
    pool: Pool[Call, Any] = Pool(operator.call, processes=2)
    *results, lost = outcomes(pool, [*jobs, killer])
    assert isinstance(lost, Lost)
    assert results == [0, 1, 4, 9, 16, 25]


def test_a_job_that_never_ends_is_lost_alone() -> None:
    jobs: list[Call] = [partial(pow, 4, 2), partial(time.sleep, 3600), partial(pow, 5, 2)]
    pool: Pool[Call, Any] = Pool(operator.call, processes=1, job_s=2.0)
    first, lost, last = outcomes(pool, jobs)
    assert isinstance(lost, Lost)
    assert "2 s" in lost.why
    assert (first, last) == (16, 25)


@pytest.mark.parametrize("processes", [0, 1])
def test_what_a_job_raises_ends_the_run(processes: int) -> None:
    jobs: list[Call] = [partial(pow, 4, 2), partial(math.sqrt, -1.0), partial(pow, 5, 2)]
    pool: Pool[Call, Any] = Pool(operator.call, processes=processes)
    with pytest.raises(ValueError, match=r"."):
        list(pool.run(jobs))


def test_no_job_starts_no_process() -> None:
    assert list(Pool(operator.call, processes=2).run([])) == []


def test_processes_have_ended_when_the_run_is_left() -> None:
    before = set(multiprocessing.active_children())
    jobs: list[Call] = [partial(pow, 4, 2), *(partial(time.sleep, 3600) for _ in range(3))]
    run = Pool(operator.call, processes=2).run(jobs)
    assert next(run)[1] == 16
    held = set(multiprocessing.active_children()) - before
    assert held, "control: there are processes to be ended"
    run.close()
    assert [process.is_alive() for process in held] == [False] * len(held)
