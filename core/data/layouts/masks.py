"""Masks that a site has already: each is given to the images of its patient and visit, or told."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from vitrael.core.data.layouts.ledger import Ledger
from vitrael.core.data.layouts.names import OTHER_MASK, Name
from vitrael.core.data.sources import Source

OF_ALL_VISITS = frozenset({"common", "all"})
"""What a table says in ``session`` of a mask that lies on all visits of its patient."""
_NATIVE = frozenset({"t1w", "t2w", "flair", "orig", "scanner", "individual"})
"""Spaces in which a mask lies on the images as they were acquired."""
UNUSED = "a mask or a label map that the recipe does not use"
NO_IMAGE = "a mask whose visit has no image that is taken in"
UNFIT = "a mask that fits no image of its visit: another space or run, or another mask is nearer"
SEVERAL = "several masks of one kind fit its visit equally well"


@dataclass(frozen=True, slots=True, repr=False)
class MaskFile:
    """One NIfTI file that is a mask."""

    path: Path
    name: Name
    kind: str
    subject: str
    session: str
    """Empty where neither a table nor its name tells it."""


def attach_masks(
    images: Sequence[tuple[Source, Name]],
    masks: Sequence[MaskFile],
    *,
    visits: Mapping[str, set[str]],
    kinds: Sequence[str],
    ledger: Ledger,
) -> list[Source]:
    """Return the sources with their masks; a mask that is given to none is left out.

    A mask is of the same subject and session; one that tells no session is given only where the
    subject has a single visit (``visits`` holds all sessions, those that are left out too). One
    that lies beside images of its visit is for those alone. Of several, the one in the nearest
    folder is taken, and of those the one of the image's run.
    """
    subjects = {source.subject for source, _ in images}
    folders: dict[tuple[str, str], set[tuple[str, ...]]] = defaultdict(set)
    for source, name in images:
        folders[source.subject, source.session].add(name.place)
    by_subject: dict[tuple[str, str], list[MaskFile]] = defaultdict(list)
    for mask in masks:
        by_subject[mask.subject, mask.kind].append(mask)
    used: set[Path] = set()
    torn: set[Path] = set()
    result = []
    for source, name in images:
        own: dict[str, Path] = {}
        beside = folders[source.subject, source.session]
        for kind in kinds:
            fitting = [
                mask
                for mask in by_subject[source.subject, kind]
                if _is_of_visit(mask, source, visits)
                and _fits(mask.name, name)
                and (mask.name.place == name.place or mask.name.place not in beside)
            ]
            near = min((_distance(mask.name, name) for mask in fitting), default=(0, False))
            nearest = [mask.path for mask in fitting if _distance(mask.name, name) == near]
            if len(nearest) == 1:
                own[kind] = nearest[0]
            else:
                torn.update(nearest)
        used.update(own.values())
        result.append(replace(source, masks=own))
    for mask in masks:
        if mask.path not in used:
            is_of_use = mask.kind in kinds and mask.kind != OTHER_MASK
            reason = UNUSED if not is_of_use else UNFIT if mask.subject in subjects else NO_IMAGE
            reason = SEVERAL if mask.path in torn else reason
            ledger.leave([mask.path], reason, expected=reason != SEVERAL)
    return result


def _is_of_visit(mask: MaskFile, source: Source, visits: Mapping[str, set[str]]) -> bool:
    if mask.session.lower() in OF_ALL_VISITS or mask.session == source.session:
        return True
    return not mask.session and len(visits[source.subject]) == 1


def _fits(mask: Name, image: Name) -> bool:
    space = "" if mask.space.lower() in _NATIVE else mask.space
    return space == image.space and mask.run in {"", image.run}


def _distance(mask: Name, image: Name) -> tuple[int, bool]:
    """Return how many folders lie between the two, and whether they are of different runs."""
    shared = 0
    for one, other in zip(mask.place, image.place, strict=False):
        if one != other:
            break
        shared += 1
    return len(mask.place) + len(image.place) - 2 * shared, mask.run != image.run
