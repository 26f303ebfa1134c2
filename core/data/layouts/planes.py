"""Videos laid out as clips, and pictures: one source for each file.

Patients come from an ``index.csv``, else from another table that names files, else from BIDS
names. Where nothing names them, each file counts as a patient of its own, which is told: two
images of one patient would then count as two patients.
"""

from __future__ import annotations

import re
from collections import Counter
from pathlib import Path

from vitrael.core.data.layouts.facts import NOTHING, Facts, is_label, overlay
from vitrael.core.data.layouts.kinds import PLURALS, image_stem
from vitrael.core.data.layouts.ledger import Ledger
from vitrael.core.data.layouts.names import contrast_word, plain_name, read_entities
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
_LIKE_AN_ID = re.compile(
    r".*\d{3}|.*\d+[_-]\d+|(p|pt|pat|patient|subj|subject|case|id|s)[-_ ]?\d+", re.IGNORECASE
)


def find_planes(folder: Folder, recipe: Recipe, ledger: Ledger) -> tuple[list[Source], list[Path]]:
    """Return the sources of a folder of videos or pictures, and the tables that were used.

    Raises CohortError for a table that cannot be read.
    """
    listed = list_index(folder, ledger)
    if not listed.used:
        listed = list_tables(folder, ledger)
    people = People(folder, ledger)
    layout = _Layout(folder, recipe, people, ledger)
    sources = layout.from_tables(listed) if listed.used else layout.from_names()
    return sources, [*listed.used, *people.used]


class _Layout:
    """One folder on its way to sources."""

    def __init__(self, folder: Folder, recipe: Recipe, people: People, ledger: Ledger) -> None:
        self._folder = folder
        self._people = people
        self._ledger = ledger
        self._key = recipe.images[0]
        self._kind: Kind = "video" if recipe.takes == "clip" else "picture"
        self._alone = f"{PLURALS[recipe.takes]} without a patient, each taken as one of its own"

    def from_tables(self, listed: Listed) -> list[Source]:
        """Return a source for each file that a table lists and does not refuse."""
        sources = []
        for path in self._folder.images:
            facts = listed.facts.get(path)
            if facts is not None and contrast_word(facts.modality)[1]:
                self._ledger.leave([path], MASK, expected=True)
                continue
            if facts is None or facts.refused:
                self._ledger.leave([path], facts.refused if facts else NOT_LISTED)
                continue
            subject = facts.subject
            if not subject:
                subject = plain_name(image_stem(path.name))
                self._ledger.count(self._alone)
            sources.append(self._source(path, subject, facts))
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
        alone = [path for path in inside if not entities[path][0]]
        folders = Counter(inside[path].parent.name for path in alone)
        are_classes = len(folders) > 1
        is_clear = not are_classes or _look_like_classes(folders)
        sources = []
        for path, place in inside.items():
            subject, session = entities[path]
            if subject:
                sources.append(self._source(path, subject, Facts(session=session)))
            elif not is_clear:
                self._ledger.leave([path], UNCLEAR_FOLDER)
            else:
                self._ledger.count(self._alone)
                label = place.parent.name
                has_label = are_classes and is_label(label)
                facts = Facts(labels={"label": label}) if has_label else NOTHING
                own = plain_name(image_stem(place.as_posix()))
                sources.append(self._source(path, own, facts))
        if are_classes and is_clear:
            self._ledger.count("folders taken as classes of images", len(folders))
        return sources

    def _source(self, path: Path, subject: str, facts: Facts) -> Source:
        inside = self._folder.inside(path)
        session = facts.session or "1"
        facts = overlay([*self._people.tell(subject, session), facts])
        return Source(
            kind=self._kind,
            subject=subject,
            session=session,
            images={self._key: (path,)},
            part=plain_name(inside.as_posix()),
            taken=facts.taken,
            covariates=facts.covariates,
            labels=facts.labels,
            site=facts.site or (inside.parts[0] if len(inside.parts) > 1 else ""),
        )


def _is_mask(inside: Path) -> bool:
    return bool(_MASK_NAME.search(image_stem(inside.name))) or inside.parent.name.lower() in _MASKS


def _look_like_classes(folders: Counter[str]) -> bool:
    """Return whether folders are few, filled, and not numbered like patients."""
    if len(folders) > _MOST_CLASSES or folders.total() < _LEAST_IN_CLASS * len(folders):
        return False
    return not any(_LIKE_AN_ID.match(name) for name in folders)
