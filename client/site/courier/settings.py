"""The courier's environment: the one place that reads it, and what its children get of it."""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping
from pathlib import Path

_KEPT = frozenset({"HOME", "LANG", "LANGUAGE", "TMPDIR", "TZ"})
_LOOPBACK = "127.0.0.1,localhost"


def inherited_environment() -> dict[str, str]:
    """Return the environment of this process; ``child_environment`` says what is handed on."""
    return dict(os.environ)  # noqa: TID251 - this is settings


def child_environment(
    base: Mapping[str, str], *, flower_home: Path, proxy: str | None, loopback: bool
) -> dict[str, str]:
    """Return the environment of a Flower process of a site: it calls nobody but the coordinator.

    Code that comes by Flower runs in it, so that nothing of the operator's is handed on but path,
    home, time zone and locale. ``site.toml`` alone says which proxy there is.
    What speaks on ``loopback`` only gets none. Telemetry, update check and the installation of
    what a bundle asks for are off; what Flower writes stays in ``flower_home``.
    """
    kept = {name: value for name, value in base.items() if name in _KEPT or name.startswith("LC_")}
    path = os.pathsep.join((str(Path(sys.executable).parent), base.get("PATH", os.defpath)))
    network = {"NO_PROXY": _LOOPBACK, "no_proxy": _LOOPBACK} if loopback else {}
    if proxy is not None and not loopback:
        network = {"HTTPS_PROXY": proxy}
    return (
        kept
        | network
        | {
            "PATH": path,
            "FLWR_HOME": str(flower_home),
            "FLWR_TELEMETRY_ENABLED": "0",
            "FLWR_DISABLE_UPDATE_CHECK": "1",
            "FLWR_DISABLE_RUNTIME_DEPENDENCY_INSTALLATION": "1",
            "DO_NOT_TRACK": "true",
            "FLWR_SUPEREXEC_TASK_POLL_INTERVAL": "0.25",
            "MALLOC_ARENA_MAX": "2",  # threads that only wait need no heap of their own
            "OMP_NUM_THREADS": "1",
            "PYTHONUNBUFFERED": "1",
        }
    )
