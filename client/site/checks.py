"""What ``vitrael doctor`` asks of a site's home, and of its way to the coordinator."""

from __future__ import annotations

import shutil
import stat
import subprocess
import sys
from collections.abc import Sequence
from contextlib import closing
from datetime import datetime
from pathlib import Path
from typing import Final

from vitrael.client.site.courier.layout import CourierLayout
from vitrael.client.site.life import is_alive
from vitrael.client.site.settings import SiteSettings, load_settings
from vitrael.core.doctor import Check, Finding, days_left, days_until
from vitrael.core.errors import NetworkError
from vitrael.core.reach import HEALTH, Answer, Target, ask, certificate_days, connect, resolve

CLOCK_WARN_S: Final = 60.0
CLOCK_FAIL_S: Final = 300.0
"""Flower takes no signature that is older, and none from so far in the future."""
_SOON_DAYS: Final = 30.0
_CONSENT_DAYS: Final = 14.0
_DEVICE_S: Final = 15.0
_RENEW: Final = "ask the coordinator to renew it: vitrael server sites rotate"

KEYS: Final = ("signing.pem", "sealing.pem", "split.key", "node")
"""The secrets of a home; one that belongs to another user is his to look after."""


def checks_of(home: Path, now: datetime) -> Sequence[Check]:
    """Return the checks of a site's home; none for a folder without ``site.toml``."""
    if not (home / "site.toml").exists():
        return ()
    document = Check("site.toml", lambda: check_document(home))
    try:
        settings = load_settings(home)
    except Exception:  # noqa: BLE001 - the first check tells it in its own words
        return (document,)
    return (
        document,
        Check("keys", lambda: check_keys(settings)),
        Check("steward", lambda: check_steward(settings)),
        Check("journal", lambda: check_journal(settings)),
        Check("tasks", lambda: check_tasks(settings)),
        Check("consents", lambda: check_consents(settings, now=now)),
        Check("enrollment", lambda: check_enrollment(settings, now=now)),
        *device_checks(settings),
        *network_checks(settings, now=now),
    )


def network_checks(settings: SiteSettings, *, now: datetime) -> Sequence[Check]:
    """Return the checks of the way to the coordinator, step by step."""
    layout = CourierLayout(settings)
    if settings.document.address is None:
        remedy = "run `vitrael site join FILE` with the coordinator's invitation"
        return (Check("address", lambda: Finding("fail", "site.toml has no address", remedy)),)
    target = Target.of(settings.document.address, proxy=settings.document.network.proxy)
    way = "proxy" if target.proxy is not None else "port"

    def answer() -> Answer:
        return ask(target, HEALTH, authorities=layout.authorities())

    return (
        Check("authority", lambda: check_authority(layout, now=now)),
        Check("name", lambda: check_name(target)),
        Check(way, lambda: check_way(target)),
        Check("tls", lambda: check_tls(answer(), now=now)),
        Check("clock", lambda: check_clock(answer(), now=now)),
        Check("courier", lambda: check_courier(settings)),
    )


def check_document(home: Path) -> Finding:
    """Say whose home it is; raise what is wrong with its settings."""
    return Finding("ok", f"the home of site {load_settings(home).name}")


def check_keys(settings: SiteSettings) -> Finding:
    """Say whether the secrets are there and closed to others."""
    missing, open_to_others = [], []
    for name in KEYS:
        try:
            status = (settings.keys / name).stat()
        except OSError:
            missing.append(name)
            continue
        most = 0o640 if name == "node" else 0o600  # the SuperNode's user reads it by a group
        if stat.S_IMODE(status.st_mode) & ~most & (stat.S_IRWXG | stat.S_IRWXO):
            open_to_others.append(f"chmod {most:o} keys/{name}")
    if open_to_others:
        remedy = "; ".join(open_to_others)
        return Finding("fail", f"{len(open_to_others)} keys are open to others", remedy)
    if missing:
        names = ", ".join(missing)
        remedy = "join with the coordinator's invitation, or restore them from a backup"
        return Finding("fail", f"keys are missing or hidden from this user: {names}", remedy)
    aside = (*settings.home.glob("keys.unused-*"), *settings.home.glob(".partial-restore"))
    if aside:
        names = ", ".join(sorted(path.name for path in aside))
        remedy = "remove what no command that runs needs any more"
        return Finding("warn", f"private keys lie in {names} too", remedy)
    return Finding("ok", f"{len(KEYS)} keys, each for its user alone")


def check_steward(settings: SiteSettings) -> Finding:
    """Say whether the steward runs."""
    if not is_alive(settings.steward):
        return Finding("warn", "the steward does not run", "start it with `vitrael site run`")
    return Finding("ok", "the steward runs")


