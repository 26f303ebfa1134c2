"""Shows how a study goes: stage, round, how much is done, and when it will be.

On a terminal one line is kept up to date; elsewhere there is a line for each tenth of a stage.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, TextIO

if TYPE_CHECKING:
    from vitrael.server.rehearsal import Event

STAGES = (
    "consent",
    "canary",
    "codec",
    "latents",
    "reid",
    "calibration",
    "teacher",
    "candidates",
    "screening",
    "student",
    "samples",
    "rescreening",
    "synthesis",
    "audit",
    "gates",
    "bundle",
    "signing",
    "publication",
)
"""Of a synthetic set, in their order; a study that is refused ends with the gates."""
EXPERT_STAGES = (
    "consent",
    "canary",
    "expert",
    "outlooks",
    "fusion",
    "panel",
    "averaged",
    "relay",
    "comparison",
)
"""Of experts, in their order; a study may ask for no rivals."""


@dataclass(slots=True)
class Progress:
    """Follows the events of a rehearsal and writes on a stream."""

    sites: int
    stream: TextIO = field(default_factory=lambda: sys.stderr)
    clock: Callable[[], float] = time.monotonic
    experts: bool = False
    """Whether the study is one of experts."""
    began: float | None = None
    """When the command began, by the clock; None: now."""
    _stage: str = ""
    _round: int = 0
    _began: float = 0.0
    _started: float = 0.0
    _shares: dict[str, float] = field(default_factory=dict)
    _tenth: int = 0

    def __post_init__(self) -> None:
        """Start the clock."""
        self._started = self.clock() if self.began is None else self.began

    def say(self, text: str) -> None:
        """Write a line of one's own."""
        self._line(text)

    def follow(self, event: Event) -> None:
        """Show one event."""
        if event.kind != "progress":
            self._line(f"{event.who}: {event.text}")
            return
        line = event.data
        if event.who == "coordinator" and line["event"] in ("begun", "kept", "finished"):
            self._turn(str(line["stage"]), int(line["round"]), str(line["event"]))
        elif line.get("event") in ("absent", "damaged"):
            self._warn(line)
        elif line.get("total"):
            same_stage = (line["stage"], line["round"]) == (self._stage, self._round)
            if same_stage and line.get("event") != "answer":
                self._shares[event.who] = float(line["done"]) / float(line["total"])
                self._show()

    def _turn(self, stage: str, round_index: int, event: str) -> None:
        title = self._title(stage, round_index)
        if event == "begun":
            self._stage, self._round, self._began = stage, round_index, self.clock()
            self._shares, self._tenth = {}, 0
            self._line(f"{title} …")
        elif event == "kept":
            self._line(f"{title}: finished before, kept")
        else:
            self._line(f"{title}: done in {self.clock() - self._began:.0f} s")

    def _warn(self, line: Mapping[str, Any]) -> None:
        """Say who is absent and why, or what is done again."""
        title = self._title(str(line["stage"]), int(line["round"]))
        if line["event"] == "damaged":
            self._line(f"{title}: what was kept is damaged, it is done again")
        else:
            self._line(f"{title}: {line.get('site')} is absent: {line.get('reason')}")

    def _show(self) -> None:
        alone = "coordinator" in self._shares
        share = sum(self._shares.values()) / (1 if alone else self.sites)
        seconds = self.clock() - self._began
        left = f"{seconds * (1 - share) / share:.0f} s left" if share > 0 else "…"
        text = f"{self._title(self._stage, self._round)}: {share:4.0%}, {left}"
        if self.stream.isatty():
            self.stream.write(f"\r\x1b[2K{text}")
            self.stream.flush()
        elif int(share * 10) > self._tenth:
            self._tenth = int(share * 10)
            self._line(text)

    def _title(self, stage: str, round_index: int) -> str:
        known = EXPERT_STAGES if self.experts else STAGES
        place = f"[{known.index(stage) + 1:2}/{len(known)}] " if stage in known else ""
        return f"{place}{stage}" + (f", round {round_index + 1}" if round_index else "")

    def _line(self, text: str) -> None:
        clear = "\r\x1b[2K" if self.stream.isatty() else ""
        minutes, seconds = divmod(int(self.clock() - self._started), 60)
        self.stream.write(f"{clear}{minutes:2}:{seconds:02} {text}\n")
        self.stream.flush()
