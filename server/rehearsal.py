"""The production layout on one machine: SuperLink, SuperNodes and stewards on loopback.

This is no simulation. A SuperLink with TLS, node authentication and a database; for each site a
SuperNode with its own key and TLS authority, a SuperExec that starts the courier, and a steward
in the site's home, without a network where the system allows it. A rehearsal starts them all,
watches them and ends them all whatever happens. What a study has finished lies in the homes, and
a later rehearsal of the same home goes on from there.
"""

from __future__ import annotations

import atexit
import contextlib
import json
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, Self

from vitrael.core.digest import write_atomically
from vitrael.core.errors import ProcessError, VitraelError
from vitrael.server.federation.app import RunState, read_run
from vitrael.server.federation.control import SuperLink
from vitrael.server.federation.guards import (
    explained_storage,
    locked,
    terminable,
    uninterrupted,
)
from vitrael.server.federation.homes import forget_socket, listens, read_sites
from vitrael.server.federation.layout import (
    LOOPBACK,
    RehearsalLayout,
    executor_command,
    network_guard,
    prepare,
    steward_command,
    superexec_command,
    superlink_command,
    supernode_command,
)
from vitrael.server.federation.pki import create_node_key
from vitrael.server.federation.processes import (
    ProcessGroup,
    check_ports,
    child_environment,
    end_leftovers,
    free_ports,
    is_alive,
)
from vitrael.server.federation.progress import Tail

