"""Sites and certificates as ``vitrael server sites list`` shows them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from datetime import datetime
from typing import Any

from vitrael.core.errors import AuthError, ConfigError
from vitrael.server.config import ServerSettings
from vitrael.server.sites.authority import read_validity
from vitrael.server.sites.records import Enrollment
from vitrael.server.sites.registry import Registry

_SHORT = 9
"""Two groups of four digits: enough to tell sites apart, too little to approve one by."""
_WARN_DAYS = 31


def list_sites(settings: ServerSettings, *, now: datetime) -> dict[str, Any]:
    """Return a document about every site that has keys here or may bring some, and certificates."""
    with Registry(settings, clock=lambda: now) as registry:
        enrollments, open_ones = registry.enrollments(), registry.open_invitations()
        until = {one.site: one.expires_utc for one in open_ones}
        known: dict[str, list[Enrollment]] = {site: [] for site in until}
        for one in enrollments:
            known.setdefault(one.site, []).append(one)

        def shorten(one: Enrollment) -> str | None:
            try:
                return registry.fingerprint(one)[:_SHORT]
            except AuthError:  # who is enrolled is known without the coordinator's keys
                return None

        sites = [
            _describe(site, known[site], until.get(site), now=now, fingerprint=shorten)
            for site in sorted(known)
        ]
    return {"sites": sites, **_describe_certificates(settings, now=now)}


def show_sites(document: Mapping[str, Any]) -> str:
    """Return the document as a table."""
    head = ("site", "status", "fingerprint", "days", "last seen", "version", "")
    rows = [head, *(_row(site) for site in document["sites"])]
    widths = [max(len(row[column]) for row in rows) for column in range(len(head))]
    lines = [
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
        for row in rows
    ]
    if not document["sites"]:
        lines = ["No site has joined, and no invitation is open."]
    return "\n".join([*lines, "", *_certificate_lines(document)])


def _describe(
    site: str,
    known: Sequence[Enrollment],
    invited_until: datetime | None,
    *,
    now: datetime,
    fingerprint: Callable[[Enrollment], str | None],
) -> dict[str, Any]:
    enrolled = next((one for one in known if one.status == "enrolled"), None)
    waiting = next((one for one in known if one.status == "pending"), None)
    shown = enrolled or waiting
    if shown is None and invited_until is None:
        shown = known[-1]
    status = "invited" if shown is None else str(shown.status)
    if enrolled is not None and not enrolled.holds(now):
        status = "expired"
    new_keys = None
    if enrolled is not None and (waiting is not None or invited_until is not None):
        new_keys = "pending" if waiting is not None else "invited"
    return {
        "site": site,
        "status": status,
        "fingerprint": fingerprint(shown) if shown else None,
        "new_keys": new_keys,
        "new_fingerprint": fingerprint(waiting) if waiting and enrolled else None,
        "joined_utc": _iso(shown.joined_utc if shown else None),
        "approved_utc": _iso(shown.approved_utc if shown else None),
        "expires_utc": _iso(shown.expires_utc if shown else None),
        "days_left": _days(shown.expires_utc, now) if shown and not shown.ended_utc else None,
        "seen_utc": _iso(shown.seen_utc if shown else None),
        "package_version": shown.package_version if shown else None,
        "node_id": str(shown.node_id) if shown and shown.node_id is not None else None,
        "invited_until_utc": _iso(invited_until),
        "reason": shown.reason if shown else "",
        "before": str(known[-1].status) if status == "invited" and known else None,
    }


def _describe_certificates(settings: ServerSettings, *, now: datetime) -> dict[str, Any]:
    own = settings.document.tls is not None
    try:
        validity = read_validity(settings)
    except (AuthError, ConfigError) as error:
        return {"certificate": {"own": own, "error": error.sentence()}, "authority": None}
    certificate = {"own": own, **_validity(validity.certificate, now)}
    return {"certificate": certificate, "authority": _validity(validity.authority, now)}


def _validity(until: datetime, now: datetime) -> dict[str, Any]:
    return {"expires_utc": _iso(until), "days_left": _days(until, now)}


def _row(site: Mapping[str, Any]) -> tuple[str, ...]:
    notes = []
    if site["new_keys"] == "pending":
        notes.append(f"new keys {site['new_fingerprint']} wait for approval")
    elif site["new_keys"] == "invited":
        notes.append("new keys are invited")
    if site["days_left"] is not None and site["days_left"] < _WARN_DAYS:
        notes.append("rotate soon")
    if site["before"] is not None:
        notes.append(f"{site['before']} before")
    if site["reason"]:
        notes.append(site["reason"])
    seen = site["seen_utc"]
    return (
        site["site"],
        site["status"],
        site["fingerprint"] or "-",
        "-" if site["days_left"] is None else str(site["days_left"]),
        f"{seen[:10]} {seen[11:16]} UTC" if seen else "-",
        site["package_version"] or "-",
        "; ".join(notes),
    )


def _certificate_lines(document: Mapping[str, Any]) -> list[str]:
    certificate, authority = document["certificate"], document["authority"]
    if "error" in certificate:
        return [f"certificate: {certificate['error']}"]
    whose = "the operator's own" if certificate["own"] else "of the coordinator's authority"
    return [
        f"certificate: {certificate['days_left']} days left, {whose}",
        f"authority:   {authority['days_left']} days left",
    ]


def _days(until: datetime | None, now: datetime) -> int | None:
    return None if until is None else (until - now).days


def _iso(moment: datetime | None) -> str | None:
    return None if moment is None else moment.isoformat(timespec="seconds")
