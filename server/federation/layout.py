"""Where a rehearsal keeps everything, and the command line of each of its processes."""

from __future__ import annotations

import shutil
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path

from vitrael.core.errors import UsageError
from vitrael.server.federation.bundle import CLIENT_SHIM, SERVER_SHIM, write_bundle
from vitrael.server.federation.pki import TlsFiles, create_node_key, create_secret, create_tls
from vitrael.server.settings import inherited_environment, utc_now

LOOPBACK = "127.0.0.1"


def site_home(home: Path, site: str) -> Path:
    """Return a site's home below the coordinator's."""
    return home / "sites" / site


@dataclass(frozen=True, slots=True)
class RehearsalLayout:
    """Where everything is, who takes part and which programs run."""

    home: Path
    """The coordinator's home, absolute; the sites' homes lie under it."""
    sites: tuple[str, ...]
    port: int | None = None
    """The SuperLink's port; the sites take the ones after it. None: free ports."""
    steward: tuple[str, ...] | None = None
    """Command that ``--home SITE_HOME`` is added to; None: ``vitrael site run``."""
    threads: int = 1
    """OMP_NUM_THREADS of every process."""
    environment: Mapping[str, str] = field(default_factory=inherited_environment)
    server_app: str = SERVER_SHIM
    """Text of the bundle's ServerApp module."""
    client_app: str = CLIENT_SHIM
    """Text of the bundle's ClientApp module."""

    @property
    def flower(self) -> Path:
        """The folder of all that is Flower's at the coordinator."""
        return self.home / "flower"

    def site_home(self, site: str) -> Path:
        """Return a site's home."""
        return site_home(self.home, site)

    def node_key(self, site: str) -> Path:
        """Return where a site's Flower key lies."""
        return self.site_home(site) / "keys" / "node"

    def tls(self, site: str | None = None) -> TlsFiles:
        """Return the TLS files of a site, or of the coordinator."""
        home = self.home if site is None else self.site_home(site)
        return TlsFiles.of(home / "flower" / "tls")

    def secret(self, site: str | None = None) -> Path:
        """Return where the SuperExec secret of a site, or of the coordinator, lies."""
        home = self.home if site is None else self.site_home(site)
        return home / "flower" / "superexec.secret"


def prepare(layout: RehearsalLayout, *, now: datetime | None = None) -> None:
    """Make certificates, node keys, secrets and the app bundle; empty spools and Flower's cache.

    Keys and certificates that exist are kept. Flower's cache of installed bundles goes because a
    courier killed while it installed one leaves a half that Flower takes for the whole.

    Study, cohorts, signing keys and enrolment are not made here. Raises UsageError for a home
    whose path is relative or cannot stand in Flower's node configuration.
    """
    if not layout.home.is_absolute():
        raise UsageError(f"the home {layout.home} is no absolute path")
    if any(mark in str(layout.home) for mark in "\"'\\\n"):
        raise UsageError(
            f"the home {layout.home} cannot be used",
            why="its path holds a quotation mark or a backslash",
            fix="choose another folder",
        )
    moment = now or utc_now()
    create_tls(layout.tls().key.parent, party="coordinator", now=moment)
    create_secret(layout.secret())
    write_bundle(
        layout.flower / "bundle", server_app=layout.server_app, client_app=layout.client_app
    )
    shutil.rmtree(layout.flower / "apps", ignore_errors=True)
    for site in layout.sites:
        shutil.rmtree(layout.site_home(site) / "flower" / "apps", ignore_errors=True)
        create_node_key(layout.node_key(site))
        create_tls(layout.tls(site).key.parent, party=f"site {site}", now=moment)
        create_secret(layout.secret(site))
        for folder in ("in", "out"):
            spool = layout.site_home(site) / "spool" / folder
            shutil.rmtree(spool, ignore_errors=True)
            spool.mkdir(parents=True)


def network_guard() -> tuple[str, ...]:
    """Return the command prefix that takes the network from a process, empty when none works."""
    program = shutil.which("unshare")
    if program is None:
        return ()
    for flags in (("-n",), ("-rn",)):
        probe = subprocess.run(  # noqa: S603 - a fixed command
            [program, *flags, "true"], capture_output=True, check=False, timeout=10
        )
        if probe.returncode == 0:
            return (program, *flags)
    return ()


def superlink_command(layout: RehearsalLayout, *, port: int) -> tuple[str, ...]:
    """Return the SuperLink: TLS, only registered nodes, a database, nothing installed."""
    return (
        _program("flower-superlink"),
        *("--host", LOOPBACK, "--port", str(port)),
        *layout.tls().arguments(),
        "--enable-supernode-auth",
        "--disable-runtime-dependency-installation",
        *("--database", str(layout.flower / "superlink.sqlite")),
        *_isolation(layout.secret()),
    )


def supernode_command(
    layout: RehearsalLayout, site: str, *, port: int, superlink_port: int
) -> tuple[str, ...]:
    """Return a site's SuperNode; its own port is for the SuperExec beside it."""
    home = layout.site_home(site)
    return (
        *_module("vitrael.client.site.courier.node"),
        *("--superlink", f"{LOOPBACK}:{superlink_port}"),
        *("--root-certificates", str(layout.tls().authority)),
        *("--auth-supernode-private-key", str(layout.node_key(site))),
        *("--host", LOOPBACK, "--port", str(port)),
        *layout.tls(site).arguments(),
        *("--node-config", f'home="{home}" site="{site}"'),
        *_isolation(layout.secret(site)),
    )


def superexec_command(layout: RehearsalLayout, *, port: int) -> tuple[str, ...]:
    """Return the SuperExec that starts the ServerApp."""
    return (_program("flower-superexec"), *_executor_arguments(layout, None, port=port))


def executor_command(layout: RehearsalLayout, site: str, *, port: int) -> tuple[str, ...]:
    """Return the SuperExec that starts a site's couriers."""
    program = _module("vitrael.client.site.courier.executor")
    return (*program, *_executor_arguments(layout, site, port=port))


def steward_command(
    layout: RehearsalLayout, site: str, *, guard: tuple[str, ...]
) -> tuple[str, ...]:
    """Return a site's steward, behind ``guard``."""
    command = layout.steward or (_program("vitrael"), "site", "run")
    return (*guard, *command, "--home", str(layout.site_home(site)))


def _executor_arguments(layout: RehearsalLayout, site: str | None, *, port: int) -> tuple[str, ...]:
    return (
        *("--runtime-api-address", f"{LOOPBACK}:{port}"),
        *("--root-certificates", str(layout.tls(site).authority)),
        *("--superexec-auth-secret-file", str(layout.secret(site))),
    )


def _isolation(secret: Path) -> tuple[str, ...]:
    return ("--isolation", "process", "--superexec-auth-secret-file", str(secret))


def _module(name: str) -> tuple[str, ...]:
    return (sys.executable, "-m", name)


def _program(name: str) -> str:
    return str(Path(sys.executable).parent / name)
