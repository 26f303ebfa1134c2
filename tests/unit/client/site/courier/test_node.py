from __future__ import annotations

import time
from functools import partial
from pathlib import Path

import pytest
from flwr.proto.fleet_pb2 import DeactivateNodeRequest
from flwr.supernode import start_client_internal

from tests.factories.tls import Response, issue, make_authority, serve_tls
from vitrael.client.site.courier import node
from vitrael.privacy.node_keys import create_node_key


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


def test_what_is_ours_on_the_command_line_does_not_reach_flower() -> None:
    words = ["--parent-pid", "7", "--sign-off", "42", "--superlink", "a:1", "--port", "9"]
    told, rest = node.own_arguments(words)
    assert (told.parent_pid, told.sign_off, told.superlink) == (7, 42, "a:1")
    assert rest == ["--superlink", "a:1", "--port", "9"]


def test_a_node_that_cannot_be_signed_off_says_why_and_starts_all_the_same(tmp_path: Path) -> None:
    (tmp_path / "ca.pem").write_text(make_authority().pem)
    said = node.sign_off(
        1, address="127.0.0.1:1", authorities=tmp_path / "ca.pem", key=tmp_path / "missing"
    )
    assert said == "not signed off: AuthError"
    create_node_key(tmp_path / "node")
    said = node.sign_off(
        1, address="127.0.0.1:1", authorities=tmp_path / "ca.pem", key=tmp_path / "node"
    )
    assert said == "not signed off: ConnectError"


def test_a_node_signs_off_with_its_own_key(tmp_path: Path) -> None:
    authority = make_authority()
    (tmp_path / "ca.pem").write_text(authority.pem)
    create_node_key(tmp_path / "node")
    statuses = iter((200, 412))
    with serve_tls(lambda _: Response(next(statuses)), identity=issue(authority)) as server:
        ask = partial(
            node.sign_off,
            42,
            address=server.address,
            authorities=tmp_path / "ca.pem",
            key=tmp_path / "node",
        )
        assert ask() == "signed off"
        assert ask() == "not signed off: status 412"
    request = server.requests[0]
    assert request.path == "/v1/fleet/deactivate-node"
    assert DeactivateNodeRequest.FromString(request.body).node_id == 42


def test_a_supernode_that_lost_its_link_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    codes: list[int] = []
    monkeypatch.setattr(node, "flower_supernode", lambda: None)
    monkeypatch.setattr(node, "look_often", lambda: True)
    monkeypatch.setattr(node.sys, "argv", ["x", "--superlink", "a:1"])
    monkeypatch.setattr(node.os, "_exit", codes.append)
    node.main()
    assert codes == [1]
