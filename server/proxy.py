"""The reverse proxy in front of a coordinator: its configuration, written from ``server.toml``.

The same template serves a production host, where a service unit hands nginx the certificate and
the key, and a rehearsal, where all of it lies in the coordinator's home. nginx needs no right but
to its own folder: it runs as anybody.
"""

from __future__ import annotations

import re
import shutil
import subprocess
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path

from vitrael.core.errors import ConfigError, ProcessError, UsageError
from vitrael.privacy.loopback_tls import TlsFiles
from vitrael.server.config import ServerSettings
from vitrael.server.federation.flower_home import FlowerHome
from vitrael.server.sites.authority import own_files

TEMPLATE = "vitrael.conf.template"
PROGRAM = "nginx"
_LOOPBACK = frozenset({"127.0.0.1", "localhost", "[::1]"})
_LISTEN = re.compile(r"([0-9.]{7,15}|\[[0-9a-fA-F:]{2,39}\]):([0-9]{1,5})")
_CHECK_S = 20


@dataclass(frozen=True, slots=True)
class ProxyFiles:
    """What nginx reads, and the folder in which it writes."""

    certificate: Path
    """The certificate that sites see, with those between it and its authority."""
    key: Path
    superlink_authority: Path
    """The authority of the SuperLink's certificate on loopback."""
    state: Path
    """Logs, process id and temporary files."""


def proxy_files(
    settings: ServerSettings, *, credentials: Path | None = None, state: Path | None = None
) -> ProxyFiles:
    """Return where the proxy's files lie: in the home, or where a service unit lays them.

    ``credentials`` is a folder with ``server.pem``, ``server.key`` and ``superlink.crt``, as
    ``LoadCredential`` of systemd makes it; ``state`` is a folder that nginx may write in.
    """
    place = state or settings.home / "proxy"
    if credentials is not None:
        names = ("server.pem", "server.key", "superlink.crt")
        certificate, key, authority = (credentials / name for name in names)
        return ProxyFiles(certificate, key, authority, place)
    own = settings.document.tls
    shown = own_files(own, home=settings.home) if own else TlsFiles.of(settings.tls)
    return ProxyFiles(
        certificate=shown.certificate,
        key=shown.key,
        superlink_authority=FlowerHome(settings.home).tls.authority,
        state=place,
    )


def default_listen(settings: ServerSettings) -> tuple[str, ...]:
    """Return where to listen: the address's port, on loopback alone where the address is there."""
    host, _, port = settings.document.address.rpartition(":")
    if host == "[::1]":
        return (f"[::1]:{port}",)
    return (f"{'127.0.0.1' if host in _LOOPBACK else '0.0.0.0'}:{port}",)  # noqa: S104 - the door


def render_proxy(
    settings: ServerSettings, place: ProxyFiles, *, listen: tuple[str, ...] = ()
) -> str:
    """Return nginx's configuration for a coordinator.

    Raises UsageError for a listening address that is none and for a path that cannot stand in it.
    """
    from jinja2 import Environment, StrictUndefined  # noqa: PLC0415 - only this command needs it

    addresses = listen or default_listen(settings)
    for address in addresses:
        if not _LISTEN.fullmatch(address) or int(address.rpartition(":")[2]) > 65_535:  # noqa: PLR2004 - of TCP
            raise UsageError(
                f"{address} is no address to listen at", fix="say 0.0.0.0:443 or [::]:443"
            )
    paths = {
        "certificate": place.certificate,
        "key": place.key,
        "superlink_authority": place.superlink_authority,
        "state": place.state,
    }
    for path in paths.values():
        if not path.is_absolute() or re.search(r"[\"'\\$\r\n]", str(path)):
            raise UsageError(
                f"the path {path} cannot stand in nginx's configuration",
                why="it is relative, or holds a quotation mark, a backslash or a dollar sign",
                fix="choose another folder",
            )
    template = (files("vitrael.deploy.nginx") / TEMPLATE).read_text(encoding="utf-8")
    environment = Environment(
        undefined=StrictUndefined,
        trim_blocks=True,
        keep_trailing_newline=True,
        autoescape=False,  # noqa: S701 - no page; what goes in is checked above
    )
    return environment.from_string(template).render(
        **{name: str(path) for name, path in paths.items()},
        listen=addresses,
        superlink=settings.document.ports.superlink,
        enrollment=settings.document.ports.enrollment,
    )


def find_nginx() -> str | None:
    """Return where nginx is, also where only root's path has it; None when it is not installed."""
    return shutil.which(PROGRAM) or shutil.which(PROGRAM, path="/usr/sbin:/usr/local/sbin:/sbin")


def demand_nginx() -> str:
    """Return where nginx is; raise UsageError when it is not installed."""
    program = find_nginx()
    if program is None:
        raise UsageError(
            "nginx is not installed",
            why="a rehearsal of the production layout has it in front of the coordinator",
            fix="install nginx, for example with apt-get install nginx",
        )
    return program


def proxy_command(program: str, configuration: Path, place: ProxyFiles) -> tuple[str, ...]:
    """Return the command line that runs nginx in the foreground."""
    log = str(place.state / "error.log")
    return (program, "-e", log, "-c", str(configuration), "-g", "daemon off;")


def check_proxy(program: str, configuration: Path, place: ProxyFiles) -> None:
    """Raise ConfigError with nginx's own words unless it accepts the configuration."""
    place.state.mkdir(parents=True, exist_ok=True)
    log = str(place.state / "error.log")
    try:
        tried = subprocess.run(  # noqa: S603 - nginx, and paths that were checked
            [program, "-e", log, "-t", "-q", "-c", str(configuration)],
            capture_output=True,
            text=True,
            timeout=_CHECK_S,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise ProcessError(
            "nginx cannot check its configuration", why=type(error).__name__
        ) from error
    if tried.returncode:
        said = next(
            (line for line in tried.stderr.splitlines() if "[emerg]" in line),
            f"exit code {tried.returncode}",
        )
        raise ConfigError(
            f"nginx refuses {configuration}",
            why=said.partition("[emerg] ")[2] or said,
            fix="mend what it names, then write the configuration anew",
        )
