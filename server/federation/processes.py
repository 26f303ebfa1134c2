"""Child processes: their environment, how they start, are watched and are all ended.

Each child leads a session of its own, so that the terminal's Ctrl-C reaches the parent alone and
one signal reaches a child with all that it started. Whatever a child starts carries the home's
path in its environment or on its command line, by which a later start finds what a killed parent
left behind.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO

import psutil

from vitrael.core.digest import write_atomically
from vitrael.core.errors import NetworkError, ProcessError

HOME_MARK = "VITRAEL_REHEARSAL_HOME"
"""The variable by which a process is known to belong to a rehearsal's home, its sites included."""
SERVER_MARK = "VITRAEL_CHILD_OF_SERVER"
"""The variable by which a process is known to be a coordinator's own; no person sets it."""

_FLOWER = frozenset(
    {
        *("flower-superlink", "flower-supernode", "flower-superexec"),
        *("flwr-serverapp", "flwr-clientapp"),
    }
)
_COURIER = "vitrael.client.site.courier."
_NGINX = "nginx: master process "
"""How nginx writes its own command line, over its environment; its workers end with it."""
_GRACE_S = 5.0
_COLOR = re.compile(r"\x1b\[[0-9;]*m")


def child_environment(
    base: Mapping[str, str],
    *,
    home: Path,
    flower_home: Path,
    threads: int = 1,
    mark: str = HOME_MARK,
) -> dict[str, str]:
    """Return the environment of a child: nobody is called, nothing is installed.

    Flower's telemetry, update check and runtime installation are off, as are MLflow's telemetry
    and any proxy on the way to this machine; what Flower writes stays in ``flower_home``. The
    programs of this Python's environment come first on the path, because Flower starts its own
    by name.
    """
    path = os.pathsep.join((str(Path(sys.executable).parent), base.get("PATH", os.defpath)))
    return dict(base) | {
        "PATH": path,
        "FLWR_HOME": str(flower_home),
        "FLWR_TELEMETRY_ENABLED": "0",
        "FLWR_DISABLE_UPDATE_CHECK": "1",
        "FLWR_DISABLE_RUNTIME_DEPENDENCY_INSTALLATION": "1",
        "MLFLOW_DISABLE_TELEMETRY": "true",
        "DO_NOT_TRACK": "true",
        "NO_PROXY": "127.0.0.1,localhost",
        "no_proxy": "127.0.0.1,localhost",
        "FLWR_SUPEREXEC_TASK_POLL_INTERVAL": "0.25",
        "OMP_NUM_THREADS": str(threads),
        "OMP_WAIT_POLICY": "PASSIVE",  # sites share the processor; a spinning thread stops others
        "PYTHONUNBUFFERED": "1",
        mark: str(home),
    }


def free_ports(count: int) -> tuple[int, ...]:
    """Return distinct ports of 127.0.0.1 on which nothing listens now."""
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for one in sockets:
            one.bind(("127.0.0.1", 0))
        return tuple(int(one.getsockname()[1]) for one in sockets)


def check_ports(ports: Iterable[int]) -> None:
    """Raise NetworkError that names the first port on which something listens."""
    for port in ports:
        with socket.socket() as one:
            one.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                one.bind(("127.0.0.1", port))
            except OSError as error:
                raise NetworkError(
                    f"port {port} of 127.0.0.1 is in use",
                    why=error.strerror or "",
                    fix="end the program that listens there, or choose another port",
                ) from error


