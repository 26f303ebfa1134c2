"""A signal in the middle of a step comes when the step is done, and is not lost."""

from __future__ import annotations

import signal
import sys
import threading

import pytest

from vitrael.client.site.ingest.interrupts import uninterrupted


class Dying:
    """Whatever is raised while it dies is lost, as in any callback of the interpreter."""

    def __del__(self) -> None:
        signal.raise_signal(signal.SIGINT)


def test_interrupt_within_a_callback_comes_after_the_step() -> None:
    done = []

    @uninterrupted()
    def step() -> None:
        dying = Dying()
        del dying
        done.append("the rest of the step")

    with pytest.raises(KeyboardInterrupt):
        step()
    assert done == ["the rest of the step"]


def test_control_without_it_the_interrupt_is_lost(monkeypatch: pytest.MonkeyPatch) -> None:
    lost: list[object] = []
    monkeypatch.setattr(sys, "unraisablehook", lambda told: lost.append(told.exc_type))
    dying = Dying()
    del dying
    assert lost == [KeyboardInterrupt]


def test_handlers_are_as_before_and_other_threads_have_none() -> None:
    before = [signal.getsignal(each) for each in (signal.SIGINT, signal.SIGTERM)]

    def step() -> None:
        with uninterrupted():
            assert [signal.getsignal(each) for each in (signal.SIGINT, signal.SIGTERM)] == before

    thread = threading.Thread(target=step)
    thread.start()
    thread.join(timeout=10)
    with uninterrupted():
        assert signal.getsignal(signal.SIGINT) is not before[0]
    assert [signal.getsignal(each) for each in (signal.SIGINT, signal.SIGTERM)] == before
