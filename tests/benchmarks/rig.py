"""A coordinator's Flower processes and some sites on loopback, started one by one for benchmarks.

The homes are those of a rehearsal, written here directly: keys, roster, consents and a cohort that
is hardly looked at. There is no reverse proxy and no enrollment service.
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path

from tests.factories.cohort import recipe_settings, write_cohort
from vitrael.client.site.consent import describe_cohort, draft_consent, keep_consent
from vitrael.client.site.ingest.summary import summarize
from vitrael.client.site.ingest.told import save_summary
from vitrael.client.site.settings import load_settings
from vitrael.client.site.store import Store
from vitrael.core.study import Study, load_study
from vitrael.privacy.journal import Journal
from vitrael.privacy.keys import KeyPair, save_public_keys, save_roster
from vitrael.privacy.node_keys import create_node_key
from vitrael.server.federation.bundle import write_bundle
from vitrael.server.federation.control import SuperLink
from vitrael.server.federation.flower_home import LOOPBACK, FlowerHome, program
from vitrael.server.federation.processes import ProcessGroup, child_environment, free_ports

_PATIENCE_S = 240.0
_LOOK_S = 0.1


def utc_now() -> datetime:
    return datetime.now(UTC)


@dataclass
class Rig:
    """One SuperLink with its SuperExec, and homes of sites whose processes come and go."""

    home: Path
    study: Study
    group: ProcessGroup = field(init=False)
    port: int = field(init=False)
    nodes: dict[str, int] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.group = ProcessGroup(self.home)
        (self.port,) = free_ports(1)

    @property
    def superlink(self) -> SuperLink:
        """The control side of the SuperLink."""
        return SuperLink(f"{LOOPBACK}:{self.port}", FlowerHome(self.home).tls.authority)

    def site_home(self, site: str) -> Path:
        """Return a site's home."""
        return self.home / "sites" / site

    def start(self, *, server_app: str) -> None:
        """Write the homes and start SuperLink and SuperExec."""
        flower = FlowerHome(self.home)
        flower.prepare(now=utc_now(), server_app=server_app)
        self.write_homes()
        self.spawn("SuperLink", flower.superlink(port=self.port), flower.folder)
        wait("the SuperLink does not answer", self.superlink.is_up, group=self.group)
        self.spawn("SuperExec", flower.superexec(port=self.port), flower.folder)
        for site in self.study.roster.sites:
            key = create_node_key(self.site_home(site) / "keys" / "node")
            self.nodes[site] = self.superlink.register(site, public_key=key)
        entries = {site: {"node_id": node} for site, node in self.nodes.items()}
        (self.home / "sites.json").write_text(json.dumps(entries), encoding="utf-8")

    def write_homes(self) -> None:
        """Write what enrollment, intake and consent leave."""
        sites = self.study.roster.sites
        coordinator, members = KeyPair.create(), {site: KeyPair.create() for site in sites}
        public = {site: keys.public for site, keys in members.items()}
        coordinator.save(self.home / "keys")
        save_roster(public, self.home / "roster.json")
        for site, port in zip(sites, free_ports(len(sites)), strict=True):
            home = self.site_home(site)
            members[site].save(home / "keys")
            (home / "keys" / "split.key").write_bytes(bytes(32))
            (home / "keys" / "split.key").chmod(0o600)
            (home / "site.toml").write_text(
                f'name = "{site}"\naddress = "{LOOPBACK}:{self.port}"\n'
                f"[network]\nnode_port = {port}\n",
                encoding="utf-8",
            )
            (home / "authority.pem").write_bytes(FlowerHome(self.home).tls.authority.read_bytes())
            save_public_keys(coordinator.public, home / "coordinator.json")
            save_roster(public, home / "roster.json")
            self.write_cohort(home / "cohorts" / "main")
            self.consent(site, members)

    def write_cohort(self, folder: Path) -> None:
        """Write scans of some patients."""
        data = self.study.protocol.data
        recipe = recipe_settings(data.grid_vox, data.spacing_mm)
        manifest = write_cohort(folder, recipe=recipe, patients=24)
        save_summary(summarize(manifest), manifest, folder)

    def consent(self, site: str, members: dict[str, KeyPair]) -> None:
        """Give a site's consent."""
        settings = load_settings(self.site_home(site))
        public = {name: keys.public for name, keys in members.items()}
        draft = draft_consent(
            self.study,
            site=site,
            keys=members[site].public,
            members=public,
            cohort=describe_cohort(settings.cohorts / "main"),
            now=utc_now(),
        )
        with closing(Store(settings.store, updates=settings.updates)) as store:
            journal = Journal(settings.journal, clock=utc_now, witness=store)
            keep_consent(
                draft, self.study, store, members=public, keys=members[site], journal=journal
            )

    def start_stewards(self, *command: str) -> None:
        """Start a steward at every site; ``--home`` is added."""
        for site in self.study.roster.sites:
            home = self.site_home(site)
            self.spawn(f"steward {site}", (*command, "--home", str(home)), home / "flower")
        wait("a steward does not listen", self._listen, group=self.group)

    def start_couriers(self) -> None:
        """Start ``vitrael site courier`` at every site and wait until all are connected."""
        for site in self.study.roster.sites:
            home = self.site_home(site)
            command = (program("vitrael"), "site", "courier", "--home", str(home))
            self.spawn(f"courier {site}", command, home / "flower")
        self.wait_for_nodes(self.nodes)

    def start_plain_nodes(self) -> dict[str, int]:
        """Start ``flower-supernode`` as it comes for every site, with keys of their own."""
        nodes = {}
        ports = free_ports(len(self.study.roster.sites))
        for site, port in zip(self.study.roster.sites, ports, strict=True):
            folder = self.home / "plain" / site
            key = create_node_key(folder / "node")
            nodes[site] = self.superlink.register(f"plain-{site}", public_key=key)
            command = (
                program("flower-supernode"),
                *("--superlink", f"{LOOPBACK}:{self.port}"),
                *("--root-certificates", str(FlowerHome(self.home).tls.authority)),
                *("--auth-supernode-private-key", str(folder / "node")),
                *("--port", str(port)),
                *("--node-config", f'home="{self.site_home(site)}"'),
            )
            self.spawn(f"plain {site}", command, folder / "flower")
        self.wait_for_nodes(nodes)
        return nodes

    def end_sites(self, kind: str) -> None:
        """End all processes whose name begins so, and wait until no node is online."""
        for name in [name for name in self.group.children if name.startswith(kind)]:
            self.group.end_one(name)
        wait("a node stays online", lambda: not self._online(), group=self.group)

    def run_app(self, server_app: str = "", *, client_app: str = "", config: object = None) -> None:
        """Run a bundle to its end: the one of ``start``, or another one."""
        bundle = FlowerHome(self.home).bundle
        if server_app:
            bundle = self.home / "plain" / "bundle"
            write_bundle(bundle, server_app=server_app, client_app=client_app)
        (self.home / "config.json").write_text(json.dumps(config), encoding="utf-8")
        run_id = self.superlink.start_run(bundle, config={"home": str(self.home)})

        def ended() -> bool:
            status = self.superlink.run_status(run_id)
            if not status.startswith("finished"):
                return False
            assert status == "finished:completed", self.read_failure()
            return True

        wait("the run does not end", ended, group=self.group)

    def read_failure(self) -> str:
        """Return what the ServerApp said when it failed."""
        log = self.home / "logs" / "serverapp.log"
        return log.read_text(encoding="utf-8")[-2000:] if log.exists() else "it said nothing"

    def wait_for_nodes(self, nodes: dict[str, int]) -> None:
        wait(
            "a node does not connect",
            lambda: set(nodes.values()) <= self._online(),
            group=self.group,
        )

    def spawn(self, name: str, command: tuple[str, ...], flower_home: Path) -> None:
        """Start a process under the home's mark."""
        environment = child_environment(
            {**os.environ, "HOME": str(self.home / "nobody")},
            home=self.home,
            flower_home=flower_home,
        )
        log = self.home / "logs" / f"{name.replace(' ', '-')}.log"
        self.group.start(name, command, environment=environment, log=log)

    def _online(self) -> set[int]:
        return {node.node_id for node in self.superlink.nodes() if node.online}

    def _listen(self) -> bool:
        sites = self.study.roster.sites
        return all((self.site_home(site) / "steward.json").exists() for site in sites)


@contextmanager
def rig(home: Path, study_toml: str, *, server_app: str) -> Iterator[Rig]:
    """Start a coordinator for a study; end every process of the home, whatever happens."""
    home.mkdir(parents=True)
    (home / "study.toml").write_text(study_toml, encoding="utf-8")
    made = Rig(home, load_study(home / "study.toml"))
    try:
        made.start(server_app=server_app)
        yield made
    finally:
        made.group.end()


def wait(failure: str, ready: Callable[[], bool], *, group: ProcessGroup) -> None:
    """Wait until something is so; fail when a process has ended, or after four minutes."""
    until = time.monotonic() + _PATIENCE_S
    while not ready():
        group.check()
        assert time.monotonic() < until, f"{failure}: {_last_words(group)}"
        time.sleep(_LOOK_S)


def _last_words(group: ProcessGroup) -> str:
    return "; ".join(f"{name}: {child.last_words()}" for name, child in group.children.items())


def steward_command() -> tuple[str, str]:
    """Return the steward whose training is a sum."""
    return sys.executable, str(Path(__file__).with_name("tiny_steward.py"))
