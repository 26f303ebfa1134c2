"""A site's courier speaks to nobody but the coordinator: real connections through a real nginx.

Every door is one nginx that shows another certificate, or none; all couriers start at once, since
most of their time goes into imports. Behind no door there is anything that would answer.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import httpx
import pytest
import tomli_w
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

from tests.factories.courier import wait_for
from tests.factories.tls import Identity, issue, make_authority
from vitrael.core.errors import AuthError
from vitrael.privacy.node_keys import create_node_key
from vitrael.server.federation.processes import child_environment, free_ports

NGINX = shutil.which("nginx") or shutil.which("nginx", path="/usr/sbin")

pytestmark = [
    pytest.mark.federation,
    pytest.mark.skipif(NGINX is None, reason="nginx is not installed"),
]

PATIENCE_S = 120.0

REFUSED = {
    "another host": "it is for another host",
    "another authority": "of no authority that this site trusts",
    "self-signed": "of no authority that this site trusts",
    "expired": "it has expired",
    "not yet valid": "it is not valid yet",
    "no TLS": "no TLS is spoken there, and nothing was sent",
}
"""What a door shows -> what the courier says of it."""


def shown(case: str, ours: Identity) -> Identity | None:
    """Return the certificate of a door."""
    return {
        "our own": lambda: issue(ours),
        "another host": lambda: issue(ours, "coordinator.example", "10.9.8.7"),
        "another authority": lambda: issue(make_authority("others")),
        "self-signed": lambda: issue(None),
        "expired": lambda: issue(ours, valid_days=(-9, -2)),
        "not yet valid": lambda: issue(ours, valid_days=(2, 9)),
        "no TLS": lambda: None,
    }[case]()


@dataclass(frozen=True)
class Doors:
    """Where each door is, and what came through it."""

    folder: Path
    ports: Mapping[str, int]

    def asked(self, case: str) -> str:
        """Return the requests that a door was sent."""
        return (self.folder / f"{self.ports[case]}.log").read_text()


def door(folder: Path, port: int, identity: Identity | None) -> str:
    """Return nginx's words for one door, and write what it shows."""
    lines = [f"access_log {folder}/{port}.log asked;", "location / { return 503; }"]
    if identity is not None:
        secret = identity.key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
        (folder / f"{port}.pem").write_text(identity.pem)
        (folder / f"{port}.key").write_bytes(secret)
        lines.append(f"ssl_certificate {folder}/{port}.pem;")
        lines.append(f"ssl_certificate_key {folder}/{port}.key;")
    listen = f"listen 127.0.0.1:{port}{' ssl' if identity else ''};"
    return "\n".join(["server {", listen, *lines, "}"])


@pytest.fixture(scope="module")
def authority() -> Identity:
    return make_authority()


@pytest.fixture(scope="module")
def doors(authority: Identity, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Doors]:
    assert NGINX is not None
    folder, cases = tmp_path_factory.mktemp("doors"), ("our own", *REFUSED)
    ports = dict(zip(cases, free_ports(len(cases)), strict=True))
    parts = ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
    words = [
        f"daemon off; pid {folder}/pid; error_log {folder}/error.log; events {{}}",
        "http {",
        "log_format asked '$request $status';",
        *(f"{part}_temp_path {folder}/{part};" for part in parts),
        *(door(folder, port, shown(case, authority)) for case, port in ports.items()),
        "}",
    ]
    (folder / "nginx.conf").write_text("\n".join(words))
    command = [NGINX, "-e", str(folder / "error.log"), "-c", str(folder / "nginx.conf")]
    process = subprocess.Popen(command)
    try:
        wait_for(lambda: (folder / "pid").exists() and (folder / "pid").read_text(), seconds=20)
        yield Doors(folder, ports)
    finally:
        process.terminate()
        process.wait(20)


def make_home(home: Path, *, port: int, authority: Identity) -> Path:
    """Write a home as `vitrael site join` leaves it, of a site that nobody knows."""
    create_node_key(home / "keys" / "node")
    (home / "authority.pem").write_text(authority.pem)
    node_port, metrics_port = free_ports(2)
    network = {"node_port": node_port, "metrics_port": metrics_port}
    document = {"name": "north", "address": f"127.0.0.1:{port}", "network": network}
    (home / "site.toml").write_text(tomli_w.dumps(document))
    return home


@contextlib.contextmanager
def couriers(homes: Mapping[str, Path]) -> Iterator[dict[str, subprocess.Popen[str]]]:
    """Start the SuperNode's side of every home at once; in the end all are ended."""
    program = Path(sys.executable).parent / "vitrael"
    started = {
        case: subprocess.Popen(
            [str(program), "site", "courier", "--only", "node", "--home", str(home)],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
        )
        for case, home in homes.items()
    }
    try:
        yield started
    finally:
        for process in started.values():
            process.terminate()
        for process in started.values():
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.communicate(timeout=30)
            process.kill()
            process.communicate()


def test_a_courier_sends_nothing_to_who_is_not_the_coordinator(
    doors: Doors, authority: Identity, tmp_path: Path
) -> None:
    homes = {
        case: make_home(tmp_path / case.replace(" ", "-"), port=port, authority=authority)
        for case, port in doors.ports.items()
    }
    with couriers(homes) as started:
        for case, words in REFUSED.items():
            _, said = started[case].communicate(timeout=PATIENCE_S)
            assert (case, started[case].returncode) == (case, AuthError.exit_code)
            (sentence,) = [line for line in said.splitlines() if line.startswith("Error: ")]
            assert f"127.0.0.1:{doors.ports[case]}" in sentence
            assert words in sentence
            assert "To do: " in sentence
            assert "/v1/fleet/" not in doors.asked(case)
        # The control: behind our own certificate it speaks, and asks again who does not answer.
        wait_for(lambda: "POST /v1/fleet/activate-node" in doors.asked("our own"))
        assert started["our own"].poll() is None


def test_a_supernode_that_speaks_no_tls_is_not_heard(doors: Doors, tmp_path: Path) -> None:
    # With a node key Flower's own program refuses to speak without TLS; without one it would.
    (runtime,) = free_ports(1)
    command = [
        str(Path(sys.executable).parent / "flower-supernode"),
        *("--insecure", "--superlink", f"127.0.0.1:{doors.ports['our own']}"),
        *("--isolation", "process", "--host", "127.0.0.1", "--port", str(runtime)),
    ]
    environment = child_environment(os.environ, home=tmp_path, flower_home=tmp_path / "flower")
    already = doors.asked("our own")
    process = subprocess.Popen(
        command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    try:
        wait_for(lambda: len(doors.asked("our own")) > len(already))
    finally:
        process.kill()
        process.communicate()
    assert set(doors.asked("our own")[len(already) :].splitlines()) == {
        "POST /v1/fleet/register-node HTTP/1.1 400"
    }
    with httpx.Client(trust_env=False) as client:
        answer = client.get(f"http://127.0.0.1:{doors.ports['our own']}/health")
    assert "plain HTTP request was sent to HTTPS port" in answer.text