@dataclass(slots=True)
class Child:
    """One process that we started and answer for."""

    name: str
    """In words: ``site north: steward``."""
    command: tuple[str, ...]
    environment: Mapping[str, str]
    log: Path
    process: subprocess.Popen[bytes]

    @property
    def pid(self) -> int:
        """The process id."""
        return self.process.pid

    def ended(self) -> str | None:
        """Return how it ended, in words, or None while it runs."""
        code = self.process.poll()
        if code is None:
            return None
        return f"signal {-code}" if code < 0 else f"exit code {code}"

    def last_words(self, *, lines: int = 1) -> str:
        """Return the last lines of its log that say something."""
        try:
            text = self.log.read_text(encoding="utf-8", errors="replace")
        except OSError:
            return ""
        said = [line.strip() for line in _COLOR.sub("", text).splitlines() if line.strip()]
        return "\n".join(line[:300] for line in said[-lines:])


@dataclass(slots=True)
class ProcessGroup:
    """All children of one home."""

    home: Path
    mark: str = HOME_MARK
    """The variable that each child carries; see ``child_environment``."""
    children: dict[str, Child] = field(default_factory=dict)

    def start(
        self,
        name: str,
        command: Sequence[str],
        *,
        environment: Mapping[str, str],
        log: Path,
    ) -> Child:
        """Start a process, its output appended to ``log``; a name that has ended is replaced.

        Raises ProcessError when the program cannot be started.
        """
        log.parent.mkdir(parents=True, exist_ok=True)
        with log.open("ab") as output:
            process = _spawn(name, command, environment=environment, output=output)
        child = Child(name, tuple(command), environment, log, process)
        self.children[name] = child
        self._record()
        return child

    def restart(self, child: Child) -> Child:
        """Start an ended child again with the same command."""
        _signal_group(child.pid, signal.SIGKILL)
        return self.start(child.name, child.command, environment=child.environment, log=child.log)

    def check(self) -> None:
        """Raise ProcessError that names the first child that has ended, and how.

        Where its last words hold a remedy, that is the one to tell.
        """
        for child in self.children.values():
            if how := child.ended():
                said = "" if how.startswith("signal") else child.last_words()
                why, _, remedy = said.partition(" To do: ")
                first = remedy.rstrip(".") or f"read {child.log}"
                raise ProcessError(
                    f"{child.name} ended ({how})",
                    why=why.removeprefix("Error: "),
                    fix=f"{first}, then resume",
                )

    def end(self, *, first: Sequence[str] = (), grace_s: float | None = None) -> None:
        """End every child and all that they started: SIGTERM, then SIGKILL; never raises.

        The children named in ``first`` get their SIGTERM, and ``grace_s`` to obey, before the
        rest.
        """
        grace_s = _GRACE_S if grace_s is None else grace_s
        early = [child for name, child in self.children.items() if name in first]
        for group in (early, list(self.children.values())):
            for child in group:
                _signal_group(child.pid, signal.SIGTERM)
            _wait_for(group, seconds=grace_s)
        self.kill()
        self.children.clear()
        end_leftovers(self.home, mark=self.mark)

    def end_one(self, name: str) -> None:
        """End one child, if there is one of that name, and all that it started."""
        child = self.children.pop(name, None)
        if child is not None:
            _signal_group(child.pid, signal.SIGTERM)
            _wait_for([child], seconds=_GRACE_S)
            self._kill(child)
            self._record()

    def kill(self) -> None:
        """Kill every child with all that it started."""
        for child in self.children.values():
            self._kill(child)

    def _kill(self, child: Child) -> None:
        _signal_group(child.pid, signal.SIGKILL)
        with contextlib.suppress(subprocess.TimeoutExpired):
            child.process.wait(timeout=_GRACE_S)

    def _record(self) -> None:
        entries = {
            child.name: {"pid": child.pid, "command": list(child.command)}
            for child in self.children.values()
        }
        path = _pid_file(self.home, mark=self.mark)
        with contextlib.suppress(OSError):  # a full disk: their mark finds them as well
            write_atomically(path, json.dumps(entries, indent=1).encode())


