"""A real SuperLink: whoever the coordinator's registry enrolled is registered, and nobody else."""

from __future__ import annotations

import os
import subprocess
import time
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

import pytest

from tests.factories.enrolling import JoiningSite, enroll, node_pem
from tests.fakes.clock import FakeClock
from vitrael.server.config import Ports, ServerDocument, ServerSettings
from vitrael.server.federation.control import SuperLink
from vitrael.server.federation.flower_home import FlowerHome
from vitrael.server.federation.processes import child_environment, free_ports
from vitrael.server.sites.desk import Desk
from vitrael.server.sites.founding import found_coordinator
from vitrael.server.sites.nodes import find_superlink, sync_nodes
from vitrael.server.sites.registry import Registry

pytestmark = [pytest.mark.federation]


@pytest.fixture
def clock() -> FakeClock:
    return FakeClock(datetime.fromtimestamp(time.time(), UTC))


@pytest.fixture
def settings(tmp_path: Path, clock: FakeClock) -> ServerSettings:
    superlink, enrollment, metrics = free_ports(3)
    ports = Ports(superlink=superlink, enrollment=enrollment, metrics=metrics)
    document = ServerDocument(address="localhost:8443", ports=ports)
    return found_coordinator(tmp_path / "home", document, now=clock())


@pytest.fixture
def superlink(settings: ServerSettings, clock: FakeClock) -> Iterator[SuperLink]:
    flower = FlowerHome(settings.home)
    flower.prepare(now=clock())
    environment = child_environment(os.environ, home=settings.home, flower_home=flower.folder)
    command = flower.superlink(port=settings.document.ports.superlink)
    link = find_superlink(settings)
    with (
        (settings.home / "superlink.log").open("wb") as log,
        subprocess.Popen(command, env=environment, stdout=log, stderr=log) as process,
    ):
        try:
            until = time.monotonic() + 120
            while not link.is_up():
                assert process.poll() is None
                assert time.monotonic() < until
                time.sleep(0.1)
            yield link
        finally:
            process.kill()


def test_the_superlink_knows_enrolled_sites_alone(
    settings: ServerSettings,
    superlink: SuperLink,
    clock: FakeClock,
    caplog: pytest.LogCaptureFixture,
) -> None:
    north, south, stranger = (
        JoiningSite(name, clock, settings) for name in ("north", "south", "stranger")
    )
    superlink.register("stranger", public_key=node_pem(stranger.node).encode())
    with Registry(settings, clock=clock) as registry, Desk(settings, clock=clock) as desk:
        enroll(north, registry, desk)
        enroll(south, registry, desk)
        nodes = sync_nodes(settings, superlink, now=clock())
        assert {node.name: node.node_id for node in superlink.nodes()} == nodes
        assert sorted(nodes) == ["north", "south"]
        assert sync_nodes(settings, superlink, now=clock()) == nodes

        registry.revoke("north", reason="stolen")
        assert sync_nodes(settings, superlink, now=clock()) == {"south": nodes["south"]}
        assert [node.name for node in superlink.nodes()] == ["south"]

        renewed = south.with_new_keys()
        desk.join(renewed.join(registry.rotate("south").token))
        registry.approve("south", fingerprint=renewed.fingerprint)
        (node,) = sync_nodes(settings, superlink, now=clock()).values()
        assert node != nodes["south"]
        assert [found.public_key for found in superlink.nodes()] == [
            node_pem(renewed.node).encode()
        ]

        # A node that the SuperLink was told to forget stays out: Flower takes a key once.
        superlink.unregister(node)
        assert sync_nodes(settings, superlink, now=clock()) == {}
        assert "the node of site south cannot be registered" in caplog.text
