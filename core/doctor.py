"""``vitrael doctor``: what is in order on this machine, what is not, and what to do about it.

The checks of a site and of a coordinator are found by the entry points (group ``vitrael.checks``)
of this distribution: each is a function of a home folder and the time that returns the checks of
its kind of home, none for any other. Checks run side by side, and none is waited for longer than
``PATIENCE_S``.
"""

from __future__ import annotations

import json
import shutil
import sys
import threading
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any, Final, Literal

import click

from vitrael.core.errors import EXIT_OK, NetworkError, VitraelError
from vitrael.core.version import package_version

ENTRY_POINTS = "vitrael.checks"
PATIENCE_S: Final = 20.0
LEAST_PYTHON: Final = (3, 11)
_GIB: Final = 1 << 30
_DAY_S: Final = 86_400.0
_FULL_GIB: Final = 2
_TIGHT_GIB: Final = 20

Level = Literal["ok", "warn", "fail"]


@dataclass(frozen=True, slots=True)
class Finding:
    """What one check found."""

    level: Level
    sentence: str
    remedy: str = ""
    network: bool = False
    """Whether trying again later may help by itself."""


@dataclass(frozen=True, slots=True)
class Check:
    """One question to a machine or a home."""

    name: str
    run: Callable[[], Finding]
    """Answers it; a VitraelError that it raises is a failure with its remedy."""


@click.command()
@click.option(
    "--home",
    type=click.Path(path_type=Path, file_okay=False),
    envvar=("VITRAEL_SITE_HOME", "VITRAEL_SERVER_HOME"),
    show_envvar=True,
    help="Home folder of a site or of a coordinator; without it the machine alone is checked.",
)
@click.option("--json", "as_json", is_flag=True, help="Write JSON on standard output.")
def doctor(home: Path | None, *, as_json: bool) -> int:
    """Check machine, network, certificates, consents and journal, and say what to do.

    Exits 0 also with warnings, 5 when only the network is at fault, and 1 otherwise.

    Example: vitrael doctor --home /srv/vitrael/north
    """
    found = examine(home, now=_utc_now())
    code = exit_code(finding for _, finding in found)
    if as_json:
        told = [{"name": name, **asdict(finding)} for name, finding in found]
        click.echo(json.dumps({"findings": told, "exit_code": code}))
        return code
    for name, finding in found:
        click.echo(f"{finding.level:<5} {name:<12} {finding.sentence}")
        if finding.remedy:
            click.echo(f"{'':<18} To do: {finding.remedy.rstrip('.')}.")
    failed = sum(finding.level == "fail" for _, finding in found)
    warned = sum(finding.level == "warn" for _, finding in found)
    click.echo(f"{len(found)} checks: {failed} failed, {warned} to look at", err=True)
    return code


def examine(home: Path | None, *, now: datetime) -> list[tuple[str, Finding]]:
    """Return what every check of this machine and of a home found, in the order of the checks."""
    checks = list(machine_checks(home))
    if home is not None:
        try:
            known = [check for find in load_offered(ENTRY_POINTS) for check in find(home, now)]
        except PermissionError:
            known = [Check("home", _closed)]
        checks += known or [Check("home", lambda: _no_home(home))]
    return list(zip((check.name for check in checks), run_checks(checks), strict=True))


def exit_code(findings: Iterable[Finding]) -> int:
    """Return 0 without failures, NetworkError's code where all are the network's, else 1."""
    failed = [finding for finding in findings if finding.level == "fail"]
    if not failed:
        return EXIT_OK
    return NetworkError.exit_code if all(one.network for one in failed) else VitraelError.exit_code


