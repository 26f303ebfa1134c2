"""Enrolled homes without a process or a network: what `join` and `approve` leave behind."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from datetime import datetime
from pathlib import Path

import tomli_w

from vitrael.core.study import parse_study
from vitrael.core.version import package_version
from vitrael.privacy.enrollment import JoinRequest, proof_of
from vitrael.privacy.envelope import open_standing, sign_enrollment
from vitrael.privacy.keys import KeyPair, save_public_keys, save_roster
from vitrael.privacy.node_keys import create_node_key, load_node_key, prove_node
from vitrael.server.config import Ports, ServerDocument, ServerSettings, load_server
from vitrael.server.federation.layout import site_home
from vitrael.server.federation.processes import free_ports
from vitrael.server.settings import utc_now
from vitrael.server.sites.authority import authority_file
from vitrael.server.sites.desk import Desk
from vitrael.server.sites.founding import found_coordinator
from vitrael.server.sites.records import Issued
from vitrael.server.sites.registry import Registry


def found(home: Path, *, now: datetime | None = None) -> ServerSettings:
    """Return the settings of a coordinator's home on free ports of loopback."""
    front, superlink, enrollment, metrics = free_ports(4)
    ports = Ports(superlink=superlink, enrollment=enrollment, metrics=metrics)
    document = ServerDocument(address=f"127.0.0.1:{front}", ports=ports)
    if (home / "server.toml").exists():
        document = load_server(home).document
    return found_coordinator(home, document, now=now or utc_now())


def enroll(settings: ServerSettings, site: str, folder: Path) -> None:
    """Make a site's home as `vitrael site join` does, and approve it; not if that was done."""
    with Registry(settings) as registry:
        if site in registry.members():
            return
        issued = registry.invite(site)
    keys = _keys(folder / "keys")
    node = create_node_key(folder / "keys" / "node").decode()
    (folder / "site.toml").write_text(
        tomli_w.dumps({"name": site, "address": settings.document.address})
    )
    coordinator = KeyPair.load(settings.keys).public
    save_public_keys(coordinator, folder / "coordinator.json")
    (folder / "authority.pem").write_bytes(authority_file(settings).read_bytes())
    with Desk(settings) as desk:
        answer = desk.join(_request(issued, keys, node, folder / "keys" / "node"))
    assert open_standing(answer, coordinator).status == "pending"
    with Registry(settings) as registry:
        (asked,) = (one for one in registry.enrollments(site) if one.status == "pending")
        registry.approve(site, fingerprint=registry.fingerprint(asked))


def _request(issued: Issued, keys: KeyPair, node: str, key: Path) -> bytes:
    proof = prove_node(load_node_key(key), proof_of(keys.public, site=issued.site))
    request = JoinRequest(
        site=issued.site,
        token=issued.token,
        keys=keys.public,
        node=node,
        node_proof=proof,
        package_version=package_version(),
        utc=utc_now().isoformat(timespec="seconds"),
    )
    return sign_enrollment(request, keys)


def enroll_everywhere(home: Path, sites: Sequence[str], *, study: bytes) -> ServerSettings:
    """Found a coordinator, let every site join and fetch; the study is offered."""
    settings = found(home)
    for site in sites:
        folder = site_home(home, site)
        key = folder / "keys" / "split.key"
        if not key.exists():
            key.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            key.write_bytes(hashlib.sha256(f"split of {site}".encode()).digest())
            key.chmod(0o600)
        enroll(settings, site, folder)
    with Registry(settings) as registry:
        members = registry.members()
    name = parse_study(study, label="study").protocol.name
    offer = settings.studies / name / "study.toml"
    offer.parent.mkdir(parents=True, exist_ok=True)
    offer.write_bytes(study)
    for site in sites:
        folder = site_home(home, site)
        save_roster(members, folder / "roster.json")
        (folder / "studies").mkdir(exist_ok=True)
        (folder / "studies" / f"{name}.toml").write_bytes(study)
    return settings


def _keys(folder: Path) -> KeyPair:
    if (folder / "sealing.pem").exists():
        return KeyPair.load(folder)
    keys = KeyPair.create()
    keys.save(folder)
    return keys


def ports_of(home: Path) -> dict[str, int]:
    """Return the ports that a rehearsal of a home has written down."""
    ports: dict[str, int] = json.loads((home / "ports.json").read_bytes())
    return ports
