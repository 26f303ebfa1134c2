"""Several hosts on one machine: network namespaces on one bridge, with counters and cables to cut.

Each host has a loopback and one interface ``eth0`` in a network of its own that leads nowhere
else. Needs root and iproute2; ``missing()`` says what is not there.
"""

from __future__ import annotations

import itertools
import os
import shutil
import subprocess
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

_NETWORK = "10.77.0"
_BRIDGE = "cable"
_numbers = itertools.count()


@dataclass(frozen=True, slots=True)
class Host:
    """One namespace on the bridge."""

    name: str
    namespace: str
    address: str
    bridge: str
    """Namespace of the bridge."""
    port: str
    """This host's end at the bridge."""

    def command(self, *words: str) -> tuple[str, ...]:
        """Return a command line that runs on this host."""
        return ("ip", "netns", "exec", self.namespace, *words)

    def sent_bytes(self) -> int:
        """Return what has left through ``eth0``, headers included, as the kernel counts it."""
        return self._count("tx")

    def received_bytes(self) -> int:
        """Return what has come in through ``eth0``."""
        return self._count("rx")

    def sent_packets(self) -> int:
        """Return how many frames have left through ``eth0``."""
        return int(_run(*self._statistics("tx_packets")))

    def cut(self) -> None:
        """Pull the cable: frames are lost in both directions, and nobody is told."""
        _run("ip", "-n", self.bridge, "link", "set", self.port, "nomaster")

    def mend(self) -> None:
        """Plug the cable in again."""
        _run("ip", "-n", self.bridge, "link", "set", self.port, "master", _BRIDGE)

    @contextmanager
    def at_most(self, *, mbit: int) -> Iterator[None]:
        """Let no more megabits a second out than this, so that sending takes its time."""
        device = self.command("tc", "qdisc", "replace", "dev", "eth0", "root")
        _run(*device, "tbf", "rate", f"{mbit}mbit", "burst", "64kb", "latency", "400ms")
        try:
            yield
        finally:
            _run(*self.command("tc", "qdisc", "del", "dev", "eth0", "root"))

    def _count(self, direction: str) -> int:
        return int(_run(*self._statistics(f"{direction}_bytes")))

    def _statistics(self, counter: str) -> tuple[str, ...]:
        # sysfs shows the interfaces of the namespace in which it was mounted; `ip netns exec`
        # mounts it anew.
        return self.command("cat", f"/sys/class/net/eth0/statistics/{counter}")


def missing() -> str:
    """Return why no hosts can be made here, empty when they can."""
    if os.geteuid() != 0:
        return "network namespaces need root"
    if shutil.which("ip") is None:
        return "iproute2 is not installed"
    probe = f"vt{os.getpid()}-probe"
    made = subprocess.run(["ip", "netns", "add", probe], capture_output=True, check=False)  # noqa: S607 - by the path, as an operator
    if made.returncode:
        return "this machine allows no network namespace"
    _run("ip", "netns", "del", probe)
    return ""


@contextmanager
def connected_hosts(names: Sequence[str]) -> Iterator[dict[str, Host]]:
    """Yield a host for each name, all on one bridge; they are gone afterwards."""
    mark = f"vt{os.getpid()}-{next(_numbers)}"
    with ExitStack() as stack:
        bridge = _namespace(stack, f"{mark}-bridge")
        _run("ip", "-n", bridge, "link", "add", _BRIDGE, "type", "bridge")
        _run("ip", "-n", bridge, "link", "set", _BRIDGE, "up")
        hosts = {}
        for number, name in enumerate(names, start=1):
            namespace = _namespace(stack, f"{mark}-{name}")
            port = f"port{number}"
            _run(
                *("ip", "-n", bridge, "link", "add", port, "type", "veth"),
                *("peer", "name", "eth0", "netns", namespace),
            )
            _run("ip", "-n", bridge, "link", "set", port, "master", _BRIDGE, "up")
            address = f"{_NETWORK}.{number}"
            _run("ip", "-n", namespace, "addr", "add", f"{address}/24", "dev", "eth0")
            _run("ip", "-n", namespace, "link", "set", "eth0", "up")
            hosts[name] = Host(name, namespace, address, bridge, port)
        yield hosts


def _namespace(stack: ExitStack, name: str) -> str:
    _run("ip", "netns", "add", name)
    stack.callback(_remove, name)
    _run("ip", "-n", name, "link", "set", "lo", "up")
    return name


def _remove(namespace: str) -> None:
    if Path("/run/netns", namespace).exists():
        _run("ip", "netns", "del", namespace)


def _run(*words: str) -> str:
    return subprocess.run(words, check=True, capture_output=True, text=True, timeout=20).stdout
