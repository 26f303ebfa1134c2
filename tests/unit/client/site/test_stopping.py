"""SIGTERM lets the step in work come to its end; a second one, or 30 s, do not wait for it."""

from __future__ import annotations

import os
import signal
from typing import TYPE_CHECKING

import pytest

from vitrael.client.site.stopping import Stop

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator


@pytest.fixture(autouse=True)
def handlers() -> Iterator[None]:
    """A signal that nobody hears must not end the tests."""
    before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGALRM)}
    yield
    assert {number: signal.getsignal(number) for number in before} == before


def terminate() -> None:
    os.kill(os.getpid(), signal.SIGTERM)


def test_first_sigterm_is_a_wish() -> None:
    stop = Stop()
    with stop.listening():
        assert not stop()
        terminate()
        assert stop()
        left_s, _ = signal.getitimer(signal.ITIMER_REAL)
        assert 0 < left_s <= 30
    assert signal.getitimer(signal.ITIMER_REAL)[0] == 0


def listen(stop: Stop, then: Callable[[], object]) -> None:
    with stop.listening():
        then()


def test_second_sigterm_ends_at_once() -> None:
    def twice() -> None:
        terminate()
        terminate()
        pytest.fail("it went on")

    with pytest.raises(SystemExit) as ended:
        listen(Stop(), twice)
    assert ended.value.code == 0


def test_step_that_does_not_end_is_ended_when_patience_is_over() -> None:
    def last() -> None:
        terminate()
        for _ in range(600):  # a minute: the alarm comes first
            signal.sigtimedwait([], 0.1)

    with pytest.raises(SystemExit) as ended:
        listen(Stop(patience_s=0.05), last)
    assert ended.value.code == 0


def test_tidying_up_is_not_disturbed_by_another_signal() -> None:
    tidied = []

    def tidy() -> None:
        try:
            terminate()
            terminate()
        finally:
            terminate()
            tidied.append(True)

    with pytest.raises(SystemExit):
        listen(Stop(), tidy)
    assert tidied == [True]
