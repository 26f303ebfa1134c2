"""NIfTI files laid out as volumes: one source for each image, or for each set of contrasts.

Subject and session come from an ``index.csv``, else from BIDS names, else the file's name is the
subject, where no other folder has a file of that name and it tells no visit.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from vitrael.core.data.layouts.facts import NOTHING, Facts, overlay
from vitrael.core.data.layouts.ledger import Ledger
from vitrael.core.data.layouts.masks import MaskFile, attach_masks
from vitrael.core.data.layouts.names import (
    ENHANCED,
    UNCLEAR_NAME,
    Name,
    contrast_word,
    plain_name,
    read_name,
)
from vitrael.core.data.layouts.people import People
from vitrael.core.data.layouts.rows import NOT_LISTED, Folder, Listed, list_index
from vitrael.core.data.recipes import Recipe
from vitrael.core.data.sources import Source
from vitrael.core.errors import CohortError

SECOND = "another file of a visit that is complete without it"
PROCESSED = "a processed copy of an image of its visit"
NO_CONTRAST = "its contrast is told neither by its name nor by a table"
NOT_PLAIN = "contrast-enhanced, and the recipe takes plain images"

_WORDS = {"T1w": "T1-weighted", "T2w": "T2-weighted", "FLAIR": "FLAIR"}
_WHOLE = ("T1w",)
"""The contrast that a recipe of one volume takes when it calls it ``image``."""


@dataclass(frozen=True, slots=True, repr=False)
class ImageFile:
    """One NIfTI file that is an image the recipe takes."""

    path: Path
    name: Name
    contrast: str
    subject: str
    session: str
    is_named: bool
    facts: Facts


ImageSet = Mapping[str, ImageFile]
"""By contrast; complete."""


def find_volumes(folder: Folder, recipe: Recipe, ledger: Ledger) -> tuple[list[Source], list[Path]]:
    """Return the sources of a folder of NIfTI files, and the tables that were used.

    Raises CohortError for an index of the whole folder that cannot be read, and when it is not
    clear whose a file is.
    """
    listed, people = list_index(folder, ledger), People(folder, ledger)
    contrasts = _WHOLE if recipe.images == ("image",) else recipe.images
    images, masks = _sort(folder, contrasts, listed, ledger=ledger)
    _demand_subjects(images)
    visits: dict[tuple[str, str], list[ImageFile]] = defaultdict(list)
    sessions: dict[str, set[str]] = defaultdict(set)
    for image in images:
        sessions[image.subject].add(image.session)
        visits[image.subject, image.session].append(image)
    sets = [
        made for visit in visits.values() for made in _make_sets(visit, contrasts, ledger=ledger)
    ]
    order = {path: place for place, path in enumerate(folder.images)}
    sets.sort(key=lambda made: order[made[contrasts[0]].path])
    sources, sets = _believe(sets, recipe, folder=folder, people=people, ledger=ledger)
    attached = attach_masks(
        [(source, made[contrasts[0]].name) for source, made in zip(sources, sets, strict=True)],
        masks,
        visits=sessions,
        kinds=recipe.masks,
        ledger=ledger,
    )
    return attached, [*listed.used, *people.used]


def _sort(
    folder: Folder, contrasts: Sequence[str], listed: Listed, *, ledger: Ledger
) -> tuple[list[ImageFile], list[MaskFile]]:
    """Part the files into images that the recipe takes, masks, and what is left out."""
    images: list[ImageFile] = []
    masks: list[MaskFile] = []
    for path in folder.images:
        name = read_name(folder.inside(path))
        facts = listed.facts.get(path, NOTHING)
        contrast, mask = contrast_word(facts.modality)
        if not contrast and not mask:
            contrast, mask = name.contrast, name.mask
        if not contrast and not mask and len(contrasts) == 1:
            contrast = contrasts[0]
        subject = facts.subject or name.subject
        session = facts.session or name.session
        refused = _distrust(path, name, listed)
        if mask:
            if refused:
                ledger.leave([path], refused)
            else:
                masks.append(MaskFile(path, name, mask, subject, session))
        elif reason := _refusal(contrast, contrasts):
            ledger.leave([path], reason, expected=bool(contrast))
        elif refused or (listed.used and path not in listed.facts):
            ledger.leave([path], refused or NOT_LISTED)
        else:
            is_named = name.is_named or bool(facts.subject)
            images.append(ImageFile(path, name, contrast, subject, session or "1", is_named, facts))
    return images, masks


def _distrust(path: Path, name: Name, listed: Listed) -> str:
    """Return why it is not believed whose an image is; empty when it is."""
    facts = listed.facts.get(path, NOTHING)
    unclear = "" if facts.subject or name.is_clear else UNCLEAR_NAME
    return listed.refusal(path) or facts.refused or unclear


def _refusal(contrast: str, contrasts: Sequence[str]) -> str:
    """Return why a file is no image that the recipe takes; empty when it is one."""
    if contrast in contrasts:
        return ""
    if not contrast:
        return NO_CONTRAST
    if contrast == ENHANCED:
        return NOT_PLAIN
    if len(contrasts) == 1:
        return f"not a {_WORDS.get(contrasts[0], contrasts[0])} image"
    return f"not one of {_join(contrasts)}"


def _demand_subjects(images: Sequence[ImageFile]) -> None:
    """Raise CohortError where a file's name alone would merge patients, or split one in two."""
    fix = "list every scan with its subject in index.csv, or give the files BIDS names: sub-01_T1w"
    first: dict[str, tuple[int, ImageFile]] = {}
    for number, image in enumerate(images, start=1):
        other_number, other = first.setdefault(image.subject, (number, image))
        if image.name.place != other.name.place and not (image.is_named and other.is_named):
            raise CohortError(
                f"it is not clear whose scan number {number} is",
                why=f"scan {other_number}, in another folder, has the same file name, "
                "and nothing else tells their subjects",
                fix=fix,
            )
        if not image.is_named and image.name.tells_visit:
            raise CohortError(
                f"it is not clear whose scan number {number} is",
                why="its file name tells a session and no subject",
                fix=fix,
            )


