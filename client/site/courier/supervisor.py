"""Keeps a site's SuperNode and SuperExec running until it is told to stop.

A process that ends is started again, after a pause that doubles up to a minute. A SuperNode whose
key the coordinator refuses is tried for ``REFUSED_S``, since a key stays in use for a minute after
a crash; then, and for a certificate that cannot be trusted, the courier ends and says why. One
that was connected before does not end for a certificate: what stands in the way may go again.
"""

from __future__ import annotations

import contextlib
import errno
import logging
import socket
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Final

from vitrael.client.site.courier.children import Child, start_child
from vitrael.client.site.courier.endings import REFUSED_S, connected, explain, node_id
from vitrael.client.site.courier.layout import LOOPBACK, CourierLayout, Role
from vitrael.client.site.courier.settings import child_environment
from vitrael.client.site.life import note_of_life
from vitrael.core.digest import write_atomically
from vitrael.core.errors import NetworkError, ProcessError, VitraelError

logger = logging.getLogger(__name__)

_PAUSES_S: Final = (1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 60.0)
_STEADY_S: Final = 60.0
"""Who has run so long has not failed at its start: the pauses begin anew."""
_HELD_PAUSE_S: Final = 2.0
_WATCH_S: Final = 0.5
_PREPARED_S: Final = 60.0
"""How long a SuperExec of its own waits for what the SuperNode's side makes."""

Start = Callable[..., Child]


def port_is_free(port: int, *, host: str = LOOPBACK) -> bool:
    """Say whether nothing listens on a port of this machine."""
    with socket.socket() as one:
        one.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            one.bind((host, port))
        except OSError as error:
            return error.errno != errno.EADDRINUSE  # another reason the SuperNode tells itself
        return True


@dataclass(slots=True)
class Watch:
    """What is known of one of the two processes."""

    child: Child | None = None
    starts: int = 0
    failures: int = 0
    """In a row."""
    again_at: float = 0.0
    life: contextlib.ExitStack = field(default_factory=contextlib.ExitStack)
    """Holds the note that the process runs."""
    is_noted: bool = False


