"""How the hospitals of a demo join: by the commands that real ones use, over the real door.

Invitation, join with the keys made at the site, approval by fingerprint, the study offered and
fetched. Where an earlier demo was interrupted, who is enrolled stays so.
"""

from __future__ import annotations

import contextlib
import json
import subprocess
from collections.abc import Callable, Mapping
from pathlib import Path

from vitrael.core.errors import EXIT_INTERRUPTED, EXIT_OK, ProcessError
from vitrael.core.study import Study
from vitrael.server.federation.flower_home import program
from vitrael.server.federation.layout import RehearsalLayout, site_home
from vitrael.server.rehearsal import Event, Rehearsal

_JOIN_S = 180.0

Heard = dict[str, tuple[int, str, str]]
"""Site -> exit code of its command, answer, and what went wrong in words."""


def enroll_sites(layout: RehearsalLayout, study: Study, *, tell: Callable[[str], None]) -> None:
    """Let every site of a study join, and have each fetch the study, which is offered.

    Raises ProcessError that names the site whose command failed, and what the coordinator's say.
    """
    with Rehearsal(layout, on_event=lambda event: _tell_of(event, tell)) as rehearsal:
        rehearsal.start_coordinator()
        known = _enrolled(rehearsal)
        new = [site for site in study.roster.sites if site not in known]
        if new:
            tell(f"{', '.join(new)}: invited, joining with keys of their own")
            _join(rehearsal, new)
        rehearsal.command("study", "offer", str(layout.home / "study.toml"), "--yes")
        fetch = ("fetch", "--json")
        heard = run_at_sites(
            layout.home, dict.fromkeys(study.roster.sites, fetch), timeout_s=_JOIN_S
        )
        _demand_all(heard, "could not fetch the study")
    tell(f"{len(study.roster.sites)} sites are enrolled; they have fetched the study")


def run_at_sites(home: Path, commands: Mapping[str, tuple[str, ...]], *, timeout_s: float) -> Heard:
    """Run one of a site's commands at each site, all at once; no process is left behind."""
    asked: dict[str, subprocess.Popen[str]] = {}
    try:
        for site, command in commands.items():
            asked[site] = subprocess.Popen(  # noqa: S603 - our own command
                [program("vitrael"), "site", *command, "--home", str(site_home(home, site))],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
            )
        return {site: _hear(process, timeout_s=timeout_s) for site, process in asked.items()}
    finally:
        for process in asked.values():
            if process.poll() is None:
                process.kill()
                process.communicate()


def _join(rehearsal: Rehearsal, sites: list[str]) -> None:
    home = rehearsal.layout.home
    commands = {}
    for site in sites:
        file = home / "invitations" / f"{site}.invitation.json"
        file.parent.mkdir(exist_ok=True)
        file.unlink(missing_ok=True)
        rehearsal.command("server", "invite", site, "--out", str(file))
        commands[site] = ("join", str(file), "--new-keys", "--yes", "--json")
    heard = run_at_sites(home, commands, timeout_s=_JOIN_S)
    _demand_all(heard, "could not join")
    for site in sites:
        # Real operators read this out over the telephone; here one machine is both ends.
        fingerprint = str(json.loads(heard[site][1])["fingerprint"])
        approve = ("server", "sites", "approve", site, "--fingerprint", fingerprint, "--yes")
        rehearsal.command(*approve)
        with contextlib.suppress(OSError):
            (home / "invitations" / f"{site}.invitation.json").unlink()


def _enrolled(rehearsal: Rehearsal) -> set[str]:
    document = json.loads(rehearsal.command("server", "sites", "list", "--json"))
    return {str(one["site"]) for one in document["sites"] if one["status"] == "enrolled"}


def _demand_all(heard: Heard, what: str) -> None:
    for site, (code, _, why) in heard.items():
        if code != EXIT_OK:
            raise ProcessError(f"site {site} {what}", why=why)


def _tell_of(event: Event, tell: Callable[[str], None]) -> None:
    tell(f"{event.who}: {event.text}")


def _hear(process: subprocess.Popen[str], *, timeout_s: float) -> tuple[int, str, str]:
    try:
        answer, said = process.communicate(timeout=timeout_s)
    except subprocess.TimeoutExpired:
        process.kill()
        process.communicate()
        return EXIT_INTERRUPTED, "", f"it did not answer within {timeout_s:g} s"
    *_, last = said.strip().splitlines() or [f"exit code {process.returncode}"]
    return process.returncode, answer, last.removeprefix("Error: ")  # progress stands above it
