"""``vitrael server up``: the coordinator as one long-running command.

It starts Flower's SuperLink and SuperExec and the enrollment service, all on loopback behind the
reverse proxy, keeps them up, holds the study to what was ordered, registers the nodes of enrolled
sites and removes those of revoked ones. SIGTERM ends all of it in order, a second signal at once.
"""

from __future__ import annotations

import logging
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Mapping
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field
from datetime import datetime
from types import FrameType

from vitrael.core.digest import Digest
from vitrael.core.errors import EXIT_INTERRUPTED, EXIT_OK, VitraelError
from vitrael.core.version import package_version
from vitrael.privacy.keys import KeyPair
from vitrael.server.board import Board
from vitrael.server.config import ServerSettings
from vitrael.server.db.engine import open_database
from vitrael.server.federation.bundle import CLIENT_SHIM, SERVER_SHIM
from vitrael.server.federation.control import SuperLink
from vitrael.server.federation.flower_home import FlowerHome
from vitrael.server.federation.guards import explained_storage, locked
from vitrael.server.federation.processes import (
    SERVER_MARK,
    ProcessGroup,
    check_ports,
    child_environment,
    end_leftovers,
)
from vitrael.server.metrics import serving_metrics
from vitrael.server.runs import AT_WORK, StudyRuns
from vitrael.server.settings import inherited_environment, utc_now
from vitrael.server.sites.authority import present_tls
from vitrael.server.sites.nodes import find_superlink, sync_nodes
from vitrael.server.studies.ledger import Ledger
from vitrael.server.supervisor import ChildPlan, Supervisor

_TICK_S = 0.5
_NODES_EVERY_S = 2.0
_TRIM_EVERY_S = 60.0
_GRACE_S = 15.0
_LAST = "superlink"
_LOG = logging.getLogger(__name__)


