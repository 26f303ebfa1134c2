"""What is Flower's in a coordinator's home, and the command lines of its processes.

The SuperLink listens on loopback alone: of its interfaces only that of the nodes checks who calls,
and the reverse proxy shows the outside nothing else.
"""

from __future__ import annotations

import shutil
import sys
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

from vitrael.core.errors import UsageError
from vitrael.privacy.loopback_tls import TlsFiles, create_secret, create_tls
from vitrael.server.federation.bundle import CLIENT_SHIM, SERVER_SHIM, write_bundle

LOOPBACK = "127.0.0.1"


@dataclass(frozen=True, slots=True)
class FlowerHome:
    """The folder ``flower`` of a coordinator's home."""

    home: Path
    """The coordinator's home, absolute."""

    @property
    def folder(self) -> Path:
        """The folder of all that is Flower's."""
        return self.home / "flower"

    @property
    def tls(self) -> TlsFiles:
        """The SuperLink's certificate on loopback, and the authority that signed it alone."""
        return TlsFiles.of(self.folder / "tls")

    @property
    def secret(self) -> Path:
        """The secret that the SuperExec shows to the SuperLink."""
        return self.folder / "superexec.secret"

    @property
    def database(self) -> Path:
        """Nodes, runs and messages, so that a SuperLink that is started again knows them."""
        return self.folder / "superlink.sqlite"

    @property
    def bundle(self) -> Path:
        """The app folder that the SuperLink hands to the nodes."""
        return self.folder / "bundle"

    def prepare(
        self, *, now: datetime, server_app: str = SERVER_SHIM, client_app: str = CLIENT_SHIM
    ) -> None:
        """Make certificate, secret and app bundle; empty Flower's cache of installed bundles.

        What exists of the first two is kept. The cache goes because a process killed while it
        installed a bundle leaves a half that Flower takes for the whole. Raises UsageError for a
        home whose path is relative or cannot stand in Flower's configuration.
        """
        if not self.home.is_absolute():
            raise UsageError(f"the home {self.home} is no absolute path")
        if any(mark in str(self.home) for mark in "\"'\\\n"):
            raise UsageError(
                f"the home {self.home} cannot be used",
                why="its path holds a quotation mark or a backslash",
                fix="choose another folder",
            )
        create_tls(self.tls.key.parent, party="coordinator", now=now)
        create_secret(self.secret)
        write_bundle(self.bundle, server_app=server_app, client_app=client_app)
        shutil.rmtree(self.folder / "apps", ignore_errors=True)

    def superlink(self, *, port: int) -> tuple[str, ...]:
        """Return the SuperLink: TLS, only registered nodes, a database, nothing installed."""
        return (
            program("flower-superlink"),
            *("--host", LOOPBACK, "--port", str(port)),
            *self.tls.arguments(),
            "--enable-supernode-auth",
            "--disable-runtime-dependency-installation",
            *("--database", str(self.database)),
            *("--isolation", "process", "--superexec-auth-secret-file", str(self.secret)),
        )

    def superexec(self, *, port: int) -> tuple[str, ...]:
        """Return the SuperExec that starts the ServerApp."""
        return (
            program("flower-superexec"),
            *("--runtime-api-address", f"{LOOPBACK}:{port}"),
            *("--root-certificates", str(self.tls.authority)),
            *("--superexec-auth-secret-file", str(self.secret)),
        )


def program(name: str) -> str:
    """Return a program of this installation with its path: its folder may be on no PATH."""
    return str(Path(sys.executable).parent / name)