def check_courier(settings: SiteSettings) -> Finding:
    """Say whether the SuperNode listens for its ClientApps, by its port."""
    network = settings.document.network
    try:
        with connect(Target(network.node_host, network.node_port)):
            pass
    except NetworkError as error:
        remedy = "start it with `vitrael site courier`"
        return Finding("warn", f"the courier does not run: {error.what}", remedy)
    return Finding("ok", f"something listens on port {network.node_port}, as the courier does")


def check_journal(settings: SiteSettings) -> Finding:
    """Say whether the journal is whole."""
    from vitrael.client.site.store import Store  # noqa: PLC0415 - heavy
    from vitrael.privacy.journal import tell_faults, verify_journal  # noqa: PLC0415

    kept = None
    if settings.store.exists():
        with closing(Store(settings.store, updates=settings.updates, read_only=True)) as store:
            kept = store.read_head()
    if faults := verify_journal(settings.journal, kept=kept):
        raise tell_faults(faults)
    if not settings.journal.exists():
        return Finding("ok", "no journal has begun")
    return Finding("ok", "the journal is whole" + (f": {kept.lines} lines" if kept else ""))


def check_tasks(settings: SiteSettings) -> Finding:
    """Say whether tasks are answered, or what its operator, or a restore, has to do with it."""
    from vitrael.client.site.backup.restored import read_mark  # noqa: PLC0415 - heavy
    from vitrael.client.site.control import COME_BACK  # noqa: PLC0415
    from vitrael.client.site.store import Store  # noqa: PLC0415

    with closing(Store(settings.store, updates=settings.updates, read_only=True)) as store:
        standing = store.decisions.standing()
        held = sum(one.state == "held" for one in store.decisions.list_held())
    if standing.left_utc:
        return Finding("warn", f"the site has left, at {standing.left_utc}", COME_BACK)
    mark = read_mark(settings.home)
    if mark is not None and not mark.complete:
        remedy = "run the same `vitrael site restore FILE` again"
        return Finding("fail", "the home is half restored", remedy)
    if mark is not None:
        remedy = "wait for a new task of the coordinator, or ask it for the last line that it "
        remedy += "knows and run `vitrael site restore --expect-journal N:HASH`"
        told = f"the home was restored from backup {mark.number}, and nobody has said yet that it "
        return Finding("warn", f"{told}is the newest: no task is answered", remedy)
    if standing.paused_utc:
        told = f"the site is paused since {standing.paused_utc}: every new task is refused"
        return Finding("warn", told, "run `vitrael site resume` when it may go on")
    if held:
        told = f"{held} results are held for release, and nothing else is answered meanwhile"
        return Finding("warn", told, "look at `vitrael site held`; then release or reject")
    schedule = settings.document.schedule
    return Finding("ok", f"tasks are taken{f', {schedule.hours} alone' if schedule else ''}")


def check_consents(settings: SiteSettings, *, now: datetime) -> Finding:
    """Say how long the consents hold; they are read with the site's public key.

    One that was signed under earlier keys, or for other software, covers nothing any more.
    """
    from vitrael.client.site.consent import fault_of, standing_agreements  # noqa: PLC0415 - heavy
    from vitrael.client.site.store import Store  # noqa: PLC0415
    from vitrael.privacy.keys import load_roster  # noqa: PLC0415

    if not settings.store.exists():
        return Finding("ok", "no study was consented to")
    own = load_roster(settings.roster).get(settings.name)
    if own is None:
        remedy = "ask the coordinator; then run `vitrael site fetch`"
        return Finding("fail", "the roster does not hold this site", remedy)
    with closing(Store(settings.store, updates=settings.updates, read_only=True)) as store:
        given = sum(not one.withdrawn_utc for one in store.list_consents())
        opened = [agreement.consent for agreement in standing_agreements(store, own=own)]
    ends = [(one, datetime.fromisoformat(one.expires_utc)) for one in opened]
    left = [(one, days_until(end, now=now)) for one, end in ends if end > now]
    unusable = (
        given
        - len(opened)
        + sum(fault_of(one, site=settings.name, now=now) is not None for one, _ in left)
    )
    if unusable:
        told = f"{unusable} of {given} consents are of earlier keys or for other software"
        return Finding("warn", told, "consent again where the study goes on: vitrael site consent")
    if not left:
        return Finding("ok", "no consent stands")
    what = f"the first of {len(left)} consents"
    remedy = "consent again for longer: vitrael site consent"
    return days_left(what, min(days for _, days in left), soon=_CONSENT_DAYS, remedy=remedy)


