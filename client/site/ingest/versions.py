"""Which versions a cohort has had, and who was in them: what to name when a patient withdraws.

A consent names the version that it is for. When a patient withdraws, the versions that held the
patient tell the coordinator what was made with them. Patients stand here under codes of their
pseudonyms, so that one whose files are gone has a name nowhere, and is found all the same. Of a
patient who has withdrawn no code stays either, only a mark on these versions.
"""

from __future__ import annotations

from collections.abc import Set as AbstractSet
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from pydantic import BaseModel, ConfigDict, ValidationError

from vitrael.core.data.cache import write_private
from vitrael.core.data.manifest import Manifest
from vitrael.core.digest import Digest, canonical_json, digest_bytes
from vitrael.core.errors import CohortError

VERSIONS_NAME: Final = "versions.json"
"""In the folder of a cohort."""

_DOMAIN: Final = b"vitrael/version of a cohort/1\0"
_PRIVATE = ConfigDict(frozen=True, extra="forbid", hide_input_in_errors=True)


@dataclass(frozen=True, slots=True)
class HeldVersion:
    """A version of a cohort that held somebody who has withdrawn, or is about to."""

    cohort: str
    version: int
    digest: Digest


class _Version(BaseModel):
    model_config = _PRIVATE

    version: int
    digest: Digest
    patients: tuple[str, ...]
    """Codes, sorted; without those of who has withdrawn."""
    withdrawn: bool = False
    """Whether somebody of this version has withdrawn."""


class _Versions(BaseModel):
    model_config = _PRIVATE

    versions: tuple[_Version, ...] = ()


def note_versions(folder: Path, *manifests: Manifest | None) -> None:
    """Write down versions of the cohort in a folder, each once; None is none.

    To be called before a manifest is replaced, so that no version is ever in use without.
    """
    known = _read(folder).versions
    noted = {(each.version, each.digest) for each in known}
    fresh = [
        _Version(
            version=manifest.version,
            digest=manifest.digest,
            patients=tuple(sorted(_codes({item.subject for item in manifest.items}))),
        )
        for manifest in manifests
        if manifest is not None and (manifest.version, manifest.digest) not in noted
    ]
    if fresh:
        _write(folder, _Versions(versions=(*known, *fresh)))


def join_versions(folder: Path, other: Path) -> None:
    """Let the list in a folder hold the versions that stand in ``other`` alone, which comes later.

    Raises CohortError when either cannot be read. Who has withdrawn is to be marked afterwards.
    """
    known = _read(folder).versions
    noted = {(each.version, each.digest) for each in known}
    fresh = [each for each in _read(other).versions if (each.version, each.digest) not in noted]
    if fresh:
        _write(folder, _Versions(versions=(*known, *fresh)))


def has_forgotten(folder: Path, *, present: Manifest | None) -> bool:
    """Return whether the cohort in a folder has had versions that stand on no list any more."""
    known = {each.version for each in _read(folder).versions}
    return present is not None and not known.issuperset(range(1, present.version))


def mark_withdrawn(folder: Path, subjects: AbstractSet[str]) -> None:
    """Mark the versions that held one of the patients, and forget the patients' codes."""
    known, gone = _read(folder), _codes(subjects)
    marked = _Versions(
        versions=tuple(
            each.model_copy(
                update={
                    "patients": tuple(code for code in each.patients if code not in gone),
                    "withdrawn": each.withdrawn or not gone.isdisjoint(each.patients),
                }
            )
            for each in known.versions
        )
    )
    if marked != known:
        _write(folder, marked)


def find_versions(
    folder: Path, subjects: AbstractSet[str], *, present: Manifest | None, marked: bool
) -> tuple[HeldVersion, ...]:
    """Return the versions that hold one of the patients, and on demand all that are marked.

    Which of the marked ones held a patient who has withdrawn before is not known any more.
    ``present`` is the version in use, which counts even where it was never written down. Raises
    CohortError for a list that cannot be read.
    """
    codes = _codes(subjects)
    known = [
        HeldVersion(folder.name, each.version, each.digest)
        for each in _read(folder).versions
        if (marked and each.withdrawn) or not codes.isdisjoint(each.patients)
    ]
    if present is not None and any(item.subject in subjects for item in present.items):
        in_use = HeldVersion(folder.name, present.version, present.digest)
        known += [] if in_use in known else [in_use]
    return tuple(known)


def _codes(subjects: AbstractSet[str]) -> frozenset[str]:
    """Return what stands for patients here: it leads to a pseudonym only who has that already."""
    return frozenset(digest_bytes(_DOMAIN + subject.encode())[-32:] for subject in subjects)


def _read(folder: Path) -> _Versions:
    path = folder / VERSIONS_NAME
    try:
        return _Versions.model_validate_json(path.read_bytes())
    except FileNotFoundError:
        return _Versions()
    except (OSError, ValidationError):
        raise CohortError(
            f"the list of the versions of cohort {folder.name} cannot be used",
            why=f"{VERSIONS_NAME} is damaged or changed by hand",
            fix="restore it from a backup, or remove it: then ask the coordinator for all that "
            "this site took part in, whatever the version",
        ) from None


def _write(folder: Path, versions: _Versions) -> None:
    write_private(folder / VERSIONS_NAME, canonical_json(versions.model_dump(mode="json")))
