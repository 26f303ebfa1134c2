"""The production layout on one machine: coordinator, reverse proxy, couriers and stewards.

This is no simulation. `vitrael server up` with nginx in front; for each site `vitrael site courier`
with its own key, and `vitrael site run` without a network where the system allows it. A rehearsal
starts them all, has the study started by the coordinator's command, watches, and ends everything
whatever happens. What a study has finished lies in the homes, and a later rehearsal of the same
home goes on from there.
"""

from __future__ import annotations

import atexit
import contextlib
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, Self

from vitrael.core.errors import NetworkError, ProcessError, UsageError, VitraelError
from vitrael.server.board import ServerState, read_server_state
from vitrael.server.config import ServerSettings, load_server
from vitrael.server.federation.addresses import Addresses, choose_addresses, write_addresses
from vitrael.server.federation.flower_home import program
from vitrael.server.federation.guards import (
    explained_storage,
    locked,
    terminable,
    uninterrupted,
)
from vitrael.server.federation.homes import forget_socket, listens
from vitrael.server.federation.layout import (
    RehearsalLayout,
    coordinator_command,
    courier_command,
    front_command,
    network_guard,
    steward_command,
)
from vitrael.server.federation.processes import ProcessGroup, child_environment, end_leftovers
from vitrael.server.federation.progress import Tail
from vitrael.server.federation.run_state import RunState, read_run
from vitrael.server.offers import load_offered, offered
from vitrael.server.proxy import check_proxy, proxy_command, proxy_files, render_proxy
from vitrael.server.runs import AT_WORK, StudyState, read_state

COORDINATOR = "coordinator"
FRONT = "front door"
_START_S = 120.0
_CONNECT_S = 150.0
"""Longer than a courier tries a key that the SuperLink still holds as in use."""
_COMMAND_S = 120.0
_WATCH_S = 0.2
_GRACE_S = 20.0
_LONGEST_S = 86_400.0

EventKind = Literal["starting", "running", "ready", "waiting", "progress"]


@dataclass(frozen=True, slots=True)
class Event:
    """Something to show: who, what, and for ``progress`` a line of a ``progress.jsonl``."""

    kind: EventKind
    who: str
    """``coordinator``, a site's name, or a process such as ``site north: steward``."""
    text: str = ""
    data: Mapping[str, Any] = field(default_factory=dict)


def rehearse(
    layout: RehearsalLayout,
    *,
    on_event: Callable[[Event], None] = lambda _: None,
    timeout_s: float = _LONGEST_S,
) -> int:
    """Start the federation, run the study to its end, end every process, return its exit code.

    A lost process ends the rehearsal with a ProcessError that names it, as does a run that lasts
    longer than ``timeout_s``; what was finished is kept, and the next rehearsal goes on. A failed
    study is raised as VitraelError with its sentence and exit code. Ctrl-C, SIGTERM and every
    exception end all processes before they go on.
    """
    with Rehearsal(layout, on_event=on_event) as rehearsal:
        rehearsal.start()
        return rehearsal.watch(timeout_s=timeout_s)


