"""Studies at the coordinator: offered to the sites, started, stopped.

An offered study lies in ``studies/NAME/study.toml``; sites that its roster names fetch it from
there and consent. To start it means to make it the one that runs: its document and the keys that
its releases are verified by are written into the home, and ``vitrael server up`` is ordered to run
it. Order and start are apart, so that a study goes on after everything was switched off and on.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from datetime import datetime
from pathlib import Path

from vitrael.core.digest import write_atomically
from vitrael.core.errors import AuthError, ProcessError, StudyError, UsageError
from vitrael.core.study import Study, parse_study
from vitrael.privacy.keys import KeyPair, PublicKeys
from vitrael.privacy.release.trust import save_trust, trust_roster
from vitrael.server.board import STALE_S, ServerState, read_server_state
from vitrael.server.config import ServerSettings
from vitrael.server.federation.processes import is_alive
from vitrael.server.given_weights import keep_given, read_given
from vitrael.server.orders import Order, give_order, read_order
from vitrael.server.runs import AT_WORK, StudyState, read_state
from vitrael.server.sites.registry import Registry
from vitrael.server.studies.rosters import find_kept, keep_members

STUDY = "study.toml"
MOST_BYTES = 262_144
"""Of a study's document, as it goes to the sites."""
_POLL_S = 0.5


def offered(settings: ServerSettings) -> dict[str, Path]:
    """Return name -> document of every study that is offered."""
    return {path.parent.name: path for path in sorted(settings.studies.glob(f"*/{STUDY}"))}


def offer_study(
    settings: ServerSettings,
    file: Path,
    *,
    confirm: Callable[[Study], object] = lambda _: None,
    dry_run: bool = False,
    weights: Path | None = None,
) -> Study:
    """Offer a study to the sites that it names, and return it.

    ``weights`` is the file of those that experts begin with, where the study names any.

    The file is read once: what ``confirm`` lets pass, and raises for otherwise, is what is offered.
    A study of the same name that is offered is replaced; sites must consent again to a changed
    protocol. Raises StudyError for a document that cannot be used, AuthError when a site that it
    names is not enrolled, UsageError when the present one of that name runs.
    """
    return offer_document(
        settings,
        _read_bytes(file),
        label=str(file),
        confirm=confirm,
        dry_run=dry_run,
        weights=weights,
    )


def offer_document(
    settings: ServerSettings,
    data: bytes,
    *,
    label: str,
    confirm: Callable[[Study], object] = lambda _: None,
    dry_run: bool = False,
    weights: Path | None = None,
) -> Study:
    """Offer a study that is given as its document, which errors call ``label``; return it."""
    study = parse_study(data, label=label)
    name = study.protocol.name
    given = read_given(settings.home, study, weights)
    if len(data) > MOST_BYTES:
        raise StudyError(
            f"{label} has {len(data)} bytes", why=f"sites are offered at most {MOST_BYTES}"
        )
    demand_enrolled(settings, study)
    at_work = _at_work(settings.home)
    if at_work is not None and at_work.study == name and at_work.protocol != study.protocol.digest:
        raise UsageError(
            f"the study {name} runs and would be changed",
            why="sites have consented to what runs",
            fix=f"run vitrael study stop {name} first, or give the changed one another name",
        )
    if not dry_run:
        confirm(study)
        keep_given(settings.home, given)
        write_atomically(settings.studies / name / STUDY, data)
    return study


def demand_enrolled(settings: ServerSettings, study: Study) -> Mapping[str, PublicKeys]:
    """Return the keys of the sites of a study; raise AuthError that names who is not enrolled.

    Of a study that has begun, a site that was enrolled then and has left since is still a member.
    """
    with Registry(settings) as registry:
        members = {**find_kept(settings.home, study), **registry.members()}
    missing = [site for site in study.roster.sites if site not in members]
    if missing:
        raise AuthError(
            f"the study {study.protocol.name} names sites that are not enrolled",
            why=", ".join(missing),
            fix="invite and approve them, or leave them out of the roster",
        )
    return {site: members[site] for site in study.roster.sites}


def find_expiry(settings: ServerSettings, study: Study) -> tuple[str, datetime] | None:
    """Return the member whose enrollment ends first, and when; None when none is enrolled now."""
    with Registry(settings) as registry:
        ends = {
            one.site: one.expires_utc
            for one in registry.enrollments()
            if one.status == "enrolled" and one.site in study.roster.sites
        }
    known = [(ending, site) for site, ending in ends.items() if ending is not None]
    return (min(known)[1], min(known)[0]) if known else None


