"""The images of one folder as an audit holds them, and how they are put together.

Nothing here leaves the machine. Objects that hold images or names show counts alone.
Axes: B images, C = 1, D H W as in ``prepare``.
"""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final

import numpy as np

from vitrael.core.digest import Digest
from vitrael.core.errors import CohortError
from vitrael.privacy.audit_folder.found import FoundImage, Refused
from vitrael.privacy.audit_folder.patients import Side, Teller, Told, sentence_of
from vitrael.privacy.audit_folder.prepare import Grid, Kind

_NAMED: Final = 4
"""How many files an error names."""


@dataclass(frozen=True, slots=True, repr=False, eq=False)
class FolderImages:
    """The images of one folder that an audit can use. Private."""

    side: Side
    kind: Kind
    grid: Grid
    image_BCDHW: np.ndarray
    """float32 in [0, 1]; D is 1 of pictures, the frames of clips."""
    patient_B: np.ndarray
    """int64 index into ``patients``."""
    visit_B: np.ndarray
    """int64, 0 for a patient's first visit; several images may be of one."""
    contrast_B: tuple[str, ...]
    """Such as ``T1w``; empty where nothing tells it."""
    told_B: tuple[Told, ...]
    """All that is known of each."""
    paths: tuple[str, ...]
    """Below the folder; of a DICOM series its first file."""
    file_digests: tuple[Mapping[Digest, str], ...]
    """Of the bytes of each image's files, with the file's path below the folder."""
    content_digest: tuple[Digest, ...]
    """Of the decoded values, whatever the format and its header."""
    patients: tuple[str, ...]
    """As the user calls them; empty for one whom nobody named."""
    teller: Teller
    """What told the patients."""
    refused: tuple[Refused, ...]
    """Images that could not be used."""
    left_out: Mapping[str, int]
    """How many other files there are, by their reason."""
    told: tuple[str, ...]
    """What the user should know of the folder, each in one sentence."""

    def __repr__(self) -> str:
        """Show counts alone."""
        return f"FolderImages({self.side}, {len(self)} of kind {self.kind})"

    def __len__(self) -> int:
        """Return the number of images."""
        return len(self.image_BCDHW)

    @property
    def reasons(self) -> Counter[str]:
        """How many images were refused, by their reason."""
        return Counter(one.reason for one in self.refused)


@dataclass(frozen=True, slots=True, repr=False, eq=False)
class ReadImage:
    """One image on the grid, with the digests of what it was made of. Private."""

    image_CDHW: np.ndarray
    file_digests: Mapping[Digest, str]
    content_digest: Digest

    def __repr__(self) -> str:
        """Show nothing."""
        return "ReadImage(private)"


@dataclass(slots=True, repr=False, eq=False)
class Images:
    """Images in one array, which is filled one after the other. Private."""

    image_BCDHW: np.ndarray
    found: list[FoundImage] = field(default_factory=list)
    told: list[Told] = field(default_factory=list)
    file_digests: list[Mapping[Digest, str]] = field(default_factory=list)
    content_digest: list[Digest] = field(default_factory=list)

    def __repr__(self) -> str:
        """Show the number alone."""
        return f"Images({len(self.found)})"

    def add(self, found: FoundImage, told: Told, image: ReadImage) -> None:
        """Put one image behind the others."""
        self.image_BCDHW[len(self.found)] = image.image_CDHW
        self.found.append(found)
        self.told.append(told)
        self.file_digests.append(image.file_digests)
        self.content_digest.append(image.content_digest)


def put_together(
    images: Images,
    *,
    side: Side,
    grid: Grid,
    teller: Teller,
    refused: Sequence[Refused],
    notes: Sequence[str],
) -> FolderImages:
    """Return the images with patients and visits in numbers.

    Images of nobody's that are the same are one patient's. Raises CohortError where one image of
    the real folder stands under two patients.
    """
    if side == "real":
        _demand_one_patient(images)
    names = [
        (one.patient, "" if one.patient else digest)
        for one, digest in zip(images.told, images.content_digest, strict=True)
    ]
    codes = {name: code for code, name in enumerate(dict.fromkeys(names))}
    told = [*notes]
    if side == "real" or teller != "file":
        told.insert(0, sentence_of(teller, patients=len(codes), images=len(names)))
    doubles = len(names) - len(set(images.content_digest))
    if doubles:
        told.append(f"Images that another of the folder repeats exactly: {doubles}.")
    return FolderImages(
        side=side,
        kind=images.found[0].kind,
        grid=grid,
        image_BCDHW=images.image_BCDHW[: len(names)],
        patient_B=np.array([codes[name] for name in names], np.int64),
        visit_B=_number_visits(names, [one.visit for one in images.told]),
        contrast_B=tuple(one.contrast for one in images.told),
        told_B=tuple(images.told),
        paths=tuple(image.place for image in images.found),
        file_digests=tuple(images.file_digests),
        content_digest=tuple(images.content_digest),
        patients=tuple(name for name, _ in codes),
        teller=teller,
        refused=tuple(one for one in refused if not one.expected),
        left_out=Counter(one.reason for one in refused if one.expected),
        told=tuple(told),
    )


def _demand_one_patient(images: Images) -> None:
    """Raise CohortError, which names the files, where one image has two patients."""
    places: dict[str, dict[str, str]] = defaultdict(dict)
    for found, told, digests, content in zip(
        images.found, images.told, images.file_digests, images.content_digest, strict=True
    ):
        if told.patient:
            for digest, place in {content: found.place, **digests}.items():
                places[digest].setdefault(told.patient, place)
    torn = {tuple(each.values()) for each in places.values() if len(each) > 1}
    if torn:
        shown = "; ".join(" and ".join(names[:_NAMED]) for names in sorted(torn)[:_NAMED])
        more = f"; and {len(torn) - _NAMED} more" if len(torn) > _NAMED else ""
        raise CohortError(
            "the real folder holds the same image under two patients",
            why=f"{shown}{more}",
            fix="say in the table of patients whose it is, or remove all but one",
        )


def _number_visits(names: Sequence[tuple[str, str]], visits: Sequence[str]) -> np.ndarray:
    """Return the number of each image's visit among its patient's, in the order of their names."""
    known: dict[tuple[str, str], set[str]] = defaultdict(set)
    for name, visit in zip(names, visits, strict=True):
        known[name].add(visit)
    order = {
        (name, visit): number
        for name, all_visits in known.items()
        for number, visit in enumerate(sorted(all_visits, key=_natural))
    }
    return np.array([order[pair] for pair in zip(names, visits, strict=True)], np.int64)


def _natural(text: str) -> list[tuple[int, str]]:
    """Return a key by which numbers within names sort as numbers."""
    return [
        (int(part), "") if part.isdecimal() else (-1, part) for part in re.split(r"(\d+)", text)
    ]
