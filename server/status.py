"""``vitrael server status``: how coordinator, sites and study are, as a document and as a table.

It reads what lies in the home and asks nobody, so that it also answers when nothing runs.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any

from vitrael.core.errors import AuthError, ConfigError, VitraelError
from vitrael.core.study import load_study
from vitrael.server.board import ServerState, SiteState, read_server_state
from vitrael.server.config import ServerSettings
from vitrael.server.db.engine import open_database
from vitrael.server.objects import ObjectStore
from vitrael.server.offers import STUDY, is_stale, offered
from vitrael.server.runs import AT_WORK, StudyState, read_state
from vitrael.server.sites.authority import read_validity
from vitrael.server.sites.records import Enrollment
from vitrael.server.sites.registry import Registry
from vitrael.server.studies.ledger import Ledger, StageRecord
from vitrael.server.studies.run import WORK

_SHOWN = ("pending", "enrolled", "revoked", "left")


def read_status(settings: ServerSettings, *, now: datetime) -> dict[str, Any]:
    """Return all that is known of a coordinator's home, for people and for programs."""
    state = read_server_state(settings.home)
    running = state is not None and not is_stale(state, now=now)
    study = read_state(settings.home)
    return {
        "home": str(settings.home),
        "address": settings.document.address,
        "running": running,
        "pid": state.pid if state is not None and running else None,
        "version": state.version if state is not None and running else None,
        "trouble": state.trouble if state is not None and running else "",
        "children": _children(state) if running else [],
        "certificate": _certificate(settings, now=now),
        "sites": _sites(settings, state, now=now, running=running),
        "study": _study(settings, study, state if running else None, now=now),
        "offered": sorted(offered(settings)),
    }


def show_status(status: Mapping[str, Any]) -> str:
    """Return the document as a page of plain text."""
    head = f"coordinator {status['address']}: "
    if status["running"]:
        head += f"runs, pid {status['pid']}, vitrael {status['version']}"
    else:
        head += "does NOT run"
    lines = [head]
    if status["trouble"]:
        lines.append(f"TROUBLE: {status['trouble']}")
    certificate = status["certificate"]
    if "days" in certificate:
        days, authority = certificate["days"], certificate["authority_days"]
        lines.append(f"certificate: {days} days left, its authority {authority}")
    else:
        lines.append(f"certificate: {certificate['error']}")
    lines += ["", *_table(_SITE_COLUMNS, [_site_row(site) for site in status["sites"]])]
    if not status["sites"]:
        lines.append("no site has joined; invite one with vitrael server invite SITE")
    lines += ["", *_show_study(status["study"], offered=status["offered"])]
    falls = [child for child in status["children"] if child["falls"]]
    for child in falls:
        lines.append(f"process {child['name']}: {child['status']}, ended {child['falls']} times")
        lines.append(f"  last: {child['why']}")
    return "\n".join(lines)


def _children(state: ServerState | None) -> list[dict[str, Any]]:
    return [] if state is None else [child.model_dump() for child in state.children]


def _certificate(settings: ServerSettings, *, now: datetime) -> dict[str, Any]:
    try:
        validity = read_validity(settings)
    except (AuthError, ConfigError) as error:
        return {"error": error.sentence()}
    return {
        "days": (validity.certificate - now).days,
        "authority_days": (validity.authority - now).days,
    }


def _sites(
    settings: ServerSettings, state: ServerState | None, *, now: datetime, running: bool
) -> list[dict[str, Any]]:
    with Registry(settings, clock=lambda: now) as registry:
        latest = {one.site: one for one in registry.enrollments() if one.status in _SHOWN}
        invited = {one.site for one in registry.open_invitations()}
    seen = state.sites if state is not None else {}
    rows = [_site(latest[name], seen.get(name), now=now) for name in sorted(latest)]
    for row in rows:
        row["online"] = row["online"] and running
    waiting = sorted(invited - latest.keys())
    return rows + [{"site": name, "status": "invited"} for name in waiting]


def _site(enrollment: Enrollment, seen: SiteState | None, *, now: datetime) -> dict[str, Any]:
    expires = None if enrollment.ended_utc else enrollment.expires_utc
    expired = enrollment.status == "enrolled" and not enrollment.holds(now)
    facts = (seen or SiteState()).model_dump()
    if facts["seen_utc"] is None and enrollment.seen_utc is not None:
        facts["seen_utc"] = enrollment.seen_utc.isoformat(timespec="seconds")
    return {
        "site": enrollment.site,
        "status": "expired" if expired else enrollment.status,
        "days": None if expires is None else (expires - now).days,
        "vitrael": enrollment.package_version,
        **facts,
    }


