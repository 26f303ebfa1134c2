from __future__ import annotations

import time

import pytest
from flwr.supernode import start_client_internal

from vitrael.client.site.courier import node


def test_flower_s_supernode_sleeps_half_a_second_instead_of_three(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    slept: list[float] = []
    monkeypatch.setattr(start_client_internal, "time", time)
    assert 3 in start_client_internal.start_client_internal.__code__.co_consts
    assert node.look_often()
    monkeypatch.setattr(node.time, "sleep", slept.append)
    start_client_internal.time.sleep(3)
    start_client_internal.time.sleep(0.5)
    assert slept == [0.5, 0.1]


def test_a_flower_that_keeps_its_time_elsewhere_is_left_alone(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(start_client_internal, "time", None)
    assert not node.look_often()


def test_nothing_else_of_time_is_used_there() -> None:
    used = {
        name
        for function in vars(start_client_internal).values()
        if getattr(function, "__module__", "") == start_client_internal.__name__
        and hasattr(function, "__code__")
        for name in function.__code__.co_names
    }
    assert used.isdisjoint({"monotonic", "perf_counter", "time_ns"})