@dataclass(slots=True)
class Coordinator:
    """All that runs for one coordinator's home."""

    settings: ServerSettings
    server_app: str = SERVER_SHIM
    """Text of the bundle's ServerApp module."""
    client_app: str = CLIENT_SHIM
    """Text of the bundle's ClientApp module."""
    records: bool = True
    """Whether what a study finishes is carried into MLflow beside it."""
    environment: Mapping[str, str] = field(default_factory=inherited_environment, repr=False)
    clock: Callable[[], datetime] = utc_now
    stop: threading.Event = field(default_factory=threading.Event)
    _group: ProcessGroup = field(init=False)
    _children: Supervisor = field(init=False)
    _runs: StudyRuns = field(init=False)
    _board: Board = field(init=False)
    _link: SuperLink = field(init=False)
    _nodes_at: float = 0.0
    _trim_at: float = 0.0
    _online: dict[str, bool] = field(default_factory=dict)
    _signals: int = 0
    _code: int = EXIT_OK

    def __post_init__(self) -> None:
        """Know where everything is; nothing starts yet."""
        home, flower = self.settings.home, FlowerHome(self.settings.home)
        self._group = ProcessGroup(home, mark=SERVER_MARK)
        self._children = Supervisor(self._group)
        self._link = find_superlink(self.settings)
        self._runs = StudyRuns(home, flower.bundle, self._link, self._count_finished)
        address = self.settings.document.address
        self._board = Board(home, package_version(), address, self.clock)

    def run(self) -> int:
        """Run until a signal comes, end all in order, and return the exit code.

        Raises UsageError when another coordinator of this home runs, NetworkError for a port in
        use, ProcessError when a process without which nothing works cannot be kept up.
        """
        home, ports = self.settings.home, self.settings.document.ports
        with ExitStack() as stack:
            stack.enter_context(locked(home, name="server.lock", what="coordinator"))
            if left := end_leftovers(home, mark=SERVER_MARK):
                _LOG.warning(
                    "processes of an earlier coordinator ended", extra={"count": len(left)}
                )
            KeyPair.load(self.settings.keys)
            present_tls(self.settings, now=self.clock())
            check_ports((ports.superlink, ports.enrollment))
            with explained_storage(home):
                now = self.clock()
                FlowerHome(home).prepare(
                    now=now, server_app=self.server_app, client_app=self.client_app
                )
            stack.enter_context(serving_metrics(ports.metrics, lambda: self._board.state))
            stack.enter_context(self._heeding_signals())  # also while all is ended
            stack.callback(self._end)
            self._start()
            while not self.stop.wait(_TICK_S):
                self._tick()
        return self._code

    def _start(self) -> None:
        flower, ports = FlowerHome(self.settings.home), self.settings.document.ports
        _LOG.info("the coordinator starts", extra={"pid": os.getpid(), "port": ports.superlink})
        self._child("superlink", flower.superlink(port=ports.superlink))
        self._child("superexec", flower.superexec(port=ports.superlink))
        self._child("enrollment", self._module("vitrael.server.enrollment"))

    def _tick(self) -> None:
        """Do what is due: children, nodes, the study, the state."""
        self._children.tend()
        trouble = ""
        try:
            self._look_for_sites()
            self._runs.tend()
        except VitraelError as error:
            trouble = error.sentence()
        study = self._runs.state
        if self.records and study is not None and study.status in AT_WORK and study.runs:
            recorder = self._module("vitrael.server.recorder")
            self._child("recorder", recorder, vital=False, ends=True)
        if down := [child.name for child in self._children.states() if child.status != "running"]:
            trouble = trouble or f"not running: {', '.join(down)}"
        before = self._board.state.trouble
        self._board.refresh(
            children=self._children.states(), online=self._online, study=study, trouble=trouble
        )
        if trouble != before:
            _LOG.warning("trouble", extra={"reason": trouble or "none any more"})
        with explained_storage(self.settings.home):
            self._board.write()
        if time.monotonic() >= self._trim_at:
            self._trim_at = time.monotonic() + _TRIM_EVERY_S
            self._children.trim_logs()

    def _look_for_sites(self) -> None:
        """Register who is enrolled, remove who is not any more, and see who is connected."""
        if time.monotonic() < self._nodes_at or not self._link.is_up():
            return
        self._nodes_at = time.monotonic() + _NODES_EVERY_S
        enrolled = sync_nodes(self.settings, self._link, now=self.clock())
        online = {node.node_id for node in self._link.nodes() if node.online}
        self._online = {site: node in online for site, node in enrolled.items()}

    def _child(
        self, name: str, command: tuple[str, ...], *, vital: bool = True, ends: bool = False
    ) -> None:
        home = self.settings.home
        environment = child_environment(
            self.environment,
            home=home,
            flower_home=FlowerHome(home).folder,
            threads=self.settings.document.threads,
            mark=SERVER_MARK,
        )
        log = home / "logs" / f"{name}.log"
        self._children.start(ChildPlan(name, command, environment, log, vital=vital, ends=ends))

    def _module(self, name: str) -> tuple[str, ...]:
        return (sys.executable, "-m", name, "--home", str(self.settings.home))

    def _count_finished(self, protocol: Digest) -> int:
        engine = open_database(self.settings.database)
        try:
            history = Ledger(engine).history(protocol)
        finally:
            engine.dispose()
        return sum(record.status == "finished" for record in history)

    def _heeding_signals(self) -> ExitStack:
        """Let the first SIGTERM, SIGINT or SIGHUP end all in order, and the second at once."""
        stack = ExitStack()
        if threading.current_thread() is not threading.main_thread():
            return stack
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
            before = signal.signal(number, self._on_signal)
            stack.callback(signal.signal, number, before)
        return stack

    def _on_signal(self, number: int, _: FrameType | None) -> None:
        self._signals += 1
        if self._signals > 1:
            self._group.kill()
            os._exit(EXIT_INTERRUPTED)
        self._code = EXIT_OK if number == signal.SIGTERM else EXIT_INTERRUPTED
        self.stop.set()

    def _end(self) -> None:
        """End every child: those that use the SuperLink first."""
        others = [name for name in self._group.children if name != _LAST]
        self._group.end(first=others, grace_s=_GRACE_S)
        with suppress(OSError, VitraelError):
            study, offline = self._runs.state, dict.fromkeys(self._online, False)
            self._board.refresh(children=(), online=offline, study=study, trouble="")
            self._board.write()
        _LOG.info("the coordinator has ended", extra={"exit_code": self._code})
