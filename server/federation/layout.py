"""Where a rehearsal keeps everything, and the command line of each of its processes."""

from __future__ import annotations

import shutil
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from vitrael.server.federation.flower_home import program
from vitrael.server.settings import inherited_environment


def site_home(home: Path, site: str) -> Path:
    """Return a site's home below the coordinator's."""
    return home / "sites" / site


@dataclass(frozen=True, slots=True)
class RehearsalLayout:
    """Where everything is, who takes part and which programs run."""

    home: Path
    """The coordinator's home, absolute; the sites' homes lie under it."""
    sites: tuple[str, ...]
    port: int | None = None
    """The first port; the others come after it. None: those of the last time, or free ones."""
    coordinator: tuple[str, ...] | None = None
    """Command that ``--home HOME`` is added to; None: ``vitrael server up``."""
    steward: tuple[str, ...] | None = None
    """Command that ``--home SITE_HOME`` is added to; None: ``vitrael site run``."""
    nginx: str | None = None
    """Program that stands in front; None: a stand-in of our own, for want of nginx."""
    threads: int = 1
    """OMP_NUM_THREADS of every process."""
    environment: Mapping[str, str] = field(default_factory=inherited_environment, repr=False)

    def site_home(self, site: str) -> Path:
        """Return a site's home."""
        return site_home(self.home, site)


def coordinator_command(layout: RehearsalLayout) -> tuple[str, ...]:
    """Return the coordinator: all of it but what stands in front."""
    command = layout.coordinator or (program("vitrael"), "server", "up")
    return (*command, "--home", str(layout.home))


def front_command(layout: RehearsalLayout) -> tuple[str, ...]:
    """Return our own stand-in for nginx."""
    return (sys.executable, "-m", "vitrael.server.front", "--home", str(layout.home))


def steward_command(
    layout: RehearsalLayout, site: str, *, guard: tuple[str, ...]
) -> tuple[str, ...]:
    """Return a site's steward, behind ``guard``."""
    command = layout.steward or (program("vitrael"), "site", "run")
    return (*guard, *command, "--home", str(layout.site_home(site)))


def courier_command(layout: RehearsalLayout, site: str) -> tuple[str, ...]:
    """Return a site's courier, which starts SuperNode and SuperExec itself."""
    return (program("vitrael"), "site", "courier", "--home", str(layout.site_home(site)))


def network_guard() -> tuple[str, ...]:
    """Return the command prefix that takes the network from a process, empty when none works."""
    found = shutil.which("unshare")
    if found is None:
        return ()
    for flags in (("-n",), ("-rn",)):
        probe = subprocess.run(  # noqa: S603 - a fixed command
            [found, *flags, "true"], capture_output=True, check=False, timeout=10
        )
        if probe.returncode == 0:
            return (found, *flags)
    return ()
