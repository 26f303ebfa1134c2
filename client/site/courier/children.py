"""One Flower process of the courier: started, listened to, ended with all that it started."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import subprocess
import threading
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from vitrael.core.errors import ProcessError

GRACE_S = 10.0
"""How long a process may take to end after SIGTERM: Flower gives itself five seconds."""

_COLOR = re.compile(r"\x1b\[[0-9;]*m")
_KEPT_LINES = 40


@dataclass(slots=True)
class Child:
    """A process that leads a session of its own, so that one signal reaches all it started."""

    name: str
    process: subprocess.Popen[bytes]
    began: float
    """By the clock of whoever started it."""
    said: deque[str] = field(default_factory=lambda: deque(maxlen=_KEPT_LINES))
    """Its last lines that say something."""
    reader: threading.Thread | None = None

    @property
    def pid(self) -> int:
        """The process id."""
        return self.process.pid

    def exit_code(self) -> int | None:
        """Return how it ended, negative for a signal, or None while it runs."""
        return self.process.poll()

    def last_words(self) -> str:
        """Return the last lines of a process that has ended, once they are all read."""
        if self.reader is not None:
            self.reader.join(timeout=2.0)
        return "\n".join(self.said)

    def end(self, *, grace_s: float = GRACE_S) -> None:
        """End it and all that it started: SIGTERM, then SIGKILL; never raises."""
        self._signal(signal.SIGTERM)
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.process.wait(timeout=grace_s)
        self._signal(signal.SIGKILL)
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.process.wait(timeout=grace_s)
        self.last_words()

    def _signal(self, number: signal.Signals) -> None:
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self.pid, number)


def start_child(
    name: str,
    command: Sequence[str],
    *,
    environment: Mapping[str, str],
    now: float,
    on_line: Callable[[str], object],
) -> Child:
    """Start a process whose every line of output goes to ``on_line``, in a thread of its own.

    Raises ProcessError when it cannot be started.
    """
    try:
        process = subprocess.Popen(  # noqa: S603 - commands are ours, arguments a list
            list(command),
            env=dict(environment),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    except OSError as error:
        raise ProcessError(
            f"the {name} cannot be started", why=error.strerror or "", fix="install vitrael again"
        ) from error
    child = Child(name, process, now)
    output = process.stdout
    assert output is not None  # noqa: S101 - for the type checker: a pipe was asked for

    def read() -> None:
        with output, contextlib.suppress(OSError, ValueError):
            for raw in output:
                line = _COLOR.sub("", raw.decode(errors="replace")).strip()
                if not line:
                    continue
                child.said.append(line[:500])
                with contextlib.suppress(OSError, ValueError):
                    on_line(line[:500])  # a full disk must not stop the reading: the pipe is short

    child.reader = threading.Thread(target=read, name=f"{name}-lines", daemon=True)
    child.reader.start()
    return child
