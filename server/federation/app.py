"""The Flower ServerApp: it opens the coordinator's home, runs the study and says how it ended.

``run.json`` in the home is the one word on the state of a run: ``running``, ``finished`` or
``failed``, with a sentence and the exit code that a command must end with.
"""

from __future__ import annotations

import json
import os
import sys
import traceback
from collections.abc import Callable
from datetime import datetime
from pathlib import Path

import httpx
from flwr.app import Context
from flwr.serverapp import Grid, ServerApp

from vitrael.core.digest import write_atomically
from vitrael.core.errors import EXIT_INTERRUPTED, ConfigError, NetworkError, VitraelError
from vitrael.server.federation.exchange import Exchange, FlowerExchange
from vitrael.server.federation.guards import explained_storage
from vitrael.server.federation.run_state import RunState, RunStatus, taking_turn
from vitrael.server.settings import utc_now

StudyRunner = Callable[[Path, Exchange], int | None]
"""Runs the study of a home; None means exit code 0."""


def make_app(run: StudyRunner) -> ServerApp:
    """Return a ServerApp whose main runs ``run`` on the home that the run's config names."""
    app = ServerApp()

    @app.main()
    def main(grid: Grid, context: Context) -> None:
        home, run_id = Path(str(context.run_config["home"])), str(context.run_id)
        with taking_turn(home, run_id=run_id):
            serve(run, home=home, grid=grid, run_id=run_id)

    return app


def serve(
    run: StudyRunner,
    *,
    home: Path,
    grid: Grid,
    run_id: str,
    clock: Callable[[], datetime] = utc_now,
) -> None:
    """Run a study and keep ``run.json`` true, however it ends; what it raises goes on."""

    def note(status: RunStatus, text: str = "", code: int = 0) -> None:
        state = RunState(
            status=status,
            run_id=run_id,
            pid=os.getpid(),
            utc=_seconds(clock()),
            sentence=text,
            exit_code=code,
        )
        write_atomically(home / "run.json", state.model_dump_json(indent=1).encode())

    note("running")
    try:
        with explained_storage(home):
            code = run(home, FlowerExchange(grid, read_nodes(home)))
    except VitraelError as error:
        _log(home, clock())
        note("failed", error.sentence(), error.exit_code)
        raise
    except httpx.HTTPError as error:
        _log(home, clock())
        why = f"the SuperLink was lost: {type(error).__name__}"
        note("failed", why, NetworkError.exit_code)
        raise
    except Exception as error:
        _log(home, clock())
        note("failed", f"the ServerApp failed: {type(error).__name__}; logs/serverapp.log tells", 1)
        raise
    except BaseException:
        note("failed", "the ServerApp was stopped", EXIT_INTERRUPTED)
        raise
    status, sentence = _how_it_ended(home)
    note(status, sentence, code or 0)


def read_nodes(home: Path) -> dict[str, int]:
    """Return site name -> Flower node id from ``sites.json`` (``{name: {"node_id": …}}``).

    Raises ConfigError when the file is missing or a site has no node id.
    """
    path = home / "sites.json"
    try:
        sites = json.loads(path.read_text(encoding="utf-8"))
        return {str(name): int(entry["node_id"]) for name, entry in sites.items()}
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise ConfigError(
            f"{path} does not name the sites with their node ids", fix="enrol the sites again"
        ) from error


def _how_it_ended(home: Path) -> tuple[RunStatus, str]:
    """Return what ``outcome.json`` says of the sites; a study that leaves none is finished."""
    try:
        outcome = json.loads((home / "outcome.json").read_bytes())
    except (OSError, ValueError):
        return "finished", ""
    status: RunStatus = "partial" if outcome.get("status") == "partial" else "finished"
    return status, str(outcome.get("sentence", ""))


def _log(home: Path, moment: datetime) -> None:
    """Append the exception at hand to a log: Flower discards what a ServerApp prints."""
    path = home / "logs" / "serverapp.log"
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a", encoding="utf-8") as file:
        file.write(f"{_seconds(moment)} {sys.argv[0]}\n{traceback.format_exc()}\n")


def _seconds(moment: datetime) -> str:
    return moment.isoformat(timespec="seconds")