def _study(
    settings: ServerSettings,
    study: StudyState | None,
    state: ServerState | None,
    *,
    now: datetime,
) -> dict[str, Any] | None:
    if study is None:
        return None
    facts: dict[str, Any] = study.model_dump(mode="json")
    stage = state.stage if state is not None else None
    engine = open_database(settings.database)
    try:
        history = Ledger(engine).history(study.protocol)
    finally:
        engine.dispose()
    finished = [record for record in history if record.status == "finished"]
    facts["participation"] = [_participation(record) for record in finished if record.participants]
    facts["roster"] = _roster(history)
    facts["stage"] = None
    if stage is not None and study.status in AT_WORK:
        seconds = (now - datetime.fromisoformat(stage.began_utc)).total_seconds()
        facts["stage"] = {**stage.model_dump(), "seconds": round(seconds, 1)}
        facts["stage"].update(_expected(settings, stage.stage, finished, seconds=seconds))
    return facts


def _roster(history: Sequence[StageRecord]) -> str | None:
    """Return the roster that has the finished rounds, else that of the last attempt."""
    work = [one for one in history if one.status == "finished" and one.key.stage in WORK]
    last = (work or list(history))[-1:]
    return last[0].details.get("roster") if last else None


def _participation(record: StageRecord) -> dict[str, Any]:
    absent: Mapping[str, str] = record.details.get("absent") or {}
    return {
        "stage": record.key.stage,
        "round": record.key.round,
        "seconds": record.seconds,
        "sites": list(record.participants),
        "absent": dict(absent),
    }


def _expected(
    settings: ServerSettings, stage: str, finished: list[StageRecord], *, seconds: float
) -> dict[str, Any]:
    """Return how many rounds the stage has, and how long it may still take.

    Its own rounds tell that; before there is one, what the canary predicted. 0: it is over the
    time.
    """
    rounds = _rounds(settings).get(stage, 1)
    own = [record for record in finished if record.key.stage == stage]
    took = [record.seconds for record in own if record.seconds is not None]
    predicted = None if took else _predicted(settings, stage, finished)
    if not took and predicted is None:
        return {"rounds": rounds, "left_s": None}
    one = sum(took) / len(took) if took else predicted or 0.0
    left = one * max(rounds - len(own), 0) - seconds
    return {"rounds": rounds, "left_s": round(max(left, 0.0))}


def _predicted(settings: ServerSettings, stage: str, finished: list[StageRecord]) -> float | None:
    """Return the seconds that the canary predicted for a round of the stage; None if it did not."""
    outputs = [one.output for one in finished if one.key.stage == "canary" and one.output]
    try:
        document = ObjectStore(settings.home / "objects").get_json(outputs[-1])
        return float(document["predicted"][stage])
    except (VitraelError, IndexError, KeyError):
        return None


def _rounds(settings: ServerSettings) -> dict[str, int]:
    try:
        study = load_study(settings.home / STUDY)
    except VitraelError:
        return {}
    return study.protocol.rounds(sites=len(study.roster.sites))


_SITE_COLUMNS = ("site", "status", "online", "last seen", "asked", "received", "answer", "days")


def _site_row(site: Mapping[str, Any]) -> tuple[str, ...]:
    if site["status"] == "invited":
        return (site["site"], "invited", *("-",) * 6)
    answer = site["answer_s"]
    return (
        site["site"],
        site["status"],
        "yes" if site["online"] else "no",
        site["seen_utc"] or "never",
        _bytes(site["asked_bytes"]),
        _bytes(site["received_bytes"]),
        "-" if answer is None else f"{answer:.1f} s",
        "-" if site["days"] is None else str(site["days"]),
    )


def _table(columns: tuple[str, ...], rows: list[tuple[str, ...]]) -> list[str]:
    if not rows:
        return []
    widths = [max(map(len, column)) for column in zip(columns, *rows, strict=True)]
    return [
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
        for row in (columns, *rows)
    ]


def _show_study(study: Mapping[str, Any] | None, *, offered: Sequence[str]) -> list[str]:
    if study is None and offered:
        names = ", ".join(offered)
        return [f"no study was started; offered: {names}; begin with vitrael study start STUDY"]
    if study is None:
        return ["no study was started; offer one with vitrael study offer FILE"]
    lines = [f"study {study['study']}: {study['status']}, Flower runs so far: {study['runs']}"]
    if study["sentence"]:
        lines.append(f"  {study['sentence']}")
    if study["roster"]:
        lines.append(f"  with the roster {study['roster']}")
    stage = study["stage"]
    if stage is not None:
        text = f"  {stage['stage']}, round {stage['round'] + 1} of {stage['rounds']}"
        if stage["asked"]:
            text += f", {stage['answered']} of {stage['asked']} sites answered"
        text += f", for {stage['seconds']:.0f} s"
        if stage["left_s"] is not None:
            left = stage["left_s"]
            text += f", about {left} s left" if left else ", longer than expected"
        lines.append(text)
        lines += [f"    {site}: {why}" for site, why in sorted(stage["absent"].items())]
    for part in study["participation"]:
        if part["absent"]:
            there = len(part["sites"])
            why = ", ".join(f"{site}: {text}" for site, text in sorted(part["absent"].items()))
            total = there + len(part["absent"])
            title = f"{part['stage']}, round {part['round'] + 1}"
            lines.append(f"  partial: {there} of {total} in {title} ({why})")
    return lines


def _bytes(number: int) -> str:
    return f"{number / (1 << 20):.1f} MiB" if number >= 1 << 20 else f"{number} B"
