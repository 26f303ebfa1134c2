"""What a site counts for its operators: totals, seconds and days, in the format of Prometheus.

The steward has no network. It writes its numbers into a file of its home, whole or not at all, and
the courier shows them on a local port. A label is a stage, an outcome or the digest of a study;
no number is measured on a patient, and no name stands there.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Mapping
from datetime import datetime
from pathlib import Path

from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    generate_latest,
)

from vitrael.client.site.courier.numbers import resident_bytes
from vitrael.core.digest import write_atomically
from vitrael.core.errors import VitraelError
from vitrael.core.messages import Parcel
from vitrael.privacy.journal import read_journal_from
from vitrael.privacy.journal_line import DEPARTURES

Answer = Callable[[Parcel], dict[str, bytes]]


class SiteMetrics:
    """The steward's numbers: counts of its whole journal, the rest since it was started."""

    def __init__(
        self,
        path: Path,
        *,
        journal: Path,
        consents: Callable[[], Mapping[str, datetime]],
        clock: Callable[[], datetime],
        monotonic: Callable[[], float] = time.monotonic,
        memory: Callable[[], int] = resident_bytes,
    ) -> None:
        """Take the file, the journal, what tells when each consent ends, clocks and memory."""
        self._path = path
        self._journal = journal
        self._consents = consents
        self._clock = clock
        self._monotonic = monotonic
        self._memory = memory
        self._place = 0
        own = self._registry = CollectorRegistry()
        self._tasks = Counter(
            "vitrael_site_tasks", "Lines of the journal.", ("stage", "outcome"), registry=own
        )
        self._seconds = Counter(
            "vitrael_site_task_seconds", "Time spent on tasks.", ("stage",), registry=own
        )
        self._sent = Counter("vitrael_site_left_bytes", "Bytes that left, sealed.", registry=own)
        self._lines = Gauge("vitrael_site_journal_lines", "Lines of the journal.", registry=own)
        self._days = Gauge(
            "vitrael_site_consent_days_left", "Until it expires.", ("protocol",), registry=own
        )
        self._last = Gauge(
            "vitrael_site_last_task_seconds", "When a task was answered, Unix time.", registry=own
        )
        self._resident = Gauge(
            "vitrael_site_steward_resident_bytes", "Resident memory.", registry=own
        )
        self._written = Gauge(
            "vitrael_site_steward_written_seconds", "When this was written.", registry=own
        )

    def meter(self, answer: Answer) -> Answer:
        """Return what answers parcels as ``answer`` does, and writes the numbers after each."""

        def metered(parcel: Parcel) -> dict[str, bytes]:
            began = self._monotonic()
            try:
                return answer(parcel)
            finally:
                if stage := self._read_journal():
                    self._seconds.labels(stage).inc(max(self._monotonic() - began, 0.0))
                    self._last.set(self._clock().timestamp())
                self.write()

        return metered

    def write(self) -> None:
        """Write the file; nothing that goes wrong here stops a task for the sake of its numbers."""
        self._read_journal()
        self._resident.set(self._memory())
        self._written.set(self._clock().timestamp())
        with contextlib.suppress(OSError, VitraelError):
            self._days.clear()
            for protocol, expires in self._consents().items():
                left = (expires - self._clock()).total_seconds() / 86_400
                self._days.labels(protocol.removeprefix("sha256:")[:16]).set(round(left, 3))
        with contextlib.suppress(OSError):
            write_atomically(self._path, generate_latest(self._registry))
            self._path.chmod(0o640)  # the courier may be another user

    def _read_journal(self) -> str:
        """Count the lines that are new and return the stage of the last of them, if any."""
        stage = ""
        with contextlib.suppress(OSError, VitraelError):
            for line, place in read_journal_from(self._journal, self._place):
                self._place = place
                self._tasks.labels(line.stage or "none", line.event).inc()
                if line.event in DEPARTURES:
                    self._sent.inc(line.bytes)
                self._lines.set(line.line)
                stage = line.stage or stage
        return stage
