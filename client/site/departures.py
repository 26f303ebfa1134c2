"""What left a site, for which protocol and in answer to which task, by its journal alone."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

from vitrael.core.messages import Task
from vitrael.privacy.journal import Line, read_journal_from
from vitrael.privacy.journal_line import DEPARTURES


class Departures:
    """A running total: each line is read once, whoever wrote it."""

    def __init__(self, journal: Path) -> None:
        """Take the file of lines; nothing is read yet."""
        self._journal = journal
        self._read_bytes = 0
        self._totals: Counter[str] = Counter()
        self._again: Counter[str] = Counter()
        self._answers: Counter[str] = Counter()
        self._sent: set[str] = set()
        self._rounds: set[tuple[str, str, str, int]] = set()

    def total(self, protocol: str) -> int:
        """Return the bytes that left for a protocol until now.

        Raises StorageError, as all here, when the journal holds what is no line.
        """
        self._read()
        return self._totals[protocol]

    def total_once(self, protocol: str) -> int:
        """Return the bytes that left for a protocol, without those of results given again.

        A task that comes a second time, as it was signed, gets the same result once more. Nobody
        learns more from it, and whoever repeats it uses up no ceiling.
        """
        self._read()
        return self._totals[protocol] - self._again[protocol]

    def answers_to(self, task: Task) -> int:
        """Return how often this very task was answered, with whatever."""
        self._read()
        return self._answers[task.nonce]

    def has_sent(self, task: Task) -> bool:
        """Return whether a result of the task's round has left, for its protocol and roster."""
        self._read()
        rosters = (task.roster, "")  # lines of the first format name none
        return any((task.protocol, r, task.stage, task.round) in self._rounds for r in rosters)

    def gives_again(self, task: Task) -> bool:
        """Return whether a result has left in answer to this very task."""
        self._read()
        return task.nonce in self._sent

    def _read(self) -> None:
        for line, end_bytes in read_journal_from(self._journal, self._read_bytes):
            self._read_bytes = end_bytes
            if line.event in DEPARTURES:
                self._count(line)

    def _count(self, line: Line) -> None:
        self._totals[line.protocol] += line.bytes
        if not line.nonce:
            return
        self._answers[line.nonce] += 1
        if line.event == "sent":
            if line.nonce in self._sent:
                self._again[line.protocol] += line.bytes
            self._sent.add(line.nonce)
            self._rounds.add((line.protocol, line.roster, line.stage, line.round))
