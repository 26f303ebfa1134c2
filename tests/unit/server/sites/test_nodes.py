"""The SuperLink knows the nodes of enrolled sites and no others."""

from __future__ import annotations

import json
from dataclasses import dataclass, field

import pytest

from tests.factories.enrolling import JoiningSite, enroll, node_pem
from tests.fakes.clock import FakeClock
from vitrael.core.errors import ConfigError, NetworkError
from vitrael.core.logs import JsonFormatter
from vitrael.privacy.keys import load_roster
from vitrael.server.config import ServerSettings
from vitrael.server.federation.app import read_nodes
from vitrael.server.federation.control import NodeState
from vitrael.server.sites.desk import Desk
from vitrael.server.sites.nodes import find_superlink, sync_nodes
from vitrael.server.sites.registry import Registry

LARGEST = 2**64 - 1


@dataclass
class FakeSuperLink:
    """Registers as Flower does: a key that was unregistered is never taken again."""

    known: dict[int, NodeState] = field(default_factory=dict)
    burned: set[bytes] = field(default_factory=set)
    next_id: int = LARGEST
    down: bool = False

    def nodes(self) -> list[NodeState]:
        if self.down:
            raise NetworkError("the SuperLink does not answer")
        return list(self.known.values())

    def register(self, name: str, *, public_key: bytes) -> int:
        if public_key in self.burned:
            raise NetworkError("the SuperLink refused a request")
        node, self.next_id = self.next_id, self.next_id - 1
        self.known[node] = NodeState(node, name, public_key, online=False)
        return node

    def unregister(self, node_id: int) -> None:
        self.burned.add(self.known.pop(node_id).public_key)

    def connect(self, node_id: int) -> None:
        node = self.known[node_id]
        self.known[node_id] = NodeState(node_id, node.name, node.public_key, online=True)


@pytest.fixture
def superlink() -> FakeSuperLink:
    return FakeSuperLink()


def test_approved_sites_are_registered_by_name(
    settings: ServerSettings,
    registry: Registry,
    desk: Desk,
    superlink: FakeSuperLink,
    north: JoiningSite,
    south: JoiningSite,
    clock: FakeClock,
) -> None:
    enroll(north, registry, desk)
    desk.join(south.join(registry.invite("south").token))
    assert sync_nodes(settings, superlink, now=clock()) == {"north": LARGEST}
    (node,) = superlink.nodes()
    assert (node.name, node.public_key) == ("north", node_pem(north.node).encode())
    assert read_nodes(settings.home) == {"north": LARGEST}
    assert registry.enrollments("north")[0].node_id == LARGEST
    assert sync_nodes(settings, superlink, now=clock()) == {"north": LARGEST}
    assert len(superlink.nodes()) == 1


@pytest.mark.parametrize("end", ["revoke", "leave", "expire"])
def test_sites_that_are_out_are_unregistered(
    settings: ServerSettings,
    registry: Registry,
    desk: Desk,
    superlink: FakeSuperLink,
    north: JoiningSite,
    south: JoiningSite,
    clock: FakeClock,
    end: str,
) -> None:
    enroll(north, registry, desk)
    sync_nodes(settings, superlink, now=clock())
    clock.advance(days=200)
    enroll(south, registry, desk)
    sync_nodes(settings, superlink, now=clock())
    assert len(superlink.nodes()) == 2
    if end == "revoke":
        registry.revoke("north", reason="x")
    elif end == "leave":
        desk.word(north.word("leave"))
    else:
        clock.advance(days=165)
    assert list(sync_nodes(settings, superlink, now=clock())) == ["south"]
    assert [node.name for node in superlink.nodes()] == ["south"]
    assert list(read_nodes(settings.home)) == ["south"]
    assert load_roster(settings.home / "roster.json") == {"south": south.keys.public}


def test_a_node_that_nobody_enrolled_is_removed(
    settings: ServerSettings, superlink: FakeSuperLink, clock: FakeClock
) -> None:
    superlink.register("stranger", public_key=b"key")
    assert sync_nodes(settings, superlink, now=clock()) == {}
    assert superlink.nodes() == []


