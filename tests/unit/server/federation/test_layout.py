from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from vitrael.core.errors import UsageError
from vitrael.server.federation.addresses import choose_addresses, write_addresses
from vitrael.server.federation.flower_home import FlowerHome
from vitrael.server.federation.layout import (
    RehearsalLayout,
    coordinator_command,
    courier_command,
    network_guard,
    steward_command,
)
from vitrael.server.settings import utc_now

PROGRAM = str(Path(sys.executable).parent / "vitrael")


@pytest.fixture
def layout(tmp_path: Path) -> RehearsalLayout:
    return RehearsalLayout(tmp_path / "a home", ("north", "south"), environment={})


def value(command: tuple[str, ...], option: str) -> str:
    return command[command.index(option) + 1]


def test_the_superlink_admits_registered_nodes_over_tls_on_loopback(
    layout: RehearsalLayout,
) -> None:
    flower = FlowerHome(layout.home)
    command = flower.superlink(port=4711)
    assert "--insecure" not in command
    assert "--enable-supernode-auth" in command
    assert "--disable-runtime-dependency-installation" in command
    assert value(command, "--host") == "127.0.0.1"
    assert value(command, "--isolation") == "process"
    assert value(command, "--superexec-auth-secret-file") == str(flower.secret)
    assert value(command, "--ssl-certfile") == str(flower.tls.certificate)
    assert Path(value(command, "--database")).is_relative_to(layout.home)
    executor = flower.superexec(port=4711)
    assert value(executor, "--root-certificates") == str(flower.tls.authority)


def test_everybody_runs_the_command_that_a_real_one_runs(layout: RehearsalLayout) -> None:
    north = str(layout.site_home("north"))
    assert coordinator_command(layout) == (PROGRAM, "server", "up", "--home", str(layout.home))
    assert courier_command(layout, "north") == (PROGRAM, "site", "courier", "--home", north)
    command = steward_command(layout, "north", guard=("unshare", "-n"))
    assert command == ("unshare", "-n", PROGRAM, "site", "run", "--home", north)


def test_preparing_twice_keeps_key_and_secret_and_empties_the_cache(
    layout: RehearsalLayout,
) -> None:
    flower = FlowerHome(layout.home)
    flower.prepare(now=utc_now())
    kept = [flower.tls.key, flower.secret]
    before = [path.read_bytes() for path in kept]
    half = flower.folder / "apps" / "half-installed"
    half.mkdir(parents=True)
    flower.prepare(now=utc_now())
    assert [path.read_bytes() for path in kept] == before
    assert not half.exists()


@pytest.mark.parametrize("name", ['a"b', "a'b", "a\\b"])
def test_a_home_that_flower_cannot_be_told_is_refused(tmp_path: Path, name: str) -> None:
    with pytest.raises(UsageError, match="cannot be used"):
        FlowerHome(tmp_path / name).prepare(now=utc_now())


def test_a_relative_home_is_refused() -> None:
    with pytest.raises(UsageError, match="no absolute path"):
        FlowerHome(Path("home")).prepare(now=utc_now())


def test_ports_are_kept_while_they_are_free_and_told_to_every_party(
    layout: RehearsalLayout,
) -> None:
    for site in layout.sites:
        layout.site_home(site).mkdir(parents=True)
        (layout.site_home(site) / "site.toml").write_text(
            f'name = "{site}"\n[network]\nproxy = "http://p:1"\n'
        )
    first = choose_addresses(layout)
    assert len(set(first.all().values())) == 4 + len(layout.sites)
    write_addresses(layout, first)
    assert choose_addresses(layout) == first
    north = (layout.site_home("north") / "site.toml").read_text()
    assert f'address = "{first.address}"' in north
    assert f"node_port = {first.nodes['north']}" in north
    assert 'proxy = "http://p:1"' in north
    assert f"superlink = {first.own['superlink']}" in (layout.home / "server.toml").read_text()
    (layout.home / "ports.json").write_text('{"front": "damaged"}')
    assert choose_addresses(layout) != first


def test_the_guard_takes_the_network() -> None:
    guard = network_guard()
    if not guard:
        pytest.skip("this machine gives no network namespace")
    code = "import socket; print(*(name for _, name in socket.if_nameindex()))"
    alone = subprocess.run(
        [*guard, sys.executable, "-c", code], capture_output=True, text=True, check=True
    )
    assert set(alone.stdout.split()) <= {"lo"}
    control = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    )
    assert set(control.stdout.split()) - {"lo"}
