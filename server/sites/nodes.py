"""Flower's SuperLink and the registry of sites, brought to agree: the registry decides."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime
from typing import Protocol

from vitrael.core.digest import write_atomically
from vitrael.core.errors import NetworkError
from vitrael.server.config import ServerSettings
from vitrael.server.federation.control import NodeState, SuperLink
from vitrael.server.federation.flower_home import LOOPBACK, FlowerHome
from vitrael.server.sites.registry import Registry

_log = logging.getLogger(__name__)


class Nodes(Protocol):
    """What of a SuperLink is needed here."""

    def nodes(self) -> list[NodeState]:
        """Return every node that was ever registered and not removed."""
        ...

    def register(self, name: str, *, public_key: bytes) -> int:
        """Return the node id of a key, registered under ``name`` unless it already is."""
        ...

    def unregister(self, node_id: int) -> None:
        """Remove a node for good."""
        ...


def find_superlink(settings: ServerSettings) -> SuperLink:
    """Return the control side of the coordinator's SuperLink on loopback."""
    port = settings.document.ports.superlink
    return SuperLink(f"{LOOPBACK}:{port}", FlowerHome(settings.home).tls.authority)


def sync_nodes(settings: ServerSettings, superlink: Nodes, *, now: datetime) -> dict[str, int]:
    """Return enrolled site -> node id, having registered exactly the enrolled sites' nodes.

    The node of an enrollment that was revoked, left, replaced or has expired is unregistered, and
    so is one that nobody enrolled. ``sites.json`` and ``roster.json`` are written anew where they
    differ. What the SuperLink refuses is logged, and its site is missing in what is returned.
    Raises NetworkError when the SuperLink does not answer at all.
    """
    with Registry(settings, clock=lambda: now) as registry:
        registry.keep_roster()
        there = {node.public_key: node for node in superlink.nodes()}
        wanted = {one.node.encode(): one for one in registry.enrollments() if one.holds(now)}
        for node in (node for key, node in there.items() if key not in wanted):
            with _logged("the node of site %s cannot be unregistered: %s", node.name):
                superlink.unregister(node.node_id)
                _log.info("node of %s is unregistered", node.name, extra={"site": node.name})
        ids: dict[str, int] = {}
        for key, one in wanted.items():
            with _logged("the node of site %s cannot be registered: %s", one.site):
                if key in there:
                    ids[one.site] = there[key].node_id
                else:
                    ids[one.site] = superlink.register(one.site, public_key=key)
                    _log.info("node of %s is registered", one.site, extra={"site": one.site})
            if ids.get(one.site, one.node_id) != one.node_id:
                registry.keep_node(one, ids[one.site])
        registry.note_seen(one for key, one in wanted.items() if key in there and there[key].online)
    _write_sites(settings, ids)
    return ids


@contextmanager
def _logged(what: str, site: str) -> Iterator[None]:
    """Let one failure at the SuperLink not keep the other nodes back."""
    try:
        yield
    except NetworkError as error:
        _log.error(what, site, error.sentence(), extra={"site": site, "reason": error})


def _write_sites(settings: ServerSettings, ids: dict[str, int]) -> None:
    """Write ``sites.json`` as ``federation.app.read_nodes`` reads it, when it has changed.

    A site that was revoked just now may stand in it until the next call: what runs rounds asks the
    database as well.
    """
    path = settings.home / "sites.json"
    document = {site: {"node_id": ids[site]} for site in sorted(ids)}
    data = json.dumps(document, indent=1).encode()
    if not path.exists() or path.read_bytes() != data:
        write_atomically(path, data)