def start_study(settings: ServerSettings, name: str, *, now: datetime) -> Order:
    """Make an offered study the one that runs, and order its run; what it has finished is kept.

    Of a study that runs already, as it is offered, the order that stands is returned.

    Raises UsageError for a study that is not offered or while another runs, AuthError when a site
    that it names is not enrolled, ProcessError when no coordinator of this home runs.
    """
    study, document = _read_offered(settings, name)
    members = demand_enrolled(settings, study)
    demand_running(settings)
    at_work = _at_work(settings.home)
    if at_work is not None and at_work.protocol != study.protocol.digest:
        raise UsageError(
            f"the study {at_work.study} runs",
            why="a coordinator runs one study at a time",
            fix=f"wait for its end, or run vitrael study stop {at_work.study}",
        )
    if at_work is not None and (standing := _standing_order(settings, document)) is not None:
        return standing
    coordinator = KeyPair.load(settings.keys).public
    trust = trust_roster(members, coordinator=coordinator, threshold=len(members))
    save_trust(trust, settings.home / "trust.json")
    write_atomically(settings.home / STUDY, document)
    keep_members(settings.home, study, members)
    return give_order(settings.home, name, protocol=study.protocol.digest, wanted="run", now=now)


def stop_study(settings: ServerSettings, name: str, *, now: datetime) -> Order:
    """Order the end of a study's run; what it has finished is kept, and start goes on from there.

    Raises UsageError when the study does not run.
    """
    at_work = demand_at_work(settings, name)
    return give_order(settings.home, name, protocol=at_work.protocol, wanted="stop", now=now)


def demand_at_work(settings: ServerSettings, name: str) -> StudyState:
    """Return the state of a study that runs or waits to run; raise UsageError for any other."""
    at_work = _at_work(settings.home)
    if at_work is None or at_work.study != name:
        raise UsageError(f"the study {name} does not run", fix="see vitrael server status")
    return at_work


def wait_for_order(
    settings: ServerSettings,
    order: Order,
    *,
    timeout_s: float = 60.0,
    clock: Callable[[], float] = time.monotonic,
    sleep: Callable[[float], None] = time.sleep,
) -> StudyState:
    """Return the study's state once the coordinator has obeyed: it runs, or has ended.

    Raises ProcessError when the coordinator does not obey in time.
    """
    until = clock() + timeout_s
    while True:
        state = read_state(settings.home)
        if state is not None and state.order == order.digest and state.status != "waiting":
            return state
        if clock() >= until:
            raise ProcessError(
                f"the coordinator did not obey within {timeout_s:.0f} s",
                why="its SuperLink does not answer, or it ended",
                fix="see vitrael server status; the order stands",
            )
        sleep(_POLL_S)


def load_offered(settings: ServerSettings, name: str) -> Study:
    """Return an offered study; raise UsageError for one that is not offered."""
    study, _ = _read_offered(settings, name)
    return study


def _read_offered(settings: ServerSettings, name: str) -> tuple[Study, bytes]:
    path = offered(settings).get(name)
    if path is None:
        names = ", ".join(offered(settings))
        raise UsageError(
            f"the study {name} is not offered",
            why=f"offered are {names}" if names else "no study is",
            fix="run vitrael study offer FILE",
        )
    study, document = _read_study(path)
    if study.protocol.name != name:
        raise StudyError(f"{path} holds the study {study.protocol.name}", fix="offer it again")
    return study, document


def _read_study(path: Path) -> tuple[Study, bytes]:
    """Return a study and the very bytes that say it."""
    data = _read_bytes(path)
    return parse_study(data, label=str(path)), data


def _read_bytes(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise StudyError(
            f"study {path} cannot be read", why=error.strerror or "", fix="check the path"
        ) from error


def demand_running(settings: ServerSettings) -> ServerState:
    """Return the state of the coordinator of a home; raise ProcessError when none runs."""
    state = read_server_state(settings.home)
    if state is None or not is_alive(state.pid):
        raise ProcessError(
            f"no coordinator runs in {settings.home}",
            fix=f"start one with vitrael server up --home {settings.home}",
        )
    return state


def is_stale(state: ServerState, *, now: datetime) -> bool:
    """Say whether the writer of a state has written nothing for long, or is gone."""
    written = datetime.fromisoformat(state.utc)
    return (now - written).total_seconds() > STALE_S or not is_alive(state.pid)


def _standing_order(settings: ServerSettings, document: bytes) -> Order | None:
    """Return the order to run exactly this document, if that is what stands."""
    path, order = settings.home / STUDY, read_order(settings.home)
    same = path.exists() and path.read_bytes() == document
    return order if same and order is not None and order.wanted == "run" else None


def _at_work(home: Path) -> StudyState | None:
    state = read_state(home)
    return state if state is not None and state.status in AT_WORK else None