_START_S = 120.0
_REFUSED_S = 90.0
_WATCH_S = 0.2
_LONGEST_S = 86_400.0
_ACTIVATION_REFUSED = "2004"

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
    study is raised as VitraelError with the ServerApp's sentence and exit code. Ctrl-C, SIGTERM and
    every exception end all processes before they go on.
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
        self.run_id = 0
        self.guard: tuple[str, ...] = ()
        """What takes the network from the stewards; empty when this machine allows nothing."""
        self._tell = on_event
        self._ask_again = 0.0
        self._ports: dict[str, int] = {}
        self._tails: dict[str, Tail] = {}
        self._stack = contextlib.ExitStack()

    def __enter__(self) -> Self:
        """Take the home's lock and see to it that the end comes in every case."""
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
    def superlink(self) -> SuperLink:
        """The control side of the SuperLink."""
        address = f"{LOOPBACK}:{self._ports['coordinator']}"
        return SuperLink(address, self.layout.tls().authority)

    def start(self) -> None:
        """Start every process and the run; return when all sites are connected.

        Raises NetworkError for a port in use, ProcessError for a process that does not come up.
        """
        layout = self.layout
        with explained_storage(layout.home):
            prepare(layout)
        if left := end_leftovers(layout.home):
            text = f"ended {len(left)} processes of an earlier run"
            self._tell(Event("starting", "coordinator", text))
        (layout.home / "run.json").unlink(missing_ok=True)
        self._choose_ports()
        homes = {"coordinator": layout.home} | {s: layout.site_home(s) for s in layout.sites}
        self._tails = {who: Tail.at_end(home / "progress.jsonl") for who, home in homes.items()}
        self._start_superlink()
        self._start_stewards()
        self._wait("the SuperLink does not answer", self.superlink.is_up)
        nodes = self._enroll()
        self._start_run()
        for site in layout.sites:
            self._start_courier(site)
        self._connect(nodes)
        self._wait("a steward does not listen", self._stewards_listen)
        self._tell(Event("ready", "coordinator", f"{len(layout.sites)} sites are connected"))

    def watch(self, *, timeout_s: float = _LONGEST_S) -> int:
        """Return how the run ended; raise ProcessError when a process is lost, or time is up.

        Raises VitraelError with the ServerApp's sentence and exit code when the study failed.
        """
        began = time.monotonic()
        while True:
            state = self.state()
            for event in self._progress():
                self._tell(event)
            if state is not None and state.status != "running":
                return _exit_code(state)
            self._check()
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
            if self._ports:
                others = [name for name in self.group.children if name != "SuperLink"]
                self.group.end(first=others)

    def state(self) -> RunState | None:
        """Return what the ServerApp of the present run said last."""
        state = read_run(self.layout.home)
        return state if state is not None and state.run_id == str(self.run_id) else None

    def _choose_ports(self) -> None:
        names = ("coordinator", *self.layout.sites)
        first = self.layout.port
        ports = free_ports(len(names)) if first is None else range(first, first + len(names))
        check_ports(ports)
        self._ports = dict(zip(names, ports, strict=True))
        data = json.dumps(self._ports, indent=1).encode()
        write_atomically(self.layout.home / "ports.json", data)

    def _spawn(self, name: str, command: tuple[str, ...], *, flower_home: Path) -> None:
        log = name.removeprefix("site ").replace(": ", "-").lower()
        environment = child_environment(
            self.layout.environment,
            home=self.layout.home,
            flower_home=flower_home,
            threads=self.layout.threads,
        )
        path = self.layout.home / "logs" / f"{log}.log"
        self.group.start(name, command, environment=environment, log=path)

    def _start_superlink(self) -> None:
        port, home = self._ports["coordinator"], self.layout.flower
        self._tell(Event("starting", "coordinator", f"SuperLink on port {port}"))
        self._spawn("SuperLink", superlink_command(self.layout, port=port), flower_home=home)
        self._spawn("SuperExec", superexec_command(self.layout, port=port), flower_home=home)

    def _start_stewards(self) -> None:
        self.guard = network_guard()
        for site in self.layout.sites:
            how = "without a network" if self.guard else "WITH a network"
            self._tell(Event("starting", site, f"steward {how}"))
            home = self.layout.site_home(site)
            forget_socket(home)
            command = steward_command(self.layout, site, guard=self.guard)
            self._spawn(_steward(site), command, flower_home=home / "flower")

    def _start_courier(self, site: str) -> None:
        port, link = self._ports[site], self._ports["coordinator"]
        home = self.layout.site_home(site) / "flower"
        node = supernode_command(self.layout, site, port=port, superlink_port=link)
        self._spawn(_courier(site), node, flower_home=home)
        executor = executor_command(self.layout, site, port=port)
        self._spawn(f"site {site}: executor", executor, flower_home=home)

    def _enroll(self) -> dict[str, int]:
        """Return site -> node id: keys registered, ids in ``sites.json``, dead nodes signed off."""
        online = {node.node_id for node in self.superlink.nodes() if node.online}
        path = self.layout.home / "sites.json"
        entries = read_sites(path)
        nodes: dict[str, int] = {}
        for site in self.layout.sites:
            key = self.layout.node_key(site)
            nodes[site] = self.superlink.register(site, public_key=create_node_key(key))
            if nodes[site] in online:
                self.superlink.sign_off(nodes[site], key=key)
            entries[site] = {**entries.get(site, {}), "node_id": nodes[site]}
        write_atomically(path, json.dumps(entries, indent=1).encode())
        return nodes

    def _start_run(self) -> None:
        self.superlink.stop_runs()
        self.run_id = self.superlink.start_run(
            self.layout.flower / "bundle", config={"home": str(self.layout.home)}
        )
        self._ask_again = time.monotonic() + 5.0
        self._tell(Event("running", "coordinator", f"run {self.run_id}"))

    def _connect(self, nodes: Mapping[str, int]) -> None:
        """Wait until every node is online; one whose key is refused starts again, for 90 s."""
        until = time.monotonic() + _REFUSED_S
        missing = dict(nodes)
        while missing:
            online = {node.node_id for node in self.superlink.nodes() if node.online}
            missing = {site: node for site, node in missing.items() if node not in online}
            if missing and time.monotonic() >= until:
                names = ", ".join(sorted(missing))
                raise ProcessError(
                    f"site {names} did not connect within {_REFUSED_S:.0f} s",
                    fix="read the courier's log, then resume",
                )
            for site in missing:
                self._again_if_refused(site)
            self.group.check()
            if missing:
                time.sleep(_WATCH_S)

    def _again_if_refused(self, site: str) -> bool:
        child = self.group.children[_courier(site)]
        if not child.ended() or _ACTIVATION_REFUSED not in child.last_words(lines=40):
            return False
        self._tell(Event("waiting", child.name, "the SuperLink still holds its key as in use"))
        time.sleep(2)
        self.group.restart(child)
        return True

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

    def _check(self) -> None:
        """Raise ProcessError for a process that is lost."""
        self.group.check()
        state = self.state()
        if state is None:
            if not self._failed_to_load():
                return
        elif is_alive(state.pid) or self.state() != state:
            return
        raise ProcessError("the ServerApp ended without a word", fix="resume")

    def _failed_to_load(self) -> bool:
        """Say, at most every two seconds, whether the run ended before its ServerApp spoke."""
        now = time.monotonic()
        if now < self._ask_again:
            return False
        self._ask_again = now + 2.0
        ended = self.superlink.run_status(self.run_id).startswith("finished")
        return ended and self.state() is None


def _exit_code(state: RunState) -> int:
    """Return the exit code of a run that ended; raise what a failed one says."""
    if state.status == "failed":
        error = VitraelError(state.sentence.removesuffix("."))
        error.exit_code = state.exit_code
        raise error
    return state.exit_code


def _courier(site: str) -> str:
    return f"site {site}: courier"


def _steward(site: str) -> str:
    return f"site {site}: steward"