class Rehearsal:
    """A federation on loopback; as a context manager it ends whatever happens."""

    def __init__(
        self,
        layout: RehearsalLayout,
        *,
        on_event: Callable[[Event], None] = lambda _: None,
    ) -> None:
        self.layout = layout
        self.group = ProcessGroup(layout.home)
        self.guard: tuple[str, ...] = ()
        """What takes the network from the stewards; empty when this machine allows nothing."""
        self.addresses: Addresses | None = None
        self._tell = on_event
        self._tails: dict[str, Tail] = {}
        self._stack = contextlib.ExitStack()

    def __enter__(self) -> Self:
        """Take the home's lock and see to it that the end comes in every case."""
        if not self.layout.home.is_absolute():
            raise UsageError(f"the home {self.layout.home} is no absolute path")
        with contextlib.ExitStack() as stack:
            stack.enter_context(locked(self.layout.home))
            stack.enter_context(terminable())
            self._stack = stack.pop_all()
        atexit.register(self.end)
        return self

    def __exit__(self, *_: object) -> None:
        """End every process."""
        self.end()

    @property
    def settings(self) -> ServerSettings:
        """The coordinator's settings."""
        return load_server(self.layout.home)

    def start(self) -> None:
        """Start every process and the study; return when all sites are connected and it runs.

        Raises NetworkError for a port in use, ProcessError for a process that does not come up.
        """
        self.start_coordinator()
        self.start_sites()
        self.start_study()

    def start_coordinator(self) -> None:
        """Start the coordinator and what stands in front of it; return when both answer."""
        layout = self.layout
        if left := end_leftovers(layout.home):
            text = f"ended {len(left)} processes of an earlier run"
            self._tell(Event("starting", COORDINATOR, text))
        self.addresses = choose_addresses(layout)
        with explained_storage(layout.home):
            write_addresses(layout, self.addresses)
        if not (layout.home / "authority" / "ca.crt").exists():
            self.command("server", "init", "--address", self.addresses.address)
        for name in ("state.json", "run.json"):
            (layout.home / name).unlink(missing_ok=True)
        self._tell(Event("starting", COORDINATOR, f"at {self.addresses.address}"))
        self._spawn(COORDINATOR, coordinator_command(layout), home=layout.home)
        self._wait("the coordinator does not answer", self._is_up)
        self._start_front()

    def start_sites(self) -> None:
        """Start stewards and couriers; return when all sites are connected."""
        layout = self.layout
        homes = {COORDINATOR: layout.home} | {s: layout.site_home(s) for s in layout.sites}
        self._tails = {who: Tail.at_end(home / "progress.jsonl") for who, home in homes.items()}
        self.guard = network_guard()
        for site in layout.sites:
            how = "without a network" if self.guard else "WITH a network"
            self._tell(Event("starting", site, f"courier, and steward {how}"))
            forget_socket(layout.site_home(site))
            command = steward_command(layout, site, guard=self.guard)
            self._spawn(steward_of(site), command, home=layout.site_home(site))
        self._wait("a site's node is not registered", lambda: self._know(layout.sites))
        for site in layout.sites:
            home = layout.site_home(site)
            self._spawn(courier_of(site), courier_command(layout, site), home=home)
        self._wait_for_sites()
        self._wait("a steward does not listen", self._stewards_listen)
        self._tell(Event("ready", COORDINATOR, f"{len(layout.sites)} sites are connected"))

    def start_study(self) -> None:
        """Have the one study that is offered started, or gone on with, by the real command."""
        names = list(offered(self.settings))
        if len(names) != 1:
            raise UsageError(
                f"{self.layout.home} offers {len(names)} studies", why="a rehearsal runs one"
            )
        load_offered(self.settings, names[0])
        self.command("study", "start", names[0], "--yes")
        self._tell(Event("running", COORDINATOR, f"study {names[0]}"))

    def command(self, *words: str) -> str:
        """Run a command of the coordinator's operator and return what it prints.

        Raises a VitraelError with its sentence and exit code when it fails.
        """
        line = [program("vitrael"), *words, "--home", str(self.layout.home)]
        try:
            done = subprocess.run(  # noqa: S603 - our own command
                line,
                env=self._environment(self.layout.home),
                stdin=subprocess.DEVNULL,
                capture_output=True,
                text=True,
                check=False,
                timeout=_COMMAND_S,
            )
        except subprocess.TimeoutExpired as error:
            raise ProcessError(f"vitrael {words[0]} {words[1]} did not end in time") from error
        if done.returncode:
            raise _told(done.stderr, code=done.returncode, command=words)
        return done.stdout

    def watch(self, *, timeout_s: float = _LONGEST_S) -> int:
        """Return how the study ended; raise ProcessError when a process is lost, or time is up.

        Raises VitraelError with the study's sentence and exit code when it failed.
        """
        began = time.monotonic()
        while True:
            study = self.study()
            for event in self._progress():
                self._tell(event)
            if study is not None and study.status not in AT_WORK:
                return _exit_code(study)
            self.group.check()
            if time.monotonic() - began >= timeout_s:
                raise ProcessError(
                    f"the run did not end within {timeout_s:.0f} s",
                    why="no wait of this study is so long, so that its ServerApp hangs",
                    fix="read the logs, then resume; what was finished is kept",
                )
            time.sleep(_WATCH_S)

    def end(self) -> None:
        """End every process of the home; a second call does nothing."""
        atexit.unregister(self.end)
        with self._stack, uninterrupted():
            if self.addresses is not None:
                others = [name for name in self.group.children if name != COORDINATOR]
                self.group.end(first=others, grace_s=_GRACE_S)

    def study(self) -> StudyState | None:
        """Return what the coordinator says of the study."""
        return read_state(self.layout.home)

    def state(self) -> RunState | None:
        """Return what the ServerApp of the present run said last."""
        said, study = read_run(self.layout.home), self.study()
        return said if said is not None and study and said.run_id == study.run_id else None

    def online(self) -> set[str]:
        """Return the sites that the coordinator sees connected."""
        state = self._server_state()
        return set() if state is None else {s for s, one in state.sites.items() if one.online}

    def _start_front(self) -> None:
        settings, nginx = self.settings, self.layout.nginx
        place = proxy_files(settings)
        if nginx is None:
            self._tell(Event("starting", FRONT, "nginx is not installed: our own stands in for it"))
            self._spawn(FRONT, front_command(self.layout), home=self.layout.home)
        else:
            self._tell(Event("starting", FRONT, "nginx"))
            configuration = self.layout.home / "proxy.conf"
            configuration.write_text(render_proxy(settings, place), encoding="utf-8")
            check_proxy(nginx, configuration, place)
            command = proxy_command(nginx, configuration, place)
            self._spawn(FRONT, command, home=self.layout.home)
        self._wait("the front door does not answer", self._door_is_open)

    def _environment(self, home: Path) -> dict[str, str]:
        return child_environment(
            self.layout.environment,
            home=self.layout.home,
            flower_home=home / "flower",
            threads=self.layout.threads,
        )

    def _spawn(self, name: str, command: Sequence[str], *, home: Path) -> None:
        log = name.removeprefix("site ").replace(": ", "-").replace(" ", "-")
        path = self.layout.home / "logs" / f"{log}.log"
        self.group.start(name, command, environment=self._environment(home), log=path)

    def _server_state(self) -> ServerState | None:
        return read_server_state(self.layout.home)

    def _is_up(self) -> bool:
        state = self._server_state()
        if state is None or state.trouble:
            return False
        from vitrael.server.sites.nodes import find_superlink  # noqa: PLC0415 - slow to import

        return find_superlink(self.settings).is_up()

    def _door_is_open(self) -> bool:
        import ssl  # noqa: PLC0415 - only here

        import httpx  # noqa: PLC0415 - slow to import

        from vitrael.server.sites.authority import authority_file  # noqa: PLC0415

        settings = self.settings
        trust = ssl.create_default_context(cafile=str(authority_file(settings)))
        url = f"https://{settings.document.address}/health"
        with httpx.Client(verify=trust, trust_env=False, timeout=5) as client:
            try:
                return client.get(url).is_success
            except httpx.HTTPError:
                return False

    def _know(self, sites: Sequence[str]) -> bool:
        state = self._server_state()
        return state is not None and set(sites) <= state.sites.keys()

    def _wait_for_sites(self) -> None:
        until = time.monotonic() + _CONNECT_S
        while missing := sorted(set(self.layout.sites) - self.online()):
            self.group.check()
            if time.monotonic() >= until:
                raise ProcessError(
                    f"site {', '.join(missing)} did not connect within {_CONNECT_S:.0f} s",
                    fix="read the courier's log, then resume",
                )
            time.sleep(_WATCH_S)

    def _stewards_listen(self) -> bool:
        return all(listens(self.layout.site_home(site)) for site in self.layout.sites)

    def _wait(self, failure: str, ready: Callable[[], bool]) -> None:
        until = time.monotonic() + _START_S
        while not ready():
            self.group.check()
            if time.monotonic() >= until:
                raise ProcessError(f"{failure}, waited {_START_S:.0f} s", fix="read the logs")
            time.sleep(_WATCH_S / 2)

    def _progress(self) -> Iterator[Event]:
        for who, tail in self._tails.items():
            for line in tail.new_lines():
                yield Event("progress", who, data=line)


def steward_of(site: str) -> str:
    """Return the name of a site's steward among the processes."""
    return f"site {site}: steward"


def courier_of(site: str) -> str:
    """Return the name of a site's courier among the processes."""
    return f"site {site}: courier"


def _exit_code(study: StudyState) -> int:
    """Return the exit code of a study that ended; raise what a failed one says."""
    if study.status in {"failed", "stopped"}:
        error = VitraelError(study.sentence.removesuffix("."))
        error.exit_code = study.exit_code
        raise error
    return study.exit_code


def _told(stderr: str, *, code: int, command: Sequence[str]) -> VitraelError:
    """Return what a command that failed said last, as an error with its exit code."""
    *_, said = stderr.strip().splitlines() or [f"exit code {code}"]
    what, _, fix = said.removeprefix("Error: ").partition(" To do: ")
    error = ProcessError(
        f"vitrael {' '.join(command[:2])}: {what.rstrip('.')}", fix=fix.rstrip(".")
    )
    error.exit_code = code if code > 0 else NetworkError.exit_code
    return error
