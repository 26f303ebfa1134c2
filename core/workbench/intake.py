"""A folder of scans as a model learns from them: found, prepared by the recipe, kept as shards.

What is kept lies in the workshop of a training, one line of JSON for each visit, so
that a command that was killed prepares nothing twice. Patients stand there by pseudonyms.
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final, TypeVar

import numpy as np
from pydantic import ValidationError

from vitrael.core.data.cache import make_private_folder, write_shard
from vitrael.core.data.layouts.find import find_sources
from vitrael.core.data.manifest import COVARIATE_BOUNDS, Item, pseudonym_of
from vitrael.core.data.nifti import read_mask, read_nifti
from vitrael.core.data.recipes import RECIPES, Prepared, RecipeInput, RecipeSettings, prepare
from vitrael.core.data.shard_set import ShardSet
from vitrael.core.data.sources import Found, Source
from vitrael.core.data.walk import walk_files
from vitrael.core.digest import digest_json
from vitrael.core.errors import CohortError, ScanError
from vitrael.core.workbench.covariates import Covariate, scale_values
from vitrael.core.workbench.inputs import CUT_FRAC, demand_whole
from vitrael.core.workbench.progress import Tell, silent

SHARDS: Final = "shards"
_LEDGER: Final = "prepared"
_KEY: Final = b"vitrael workbench"
"""Of pseudonyms: they hide a name from a glance and no more; all of it stays on one machine."""
_SEX_UNKNOWN: Final = 0.5
_KEEP_BYTES: Final = 1 << 29
_ROUND: Final = 4
"""Pieces of work that each process does before all meet."""
_DIGITS: Final = 12
"""Of a digest in base 16: as many as a whole number of any machine holds."""
T = TypeVar("T")


@dataclass(frozen=True, slots=True, repr=False)
class Intake:
    """The scans of a folder that a recipe could use."""

    items: tuple[Item, ...]
    """In the order of their files."""
    left_out: Mapping[str, int]
    """Reason -> how many files or visits."""
    shards: Path
    cut: int = 0
    """Of how many brains more than half a percent lies outside the grid, so that their volumes
    are too small."""

    def __repr__(self) -> str:
        """Show counts alone."""
        return f"Intake({len(self.items)} scans)"

    @property
    def patients(self) -> int:
        """How many people they are of."""
        return len({item.subject for item in self.items})


@dataclass(frozen=True, slots=True)
class Share:
    """The part of this process in work that several do, on one disk."""

    number: int = 0
    count: int = 1
    meet: Callable[[int], None] = lambda _: None
    """Returns once all have come this far with the same number; raises ProcessError otherwise."""

    def share_out(self, work: Mapping[str, T], do: Callable[[T], None]) -> Iterator[int]:
        """Do this process's part of work that all list alike, by name; yield how much is done.

        All compare their lists before the first piece is done, since doing one may change what
        another would list. Then they meet after every few pieces, so that none waits for long for
        another, however much there is to do and however unequal the machines are. Raises
        ProcessError when the lists differ.
        """
        self.meet(int(digest_json(list(work)).removeprefix("sha256:")[:_DIGITS], 16))
        pieces = list(work.values())
        together = self.count * _ROUND if self.count > 1 else 1
        for first in range(0, len(pieces), together):
            for piece in pieces[first : first + together][self.number :: self.count]:
                do(piece)
            self.meet(first)
            yield min(len(pieces), first + together)


WHOLE: Final = Share()
"""Of a process that works by itself."""


@dataclass(frozen=True, slots=True, repr=False)
class Rows:
    """Some items of an intake: their images by number, and what is told of each."""

    items: tuple[Item, ...]
    images: ShardSet
    condition_BK: np.ndarray
    """float32 in [0, 1], clipped to the ranges."""
    clipped: Mapping[str, int]
    """Covariate -> of how many scans it lies outside of its range."""

    def __len__(self) -> int:
        """Return the number of scans."""
        return len(self.items)


def take_in(
    folder: Path,
    settings: RecipeSettings,
    *,
    workshop: Path,
    share: Share = WHOLE,
    tell: Tell = silent,
) -> Intake:
    """Return the scans of a folder, prepared; what was prepared before is used again.

    Several processes prepare a part each and return all. Raises CohortError when nothing in the
    folder can be used.
    """
    found = look_into(folder, settings)
    make_private_folder(workshop)
    left_out = Counter(
        {left.reason: len(left.paths) for left in found.left_out if not left.expected}
    )
    if found.rest:
        left_out["not NIfTI"] += len(found.rest)
    codes = [_code(source, folder, settings) for source in found.sources]
    known = _read_ledgers(workshop)
    places = zip(found.sources, _visits(found.sources), codes, strict=True)
    work = {place[2]: place for place in places if place[2] not in known}
    with (workshop / f"{_LEDGER}-{share.number}.jsonl").open("a", encoding="utf-8") as ledger:
        ledger.write("\n")  # behind a line that was cut

        def do(piece: tuple[Source, tuple[str, int, int], str]) -> None:
            source, place, code = piece
            line = _prepare(source, settings, place, shards=workshop / SHARDS)
            ledger.write(json.dumps({"source": code, **line}) + "\n")
            ledger.flush()

        for done in share.share_out(work, do):
            tell("prepare scans", done, len(work))
    known = _read_ledgers(workshop)
    items: list[Item] = []
    cut = 0
    for line in (known[code] for code in codes):
        if "item" in line:
            items.append(Item.model_validate_json(json.dumps(line["item"])))
            cut += float(str(line["cut_frac"])) > CUT_FRAC
        else:
            left_out[str(line["reason"])] += 1
    if not items:
        reasons = "; ".join(f"{count} {reason}" for reason, count in sorted(left_out.items()))
        raise CohortError(
            "no scan of the folder can be used",
            why=reasons or "it holds none that the recipe takes",
            fix="give a folder with .nii or .nii.gz files of T1-weighted brains",
        )
    return Intake(tuple(items), dict(left_out), workshop / SHARDS, cut)


def look_into(folder: Path, settings: RecipeSettings) -> Found:
    """Return what a folder holds for a recipe, told from names and tables alone."""
    return find_sources(folder, walk_files(folder), recipe=RECIPES[settings.name])


def read_source(source: Source) -> RecipeInput:
    """Return the images and masks of NIfTI files; raise ScanError for what cannot be read."""
    images = {
        name: read_nifti(paths[0], label="it", modality=name)
        for name, paths in source.images.items()
    }
    masks = {name: read_mask(path) for name, path in source.masks.items()}
    return RecipeInput(
        images=images, masks={name: mask for name, mask in masks.items() if mask is not None}
    )


def part_by_patient(
    intake: Intake, validation_frac: float
) -> tuple[tuple[Item, ...], tuple[Item, ...]]:
    """Return the items that are learned from, and those that are not: no patient is in both.

    The patients with the smallest hashes are held out, at least one. Raises CohortError for fewer
    than two patients.
    """
    patients = sorted({item.subject for item in intake.items}, key=_rank)
    if len(patients) < 2:  # noqa: PLR2004 - one to learn from, one to judge by
        raise CohortError(
            "the folder has scans of one patient alone",
            why="a model is judged by patients that it has not learned from",
            fix="give a folder with more patients, or tell them apart by BIDS names",
        )
    count = min(len(patients) - 1, max(1, round(validation_frac * len(patients))))
    held = set(patients[:count])
    return (
        tuple(item for item in intake.items if item.subject not in held),
        tuple(item for item in intake.items if item.subject in held),
    )


def rows_of(items: Sequence[Item], shards: Path, covariates: Sequence[Covariate]) -> Rows:
    """Return items with their conditions.

    Of what is not known, age is taken as the middle of the range and sex as 0.5; volumes were
    measured.
    """
    value_BK = np.empty((len(items), len(covariates)))
    for row, item in enumerate(items):
        for column, covariate in enumerate(covariates):
            middle = (covariate.low + covariate.high) / 2
            usual = _SEX_UNKNOWN if covariate.name == "sex" else middle
            value_BK[row, column] = item.covariates.get(covariate.name, usual)
    scaled_BK = scale_values(value_BK, covariates)
    beyond_K = ((scaled_BK < 0) | (scaled_BK > 1)).sum(axis=0)
    named = zip(covariates, beyond_K.tolist(), strict=True)
    return Rows(
        items=tuple(items),
        images=ShardSet(shards, items, keep_bytes=_KEEP_BYTES),
        condition_BK=np.clip(scaled_BK, 0, 1),
        clipped={covariate.name: count for covariate, count in named if count},
    )


def _rank(pseudonym: str) -> bytes:
    return hashlib.sha256(pseudonym.encode()).digest()


def _visits(sources: Sequence[Source]) -> list[tuple[str, int, int]]:
    """Return pseudonym, visit and part of each source."""
    parts: Counter[tuple[str, str]] = Counter()
    sessions: dict[str, dict[str, int]] = {}
    places = []
    for source in sources:
        own = sessions.setdefault(source.subject, {})
        visit = own.setdefault(source.session, len(own))
        pseudonym = pseudonym_of(source.subject, key=_KEY)
        places.append((pseudonym, visit, parts[source.subject, source.session]))
        parts[source.subject, source.session] += 1
    return places


def _prepare(
    source: Source, settings: RecipeSettings, place: tuple[str, int, int], *, shards: Path
) -> dict[str, object]:
    """Return the line of a source: its item, or why it cannot be used."""
    try:
        prepared = prepare(read_source(source), settings)
        measured = _possible(prepared)
        _demand_inside(prepared)
    except ScanError as error:
        return {"reason": error.why or error.what}
    except OSError:
        return {"reason": "it cannot be opened"}
    shard = write_shard(shards, prepared.arrays, store="int16")
    subject, visit, part = place
    item = Item(
        subject=subject,
        visit=visit,
        part=part,
        shard=shard.name,
        digest=shard.digest,
        affine=tuple(tuple(row) for row in prepared.affine.tolist()),
        covariates={**source.covariates, **measured},
    )
    return {"item": item.model_dump(mode="json"), "cut_frac": prepared.cut_frac}


def _demand_inside(prepared: Prepared) -> None:
    """Raise ScanError, of one reason for all, for a brain of which the grid cuts off much."""
    try:
        demand_whole(prepared.cut_frac)
    except ScanError as error:
        raise ScanError(error.what) from None


def _possible(prepared: Prepared) -> Mapping[str, float]:
    """Return what was measured; raise ScanError where it says that this is no brain."""
    for name, value in prepared.measured.items():
        low, high = COVARIATE_BOUNDS[name]
        if not low <= value <= high:
            raise ScanError("it is no brain", why="its volume is impossible")
    return prepared.measured


def _code(source: Source, folder: Path, settings: RecipeSettings) -> str:
    """Return a name of all that decides what a source is prepared to."""
    files = []
    for path in source.files:
        facts = path.stat()
        name = path.relative_to(folder) if path.is_relative_to(folder) else path
        files.append([str(name), facts.st_size, facts.st_mtime_ns])
    known = [source.subject, source.session, dict(source.covariates)]
    return digest_json([settings.digest, files, known])


def _read_ledgers(workshop: Path) -> dict[str, dict[str, object]]:
    """Return the lines that are whole, by source; a last one that was cut is not there."""
    paths = sorted(workshop.glob(f"{_LEDGER}-*.jsonl"))
    lines = [line for path in paths for line in path.read_text(encoding="utf-8").splitlines()]
    known: dict[str, dict[str, object]] = {}
    for text in lines:
        try:
            line = json.loads(text)
            if "item" in line:
                Item.model_validate_json(json.dumps(line["item"]))
                float(line["cut_frac"])
            known[line.pop("source")] = line
        except (ValueError, KeyError, TypeError, ValidationError):
            continue
    return known
