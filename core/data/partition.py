"""Someone's folder of images, parted by subject into sites, for a rehearsal on real scans.

At a hospital the scans are there already. Here each site gets a folder as a hospital would have
it: files under neutral names and an ``index.csv``, which ``vitrael site ingest`` reads. Messages
number the scans in the order in which they were found and never show one.
"""

from __future__ import annotations

import csv
import hashlib
import hmac
import io
import os
import shutil
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from decimal import Decimal
from pathlib import Path

from vitrael.core.data.cache import make_private_folder
from vitrael.core.data.layouts.facts import LABEL_COLUMNS
from vitrael.core.data.layouts.kinds import image_ending
from vitrael.core.data.layouts.rows import INDEX
from vitrael.core.data.manifest import COVARIATE_BOUNDS
from vitrael.core.data.sources import Source
from vitrael.core.digest import write_atomically
from vitrael.core.errors import CohortError, storage_error

_DOMAIN = b"vitrael/partition/1\0"
_WHO = ("path", "subject", "session", "modality", "date")
_MODALITIES = frozenset({"T1w", "T2w", "FLAIR"})


def partition_by_subject(
    sources: Sequence[Source], sites: Sequence[str], *, key: bytes
) -> dict[str, list[Source]]:
    """Return the sources of each site: every subject at one site, numbers of subjects balanced.

    When the sources name their sites (the index, or one folder for each site) and these are names
    of the roster, that assignment stands. Otherwise subjects are dealt out in the order of a
    keyed hash.
    Raises CohortError when a subject is named in two sites, when only some sources name a site of
    the roster, and when a site would stay empty.
    """
    if {source.site for source in sources} & set(sites):
        return _named_partition(sources, sites)
    subjects = sorted({source.subject for source in sources}, key=lambda s: _code(key, s))
    if len(subjects) < len(sites):
        raise CohortError(
            f"{len(subjects)} subjects cannot be parted into {len(sites)} sites",
            fix="give scans of more subjects",
        )
    home = {subject: sites[place % len(sites)] for place, subject in enumerate(subjects)}
    return {site: [s for s in sources if home[s.subject] == site] for site in sites}


def write_site_folder(sources: Sequence[Source], folder: Path) -> None:
    """Write the files of sources and their ``index.csv``: a folder that is found as they were.

    A source of one file is ``0001.nii.gz``, one of several is a folder ``0001``. Files are hard
    links where the disk allows, else copies; none is opened. Folders and copies are the owner's
    alone. A DICOM series has no row: its headers tell. A folder that was begun is finished.
    Raises CohortError when the folder holds something else, StorageError when it cannot be written.
    """
    digits = max(4, len(str(len(sources))))
    copies = [
        (source, copy)
        for number, source in enumerate(sources, start=1)
        for copy in _name_copies(source, f"{number:0{digits}}")
    ]
    rows = [_row(source, copy) for source, copy in copies if source.kind != "dicom"]
    try:
        if not _list_files(folder) <= {INDEX, *(copy.name for _, copy in copies)}:
            raise CohortError("the folder of a site is not empty", fix="choose a new one")
        make_private_folder(folder)
        for _, copy in copies:
            _bring(copy.path, folder / copy.name)
        if rows:
            write_atomically(folder / INDEX, _encode(rows))
    except OSError as error:
        raise storage_error("the folder of a site", error) from None


@dataclass(frozen=True, slots=True, repr=False)
class _Copy:
    """One file of a source, its new name, and what it is."""

    path: Path
    name: str
    modality: str


def _name_copies(source: Source, number: str) -> Iterator[_Copy]:
    images = [(key, path) for key, paths in source.images.items() for path in paths]
    if source.kind == "dicom":
        for place, (_, path) in enumerate(images, start=1):
            yield _Copy(path, f"{number}/{place:05}.dcm", "")
        return
    files = [(path, key, key if key in _MODALITIES else "") for key, path in images]
    files += [(path, key, f"MASK-{key}") for key, path in source.masks.items()]
    for path, key, modality in files:
        ending = image_ending(path.name)
        name = f"{number}{ending}" if len(files) == 1 else f"{number}/{key}{ending}"
        yield _Copy(path, name, modality)


def _list_files(folder: Path) -> set[str]:
    """Return what an intake would find in a folder: hidden files are none of it."""
    files = (path for path in folder.rglob("*") if not path.is_dir())
    return {path.relative_to(folder).as_posix() for path in files if path.name[0] != "."}


def _bring(path: Path, target: Path) -> None:
    make_private_folder(target.parent)
    real = path.resolve()
    begun = target.with_name(f".partial-{target.name}")
    begun.unlink(missing_ok=True)
    try:
        os.link(real, begun)
    except OSError:  # another disk, or a disk without links
        begun.touch(mode=0o600)
        shutil.copyfile(real, begun)
    begun.replace(target)
    begun.unlink(missing_ok=True)  # of two links to one file, none is replaced


def _row(source: Source, copy: _Copy) -> dict[str, str]:
    row = {
        "path": copy.name,
        "subject": source.subject,
        "session": source.session,
        "modality": copy.modality,
        "date": source.taken.isoformat() if source.taken else "",
    }
    if copy.modality.startswith("MASK-"):
        return row
    sex = source.covariates.get("sex")
    # Exact, and without an exponent, which an age may not have.
    known = {n: format(Decimal(repr(value)), "f") for n, value in source.covariates.items()}
    return {
        **row,
        **known,
        **({} if sex is None else {"sex": "m" if sex else "f"}),
        **source.labels,
    }


def _encode(rows: Sequence[Mapping[str, str]]) -> bytes:
    known = [*_WHO, *COVARIATE_BOUNDS, *LABEL_COLUMNS.values()]
    present = {name for row in rows for name in row}
    text = io.StringIO(newline="")
    columns = [name for name in dict.fromkeys(known) if name in present]
    writer = csv.DictWriter(text, columns, restval="", lineterminator="\n", extrasaction="ignore")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue().encode()


def _named_partition(sources: Sequence[Source], sites: Sequence[str]) -> dict[str, list[Source]]:
    parted: dict[str, list[Source]] = {site: [] for site in sites}
    home: dict[str, str] = {}
    for number, source in enumerate(sources, start=1):
        if source.site not in parted:
            raise CohortError(
                f"scan {number} belongs to no site of the roster",
                why="other scans name theirs by index or folder",
                fix="put every scan into the folder of its site, or name no site at all",
            )
        first = home.setdefault(source.subject, source.site)
        if first != source.site:
            raise CohortError(
                "a subject is in two sites",
                why=f"scan {number} is at {source.site}, an earlier one at {first}",
                fix="keep all scans of a subject at one site",
            )
        parted[source.site].append(source)
    empty = [site for site, members in parted.items() if not members]
    if empty:
        raise CohortError(f"site {empty[0]} has no scan", fix="give every site of the roster scans")
    return parted


def _code(key: bytes, subject: str) -> bytes:
    return hmac.new(key, _DOMAIN + subject.encode(), hashlib.sha256).digest()
