"""The ports of a rehearsal: chosen, and written where each party looks for them."""

from __future__ import annotations

import json
import tomllib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import tomli_w

from vitrael.core.digest import write_atomically
from vitrael.core.errors import NetworkError
from vitrael.server.config import SERVER_FILE, Ports
from vitrael.server.federation.flower_home import LOOPBACK
from vitrael.server.federation.layout import RehearsalLayout
from vitrael.server.federation.processes import check_ports, free_ports

PORTS = "ports.json"
_OWN = ("front", *Ports.model_fields)


@dataclass(frozen=True, slots=True)
class Addresses:
    """Who listens where on loopback."""

    front: int
    """What stands in front of the coordinator: where sites reach it."""
    own: dict[str, int]
    """The coordinator's own ports, by their names in ``server.toml``."""
    nodes: dict[str, int]
    """The port that each site's courier keeps for itself."""

    @property
    def address(self) -> str:
        """Where sites reach the coordinator."""
        return f"{LOOPBACK}:{self.front}"

    def all(self) -> dict[str, int]:
        """Return every port by its name."""
        sites = {f"site {site}": port for site, port in self.nodes.items()}
        return {"front": self.front, **self.own, **sites}


def choose_addresses(layout: RehearsalLayout) -> Addresses:
    """Return the ports of a rehearsal, on which nothing listens.

    Those of the last time are kept while they are free, since the sites know them. Raises
    NetworkError for a port that was asked for and is in use.
    """
    count = len(_OWN) + len(layout.sites)
    if layout.port is not None:
        ports = tuple(range(layout.port, layout.port + count))
        check_ports(ports)
    else:
        ports = _last(layout, count=count) or free_ports(count)
    own = dict(zip(_OWN, ports, strict=False))
    nodes = dict(zip(layout.sites, ports[len(_OWN) :], strict=True))
    return Addresses(own.pop("front"), own, nodes)


def write_addresses(layout: RehearsalLayout, addresses: Addresses) -> None:
    """Write the ports into ``server.toml`` and each ``site.toml`` that there is."""
    document = layout.home / SERVER_FILE
    _change(document, {"address": addresses.address, "ports": addresses.own})
    for site in layout.sites:
        path = layout.site_home(site) / "site.toml"
        if path.exists():
            network = {"node_port": addresses.nodes[site]}
            _change(path, {"address": addresses.address, "network": network})
    data = json.dumps(addresses.all(), indent=1).encode()
    write_atomically(layout.home / PORTS, data)


def _last(layout: RehearsalLayout, *, count: int) -> tuple[int, ...] | None:
    try:
        ports = tuple(json.loads((layout.home / PORTS).read_bytes()).values())
        if len(ports) != count:
            return None
        check_ports(ports)
    except (OSError, ValueError, AttributeError, TypeError, OverflowError, NetworkError):
        return None
    return ports


def _change(path: Path, values: dict[str, Any]) -> None:
    """Set keys of a TOML document, those of a table one by one."""
    document = tomllib.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    for key, value in values.items():
        merged = {**document.get(key, {}), **value} if isinstance(value, dict) else value
        document[key] = merged
    write_atomically(path, tomli_w.dumps(document).encode())