def check_enrollment(settings: SiteSettings, *, now: datetime) -> Finding:
    """Say how things stand between site and coordinator, by what the coordinator said last."""
    from vitrael.client.site.enrollment.standing import read_last_standing  # noqa: PLC0415

    last = read_last_standing(settings.home)
    if last is None:
        return Finding("warn", "the coordinator has said nothing yet", "run `vitrael site fetch`")
    if last.status == "pending":
        remedy = "read the fingerprint to the coordinator, then run `vitrael site fetch`"
        return Finding("warn", "the coordinator has not approved the site yet", remedy)
    if last.status != "enrolled":
        remedy = "ask the coordinator; then run `vitrael site fetch`"
        return Finding("fail", f"the site is {last.status}", remedy)
    if last.expires_utc is None:
        return Finding("ok", "the site is enrolled")
    days = days_until(datetime.fromisoformat(last.expires_utc), now=now)
    return days_left("the enrollment", days, soon=_SOON_DAYS, remedy=_RENEW)


def check_authority(layout: CourierLayout, *, now: datetime) -> Finding:
    """Say whether the authorities are there and how long the coordinator's holds."""
    layout.authorities()
    days = certificate_days(layout.authority, now=now)
    remedy = "ask the coordinator for its new authority; it comes with an invitation, by "
    remedy += "`vitrael server sites rotate`, once the coordinator has one"
    return days_left("the coordinator's authority", days, soon=_SOON_DAYS, remedy=remedy)


def check_name(target: Target) -> Finding:
    """Say whether the name of what is reached first is known here."""
    host, port = target.first
    count = resolve(host, port=port)
    return Finding("ok", f"{host} has {count} addresses")


def check_way(target: Target) -> Finding:
    """Say whether the coordinator's port is reached, through the proxy where there is one."""
    with connect(target):
        pass
    through = f" through {target.proxy}" if target.proxy is not None else ""
    return Finding("ok", f"{target.host}:{target.port} is reached{through}")


def check_tls(answer: Answer, *, now: datetime) -> Finding:
    """Say how long the coordinator's certificate holds, and whether the service answers."""
    if answer.status >= 500:  # noqa: PLR2004 - the server's own faults, by HTTP
        remedy = "ask the coordinator whether `vitrael server up` runs"
        return Finding("fail", f"the coordinator answers {answer.status}", remedy, network=True)
    days = days_until(answer.certificate_ends, now=now)
    remedy = "ask the coordinator to renew it"
    return days_left("the coordinator's certificate", days, soon=_SOON_DAYS, remedy=remedy)


def check_clock(answer: Answer, *, now: datetime) -> Finding:
    """Say how far this machine's clock is from the coordinator's."""
    if answer.clock is None:
        return Finding("warn", "the coordinator tells no time", "compare the clocks by hand")
    away = abs((now - answer.clock).total_seconds())
    told = f"the clocks are {away:.0f} s apart"
    remedy = "set this machine's clock, best by NTP"
    if away > CLOCK_FAIL_S:
        return Finding("fail", told, remedy)
    return Finding("warn", told, remedy) if away > CLOCK_WARN_S else Finding("ok", told)


def device_checks(settings: SiteSettings) -> Sequence[Check]:
    """Return the check of a GPU where this site's settings ask for one."""
    own = settings.document.performance
    if own is None or own.device != "cuda":
        return ()
    return (Check("gpu", check_gpu),)


def check_gpu(
    *,
    ask_torch: Sequence[str] = (
        *(sys.executable, "-c"),
        "import torch; print(torch.cuda.device_count())",
    ),
) -> Finding:
    """Say whether driver and torch see a GPU; torch is asked in a process of its own."""
    program = shutil.which("nvidia-smi")
    driver = "" if program is None else _said((program, "-L"))
    count = _said(ask_torch)
    if count.isdecimal() and int(count):
        return Finding("ok", f"torch sees {count} GPUs")
    why = "the driver sees one" if driver.startswith("GPU") else "nor does nvidia-smi"
    remedy = "install the driver and a CUDA build of torch, or set performance.device to cpu"
    return Finding("fail", f"torch sees no GPU, {why}", remedy)


def _said(command: Sequence[str]) -> str:
    """Return what a program wrote on standard output; nothing where it failed or took too long."""
    try:
        done = subprocess.run(  # noqa: S603 - a fixed command
            list(command), capture_output=True, text=True, check=False, timeout=_DEVICE_S
        )
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return done.stdout.strip() if done.returncode == 0 else ""
