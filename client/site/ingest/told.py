"""The summary of a cohort on disk, and those that have left: together they tell of no few patients.

An intake writes the counts of the present version beside the cohort. A consent takes them along,
and they are noted on the site's list of what was told. From then on they bind all cohorts of the
site: what counts much the same patients leaves only with what ``subtraction`` lets pass. Where
that is nothing, the cohort's older counts leave once more, and a cohort that has none tells no
number. Two summaries count much the same patients when they share some and one of the two counts
fewer than ``SMALLEST_COUNT`` whom the other does not.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final, TypeVar

from pydantic import BaseModel, ConfigDict, ValidationError

from vitrael.client.site.ingest.places import take_lock
from vitrael.client.site.ingest.subtraction import silence, withhold
from vitrael.client.site.ingest.summary import CohortSummary
from vitrael.core.data.cache import write_private
from vitrael.core.data.manifest import Manifest
from vitrael.core.digest import canonical_json
from vitrael.core.errors import CohortError, ConsentError, storage_error
from vitrael.privacy.leakage import SMALLEST_COUNT

SUMMARY_NAME: Final = "summary.json"
"""In the folder of a cohort."""
TOLD_NAME: Final = "told.json"
"""In the folder of all cohorts of a site."""


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", hide_input_in_errors=True)


class _Counted(_Part):
    summary: CohortSummary
    patients: tuple[str, ...]
    """The pseudonyms of all who are counted."""


class _Told(_Counted):
    cohort: str
    """Its name at the site."""


class _List(_Part):
    told: tuple[_Told, ...] = ()
    """In the order in which they left; each once."""


P = TypeVar("P", bound=_Part)


def save_summary(summary: CohortSummary, manifest: Manifest, folder: Path) -> CohortSummary:
    """Write the counts of a cohort into its folder; return those that leave with a consent."""
    patients = tuple(sorted({item.subject for item in manifest.items}))
    counted = _Counted(summary=summary, patients=patients)
    write_private(folder / SUMMARY_NAME, canonical_json(counted.model_dump(mode="json")))
    return read_summary(folder)


def read_summary(folder: Path) -> CohortSummary:
    """Return what a consent would take along of the cohort in a folder; nothing is noted.

    Raises CohortError unless the cohort's counts, and the list of what was told, are whole.
    """
    return _choose(folder, _read_list(folder)).summary


def tell_summary(folder: Path, *, patients: int | None, images: int | None) -> CohortSummary:
    """Return what a consent takes along, and note it on the list before it leaves.

    ``patients`` and ``images`` are what the consent itself says. Raises ConsentError when these
    are neither those of the summary nor were told before: the difference could tell of few.
    """
    with _lock(folder.parent):
        listed = _read_list(folder)
        chosen = _choose(folder, listed)
        counts = {(e.summary.patients, e.summary.images) for e in (*listed.told, chosen)}
        if (patients, images) not in {*counts, (None, None)}:
            raise ConsentError(
                "the cohort has changed since the consent was given",
                why="the consent names other counts than the cohort's summary",
                fix="run `vitrael site consent STUDY` again",
            )
        if chosen not in listed.told:
            told = _List(told=(*listed.told, chosen))
            document = canonical_json(told.model_dump(mode="json"))
            write_private(folder.parent / TOLD_NAME, document)
    return chosen.summary


def _choose(folder: Path, listed: _List) -> _Told:
    fresh = _read(_Counted, folder / SUMMARY_NAME, "summary of the cohort")
    close = [each.summary for each in listed.told if _count_the_same(each, fresh)]
    summary = withhold(fresh.summary, close)
    if summary is None:
        older = [each for each in listed.told if _is_of(each, folder.name, fresh.summary)]
        if older:
            return older[-1]
        summary = silence(fresh.summary)
    return _Told(summary=summary, patients=fresh.patients, cohort=folder.name)


def _count_the_same(one: _Counted, other: _Counted) -> bool:
    """Return whether two summaries count much the same patients."""
    own, others = {*one.patients}, {*other.patients}
    return bool(own & others) and min(len(own - others), len(others - own)) < SMALLEST_COUNT


def _is_of(told: _Told, name: str, summary: CohortSummary) -> bool:
    return told.cohort == name and told.summary.recipe == summary.recipe


def _read_list(folder: Path) -> _List:
    path = folder.parent / TOLD_NAME
    return _read(_List, path, "list of what was told") if path.exists() else _List()


def _read(kind: type[P], path: Path, what: str) -> P:
    try:
        return kind.model_validate_json(path.read_bytes())
    except (OSError, ValidationError):
        raise CohortError(
            f"the {what} cannot be used",
            why="it is missing, damaged or changed by hand",
            fix=f"restore {path.name} from a backup",
        ) from None


@contextmanager
def _lock(folder: Path) -> Iterator[None]:
    """Hold the list of what was told, for the time of two small files.

    Raises StorageError when another process does not let it go.
    """
    try:
        handle = os.open(folder / "told.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    except OSError as error:
        raise storage_error("the list of what was told", error) from None
    try:
        take_lock(handle, "the list of what was told")
        yield
    finally:
        os.close(handle)
