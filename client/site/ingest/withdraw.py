"""Withdrawal: a patient is gone from the next version of every cohort, and does not come back.

In this order: the pseudonym goes on the site's list, so that no intake takes the patient in again;
what a training has learned so far goes; the manifest is replaced, and the versions that held the
patient are marked; shards, latents, and what the index and the report hold are removed. A
withdrawal that is killed is finished by asking for it again.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Set as AbstractSet
from contextlib import closing
from dataclasses import dataclass

from vitrael.client.site.checkpoints import forget_all_checkpoints
from vitrael.client.site.ingest.index import Index
from vitrael.client.site.ingest.keeping import sweep_orphans
from vitrael.client.site.ingest.places import CohortPlace, Home, only_one
from vitrael.client.site.ingest.summary import summarize
from vitrael.client.site.ingest.told import save_summary
from vitrael.client.site.ingest.versions import (
    HeldVersion,
    find_versions,
    has_forgotten,
    mark_withdrawn,
    note_versions,
)
from vitrael.core.data.layouts.names import plain_name
from vitrael.core.data.manifest import Manifest, pseudonym_of, write_manifest
from vitrael.core.data.retention import Removed
from vitrael.core.digest import Digest


@dataclass(frozen=True, slots=True, repr=False)
class Found:
    """What a site holds of one patient."""

    subjects: frozenset[str]
    """The pseudonym, or those of all spellings of the name."""
    items: int
    cohorts: tuple[str, ...]
    known: bool
    """Whether the patient was withdrawn before."""
    versions: tuple[HeldVersion, ...] = ()
    """Those that hold the patient; of one who was withdrawn before, all that held such a one."""
    forgotten: tuple[str, ...] = ()
    """Cohorts of which earlier versions are not known any more."""


def find_patient(home: Home, subject: str) -> Found:
    """Return what the cohorts hold of a patient, given as the site's own files call them.

    A table and a header may spell letters with accents in two ways, and what a file's name cannot
    tell in print stands escaped for the patient: every spelling is looked for.
    """
    composed = unicodedata.normalize("NFC", subject).strip()
    names = {subject.strip(), composed, plain_name(composed)}
    key = home.key()
    known = {pseudonym_of(name, key=key) for name in names if _is_text(name)}
    is_known = not known.isdisjoint(home.read_withdrawn())
    held: dict[str, int] = {}
    versions: list[HeldVersion] = []
    forgotten: list[str] = []
    for name, place in home.cohorts().items():
        manifest = place.read()
        held[name] = sum(item.subject in known for item in manifest.items) if manifest else 0
        versions += find_versions(place.folder, known, present=manifest, marked=is_known)
        forgotten += [name] if has_forgotten(place.folder, present=manifest) else []
    return Found(
        subjects=frozenset(known),
        items=sum(held.values()),
        cohorts=tuple(name for name, own in held.items() if own),
        known=is_known,
        versions=tuple(versions),
        forgotten=tuple(forgotten),
    )


def _is_text(name: str) -> bool:
    """Say whether a name can be written in UTF-8: what the shell gave may be other bytes."""
    try:
        name.encode()
    except UnicodeEncodeError:
        return False
    return True


def remove_patient(home: Home, found: Found) -> Removed:
    """Take a patient out of every cohort for good; return what was removed from the disk.

    Raises StorageError when a steward runs, which has the images in memory, or when another
    process changes a cohort; in the first case nothing was done.
    """
    removed = Removed()
    with home.without_steward():
        home.add_withdrawn(found.subjects)
        forget_all_checkpoints(home.folder / "records")  # of a training on the patient's scans
        for place in home.cohorts().values():
            with only_one(place):
                removed += _leave_cohort(place, found.subjects)
    return removed


def finish_withdrawals(place: CohortPlace, withdrawn: frozenset[str]) -> None:
    """Take out of a cohort whom a withdrawal that was killed has left in it.

    For whoever may call ``remove_begun``.
    """
    held: set[str] = set()
    if withdrawn and (manifest := place.read()) is not None:
        held |= {item.subject for item in manifest.items}
    if withdrawn and place.index.exists():
        with closing(Index(place.index)) as index:
            held |= index.find_subjects(withdrawn)
    if gone := held & withdrawn:
        _leave_cohort(place, gone)


def _leave_cohort(place: CohortPlace, subjects: AbstractSet[str]) -> Removed:
    kept: set[Digest] = set()
    if (manifest := place.read()) is not None:
        if any(item.subject in subjects for item in manifest.items):
            fewer = _without(manifest, subjects)
            note_versions(place.folder, manifest, fewer)
            manifest = fewer
            write_manifest(manifest, place.manifest)
            save_summary(summarize(manifest), manifest, place.folder)
        kept |= {item.digest for item in manifest.items}
    mark_withdrawn(place.folder, subjects)  # also in versions before the present one
    place.report.unlink(missing_ok=True)  # its montages show the patient
    if place.index.exists():
        with closing(Index(place.index)) as index:
            index.forget_subjects(subjects)
            kept |= index.find_digests()
    # What nobody is known to need may be the patient's: of an intake that was not finished.
    return sweep_orphans(place, keep=kept)


def _without(manifest: Manifest, subjects: AbstractSet[str]) -> Manifest:
    return Manifest(
        version=manifest.version + 1,
        recipe=manifest.recipe,
        items=tuple(item for item in manifest.items if item.subject not in subjects),
        withdrawn=manifest.withdrawn + len({item.subject for item in manifest.items} & subjects),
    )
