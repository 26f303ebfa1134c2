"""What stands in the homes of coordinator and sites about the processes that run there."""

from __future__ import annotations

import json
from pathlib import Path


def forget_socket(home: Path) -> None:
    """Remove what a steward that was killed could not."""
    for stale in ("steward.sock", "steward.json"):
        (home / stale).unlink(missing_ok=True)


def listens(home: Path) -> bool:
    """Say whether a steward's socket is there; ``steward.json`` may name a shorter path."""
    try:
        note = json.loads((home / "steward.json").read_bytes())
        return Path(str(note["socket"])).exists()
    except (OSError, ValueError, KeyError, TypeError):
        return (home / "steward.sock").exists()
