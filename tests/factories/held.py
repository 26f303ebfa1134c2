"""What a process and all that descend from it hold in memory, by the kernel's own account.

RSS counts a library once for each process that uses it, and PSS shares it out among all processes
of the machine; *together* is what the group would need alone: each page of a file once, and every
other page.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

import psutil

_MAPPING = re.compile(r"^[0-9a-f]+-[0-9a-f]+ \S+ ([0-9a-f]+) (\S+) (\d+)")


@dataclass(frozen=True, slots=True)
class Held:
    """Memory of a process and all that descend from it, MiB."""

    processes: tuple[str, ...]
    rss: float
    pss: float
    together: float

    def line(self, what: str, most: int) -> str:
        """Return the figures beside the limit."""
        return (
            f"  {what:18} together {self.together:6.1f} MiB of {most}; RSS {self.rss:6.1f}, "
            f"PSS {self.pss:6.1f}, {len(self.processes)} processes: {', '.join(self.processes)}"
        )


def measure(pid: int) -> Held:
    """Return what a process and its descendants hold."""
    root = psutil.Process(pid)
    files: dict[tuple[str, str, str], int] = {}
    rss = pss = anonymous = 0
    names = []
    for process in (root, *root.children(recursive=True)):
        names.append(called(process))
        key: tuple[str, str, str] | None = None
        for line in Path(f"/proc/{process.pid}/smaps").read_text(encoding="utf-8").splitlines():
            if found := _MAPPING.match(line):
                offset, device, inode = found.groups()
                key = None if inode == "0" else (device, inode, offset)
                continue
            name, _, rest = line.partition(":")
            if name not in {"Rss", "Pss", "Anonymous"}:
                continue
            kib = int(rest.split()[0])
            if name == "Rss":
                rss += kib
                held = kib
            elif name == "Pss":
                pss += kib
            else:
                anonymous += kib
                if key is not None:
                    files[key] = max(files.get(key, 0), held - kib)
    together = anonymous + sum(files.values())
    return Held(tuple(names), rss / 1024, pss / 1024, together / 1024)


def called(process: psutil.Process) -> str:
    """Return the module or program that a process runs."""
    words = process.cmdline()
    if "-m" in words:
        return words[words.index("-m") + 1].rpartition(".")[2]
    return " ".join([Path(word).name for word in words if not word.startswith("-")][1:4])