def end_leftovers(home: Path, *, mark: str = HOME_MARK) -> list[int]:
    """End the processes of a home that an earlier parent left behind; return their ids.

    A process counts when its environment carries the home's mark, or when its command line names
    the home and is what was recorded under its id; of a rehearsal, whose sites' homes lie below
    its own, also when it is that of a Flower program or of a courier. Another home whose path
    only begins alike is not this one.
    """
    pid_file = _pid_file(home, mark=mark)
    try:
        entries = json.loads(pid_file.read_bytes()).values()
        recorded = {int(entry["pid"]): list(map(str, entry["command"])) for entry in entries}
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        recorded = {}
    found = [
        process
        for process in psutil.process_iter()
        if _belongs(process, home=home, recorded=recorded, mark=mark)
    ]
    for send in (psutil.Process.terminate, psutil.Process.kill):
        for process in found:
            with contextlib.suppress(psutil.Error):
                send(process)
        _, found_alive = psutil.wait_procs(found, timeout=2)
        if not found_alive:
            break
    with contextlib.suppress(OSError):
        pid_file.unlink()
    return [process.pid for process in found]


def is_alive(pid: int) -> bool:
    """Say whether a process runs; one that ended and was not yet reaped does not."""
    try:
        return bool(psutil.Process(pid).status() != psutil.STATUS_ZOMBIE)
    except psutil.Error:
        return False


def _pid_file(home: Path, *, mark: str) -> Path:
    return home / ("processes.json" if mark == HOME_MARK else "server-processes.json")


def _spawn(
    name: str, command: Sequence[str], *, environment: Mapping[str, str], output: IO[bytes]
) -> subprocess.Popen[bytes]:
    try:
        return subprocess.Popen(  # noqa: S603 - commands are ours, arguments a list
            list(command),
            env=dict(environment),
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    except OSError as error:
        raise ProcessError(
            f"{name} cannot be started", why=error.strerror or "", fix=f"install {command[0]}"
        ) from error


def _signal_group(pid: int, number: signal.Signals) -> None:
    """Send a signal to every process of the process group that ``pid`` leads or led."""
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(pid, number)


def _wait_for(children: Sequence[Child], *, seconds: float) -> None:
    until = time.monotonic() + seconds
    for child in children:
        with contextlib.suppress(subprocess.TimeoutExpired):
            child.process.wait(timeout=max(until - time.monotonic(), 0.0))


def _belongs(
    process: psutil.Process, *, home: Path, recorded: Mapping[int, list[str]], mark: str
) -> bool:
    if process.pid == os.getpid():
        return False
    try:
        if process.status() == psutil.STATUS_ZOMBIE:
            return False
        command = process.cmdline()
        if (title := " ".join(command)).startswith(_NGINX):
            return mark == HOME_MARK and _names(title, home)
        whole = mark == HOME_MARK and _is_program(command)
        ours = command if whole else _common_end(command, recorded.get(process.pid))
        if any(_names(part, home) for part in ours):
            return True
        return bool(process.environ().get(mark) == str(home))
    except (psutil.Error, OSError):
        return False


def _is_program(command: Sequence[str]) -> bool:
    """Say whether a command line starts a Flower program or a module of the courier."""
    program = [Path(part).name for part in command[:2]]  # a script comes after its interpreter
    module = command[2] if len(command) > 2 and command[1] == "-m" else ""  # noqa: PLR2004
    return not _FLOWER.isdisjoint(program) or module.startswith(_COURIER)


def _common_end(command: Sequence[str], recorded: Sequence[str] | None) -> list[str]:
    """Return the arguments at the end of both: what starts a program may stand before them."""
    pairs = zip(reversed(command), reversed(recorded or ()), strict=False)
    return [mine for mine, _ in itertools.takewhile(lambda pair: pair[0] == pair[1], pairs)]


def _names(argument: str, home: Path) -> bool:
    """Say whether the path of a home, or one below it, stands in an argument."""
    pattern = rf"(?:^|[\s=\"',:]){re.escape(str(home))}(?:$|[/\s\"',:])"
    return re.search(pattern, argument) is not None
