from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from vitrael.core.errors import UsageError
from vitrael.server.federation.layout import (
    RehearsalLayout,
    executor_command,
    network_guard,
    prepare,
    steward_command,
    superexec_command,
    superlink_command,
    supernode_command,
)


@pytest.fixture
def layout(tmp_path: Path) -> RehearsalLayout:
    return RehearsalLayout(tmp_path / "a home", ("north", "south"), environment={})


def value(command: tuple[str, ...], option: str) -> str:
    return command[command.index(option) + 1]


def test_the_superlink_admits_registered_nodes_over_tls_on_loopback(
    layout: RehearsalLayout,
) -> None:
    command = superlink_command(layout, port=4711)
    assert "--insecure" not in command
    assert "--enable-supernode-auth" in command
    assert "--disable-runtime-dependency-installation" in command
    assert value(command, "--host") == "127.0.0.1"
    assert value(command, "--isolation") == "process"
    assert value(command, "--ssl-certfile") == str(layout.tls().certificate)
    assert Path(value(command, "--database")).is_relative_to(layout.home)


def test_a_site_uses_its_own_key_secret_and_authority(layout: RehearsalLayout) -> None:
    node = supernode_command(layout, "north", port=1, superlink_port=2)
    north = layout.site_home("north")
    assert value(node, "--superlink") == "127.0.0.1:2"
    assert value(node, "--root-certificates") == str(layout.tls().authority)
    for option in ("--auth-supernode-private-key", "--ssl-keyfile", "--superexec-auth-secret-file"):
        assert Path(value(node, option)).is_relative_to(north)
    assert value(node, "--node-config") == f'home="{north}" site="north"'
    executor = executor_command(layout, "north", port=1)
    assert Path(value(executor, "--root-certificates")).is_relative_to(north)
    server = superexec_command(layout, port=2)
    assert value(server, "--root-certificates") == str(layout.tls().authority)


def test_the_steward_stands_behind_the_guard(layout: RehearsalLayout) -> None:
    command = steward_command(layout, "north", guard=("unshare", "-n"))
    assert command[:2] == ("unshare", "-n")
    assert command[2:] == (
        str(Path(sys.executable).parent / "vitrael"),
        *("site", "run", "--home", str(layout.site_home("north"))),
    )


def test_preparing_twice_keeps_keys_and_empties_spools(layout: RehearsalLayout) -> None:
    prepare(layout)
    kept = [layout.node_key("north"), layout.tls("south").key, layout.secret()]
    before = [path.read_bytes() for path in kept]
    left = layout.site_home("north") / "spool" / "in" / "left"
    half = layout.site_home("north") / "flower" / "apps" / "half-installed"
    for folder in (left, half):
        folder.mkdir(parents=True)
    prepare(layout)
    assert [path.read_bytes() for path in kept] == before
    assert not left.exists()
    assert not half.exists()


def test_parties_share_no_private_key(layout: RehearsalLayout) -> None:
    prepare(layout)
    keys = [layout.tls().key, layout.tls("north").key, layout.tls("south").key]
    keys += [layout.node_key("north"), layout.node_key("south")]
    keys += [layout.secret(), layout.secret("north"), layout.secret("south")]
    assert len({path.read_bytes() for path in keys}) == len(keys)


@pytest.mark.parametrize("name", ['a"b', "a'b", "a\\b"])
def test_a_home_that_flower_cannot_be_told_is_refused(tmp_path: Path, name: str) -> None:
    with pytest.raises(UsageError, match="cannot be used"):
        prepare(RehearsalLayout(tmp_path / name, ("north",)))


def test_a_relative_home_is_refused() -> None:
    with pytest.raises(UsageError, match="no absolute path"):
        prepare(RehearsalLayout(Path("home"), ("north",)))


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
