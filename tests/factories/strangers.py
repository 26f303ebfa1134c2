"""Somebody outside who has the coordinator's certificate and no registered key."""

from __future__ import annotations

import ssl
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import httpx

from vitrael.privacy.loopback_tls import create_secret, create_tls
from vitrael.privacy.node_keys import create_node_key
from vitrael.server.config import load_server
from vitrael.server.federation.control import SuperLink
from vitrael.server.federation.processes import child_environment, free_ports
from vitrael.server.settings import inherited_environment, utc_now
from vitrael.server.sites.authority import authority_file

REFUSED = "2004"
"""Flower's number for a key that is not registered."""


@dataclass(frozen=True, slots=True)
class Stranger:
    """A folder with a node key of its own, and the address and authority that sites know."""

    folder: Path
    address: str
    authority: Path

    @classmethod
    def of(cls, home: Path, folder: Path) -> Stranger:
        """Return a stranger to the coordinator of a home."""
        settings = load_server(home)
        folder.mkdir(parents=True, exist_ok=True)
        return cls(folder, settings.document.address, authority_file(settings))

    @contextmanager
    def client(self) -> Iterator[httpx.Client]:
        """Yield a client that trusts the coordinator's authority."""
        trust = ssl.create_default_context(cafile=str(self.authority))
        url = f"https://{self.address}"
        with httpx.Client(base_url=url, verify=trust, trust_env=False, timeout=30) as client:
            yield client

    def control(self) -> SuperLink:
        """Return Flower's control client, pointed at the front door."""
        return SuperLink(self.address, self.authority)

    def run_supernode(self, *, name: str = "stranger") -> subprocess.CompletedProcess[str]:
        """Run a SuperNode with a key of its own until it gives up."""
        create_node_key(self.folder / "node")
        tls = create_tls(self.folder / "tls", party="stranger", now=utc_now())
        create_secret(self.folder / "secret")
        command = [
            *(str(Path(sys.executable).parent / "flower-supernode"), "--superlink", self.address),
            *("--root-certificates", str(self.authority)),
            *("--auth-supernode-private-key", str(self.folder / "node")),
            *("--host", "127.0.0.1", "--port", str(free_ports(1)[0])),
            *tls.arguments(),
            *("--node-config", f'site="{name}"', "--max-retries", "1"),
            *("--isolation", "process", "--superexec-auth-secret-file"),
            str(self.folder / "secret"),
        ]
        environment = child_environment(
            inherited_environment(), home=self.folder, flower_home=self.folder / "flower"
        )
        return subprocess.run(
            command, env=environment, capture_output=True, text=True, check=False, timeout=90
        )


def hidden_paths() -> list[str]:
    """Return the paths of Flower's interfaces that have no account check."""
    from flwr.supercore.routers.runtime.responses import router as responses
    from flwr.supercore.routers.runtime.router import router as runtime
    from flwr.superlink.routers.control.router import router as control

    routers = (control, runtime, responses)
    paths = sorted({str(vars(route)["path"]) for one in routers for route in one.routes})
    assert all(path.startswith(("/v1/control/", "/v1/runtime/")) for path in paths)
    return paths


def fleet_paths() -> list[str]:
    """Return the paths of Flower's interface for nodes, which demands a signature everywhere."""
    from flwr.superlink.routers.fleet.router import router as fleet

    return sorted(str(vars(route)["path"]) for route in fleet.routes)