@dataclass(slots=True)
class Courier:
    """The processes of one site's courier, and what is known of them."""

    layout: CourierLayout
    roles: tuple[Role, ...]
    base_environment: Mapping[str, str]
    pid: int
    """Of this process: its children end when it does."""
    stop: threading.Event = field(default_factory=threading.Event)
    start: Start = start_child
    clock: Callable[[], float] = time.monotonic
    watches: dict[Role, Watch] = field(default_factory=dict)
    is_connected: bool = False
    """As the SuperNode says of itself."""
    once_connected: bool = False
    refused_since: float | None = None

    def run(self, *, now: datetime) -> None:
        """Start both and keep them until ``stop`` is set; then end the SuperExec first.

        Raises AuthError for a key or certificate that does not hold, ConfigError, StorageError,
        NetworkError where another program has the SuperNode's port, and ProcessError where the
        SuperExec's side waits in vain for the SuperNode's.
        """
        if "node" in self.roles:
            self.layout.prepare_node(now=now)
            self._wait_for_port()
        if "executor" in self.roles:
            self.layout.prepare_executor()
            self._wait_for_secret()
        self.watches = {role: Watch() for role in self.roles}
        try:
            while not self.stop.is_set():
                for role in self.roles:
                    self._tend(role)
                self.stop.wait(_WATCH_S)
        finally:
            self.end()

    def end(self) -> None:
        """End what runs: the SuperExec first, so that nothing new begins."""
        for role in reversed(self.roles):
            watch = self.watches.get(role)
            if watch is not None and watch.child is not None:
                _note_end(watch)
                watch.child.end()
                logger.info("a process of the courier was ended", extra={"child": role})
                watch.child = None
        self.is_connected = False

    def is_up(self, role: Role) -> bool:
        """Say whether a process runs now."""
        watch = self.watches.get(role)
        child = None if watch is None else watch.child  # another thread may bury it meanwhile
        return child is not None and child.exit_code() is None

    def _tend(self, role: Role) -> None:
        watch, now = self.watches[role], self.clock()
        if watch.child is not None:
            code = watch.child.exit_code()
            if code is None:
                self._note_life(role, watch)
                if now - watch.child.began > _STEADY_S:
                    watch.failures = 0
                return
            self._bury(role, watch, code)
        if watch.child is None and now >= watch.again_at and not self.stop.is_set():
            self._start(role, watch)

    def _note_life(self, role: Role, watch: Watch) -> None:
        """Leave the note for whoever asks; on a full disk it is tried again."""
        if watch.is_noted or watch.child is None:
            return
        with contextlib.suppress(OSError):
            watch.life.enter_context(note_of_life(self.layout.life(role), {"pid": watch.child.pid}))
            watch.is_noted = True

    def _start(self, role: Role, watch: Watch) -> None:
        layout, node = self.layout, role == "node"
        if not node:
            layout.prepare_executor()
        command = layout.node_command if node else layout.executor_command
        watch.child = self.start(
            "SuperNode" if node else "SuperExec",
            command(parent=self.pid),
            environment=child_environment(
                self.base_environment,
                flower_home=layout.open_folder(role),
                proxy=layout.settings.document.network.proxy,
                loopback=not node,
            ),
            now=self.clock(),
            on_line=self._hear_node if node else self._hear_executor,
        )
        watch.starts += 1
        logger.info(
            "a process of the courier was started",
            extra={"child": role, "pid": watch.child.pid, "attempt": watch.starts},
        )

    def _bury(self, role: Role, watch: Watch, code: int) -> None:
        """Let go of a child that has ended; raise the error of one that must not start again."""
        child = watch.child
        assert child is not None  # noqa: S101 - for the type checker: whoever calls has looked
        _note_end(watch)
        child.end(grace_s=1.0)  # what it started may live on
        watch.child = None
        pause = _PAUSES_S[min(watch.failures, len(_PAUSES_S) - 1)]
        watch.failures += 1
        extra: dict[str, object] = {"child": role, "exit_code": code}
        if role == "node":
            pause, error = self._judge_node(child, code, pause=pause)
            extra |= {"reason": error.sentence(), "error": type(error).__name__}
        logger.warning("a process of the courier ended", extra={**extra, "seconds": pause})
        watch.again_at = self.clock() + pause

    def _judge_node(self, child: Child, code: int, *, pause: float) -> tuple[float, VitraelError]:
        """Return after what pause the SuperNode starts again, and why it ended; or raise that."""
        was_connected, self.is_connected = self.is_connected, False
        said = child.last_words()
        settings = self.layout.settings
        ending = explain(
            said,
            code=code,
            address=self.layout.address(),
            was_connected=was_connected,
            once_connected=self.once_connected,
        )
        if was_connected:
            self.refused_since = None
        if ending.kind == "final":
            raise ending.error
        if ending.kind == "lost":
            return pause, ending.error
        now = self.clock()
        self.refused_since = now if self.refused_since is None else self.refused_since
        if now - self.refused_since >= REFUSED_S:
            logger.error(
                "the coordinator refuses this site", extra={"site": settings.document.name}
            )
            raise ending.error
        return _HELD_PAUSE_S, ending.error

    def _hear_node(self, line: str) -> None:
        told = connected(line)
        if told is not None and told is not self.is_connected:
            self.is_connected = told
            self.once_connected |= told
            logger.info("the connection is up" if told else "the connection is down")
        if (number := node_id(line)) is not None:
            self.refused_since = None
            with contextlib.suppress(OSError):  # a full disk: the next start signs nobody off
                write_atomically(self.layout.node_id, number.encode())
        logger.info("flower", extra={"child": "node", "text": line})

    @staticmethod
    def _hear_executor(line: str) -> None:
        logger.info("flower", extra={"child": "executor", "text": line})

    def _wait_for_port(self) -> None:
        """Return when the SuperNode can listen: a killed courier's one ends a moment later."""
        network = self.layout.settings.document.network
        port, host = network.node_port, network.node_host
        until = self.clock() + _PREPARED_S / 2
        while not port_is_free(port, host=host) and not self.stop.is_set():
            if self.clock() >= until:
                raise NetworkError(
                    f"port {port} of {host} is in use",
                    why="another program listens there, perhaps another courier of this site",
                    fix="end it, or choose another [network].node_port in site.toml",
                )
            self.stop.wait(_WATCH_S)

    def _wait_for_secret(self) -> None:
        until = self.clock() + _PREPARED_S
        while not self.layout.executor_ready() and not self.stop.is_set():
            if self.clock() >= until:
                raise ProcessError(
                    "the SuperExec has no secret",
                    why=f"{self.layout.secret} did not appear within {_PREPARED_S:.0f} s",
                    fix="start `vitrael site courier --only node` first",
                )
            self.stop.wait(_WATCH_S)


def _note_end(watch: Watch) -> None:
    """Take the note away that a process runs."""
    watch.is_noted = False
    with contextlib.suppress(OSError):
        watch.life.close()
