"""What a task needs before it starts, and while it runs: a site that takes tasks, and a consent."""

from __future__ import annotations

from collections.abc import Callable

from vitrael.client.site.ceilings import check_task
from vitrael.client.site.consent import Agreement, check_cohort, find_agreement, withdrawn
from vitrael.client.site.settings import SiteSettings
from vitrael.client.site.store import Store
from vitrael.core.data.cohort import find_cohort
from vitrael.core.data.manifest import MANIFEST_NAME, read_manifest
from vitrael.core.digest import Digest
from vitrael.core.errors import ConsentError
from vitrael.core.messages import Task
from vitrael.core.study import Data
from vitrael.privacy.journal import Clock
from vitrael.privacy.keys import PublicKeys

_Stamp = tuple[tuple[str, int, int, int], ...]


class CohortIdentity:
    """Says which cohort serves a study, and in which version; unchanged files are read once."""

    def __init__(self, settings: SiteSettings) -> None:
        """Take where the cohorts lie, and the one that site.toml may name."""
        self._folder = settings.cohorts
        self._name = settings.document.cohort
        self._seen: tuple[_Stamp, Data] | None = None
        self._found: tuple[str, Digest] = ("", Digest(""))

    def of(self, data: Data) -> tuple[str, Digest]:
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
        """Take the store of decisions, and who says how much has left for a protocol."""
        self._settings = settings
        self._store = store
        self._own = own
        self._clock = clock
        self._left_bytes = left_bytes
        self._cohort = CohortIdentity(settings)

    def demand(self, task: Task) -> Agreement:
        """Return the agreement that covers a task.

        Raises ConsentError, before anything of the task is done, when the site has left or is
        paused, when no consent covers it, when the cohort is another than that of the consent, and
        when it asks for more than the ceilings of site.toml; CohortError without a cohort.
        """
        name = self._settings.name
        standing = self._store.decisions.standing()
        if standing.left_utc:
            raise _gone(name, standing.left_utc)
        if standing.paused_utc:
            raise ConsentError(
                f"site {name} is paused",
                why=f"its operator paused it at {standing.paused_utc}",
                fix="ask again once `vitrael site resume` was run there",
            )
        agreement = find_agreement(task, self._store, site=name, own=self._own, now=self._clock())
        cohort, digest = self._cohort.of(agreement.study.protocol.data)
        check_cohort(agreement.consent, name=cohort, digest=digest)
        left_bytes = self._left_bytes(task.protocol)
        limits = self._settings.document.limits
        check_task(task, agreement.study, limits, left_bytes=left_bytes)
        return agreement

    def demand_still(self, task: Task) -> None:
        """Raise ConsentError when the consent was taken back, or the site left, in the meantime.

        A pause ends no task that has begun.
        """
        if left := self._store.decisions.standing().left_utc:
            raise _gone(self._settings.name, left)
        if utc := self._store.decisions.withdrawn_utc(task.protocol, task.roster):
            raise withdrawn(self._settings.name, utc)


def _gone(name: str, utc: str) -> ConsentError:
    return ConsentError(
        f"site {name} has left the federation",
        why=f"its operator did so at {utc}",
        fix="go on without this site",
    )
