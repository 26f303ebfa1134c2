"""A SuperLink on loopback and the real ``vitrael site courier`` of one site."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
import tomllib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import psutil
import tomli_w
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

from tests.factories.tls import Identity
from vitrael.privacy.node_keys import create_node_key
from vitrael.server.federation.control import SuperLink
from vitrael.server.federation.processes import child_environment, free_ports

COORDINATOR = "coordinator.test:443"
"""A name that nobody but a proxy of the tests knows."""
_PROGRAMS = Path(sys.executable).parent


def wait_for(condition: Callable[[], object], *, seconds: float = 60) -> None:
    until = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < until, "it did not come to pass in time"
        time.sleep(0.05)


@contextlib.contextmanager
def running_superlink(home: Path, *, authority: Identity, shown: Identity) -> Iterator[SuperLink]:
    """Yield a SuperLink that takes registered nodes only and shows a certificate."""
    home.mkdir(parents=True)
    pem = {
        "ca": authority.pem.encode(),
        "certificate": shown.pem.encode(),
        "key": shown.key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()),
    }
    for name, data in pem.items():
        (home / name).write_bytes(data)
    (port,) = free_ports(1)
    command = [
        str(_PROGRAMS / "flower-superlink"),
        *("--host", "127.0.0.1", "--port", str(port)),
        *("--ssl-ca-certfile", str(home / "ca"), "--ssl-certfile", str(home / "certificate")),
        *("--ssl-keyfile", str(home / "key"), "--enable-supernode-auth"),
        *("--disable-runtime-dependency-installation", "--isolation", "process"),
    ]
    environment = child_environment(os.environ, home=home, flower_home=home / "flower")
    with (home / "log").open("wb") as log:
        process = subprocess.Popen(
            command, env=environment, stdout=log, stderr=log, start_new_session=True
        )
    link = SuperLink(f"127.0.0.1:{port}", home / "ca")
    try:
        wait_for(link.is_up)
        yield link
    finally:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait(20)


def make_site(
    home: Path,
    link: SuperLink,
    *,
    authority: Identity,
    proxy: str | None = None,
    inspection: str | None = None,
) -> Path:
    """Write the home of a site whose node the SuperLink knows.

    ``inspection`` names the file of the authority by which the hospital inspects TLS.
    """
    link.register(home.name, public_key=create_node_key(home / "keys" / "node"))
    (home / "authority.pem").write_text(authority.pem)
    node_port, metrics_port = free_ports(2)
    document = {
        "name": home.name,
        "address": link.address if proxy is None else COORDINATOR,
        "network": {"node_port": node_port, "metrics_port": metrics_port}
        | ({} if proxy is None else {"proxy": proxy})
        | ({} if inspection is None else {"authority": inspection}),
    }
    (home / "site.toml").write_text(tomli_w.dumps(document))
    return home


@dataclass
class RunningCourier:
    """The command that runs, and what it says of itself."""

    home: Path
    process: subprocess.Popen[str]
    metrics_port: int

    def children(self) -> dict[str, psutil.Process]:
        found = {}
        with contextlib.suppress(psutil.Error):
            for child in psutil.Process(self.process.pid).children():
                found["node" if "courier.node" in " ".join(child.cmdline()) else "executor"] = child
        return found

    def health(self) -> tuple[int, dict[str, Any]]:
        try:
            answer = self._get("health")
        except httpx.TransportError:
            return 0, {}
        return answer.status_code, answer.json()

    def metrics(self) -> str:
        return self._get("metrics").text

    def is_connected(self) -> bool:
        assert self.process.poll() is None, self.process.stderr and self.process.stderr.read()
        return bool(self.health()[1].get("connected"))

    def log(self) -> list[dict[str, Any]]:
        path = self.home / "flower" / "node" / "courier.log"
        return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []

    def ended(self, *, timeout_s: float = 60) -> tuple[int, str]:
        """Return exit code and last words."""
        _, said = self.process.communicate(timeout=timeout_s)
        return self.process.returncode, said

    def _get(self, page: str) -> httpx.Response:
        with httpx.Client(trust_env=False, timeout=10) as client:
            return client.get(f"http://127.0.0.1:{self.metrics_port}/{page}")


@contextlib.contextmanager
def running_courier(home: Path) -> Iterator[RunningCourier]:
    """Start the courier of a home; in the end nothing of it is left."""
    port = tomllib.loads((home / "site.toml").read_text())["network"]["metrics_port"]
    process = subprocess.Popen(
        [str(_PROGRAMS / "vitrael"), "site", "courier", "--home", str(home)],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )
    one = RunningCourier(home, process, port)
    try:
        yield one
    finally:
        rest = one.children().values()
        process.terminate()
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(30)
        process.kill()
        for child in rest:
            with contextlib.suppress(psutil.Error):
                child.kill()
        process.communicate()
