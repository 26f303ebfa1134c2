"""What ``vitrael doctor`` asks of a coordinator's home, and of how sites see it."""

from __future__ import annotations

import stat
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path
from typing import Final

from vitrael.core.doctor import Check, Finding, days_left, days_until
from vitrael.core.errors import VitraelError
from vitrael.core.reach import HEALTH, Answer, Target, ask, connect, resolve
from vitrael.server.config import SERVER_FILE, ServerSettings, load_server

_SOON_DAYS: Final = 30.0
_RENEW: Final = (
    "`vitrael server up` renews it: start that, then restart the reverse proxy (vitrael-proxy); "
    "with [tls] in server.toml bring a new one of your own"
)
_LOOK: Final = (
    "restart the reverse proxy (vitrael-proxy), so that it shows the certificate of this home; if "
    "it stays so, see which program listens there"
)


def checks_of(home: Path, now: datetime) -> Sequence[Check]:
    """Return the checks of a coordinator's home; none for a folder without ``server.toml``."""
    if not (home / SERVER_FILE).exists():
        return ()
    document = Check(SERVER_FILE, lambda: check_document(home))
    try:
        settings = load_server(home)
    except Exception:  # noqa: BLE001 - the first check tells it in its own words
        return (document,)
    target = Target.of(settings.document.address)

    def answer() -> Answer:
        from vitrael.server.sites.authority import authority_file  # noqa: PLC0415 - heavy

        with _as_coordinator(_LOOK):
            return ask(target, HEALTH, authorities=authority_file(settings).read_bytes())

    return (
        document,
        Check("keys", lambda: check_keys(settings)),
        Check("certificate", lambda: check_certificate(settings, now=now)),
        Check("authority", lambda: check_authority(settings, now=now)),
        Check("journal", lambda: check_journal(settings)),
        Check("sites", lambda: check_sites(settings, now=now)),
        Check("running", lambda: check_running(settings, now=now)),
        Check("name", lambda: check_name(target)),
        Check("port", lambda: check_port(target)),
        Check("tls", lambda: check_tls(settings, answer(), now=now)),
    )


def check_document(home: Path) -> Finding:
    """Say which address sites use; raise what is wrong with the settings."""
    address = load_server(home).document.address
    return Finding("ok", f"the home of the coordinator at {address}")


def check_keys(settings: ServerSettings) -> Finding:
    """Say whether the secrets of the coordinator are closed to others."""
    paths = [
        path
        for folder in (settings.keys, settings.authority, settings.tls)
        for pattern in ("*.pem", "*.key")
        for path in sorted(folder.glob(pattern))
        if _is_secret(path)
    ]
    closed = stat.S_IRWXG | stat.S_IRWXO
    if open_ones := [path for path in paths if path.stat().st_mode & closed]:
        names = " ".join(f"{path.parent.name}/{path.name}" for path in open_ones)
        return Finding("fail", f"{len(open_ones)} keys are open to others", f"chmod 600 {names}")
    if not paths:
        return Finding(
            "fail", "there are no keys", "run `vitrael server init`, or restore a backup"
        )
    return Finding("ok", f"{len(paths)} keys, each for its user alone")


def check_certificate(settings: ServerSettings, *, now: datetime) -> Finding:
    """Say how long the certificate that sites see holds."""
    from vitrael.server.sites.authority import read_validity  # noqa: PLC0415 - heavy

    days = days_until(read_validity(settings).certificate, now=now)
    return days_left("the certificate", days, soon=_SOON_DAYS, remedy=_RENEW)


def check_authority(settings: ServerSettings, *, now: datetime) -> Finding:
    """Say how long the authority holds that sites were given."""
    from vitrael.server.sites.authority import read_validity  # noqa: PLC0415 - heavy

    days = days_until(read_validity(settings).authority, now=now)
    remedy = "plan a new authority: every site has to be given it"
    return days_left("the authority", days, soon=3 * _SOON_DAYS, remedy=remedy)


