"""Videos laid out as clips, and pictures: one source for each file.

Patients come from an ``index.csv``, else from another table that names files, else from BIDS
names. Where nothing names them, each file counts as a patient of its own, which is told: two
images of one patient would then count as two patients. Where something seems to name them and
cannot be understood, they are left out.
"""

from __future__ import annotations

import os
import re
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from vitrael.core.data.layouts.classes import is_class
from vitrael.core.data.layouts.facts import NOTHING, Facts, is_label, overlay
from vitrael.core.data.layouts.kinds import PLURALS, image_stem
from vitrael.core.data.layouts.ledger import Ledger
from vitrael.core.data.layouts.names import (
    UNCLEAR_NAME,
    Entities,
    contrast_word,
    plain_name,
    read_entities,
)
from vitrael.core.data.layouts.people import People
from vitrael.core.data.layouts.rows import NOT_LISTED, Folder, Listed, list_index, list_tables
from vitrael.core.data.recipes import Recipe
from vitrael.core.data.sources import Kind, Source

UNCLEAR_FOLDER = "its folder may be a patient or a class: only a table can tell"
MASK = "a mask or a label map"

_MOST_CLASSES = 32
_LEAST_IN_CLASS = 2
_MASK_NAME = re.compile(r"[_-]mask\d*$", re.IGNORECASE)
_MASKS = {"mask", "masks"}


def find_planes(folder: Folder, recipe: Recipe, ledger: Ledger) -> tuple[list[Source], list[Path]]:
    """Return the sources of a folder of videos or pictures, and the tables that were used.

    Raises CohortError for a table of the whole folder that cannot be read.
    """
    listed = list_index(folder, ledger)
    if not listed.used:
        list_tables(folder, ledger, listed=listed)
    people = People(folder, ledger)
    layout = _Layout(folder, recipe, people, listed, ledger)
    sources = layout.from_tables() if listed.used else layout.from_names()
    return sources, [*listed.used, *people.used]


class _Layout:
    """One folder on its way to sources."""

    def __init__(
        self, folder: Folder, recipe: Recipe, people: People, listed: Listed, ledger: Ledger
    ) -> None:
        self._folder = folder
        self._people = people
        self._listed = listed
        self._ledger = ledger
        self._key = recipe.images[0]
        self._kind: Kind = "video" if recipe.takes == "clip" else "picture"
        self._alone = f"{PLURALS[recipe.takes]} without a patient, each taken as one of its own"

    def from_tables(self) -> list[Source]:
        """Return a source for each file that a table lists and does not refuse."""
        sources: list[Source] = []
        for path in self._folder.images:
            facts = self._listed.facts.get(path)
            if facts is not None and contrast_word(facts.modality)[1]:
                self._ledger.leave([path], MASK, expected=True)
            elif facts is None or facts.refused:
                self._ledger.leave([path], facts.refused if facts else self._unlisted(path))
            else:
                told = read_entities(self._folder.inside(path))
                sources += self._sources(path, facts, told, own=plain_name(image_stem(path.name)))
        return sources

    def from_names(self) -> list[Source]:
        """Return a source for each file, whose folder may tell its class."""
        inside = {}
        for path in self._folder.images:
            if _is_mask(place := self._folder.inside(path)):
                self._ledger.leave([path], MASK, expected=True)
            else:
                inside[path] = place
        entities = {path: read_entities(inside[path]) for path in inside}
        homes = [inside[path].parent for path in inside if not entities[path].subject]
        folders = Counter(home.name for home in homes)
        are_classes = len(set(homes)) > 1
        is_clear = not are_classes or _look_like_classes(folders, homes)
        sources: list[Source] = []
        for path, place in inside.items():
            label = place.parent.name
            is_alone = not entities[path].subject
            if is_alone and not is_clear:
                self._ledger.leave([path], self._listed.refusal(path) or UNCLEAR_FOLDER)
            else:
                has_label = is_alone and are_classes and is_class(label) and is_label(label)
                facts = Facts(labels={"label": label}) if has_label else NOTHING
                own = plain_name(image_stem(place.as_posix()))
                sources += self._sources(path, facts, entities[path], own=own)
        if are_classes and is_clear:
            self._ledger.count("folders taken as classes of images", len(folders))
        return sources

    def _unlisted(self, path: Path) -> str:
        return self._listed.refusal(path) or NOT_LISTED

    def _sources(self, path: Path, facts: Facts, told: Entities, *, own: str) -> list[Source]:
        """Return the source of a file, whose patient a table tells, else its name, else nobody.

        None, and the file is left out, when it is not to be believed whose it is.
        """
        is_alone = not facts.subject and not told.subject
        reason = self._listed.refusal(path)
        if not reason and not facts.subject and not told.is_clear:
            reason = UNCLEAR_NAME
        if not reason and is_alone:
            reason = self._listed.doubt(path)
        subject = facts.subject or told.subject or own
        session = facts.session or (told.session if told.is_clear else "") or "1"
        known = overlay([*self._people.tell(subject, session), facts])
        if reason := reason or known.refused:
            self._ledger.leave([path], reason)
            return []
        if is_alone:
            self._ledger.count(self._alone)
        inside = self._folder.inside(path)
        source = Source(
            kind=self._kind,
            subject=subject,
            session=session,
            images={self._key: (path,)},
            part=plain_name(inside.as_posix()),
            taken=known.taken,
            covariates=known.covariates,
            labels=known.labels,
            site=known.site or (inside.parts[0] if len(inside.parts) > 1 else ""),
        )
        return [source]


def _is_mask(inside: Path) -> bool:
    return bool(_MASK_NAME.search(image_stem(inside.name))) or inside.parent.name.lower() in _MASKS


def _look_like_classes(folders: Counter[str], homes: Sequence[Path]) -> bool:
    """Return whether folders are few, filled, and all in which they differ is named like classes.

    The folders of patients may hold folders of one name: ``p1/study1`` and ``p2/study1``.
    """
    if len(folders) > _MOST_CLASSES or folders.total() < _LEAST_IN_CLASS * len(folders):
        return False
    shared = len(Path(os.path.commonpath(homes)).parts)
    return all(is_class(name) for home in set(homes) for name in home.parts[shared:])
