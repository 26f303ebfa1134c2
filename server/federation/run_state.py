"""``run.json``: the one word on the state of a run, which its ServerApp writes and others read."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from vitrael.core.configs import Section
from vitrael.core.errors import EXIT_INTERRUPTED, NetworkError

RunStatus = Literal["running", "finished", "partial", "failed"]
"""``partial``: the study ended, and a site was absent from a round; the sentence says which."""

ENDED: frozenset[RunStatus] = frozenset({"finished", "partial"})
"""What a run says that came to its own end."""

LOST_CODES = frozenset({NetworkError.exit_code, EXIT_INTERRUPTED})
"""Exit codes of a failed run that another Flower run may continue: nothing was wrong with it."""


class RunState(Section):
    """What ``run.json`` says."""

    status: RunStatus
    run_id: str
    """Flower's number of the run, as text: JSON readers round integers of 64 bits."""
    pid: int
    utc: str
    sentence: str = ""
    exit_code: int = 0


def read_run(home: Path) -> RunState | None:
    """Return what ``run.json`` says, None when no run has started."""
    try:
        return RunState.model_validate_json((home / "run.json").read_bytes())
    except FileNotFoundError:
        return None