def check_journal(settings: ServerSettings) -> Finding:
    """Say whether the coordinator's journal is whole."""
    from vitrael.privacy.journal import tell_faults, verify_journal  # noqa: PLC0415 - heavy
    from vitrael.server.db.engine import open_database  # noqa: PLC0415
    from vitrael.server.db.heads import JournalHead  # noqa: PLC0415

    kept = None
    if settings.database.exists():
        engine = open_database(settings.database)
        kept = JournalHead(engine).read_head()
        engine.dispose()
    if faults := verify_journal(settings.journal, kept=kept):
        raise tell_faults(faults)
    return Finding("ok", "the journal is whole" + (f": {kept.lines} lines" if kept else ""))


def check_sites(settings: ServerSettings, *, now: datetime) -> Finding:
    """Say how many sites are enrolled and whose enrollment ends first."""
    from vitrael.server.sites.registry import Registry  # noqa: PLC0415 - heavy

    if not settings.database.exists():
        return Finding("ok", "no site was invited yet")
    with Registry(settings, clock=lambda: now) as registry:
        enrolled = [one for one in registry.enrollments() if one.status == "enrolled"]
    ends = [one.expires_utc for one in enrolled if one.expires_utc is not None]
    if not ends:
        return Finding("ok", f"{len(enrolled)} sites are enrolled")
    days = days_until(min(ends), now=now)
    what = f"the first of {len(enrolled)} enrollments"
    return days_left(what, days, soon=_SOON_DAYS, remedy="`vitrael server sites rotate SITE`")


def check_running(settings: ServerSettings, *, now: datetime) -> Finding:
    """Say whether ``vitrael server up`` runs, by what it wrote last."""
    from vitrael.server.status import read_status  # noqa: PLC0415 - heavy

    status = read_status(settings, now=now)
    if not status["running"]:
        return Finding("warn", "the coordinator does not run", "start it with `vitrael server up`")
    if status["trouble"]:
        return Finding("warn", str(status["trouble"]), "read `vitrael server status`")
    return Finding("ok", "the coordinator runs")


def check_name(target: Target) -> Finding:
    """Say whether the name that sites use is known here."""
    with _as_coordinator("ask for a DNS entry, or mend address in server.toml"):
        count = resolve(target.host, port=target.port)
    return Finding("ok", f"{target.host} has {count} addresses")


def check_port(target: Target) -> Finding:
    """Say whether the reverse proxy listens where sites look for it."""
    remedy = "start the reverse proxy (vitrael-proxy), or mend address in server.toml"
    with _as_coordinator(remedy), connect(target):
        pass
    return Finding("ok", f"{target.host}:{target.port} is reached")


def check_tls(settings: ServerSettings, answer: Answer, *, now: datetime) -> Finding:
    """Say what sites see: whether the service answers, and how long the shown certificate holds.

    A certificate that was renewed is shown when the reverse proxy was started again.
    """
    from vitrael.server.sites.authority import read_validity  # noqa: PLC0415 - heavy

    if answer.status >= 500:  # noqa: PLR2004 - the server's own faults, by HTTP
        remedy = "start `vitrael server up` behind the reverse proxy"
        return Finding("fail", f"the reverse proxy answers {answer.status}", remedy, network=True)
    if answer.certificate_ends != read_validity(settings).certificate:
        told = "the reverse proxy shows another certificate than the one of this home"
        return Finding("warn", told, "restart the reverse proxy (vitrael-proxy)")
    days = days_until(answer.certificate_ends, now=now)
    return days_left("the certificate that sites see", days, soon=_SOON_DAYS, remedy=_RENEW)


@contextmanager
def _as_coordinator(remedy: str) -> Iterator[None]:
    """Raise what ``core.reach`` raises with what a coordinator does about it, and no site."""
    try:
        yield
    except VitraelError as error:
        raise type(error)(error.what, why=error.why, fix=remedy) from error


def _is_secret(path: Path) -> bool:
    try:
        return b"PRIVATE KEY-----" in path.read_bytes()
    except OSError:
        return True  # closed even to this user
