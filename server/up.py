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
from vitrael.core.errors import (
    EXIT_INTERRUPTED,
    EXIT_OK,
    NetworkError,
    VitraelError,
    storage_error,
)
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
SILENT_S = 30.0
"""After so long nobody knows which sites are connected, and none is told to be."""
HUNG_S = 120.0
"""After so long a SuperLink that does not answer is ended and started again."""
_TRIM_EVERY_S = 60.0
_GRACE_S = 15.0
_FIX = "make room or mend it; the coordinator goes on by itself"
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
    ticker: Callable[[], float] = time.monotonic
    stop: threading.Event = field(default_factory=threading.Event)
    _group: ProcessGroup = field(init=False)
    _children: Supervisor = field(init=False)
    _runs: StudyRuns = field(init=False)
    _board: Board = field(init=False)
    _link: SuperLink = field(init=False)
    _nodes_at: float = 0.0
    _trim_at: float = 0.0
    _answered_at: float = field(init=False)
    """When the SuperLink answered last, or was started."""
    _seen_at: float = field(init=False)
    """When it was last known which sites are connected."""
    _online: dict[str, bool] = field(default_factory=dict)
    _troubles: dict[str, str] = field(default_factory=dict)
    """What is done again and again -> why it did not succeed the last time."""
    _recorded: Digest | None = None
    """The order whose study the recorder was started for last."""
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
        self._answered_at = self._seen_at = self.ticker()

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
        """Do what is due: children, nodes, the study, the state.

        What fails is told and tried again; only a child that is given up ends the coordinator.
        """
        self._try("children", self._children.tend, fatal=True)
        if self.ticker() >= self._nodes_at:
            self._nodes_at = self.ticker() + _NODES_EVERY_S
            self._try("sites", self._look_for_sites)
        self._try("study", self._runs.tend)
        self._try("recorder", self._record)
        trouble = next(filter(None, self._troubles.values()), "")
        if down := self._children.down():
            trouble = trouble or f"not running: {', '.join(down)}"
        before = self._board.state.trouble
        self._board.refresh(
            children=self._children.states(),
            online=self._online,
            study=self._runs.state,
            trouble=trouble,
        )
        if trouble != before:
            _LOG.warning("trouble", extra={"reason": trouble or "none any more"})
        self._try("state", self._board.write)
        if self.ticker() >= self._trim_at:
            self._trim_at = self.ticker() + _TRIM_EVERY_S
            self._children.trim_logs()

    def _try(self, name: str, work: Callable[[], object], *, fatal: bool = False) -> None:
        """Do it, and keep why it failed until it succeeds: a full disk is no reason to end.

        ``fatal`` lets through what is no failure of the disk.
        """
        self._troubles[name] = ""
        try:
            work()
        except OSError as error:
            told = storage_error(str(self.settings.home), error, fix=_FIX)
            self._troubles[name] = told.sentence()
        except VitraelError as error:
            if fatal:
                raise
            self._troubles[name] = error.sentence()

    def _look_for_sites(self) -> None:
        """Register who is enrolled, remove who is not any more, and see who is connected.

        Raises NetworkError when the SuperLink does not answer; one that hangs is ended.
        """
        if self.ticker() - self._seen_at >= SILENT_S:
            self._online = dict.fromkeys(self._online, False)
        if not self._link.is_up():
            self._heed_silence()
            return
        self._answered_at = self.ticker()
        enrolled = sync_nodes(self.settings, self._link, now=self.clock())
        online = {node.node_id for node in self._link.nodes() if node.online}
        self._online = {site: node in online for site, node in enrolled.items()}
        self._seen_at = self.ticker()

    def _heed_silence(self) -> None:
        """Raise NetworkError for a SuperLink that runs and is silent; end it when it hangs."""
        if not self._children.is_up(_LAST):
            self._answered_at = self.ticker()  # the next one has its time
            return
        silent_s = self.ticker() - self._answered_at
        if silent_s >= HUNG_S:
            _LOG.error("the SuperLink hangs and is ended", extra={"seconds": silent_s})
            self._children.restart(_LAST)
            self._answered_at = self.ticker()  # also when nobody sees that it is down
        if silent_s >= SILENT_S:
            raise NetworkError(
                "the SuperLink does not answer", why=f"it has not for {SILENT_S:.0f} s and more"
            )

    def _record(self) -> None:
        """Have a recorder for a study at work, and once for one that had ended before."""
        study = self._runs.state
        if not self.records or study is None or not study.runs:
            return
        new = study.order != self._recorded
        if new:
            self._children.forgive("recorder")
        if new or study.status in AT_WORK:
            recorder = self._module("vitrael.server.recorder")
            if self._child("recorder", recorder, vital=False, ends=True):
                self._recorded = study.order

    def _child(
        self, name: str, command: tuple[str, ...], *, vital: bool = True, ends: bool = False
    ) -> bool:
        home = self.settings.home
        environment = child_environment(
            self.environment,
            home=home,
            flower_home=FlowerHome(home).folder,
            threads=self.settings.document.threads,
            mark=SERVER_MARK,
        )
        log = home / "logs" / f"{name}.log"
        plan = ChildPlan(name, command, environment, log, vital=vital, ends=ends)
        return self._children.start(plan)

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
