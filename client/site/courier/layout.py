"""Where the courier of a site keeps what is Flower's, and the command line of each process.

Below the site's home::

    authority.pem  keys/node                    the SuperNode's alone: whom it trusts, who it is
    flower/tls/ca.crt  flower/superexec.secret  between SuperNode and SuperExec, on loopback
    flower/tls/server.key  flower/node/         the SuperNode's alone
    flower/executor/                            the SuperExec's alone: bundles that came by Flower
    spool/  steward.sock                        between the SuperExec's ClientApps and the steward

Where SuperNode and SuperExec run under users of their own, the home and ``flower`` belong to a
group that both are in, ``flower/node`` to the SuperNode's user, and ``flower/executor`` to the
SuperExec's, mode 0710: the other half asks there whether it runs. ``keys`` then has mode 0711, and
every key in it mode 0600 but ``node``, which the SuperNode's user reads by a group of its own.
"""

from __future__ import annotations

import shutil
import sys
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Final, Literal, get_args

from vitrael.client.site.settings import SiteSettings
from vitrael.core.digest import write_atomically
from vitrael.core.errors import AuthError, ConfigError, storage_error
from vitrael.privacy.keys import read_private
from vitrael.privacy.loopback_tls import TlsFiles, create_secret, create_tls
from vitrael.privacy.node_keys import load_node_key

LOOPBACK = "127.0.0.1"

Role = Literal["node", "executor"]
"""SuperNode and SuperExec."""

ROLES: Final[tuple[Role, ...]] = get_args(Role)