def run_checks(checks: Sequence[Check], *, patience_s: float = PATIENCE_S) -> list[Finding]:
    """Return what the checks found; one that does not end in time has failed."""
    found: dict[int, Finding] = {}

    def note(index: int, check: Check) -> None:
        found[index] = answer(check)

    threads = [
        threading.Thread(target=note, args=(index, check), daemon=True)
        for index, check in enumerate(checks)
    ]
    for thread in threads:
        thread.start()
    until = threading.Event()
    timer = threading.Timer(patience_s, until.set)
    timer.daemon = True
    timer.start()
    for thread in threads:
        while thread.is_alive() and not until.is_set():
            thread.join(timeout=0.05)
    timer.cancel()
    late = Finding("fail", f"no answer within {patience_s:g} s", "look at what it waits for")
    return [found.get(index, late) for index in range(len(checks))]


def answer(check: Check) -> Finding:
    """Return what a check found, also when it raised."""
    try:
        return check.run()
    except VitraelError as error:
        sentence = f"{error.what}: {error.why}" if error.why else error.what
        return Finding("fail", sentence, error.fix, network=isinstance(error, NetworkError))
    except PermissionError:
        return _closed()
    except Exception as error:  # noqa: BLE001 - one broken check must not hide the others
        return Finding("fail", f"the check broke: {type(error).__name__}", "report it")


def load_offered(group: str) -> list[Any]:  # Any: the group says what it is
    """Return what this distribution offers in a group of entry points, in the order of the names.

    A part whose extra is not installed offers nothing.
    """
    try:
        offered = metadata.distribution("vitrael").entry_points.select(group=group)
    except metadata.PackageNotFoundError:
        return []
    loaded = []
    for entry in sorted(offered, key=lambda entry: entry.name):
        try:
            loaded.append(entry.load())
        except ImportError:
            continue
    return loaded


def machine_checks(home: Path | None) -> Iterable[Check]:
    """Yield what is asked of every machine."""
    yield Check("python", check_python)
    yield Check("version", lambda: Finding("ok", f"vitrael {package_version()}"))
    yield Check("disk", lambda: check_disk(home or Path.cwd()))


def check_python(version: tuple[int, ...] = sys.version_info[:3]) -> Finding:
    """Say whether this Python is one that Vitrael runs on."""
    told = "Python " + ".".join(map(str, version))
    if version < LEAST_PYTHON:
        least = ".".join(map(str, LEAST_PYTHON))
        return Finding("fail", f"{told} is too old", f"install Python {least} or newer")
    return Finding("ok", told)


def check_disk(folder: Path, *, free_bytes: int | None = None) -> Finding:
    """Say how much room there is where a home is or will be."""
    there = next((one for one in (folder, *folder.absolute().parents) if one.exists()), Path("/"))
    free = (shutil.disk_usage(there).free if free_bytes is None else free_bytes) / _GIB
    told = f"{free:.1f} GiB are free"
    if free < _FULL_GIB:
        return Finding("fail", told, "make room: journals and updates are written to this disk")
    if free < _TIGHT_GIB:
        return Finding("warn", told, "a study keeps models, latents and updates: plan 20 GiB")
    return Finding("ok", told)


def days_left(what: str, days: float, *, soon: float, remedy: str) -> Finding:
    """Return what to say of something that expires."""
    if days <= 0:
        return Finding("fail", f"{what} expired {int(-days)} days ago", remedy)
    told = f"{what} holds for {int(days)} days"  # whole ones, as the lists of sites count them
    return Finding("warn", told, remedy) if days < soon else Finding("ok", told)


def days_until(end: datetime, *, now: datetime) -> float:
    """Return how many days are left."""
    return (end - now).total_seconds() / _DAY_S


def _no_home(home: Path) -> Finding:
    return Finding(
        "fail",
        f"{home} is no home of a site or coordinator",
        "name the folder that holds site.toml or server.toml",
    )


def _closed() -> Finding:
    remedy = "run it as the user whose home it is, with the service files vitrael-steward at a "
    remedy += "site and vitrael-server at a coordinator"
    return Finding("fail", "a file is closed to this user", remedy)


def _utc_now() -> datetime:
    return datetime.now(UTC)  # noqa: TID251 - the process boundary is where time comes in
