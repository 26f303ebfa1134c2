"""A cable made of software: it carries bytes between a site and the front door, or does not.

While it is cut nothing goes in either direction and nobody is told, as with a pulled plug: what was
sent lies with the sender and goes on when the cable is mended, as TCP does.
"""

from __future__ import annotations

import contextlib
import selectors
import socket
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field

_BLOCK = 65_536
_LOOK_S = 0.05


@dataclass
class Relay:
    """One listening port of loopback, and where it leads."""

    target: int
    listener: socket.socket = field(default_factory=socket.socket)
    is_whole: threading.Event = field(default_factory=threading.Event)
    ended: threading.Event = field(default_factory=threading.Event)

    @property
    def port(self) -> int:
        """Where sites connect."""
        return int(self.listener.getsockname()[1])

    def cut(self) -> None:
        """Carry nothing from now on."""
        self.is_whole.clear()

    def mend(self) -> None:
        """Carry again."""
        self.is_whole.set()

    def serve(self) -> None:
        """Take connections until the end."""
        self.listener.settimeout(_LOOK_S)
        while not self.ended.is_set():
            if not self.is_whole.wait(_LOOK_S):
                continue
            with contextlib.suppress(TimeoutError, OSError):
                near, _ = self.listener.accept()
                threading.Thread(target=self._carry, args=(near,), daemon=True).start()

    def _carry(self, near: socket.socket) -> None:
        with near, contextlib.suppress(OSError):
            near.setblocking(True)  # noqa: FBT003 - as the library has it
            with (
                socket.create_connection(("127.0.0.1", self.target), timeout=10) as far,
                selectors.DefaultSelector() as ready,
            ):
                ready.register(near, selectors.EVENT_READ, far)
                ready.register(far, selectors.EVENT_READ, near)
                far.settimeout(30)
                near.settimeout(30)
                while not self.ended.is_set():
                    if not self.is_whole.wait(_LOOK_S):
                        continue
                    for key, _ in ready.select(_LOOK_S):
                        data = key.fileobj.recv(_BLOCK)  # type: ignore[union-attr]
                        if not data:
                            return
                        key.data.sendall(data)


@contextlib.contextmanager
def relayed(target: int) -> Iterator[Relay]:
    """Yield a cable to a port of loopback; it is there until the block ends."""
    relay = Relay(target)
    relay.listener.bind(("127.0.0.1", 0))
    relay.listener.listen(64)
    relay.mend()
    thread = threading.Thread(target=relay.serve, daemon=True)
    thread.start()
    try:
        yield relay
    finally:
        relay.ended.set()
        thread.join(10)
        relay.listener.close()
