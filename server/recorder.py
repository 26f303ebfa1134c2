"""A process beside a running study that carries what is finished into MLflow.

It is apart from the coordinator because MLflow takes hundreds of megabytes and may hang; it ends
when the study has ended or another was ordered, and all of it is recorded, or on SIGTERM.
"""

from __future__ import annotations

import argparse
import signal
import threading
from pathlib import Path

from vitrael.server.runs import AT_WORK, StudyState, read_state
from vitrael.server.settings import quiet_mlflow
from vitrael.server.studies.recording import Recorder

_POLL_S = 3.0


def record_study(home: Path, stop: threading.Event, *, poll_s: float = _POLL_S) -> None:
    """Record the stages of a home's study until it has ended, or ``stop`` is set.

    Study and roster are those with which it began: it ends as well when anything else is ordered.
    """
    began = read_state(home)
    recorder = Recorder(home)
    while True:
        last = stop.is_set() or began is None or not _goes_on(home, began)
        recorder.catch_up()
        if last:
            return
        stop.wait(poll_s)


def _goes_on(home: Path, began: StudyState) -> bool:
    state = read_state(home)
    return state is not None and state.order == began.order and state.status in AT_WORK


def main() -> None:
    """Record the study of ``--home``."""
    parser = argparse.ArgumentParser(prog="vitrael-recorder")
    parser.add_argument("--home", type=Path, required=True)
    home: Path = parser.parse_args().home
    stop = threading.Event()
    signal.signal(signal.SIGTERM, lambda *_: stop.set())
    quiet_mlflow()
    record_study(home, stop)


if __name__ == "__main__":
    main()
