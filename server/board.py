"""What a running coordinator knows of its study, its sites and its processes, as one document.

``vitrael server up`` keeps it in memory for its metrics and writes it to ``state.json`` for
``vitrael server status``. It holds names of sites, counts, times and sentences, as the journal and
the progress file do, and nothing that a site measured.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any

from pydantic import Field, ValidationError

from vitrael.core.configs import Section
from vitrael.core.digest import write_atomically
from vitrael.core.protocols import Name
from vitrael.server.federation.progress import Tail
from vitrael.server.runs import AT_WORK, StudyState
from vitrael.server.supervisor import ChildState

STATE = "state.json"
STALE_S = 30.0
"""After so long without a new state its writer is taken for gone."""


class SiteState(Section):
    """What the coordinator saw of one enrolled site."""

    online: bool = False
    seen_utc: str | None = None
    """When its node was last online."""
    asked_bytes: int = 0
    """Bytes of the tasks that went to it, signed and sealed; since the journal began."""
    received_bytes: int = 0
    """Bytes of what came from it."""
    answered_utc: str | None = None
    """When its last answer came."""
    answer_s: float | None = None
    """How long that answer took."""


class Stage(Section):
    """What the study is at."""

    stage: str
    round: int
    began_utc: str
    answered: int = 0
    asked: int = 0
    absent: dict[str, str] = Field(default_factory=dict)
    """Each site whose answer will not come or does not count -> why."""


class ServerState(Section):
    """All of it at one moment."""

    utc: str
    pid: int
    version: str
    address: str
    children: tuple[ChildState, ...] = ()
    sites: dict[Name, SiteState] = Field(default_factory=dict)
    study: StudyState | None = None
    stage: Stage | None = None
    trouble: str = ""
    """One sentence on what does not work at the moment; empty while all does."""


@dataclass(slots=True)
class Board:
    """Gathers the state; ``refresh`` reads what is new in the journal and the progress file."""

    home: Path
    version: str
    address: str
    clock: Callable[[], datetime]
    state: ServerState = field(init=False)
    _journal: Tail = field(init=False)
    _progress: Tail = field(init=False)
    _asked: dict[tuple[str, str], datetime] = field(default_factory=dict)
    """Site and nonce of each task that is not answered yet -> when it was asked."""
    _sites: dict[str, dict[str, Any]] = field(default_factory=dict)
    _stage: Stage | None = None
    _stage_asked: set[str] = field(default_factory=set)
    """The sites that were asked for it."""

    def __post_init__(self) -> None:
        """Begin at the beginning of the journal, and with what is new of the progress."""
        self._journal = Tail(self.home / "journal.jsonl")
        self._progress = Tail(self.home / "progress.jsonl")
        self.state = self._compose((), {}, None, trouble="")

    def refresh(
        self,
        *,
        children: tuple[ChildState, ...],
        online: Mapping[str, bool],
        study: StudyState | None,
        trouble: str,
    ) -> ServerState:
        """Return the state as it is now; ``online`` names every enrolled site."""
        for line in self._journal.new_lines():
            with suppress(KeyError, TypeError, ValueError):  # one that is odd is passed over
                self._count(line)
        for line in self._progress.new_lines():
            with suppress(KeyError, TypeError, ValueError):
                self._follow(line)
        self.state = self._compose(children, online, study, trouble=trouble)
        return self.state

    def write(self) -> None:
        """Write the state where ``read_state`` finds it."""
        data = self.state.model_dump_json(indent=1).encode() + b"\n"
        write_atomically(self.home / STATE, data)

    def _compose(
        self,
        children: tuple[ChildState, ...],
        online: Mapping[str, bool],
        study: StudyState | None,
        *,
        trouble: str,
    ) -> ServerState:
        now = self.clock().isoformat(timespec="seconds")
        for site, here in online.items():
            facts = self._sites.setdefault(site, {})
            facts["online"] = here
            if here:
                facts["seen_utc"] = now
        at_work = study is not None and study.status in AT_WORK
        return ServerState(
            utc=now,
            pid=os.getpid(),
            version=self.version,
            address=self.address,
            children=children,
            sites={site: SiteState(**self._sites[site]) for site in sorted(online)},
            study=study,
            stage=self._stage if at_work else None,
            trouble=trouble,
        )

    def _count(self, line: Mapping[str, Any]) -> None:
        """Count a line of the journal: what went to a site or came from it."""
        event, number = line.get("event"), int(line.get("bytes") or 0)
        to, origin = str(line.get("to") or ""), str(line.get("origin") or "")
        nonce, when = str(line.get("nonce") or ""), datetime.fromisoformat(str(line["utc"]))
        if event == "asked" and to:
            facts = self._sites.setdefault(to, {})
            facts["asked_bytes"] = facts.get("asked_bytes", 0) + number
            self._asked[to, nonce] = when
        elif event == "failed" and to:
            self._asked.pop((to, nonce), None)
        elif origin and nonce:
            facts = self._sites.setdefault(origin, {})
            facts["received_bytes"] = facts.get("received_bytes", 0) + number
            asked = self._asked.pop((origin, nonce), None)
            if asked is not None:
                facts["answered_utc"] = when.isoformat(timespec="seconds")
                facts["answer_s"] = (when - asked).total_seconds()

    def _follow(self, line: Mapping[str, Any]) -> None:
        """Follow the coordinator's progress: which stage and round, how many answers, who not."""
        stage, round_index = str(line.get("stage", "")), int(line.get("round") or 0)
        event, now = line.get("event"), self._stage
        if event == "begun":
            self._stage = Stage(stage=stage, round=round_index, began_utc=str(line["utc"]))
            self._stage_asked = set()
        elif now is None or (now.stage, now.round) != (stage, round_index):
            return
        elif event == "asked":
            self._stage_asked.add(str(line["site"]))
            self._stage = now.model_copy(update={"asked": len(self._stage_asked)})
        elif event == "answer":
            counts = {"answered": int(line["done"]), "asked": int(line["total"])}
            self._stage = now.model_copy(update=counts)
        elif event == "absent":
            absent = {**now.absent, str(line["site"]): str(line["reason"])}
            self._stage = now.model_copy(update={"absent": absent})


def read_server_state(home: Path) -> ServerState | None:
    """Return what a coordinator of this home wrote last; None when none ever did."""
    try:
        return ServerState.model_validate_json((home / STATE).read_bytes())
    except (FileNotFoundError, NotADirectoryError):
        return None
    except (ValidationError, OSError):
        return None  # of another version or half a disk's: it is written anew each second
