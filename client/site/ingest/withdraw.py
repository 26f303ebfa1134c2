"""Withdrawal: a patient is gone from the next version of every cohort, and does not come back.

In this order: the pseudonym goes on the site's list, so that no intake takes the patient in again;
the manifest is replaced; shards, latents, and what the index and the report hold are removed. A
withdrawal that is killed is finished by asking for it again.
"""

from __future__ import annotations

import unicodedata
from contextlib import closing
from dataclasses import dataclass

from vitrael.client.site.ingest.index import Index
from vitrael.client.site.ingest.keeping import sweep_orphans
from vitrael.client.site.ingest.places import CohortPlace, Home, only_one
from vitrael.client.site.ingest.summary import summarize
from vitrael.client.site.ingest.told import save_summary
from vitrael.core.data.manifest import Manifest, pseudonym_of, read_manifest, write_manifest
from vitrael.core.data.retention import Removed
from vitrael.core.digest import Digest


@dataclass(frozen=True, slots=True, repr=False)
class Found:
    """What a site holds of one patient."""

    subject: str
    """The pseudonym."""
    items: int
    cohorts: tuple[str, ...]
    known: bool
    """Whether the patient was withdrawn before."""


def find_patient(home: Home, subject: str) -> Found:
    """Return what the cohorts hold of a patient, given as the site's own files call them."""
    pseudonym = pseudonym_of(unicodedata.normalize("NFC", subject).strip(), key=home.key())
    items = 0
    cohorts = []
    for name, place in home.cohorts().items():
        own = sum(item.subject == pseudonym for item in read_manifest(place.manifest).items)
        items += own
        if own:
            cohorts.append(name)
    return Found(pseudonym, items, tuple(cohorts), pseudonym in home.read_withdrawn())


def remove_patient(home: Home, found: Found) -> Removed:
    """Take a patient out of every cohort for good; return what was removed from the disk."""
    home.add_withdrawn(found.subject)
    removed = Removed()
    for place in home.places():
        with only_one(place):
            removed += _leave_cohort(place, found.subject)
    return removed


def finish_withdrawals(place: CohortPlace, withdrawn: frozenset[str]) -> None:
    """Take out of a cohort whom a withdrawal that was killed has left in it.

    For whoever holds the cohort's lock.
    """
    held: set[str] = set()
    if withdrawn and place.manifest.exists():
        held |= {item.subject for item in read_manifest(place.manifest).items}
    if withdrawn and place.index.exists():
        with closing(Index(place.index)) as index:
            held |= index.find_subjects(withdrawn)
    for subject in sorted(held & withdrawn):
        _leave_cohort(place, subject)


def _leave_cohort(place: CohortPlace, subject: str) -> Removed:
    kept: set[Digest] = set()
    if place.manifest.exists():
        manifest = read_manifest(place.manifest)
        if any(item.subject == subject for item in manifest.items):
            manifest = _without(manifest, subject)
            write_manifest(manifest, place.manifest)
            save_summary(summarize(manifest), manifest, place.folder)
        kept |= {item.digest for item in manifest.items}
    place.report.unlink(missing_ok=True)  # its montages show the patient
    if place.index.exists():
        with closing(Index(place.index)) as index:
            index.forget_subject(subject)
            kept |= index.find_digests()
    # What nobody is known to need may be the patient's: of an intake that was not finished.
    return sweep_orphans(place, keep=kept)


def _without(manifest: Manifest, subject: str) -> Manifest:
    return Manifest(
        version=manifest.version + 1,
        recipe=manifest.recipe,
        items=tuple(item for item in manifest.items if item.subject != subject),
        withdrawn=manifest.withdrawn + 1,
    )
