"""What a task needs before it starts, and while it runs: a site that takes tasks, and a consent."""

from __future__ import annotations

from collections.abc import Callable

from vitrael.client.site.ceilings import check_task
from vitrael.client.site.consent import (
    Agreement,
    check_cohort,
    find_agreement,
    other_consents,
)
from vitrael.client.site.settings import SiteSettings
from vitrael.client.site.store import Store
from vitrael.core.data.cohort import find_cohort
from vitrael.core.data.manifest import MANIFEST_NAME, read_manifest
from vitrael.core.digest import Digest
from vitrael.core.errors import ConsentError
from vitrael.core.messages import Task
from vitrael.core.protocols import StudyData
from vitrael.core.version import lock_digest
from vitrael.privacy.journal import Clock
from vitrael.privacy.keys import PublicKeys

_Stamp = tuple[tuple[str, int, int, int], ...]


class CohortIdentity:
    """Says which cohort serves a study, and in which version; unchanged files are read once."""

    def __init__(self, settings: SiteSettings) -> None:
        """Take where the cohorts lie, and the one that site.toml may name."""
        self._folder = settings.cohorts
        self._name = settings.document.cohort
        self._seen: tuple[_Stamp, StudyData] | None = None
        self._found: tuple[str, Digest] = ("", Digest(""))

    def of(self, data: StudyData) -> tuple[str, Digest]:
        """Return name and digest of the cohort for a study; CohortError where there is none."""
        asked = (self._stamp(), data)
        if asked != self._seen:
            folder = find_cohort(self._folder, data, name=self._name)
            self._found = (folder.name, read_manifest(folder / MANIFEST_NAME).digest)
            self._seen = asked
        return self._found

    def _stamp(self) -> _Stamp:
        manifests = sorted(self._folder.glob(f"[!.]*/{MANIFEST_NAME}"))
        told = [(path.parent.name, path.stat()) for path in manifests]
        return tuple((name, s.st_ino, s.st_size, s.st_mtime_ns) for name, s in told)


class Permits:
    """Decides whether a task may start, and whether it may go on."""

    def __init__(
        self,
        settings: SiteSettings,
        store: Store,
        *,
        own: PublicKeys,
        clock: Clock,
        left_bytes: Callable[[Digest], int],
    ) -> None:
        """Take the store of decisions, and who says how much has left for a protocol.

        What is installed at this moment is what the process runs from then on.
        """
        self._settings = settings
        self._store = store
        self._own = own
        self._clock = clock
        self._left_bytes = left_bytes
        self._cohort = CohortIdentity(settings)
        self._running = lock_digest()

    def demand(self, task: Task) -> Agreement:
        """Return the agreement that covers a task.

        Raises ConsentError, before anything of the task is done, as ``demand_still``, when the site
        is paused, when the cohort is another than that of the consent, and when the task asks for
        more than the ceilings of site.toml; CohortError without a cohort.
        """
        agreement = self.demand_still(task)
        if paused := self._store.decisions.standing().paused_utc:
            raise ConsentError(
                f"site {self._settings.name} is paused",
                why=f"its operator paused it at {paused}",
                fix="ask again once `vitrael site resume` was run there",
            )
        cohort, digest = self._cohort.of(agreement.study.protocol.data)
        check_cohort(agreement.consent, name=cohort, digest=digest)
        left_bytes = self._left_bytes(task.protocol)
        check_task(
            task,
            agreement.study,
            self._settings.document.limits,
            consent=agreement.consent,
            left_bytes=left_bytes,
            others=other_consents(self._store, agreement.consent),
        )
        return agreement

    def demand_still(self, task: Task) -> Agreement:
        """Return the agreement that covers a task which may have begun: a pause does not end it.

        Raises ConsentError when there is none any more: it was taken back or has expired, the site
        has left, or other software was installed.
        """
        name = self._settings.name
        if left := self._store.decisions.standing().left_utc:
            raise ConsentError(
                f"site {name} has left the federation",
                why=f"its operator did so at {left}",
                fix="go on without this site",
            )
        if self._running != lock_digest():
            raise ConsentError(
                f"the software at site {name} was changed since its steward was started",
                why="what runs is in part what was installed before",
                fix="start the steward again, and consent again where the versions differ",
            )
        return find_agreement(task, self._store, site=name, own=self._own, now=self._clock())

    def is_taken_back(self, task: Task) -> bool:
        """Return whether the operator has taken the task's consent back, or left."""
        consent = self._store.find_consents(task.protocol).get(task.roster)
        left = self._store.decisions.standing().left_utc
        return bool(left or (consent is not None and consent.withdrawn_utc))