def _make_sets(
    visit: Sequence[ImageFile], contrasts: Sequence[str], *, ledger: Ledger
) -> list[ImageSet]:
    """Return the complete sets of one visit; what is in none of them is left out.

    A set is looked for among the files of one folder and run, then of one folder, of one run, and
    last of the whole visit. Images of two spaces never mix.
    """
    if len(contrasts) == 1:
        return _prefer_raw([{contrasts[0]: image} for image in visit], ledger)
    keys: tuple[Callable[[Name], tuple[object, ...]], ...] = (
        lambda name: (name.space, name.place, name.run),
        lambda name: (name.space, name.place),
        lambda name: (name.space, name.run),
        lambda name: (name.space,),
    )
    for key in keys:
        groups: dict[tuple[object, ...], dict[str, ImageFile]] = defaultdict(dict)
        for image in visit:
            groups[key(image.name)].setdefault(image.contrast, image)
        full = [group for group in groups.values() if len(group) == len(contrasts)]
        complete = [{contrast: group[contrast] for contrast in contrasts} for group in full]
        if complete:
            used = {image.path for group in complete for image in group.values()}
            for image in visit:
                if image.path not in used:
                    ledger.leave([image.path], SECOND, expected=True)
            return _prefer_raw(complete, ledger)
    present = {image.contrast for image in visit}
    missing = [contrast for contrast in contrasts if contrast not in present]
    reason = f"the visit lacks {_join(missing)}" if missing else "its images lie in several spaces"
    ledger.leave([image.path for image in visit], reason)
    return []


def _prefer_raw(sets: list[dict[str, ImageFile]], ledger: Ledger) -> list[ImageSet]:
    """Return the sets as they were acquired; without any, the processed ones of one space."""

    def state(made: Mapping[str, ImageFile]) -> tuple[bool, str]:
        names = [image.name for image in made.values()]
        return any(name.is_derived for name in names), names[0].space

    best = min(map(state, sets))
    for made in sets:
        if state(made) != best:
            ledger.leave([image.path for image in made.values()], PROCESSED, expected=True)
    return [made for made in sets if state(made) == best]


def _believe(
    sets: Sequence[ImageSet],
    recipe: Recipe,
    *,
    folder: Folder,
    people: People,
    ledger: Ledger,
) -> tuple[list[Source], list[ImageSet]]:
    """Return the sources with their sets; those of which the tables say what cannot be are left."""
    sources, kept = [], []
    for made in sets:
        images = list(made.values())
        known = people.tell(images[0].subject, images[0].session)
        facts = overlay([*known, *(image.facts for image in reversed(images))])
        if facts.refused:
            ledger.leave([image.path for image in images], facts.refused)
        else:
            sources.append(_source(made, recipe, facts, folder=folder))
            kept.append(made)
    return sources, kept


def _source(made: ImageSet, recipe: Recipe, facts: Facts, *, folder: Folder) -> Source:
    images = list(made.values())
    first = images[0]
    inside = folder.inside(first.path)
    keys = recipe.images if len(made) == 1 else tuple(made)
    ordered = zip(keys, images, strict=True)
    return Source(
        kind="nifti",
        subject=first.subject,
        session=first.session,
        images={key: (image.path,) for key, image in ordered},
        part=plain_name(inside.as_posix()),
        taken=facts.taken,
        covariates=facts.covariates,
        labels=facts.labels,
        site=facts.site or (inside.parts[0] if len(inside.parts) > 1 else ""),
    )


def _join(words: Iterable[str]) -> str:
    *most, last = words
    return f"{', '.join(most)} and {last}" if most else last
