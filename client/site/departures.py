"""How many bytes left a site for each protocol, counted from its journal alone."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

from vitrael.privacy.journal import read_journal_from
from vitrael.privacy.journal_line import DEPARTURES


class Departures:
    """A running total: each line is read once, whoever wrote it."""

    def __init__(self, journal: Path) -> None:
        """Take the file of lines; nothing is read yet."""
        self._journal = journal
        self._read_bytes = 0
        self._totals: Counter[str] = Counter()

    def total(self, protocol: str) -> int:
        """Return the bytes that left for a protocol until now.

        Raises StorageError when the journal holds what is no line.
        """
        for line, end_bytes in read_journal_from(self._journal, self._read_bytes):
            self._read_bytes = end_bytes
            if line.event in DEPARTURES:
                self._totals[line.protocol] += line.bytes
        return self._totals[protocol]
