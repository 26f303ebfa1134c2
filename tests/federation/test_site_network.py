"""A site's courier beside a real SuperLink: through proxies, after crashes, and to its end."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from tests.factories.courier import (
    COORDINATOR,
    make_site,
    running_courier,
    running_superlink,
    wait_for,
)
from tests.factories.held import measure
from tests.factories.tls import (
    Identity,
    connect_proxy,
    inspecting_proxy,
    issue,
    make_authority,
)
from vitrael.core.errors import AuthError
from vitrael.server.federation.control import SuperLink

pytestmark = [pytest.mark.federation]

MOST_MIB = 300


@pytest.fixture(scope="module")
def authority() -> Identity:
    return make_authority()


@pytest.fixture(scope="module")
def link(authority: Identity, tmp_path_factory: pytest.TempPathFactory) -> Iterator[SuperLink]:
    shown = issue(authority, "coordinator.test", "127.0.0.1")
    home = tmp_path_factory.mktemp("coordinator") / "home"
    with running_superlink(home, authority=authority, shown=shown) as link:
        yield link


def port_of(link: SuperLink) -> int:
    return int(link.address.rpartition(":")[2])


def online(link: SuperLink, site: str) -> bool:
    return any(node.online for node in link.nodes() if node.name == site)


def leaves_nothing(processes: list[psutil.Process]) -> bool:
    return not any(one.is_running() and one.status() != "zombie" for one in processes)


def test_the_courier_reaches_the_coordinator_through_a_connect_proxy_alone(
    link: SuperLink, authority: Identity, tmp_path: Path
) -> None:
    with connect_proxy(routes={COORDINATOR: port_of(link)}) as proxy:
        home = make_site(tmp_path / "north", link, authority=authority, proxy=proxy.url)
        with running_courier(home) as courier:
            wait_for(courier.is_connected)
            assert online(link, "north")
            assert set(proxy.tunnels) == {COORDINATOR}
            assert proxy.up_bytes > 0
            assert proxy.down_bytes > 0
            code, told = courier.health()
            assert (code, told.pop("status")) == (503, "degraded")
            assert told == {"node": True, "executor": True, "connected": True, "steward": False}
            assert 'vitrael_courier_up{child="node"} 1.0' in courier.metrics()
            children = courier.children()
            assert set(children) == {"node", "executor"}
            held = measure(courier.process.pid)
            assert len(held.processes) == 3  # it is counted with what it keeps
            assert held.together <= MOST_MIB
            began = list(children.values())
            courier.process.terminate()
            assert courier.ended()[0] == 0
            assert leaves_nothing(began)
    wait_for(lambda: not online(link, "north"), seconds=5)


def test_a_proxy_that_inspects_is_refused_until_the_site_names_its_authority(
    link: SuperLink, authority: Identity, tmp_path: Path
) -> None:
    hospital = make_authority("the hospital")
    with inspecting_proxy(hospital, routes={COORDINATOR: port_of(link)}) as proxy:
        home = make_site(tmp_path / "harbor", link, authority=authority, proxy=proxy.url)
        with running_courier(home) as courier:
            code, said = courier.ended()
        assert code == AuthError.exit_code
        assert "of no authority that this site trusts" in said
        assert "[network].authority" in said
        assert not online(link, "harbor")
        (home / "hospital.pem").write_text(hospital.pem)
        make_site(home, link, authority=authority, proxy=proxy.url, inspection="hospital.pem")
        with running_courier(home) as courier:
            wait_for(courier.is_connected)
            assert online(link, "harbor")


def test_a_proxy_that_refuses_is_named_and_asked_again(
    link: SuperLink, authority: Identity, tmp_path: Path
) -> None:
    with connect_proxy(refuse=403) as proxy:
        home = make_site(tmp_path / "valley", link, authority=authority, proxy=proxy.url)
        with running_courier(home) as courier:
            wait_for(lambda: len(set(proxy.tunnels)) == 1 and len(proxy.tunnels) > 1)
            reasons = {line.get("reason", "") for line in courier.log()}
            assert any("the proxy does not let the courier reach" in one for one in reasons)
            assert courier.process.poll() is None
            assert not courier.health()[1]["connected"]


def test_after_a_crash_the_same_key_connects_again_and_nothing_is_left(
    link: SuperLink, authority: Identity, tmp_path: Path
) -> None:
    home = make_site(tmp_path / "south", link, authority=authority)
    with running_courier(home) as courier:
        wait_for(courier.is_connected)
        first = courier.children()["node"]
        first.kill()
        wait_for(lambda: courier.children().get("node", first).pid != first.pid)
        wait_for(courier.is_connected, seconds=25)  # heartbeats alone would take a minute
        assert any(line.get("text") == "signed off" for line in courier.log())
        assert 'vitrael_courier_restarts_total{child="node"} 1.0' in courier.metrics()
        rest = list(courier.children().values())
        courier.process.kill()
        courier.process.wait(20)  # a parent that nobody has reaped still has its number
        wait_for(lambda: leaves_nothing(rest), seconds=20)