def test_the_old_node_goes_when_new_keys_are_approved(
    settings: ServerSettings,
    registry: Registry,
    desk: Desk,
    superlink: FakeSuperLink,
    north: JoiningSite,
    clock: FakeClock,
) -> None:
    enroll(north, registry, desk)
    sync_nodes(settings, superlink, now=clock())
    renewed = north.with_new_keys()
    desk.join(renewed.join(registry.rotate("north").token))
    assert sync_nodes(settings, superlink, now=clock()) == {"north": LARGEST}
    registry.approve("north", fingerprint=renewed.fingerprint)
    assert sync_nodes(settings, superlink, now=clock()) == {"north": LARGEST - 1}
    assert [node.public_key for node in superlink.nodes()] == [node_pem(renewed.node).encode()]


def test_one_refused_node_keeps_no_other_back(
    settings: ServerSettings,
    registry: Registry,
    desk: Desk,
    superlink: FakeSuperLink,
    north: JoiningSite,
    south: JoiningSite,
    clock: FakeClock,
    caplog: pytest.LogCaptureFixture,
) -> None:
    enroll(north, registry, desk)
    enroll(south, registry, desk)
    superlink.burned.add(node_pem(north.node).encode())
    assert list(sync_nodes(settings, superlink, now=clock())) == ["south"]
    assert "the node of site north cannot be registered" in caplog.text
    (record,) = (each for each in caplog.records if "cannot be registered" in each.message)
    line = json.loads(JsonFormatter().format(record))  # of its text a log keeps no name
    assert (line["site"], "refused a request" in line["reason"]) == ("north", True)


def test_a_connected_site_was_seen(
    settings: ServerSettings,
    registry: Registry,
    desk: Desk,
    superlink: FakeSuperLink,
    north: JoiningSite,
    clock: FakeClock,
) -> None:
    enroll(north, registry, desk)
    nodes = sync_nodes(settings, superlink, now=clock())
    clock.advance(hours=1)
    sync_nodes(settings, superlink, now=clock())
    assert registry.enrollments("north")[0].seen_utc != clock()
    superlink.connect(nodes["north"])
    sync_nodes(settings, superlink, now=clock())
    assert registry.enrollments("north")[0].seen_utc == clock()


def test_a_superlink_that_is_down_changes_nothing(
    settings: ServerSettings,
    registry: Registry,
    desk: Desk,
    superlink: FakeSuperLink,
    north: JoiningSite,
    clock: FakeClock,
) -> None:
    enroll(north, registry, desk)
    superlink.down = True
    with pytest.raises(NetworkError):
        sync_nodes(settings, superlink, now=clock())
    with pytest.raises(ConfigError):
        read_nodes(settings.home)
    superlink.down = False
    assert sync_nodes(settings, superlink, now=clock()) == {"north": LARGEST}


def test_an_expired_site_leaves_the_roster_though_no_superlink_answers(
    settings: ServerSettings,
    registry: Registry,
    desk: Desk,
    superlink: FakeSuperLink,
    north: JoiningSite,
    clock: FakeClock,
) -> None:
    enroll(north, registry, desk)
    superlink.down = True
    clock.advance(days=365)
    with pytest.raises(NetworkError):
        sync_nodes(settings, superlink, now=clock())
    assert load_roster(settings.home / "roster.json") == {}


def test_the_superlink_is_on_loopback(settings: ServerSettings) -> None:
    assert find_superlink(settings).address == "127.0.0.1:8100"


def test_sites_json_is_read_as_written(
    settings: ServerSettings,
    registry: Registry,
    desk: Desk,
    superlink: FakeSuperLink,
    north: JoiningSite,
    clock: FakeClock,
) -> None:
    enroll(north, registry, desk)
    sync_nodes(settings, superlink, now=clock())
    written = json.loads((settings.home / "sites.json").read_text())
    assert written == {"north": {"node_id": LARGEST}}
