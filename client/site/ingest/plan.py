"""What a folder holds for a cohort, as pieces of work: sources with all that they depend on.

A source's code stands for the places of its files, and its stamp for their sizes and times, the
recipe and whatever else decides the result: an outcome with the same stamp need not be made again.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from vitrael.client.site.ingest.dicom_folder import Plans, find_dicom
from vitrael.client.site.ingest.dicom_read import Converter
from vitrael.client.site.ingest.findings import COVARIATE_WORDS
from vitrael.client.site.ingest.index import VERSION, Index
from vitrael.client.site.ingest.places import code_of
from vitrael.core.data.layouts.find import find_sources
from vitrael.core.data.manifest import COVARIATE_BOUNDS, pseudonym_of
from vitrael.core.data.recipes import RECIPES, RecipeSettings
from vitrael.core.data.sources import LeftOut, Source
from vitrael.core.data.walk import UNSEEN, FoundFile, walk_files
from vitrael.core.digest import digest_file, digest_json
from vitrael.core.protocols import Splits, ViewSplits
from vitrael.privacy.pixels import read_site_mask

Progress = Callable[[str, int, int], None]
"""Called with what is being done, how much of it is done, and how much there is."""


@dataclass(frozen=True, slots=True)
class Choices:
    """How a folder is to be taken in."""

    settings: RecipeSettings
    workers: int = 2
    """Processes; 0 does everything in this one."""
    pixel_mask: Path | None = None
    converter: Converter = "own"
    splits: Splits | ViewSplits | None = None
    """Of the study, where there is one: preflight then looks whether each has a patient."""


@dataclass(frozen=True, slots=True, repr=False)
class Work:
    """A source with everything that its preparation depends on."""

    source: Source
    code: str
    subject: str
    stamp: str
    plans: Plans


@dataclass(frozen=True, slots=True, repr=False)
class Plan:
    """All that a folder holds, and what is to be done with it."""

    work: tuple[Work, ...]
    left_out: tuple[LeftOut, ...]
    numbers: Mapping[Path, int]
    """Place of each file in the order of the walk, from 1."""
    notes: tuple[str, ...]
    headers: frozenset[str]
    """Codes of the files that may be DICOM."""
    unseen: int
    """How many files and folders the system did not let be read."""


def demand_mask(choices: Choices) -> None:
    """Raise ScanError for a mask that cannot be used, once and not for every image."""
    if choices.pixel_mask is not None:
        read_site_mask(choices.pixel_mask)


def find_work(
    root: Path,
    *,
    choices: Choices,
    key: bytes,
    index: Index | None,
    tell: Progress,
    withdrawn: frozenset[str] = frozenset(),
) -> Plan:
    """Return every source of a folder as work, and every other file with its reason."""
    recipe = RECIPES[choices.settings.name]
    files = list(walk_files(root))
    tell("files found", len(files), len(files))
    found = find_sources(root, files, recipe=recipe)
    known = {file.path: file for file in files}
    rest = {_code_file(path, root, key=key): known[path] for path in found.rest}
    dicom = find_dicom(
        rest,
        recipe,
        key=key,
        index=index,
        withdrawn=withdrawn,
        workers=choices.workers,
        tell=tell,
    )
    left_out = [*found.left_out, *dicom.left_out]
    both: list[tuple[Source, Plans]] = []
    for source, plans in [*((source, {}) for source in found.sources), *dicom.sources]:
        if reason := _impossible(source.covariates):
            left_out.append(LeftOut(source.files, reason))
        else:
            both.append((source, plans))
    return Plan(
        work=tuple(plan_work(both, known, root=root, choices=choices, key=key)),
        left_out=tuple(left_out),
        numbers={file.path: number for number, file in enumerate(files, start=1)},
        notes=found.notes,
        headers=frozenset(rest),
        unseen=sum(file.refusal in UNSEEN for file in files),
    )


def _impossible(covariates: Mapping[str, float]) -> str:
    """Return which value cannot be, for a table that says so has its columns mixed up."""
    for name, value in covariates.items():
        low, high = COVARIATE_BOUNDS[name]
        if not low <= value <= high:
            return f"its {COVARIATE_WORDS[name]} in the table is not between {low:g} and {high:g}"
    return ""


def _code_file(path: Path, root: Path, *, key: bytes) -> str:
    """Return the code of a file by its place in the folder, wherever that lies now."""
    return code_of("file", os.path.relpath(path, root), key=key)


def plan_work(
    sources: Iterable[tuple[Source, Plans]],
    files: Mapping[Path, FoundFile],
    *,
    root: Path,
    choices: Choices,
    key: bytes,
) -> list[Work]:
    """Return the work in the order of the sources' codes, which tell nothing of their names."""
    mask = "" if choices.pixel_mask is None else digest_file(choices.pixel_mask)
    common = [VERSION, choices.settings.digest, mask, choices.converter]
    planned = []
    for source, plans in sources:
        codes = {path: _code_file(path, root, key=key) for path in source.files}
        roles: list[tuple[str, list[str], tuple[int, ...]]] = [
            (name, [codes[p] for p in paths], plans[name].frames if name in plans else ())
            for name, paths in sorted(source.images.items())
        ]
        roles += [(f"mask {name}", [codes[p]], ()) for name, p in sorted(source.masks.items())]
        sizes = [(codes[p], files[p].size_bytes, files[p].mtime_ns) for p in source.files]
        is_hashed = source.kind == "dicom"
        planned.append(
            Work(
                source=source,
                code=code_of("source", digest_json(roles), key=key),
                subject=source.subject if is_hashed else pseudonym_of(source.subject, key=key),
                stamp=digest_json([*common, roles, sizes]).removeprefix("sha256:"),
                plans=plans,
            )
        )
    return sorted(planned, key=lambda work: work.code)