@dataclass(frozen=True, slots=True)
class CourierLayout:
    """The files of one site's courier."""

    settings: SiteSettings

    @property
    def flower(self) -> Path:
        """Folder of all that is Flower's at the site."""
        return self.settings.home / "flower"

    @property
    def node_key(self) -> Path:
        """The key by which the coordinator's SuperLink knows this site."""
        return self.settings.keys / "node"

    @property
    def authority(self) -> Path:
        """The coordinator's authority, from the invitation."""
        return self.settings.home / "authority.pem"

    @property
    def trusted(self) -> Path:
        """The authorities that the SuperNode trusts, in one file."""
        return self.folder("node") / "authorities.pem"

    @property
    def tls(self) -> TlsFiles:
        """Certificate and key of the SuperNode's interface on loopback."""
        return TlsFiles.of(self.flower / "tls")

    @property
    def secret(self) -> Path:
        """What the SuperExec shows the SuperNode."""
        return self.flower / "superexec.secret"

    def folder(self, role: Role) -> Path:
        """Return where the SuperNode, or the SuperExec with its ClientApps, may write."""
        return self.flower / role

    def open_folder(self, role: Role) -> Path:
        """Return ``folder(role)``, made if missing; what an operator has made stays as it is."""
        if not self.flower.exists():
            self.flower.mkdir()
            self.flower.chmod(0o750)  # whatever the umask: a group may share it
        self.folder(role).mkdir(mode=0o700, exist_ok=True)
        return self.folder(role)

    def life(self, role: Role) -> Path:
        """Return the note by which anybody of the group can tell whether a process runs."""
        return self.folder(role) / "running.json"

    @property
    def node_id(self) -> Path:
        """The number under which the SuperLink knew this node last."""
        return self.folder("node") / "node.id"

    def address(self) -> str:
        """Return where the coordinator is reached; raise ConfigError when nobody has said it."""
        address = self.settings.document.address
        if address is None:
            raise ConfigError(
                f"{self.settings.home / 'site.toml'}: address is missing",
                why="the courier does not know where the coordinator is",
                fix='join with the coordinator\'s invitation, or set address = "host:port"',
            )
        return address

    def prepare_node(self, *, now: datetime) -> None:
        """Make what the SuperNode needs; raise a VitraelError for what is not there."""
        self.address()
        home = self.settings.home
        if any(mark in str(home) for mark in "\"'\\\n"):
            raise ConfigError(
                f"the home {home} cannot be used",
                why="its path holds a quotation mark or a backslash",
                fix="choose another folder",
            )
        read_private(
            self.node_key,
            fix="join with the coordinator's invitation first; with the users of deploy/systemd "
            "run `systemd-tmpfiles --create` then",
            by_group=True,
        )
        load_node_key(self.node_key)
        try:
            self.open_folder("node")
            write_atomically(self.trusted, self.authorities())
            create_tls(
                self.tls.key.parent,
                party=f"site {self.settings.name}",
                host=self.settings.document.network.node_host,
                now=now,
            )
            self.tls.key.parent.chmod(0o750)
            self.tls.authority.chmod(0o640)
            create_secret(self.secret, mode=0o640)
        except OSError as error:
            raise storage_error("the courier's folder", error) from error

    def prepare_executor(self) -> None:
        """Empty the SuperExec's folder: a killed one leaves half of a bundle there."""
        try:
            shutil.rmtree(self.open_folder("executor") / "apps", ignore_errors=True)
        except OSError as error:
            raise storage_error("the courier's folder", error) from error

    def executor_ready(self) -> bool:
        """Say whether the SuperNode's side has made what the SuperExec needs."""
        return self.secret.exists() and self.tls.authority.exists()

    def node_command(self, *, parent: int) -> tuple[str, ...]:
        """Return the SuperNode: it reaches the coordinator, and opens nothing that it carries."""
        document = self.settings.document
        return (
            *_module("vitrael.client.site.courier.node"),
            *("--parent-pid", str(parent)),
            *self._sign_off(),
            *("--superlink", self.address()),
            *("--root-certificates", str(self.trusted)),
            *("--auth-supernode-private-key", str(self.node_key)),
            *("--host", document.network.node_host, "--port", str(document.network.node_port)),
            *self.tls.arguments(),
            *("--node-config", f'home="{self.settings.home}" site="{document.name}"'),
            *("--isolation", "process", "--superexec-auth-secret-file", str(self.secret)),
        )

    def executor_command(self, *, parent: int) -> tuple[str, ...]:
        """Return the SuperExec that starts the site's ClientApps."""
        network = self.settings.document.network
        return (
            *_module("vitrael.client.site.courier.executor"),
            *("--runtime-api-address", f"{network.node_host}:{network.node_port}"),
            *("--root-certificates", str(self.tls.authority)),
            *("--superexec-auth-secret-file", str(self.secret)),
            *("--parent-pid", str(parent)),
        )

    def _sign_off(self) -> tuple[str, ...]:
        try:
            number = self.node_id.read_text(encoding="ascii").strip()
        except (OSError, ValueError):
            return ()
        return ("--sign-off", number) if number.isdecimal() else ()

    def authorities(self) -> bytes:
        """Return the coordinator's authority and, where there is one, the hospital's own.

        Raises AuthError for a file that is missing or is no certificate.
        """
        paths = [self.authority]
        if self.settings.document.network.authority is not None:
            paths.append(self.settings.home / self.settings.document.network.authority)
        return b"".join(read_authority(path) for path in paths)


def read_authority(path: Path) -> bytes:
    """Return the certificates of a file; raise AuthError when it holds none."""
    try:
        pem = path.read_bytes()
    except OSError as error:
        raise AuthError(
            f"the authority {path.name} cannot be read",
            why=error.strerror or "",
            fix="join with the coordinator's invitation, or mend [network].authority in site.toml",
        ) from error
    if b"-----BEGIN CERTIFICATE-----" not in pem or not pem.isascii():
        raise AuthError(
            f"the authority {path.name} is no certificate in PEM",
            fix="ask for it as text that begins with -----BEGIN CERTIFICATE-----",
        )
    return pem.rstrip() + b"\n"


def _module(name: str) -> tuple[str, ...]:
    return (sys.executable, "-m", name)
