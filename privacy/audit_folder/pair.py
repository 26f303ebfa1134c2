"""The two folders of an audit, read alike, and what is found in both at the first glance."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from vitrael.core.digest import Digest
from vitrael.core.errors import CohortError, UsageError
from vitrael.core.workbench.progress import Tell, silent
from vitrael.privacy.audit_folder.images import FolderImages
from vitrael.privacy.audit_folder.patients import Teller
from vitrael.privacy.audit_folder.prepare import Grid, Kind
from vitrael.privacy.audit_folder.reading import demand_folder, read_folder

_NAMES_PEOPLE: Final[frozenset[Teller]] = frozenset({"table", "dicom"})
"""What tells the same person in both folders; ``sub-01`` may be another one in each."""


@dataclass(frozen=True, slots=True, repr=False)
class Shared:
    """What two folders share before any image is compared with another. Private."""

    same_bytes: tuple[tuple[str, str], ...]
    """Paths in the real and in the synthetic folder of files with the same bytes, the refused
    ones included; one real path for each synthetic one."""
    same_content: tuple[tuple[str, str], ...]
    """The same of other files that hold the same values: written anew, or with another header."""
    patients: tuple[str, ...]
    """Whom a table, or DICOM, names in both folders."""

    def __repr__(self) -> str:
        """Show counts alone."""
        counts = (len(self.same_bytes), len(self.same_content), len(self.patients))
        return "Shared({} by bytes, {} by content, {} patients)".format(*counts)


def read_pair(
    real: Path,
    synthetic: Path,
    *,
    kind: Kind | None = None,
    patients: Path | None = None,
    grid: Grid | None = None,
    workers: int = 1,
    tell: Tell = silent,
) -> tuple[FolderImages, FolderImages]:
    """Return the images of both folders, on one grid.

    Raises UsageError, before anything is read, when a folder is missing or a file, is the other
    one or lies inside of it; CohortError when the folders hold different kinds of images; and what
    ``read_folder`` raises.
    """
    demand_folder(real, side="real")
    demand_folder(synthetic, side="synthetic")
    demand_apart(real, synthetic)
    first = read_folder(
        real, kind=kind, patients=patients, grid=grid, workers=workers, side="real", tell=tell
    )
    second = read_folder(
        synthetic,
        kind=kind,
        patients=patients,
        grid=grid,
        workers=workers,
        side="synthetic",
        tell=tell,
    )
    demand_one_kind(first, second)
    return first, second


def demand_apart(real: Path, synthetic: Path) -> None:
    """Raise UsageError when one folder is the other one or lies inside of it, by any name."""
    inner, outer = real.resolve(), synthetic.resolve()
    if inner == outer or (real.exists() and synthetic.exists() and real.samefile(synthetic)):
        raise UsageError(
            "the real and the synthetic folder are the same",
            why="everything in it would be a copy of itself",
            fix="give two folders",
        )
    for one, other, names in (
        (inner, outer, "real folder lies inside the synthetic"),
        (outer, inner, "synthetic folder lies inside the real"),
    ):
        if one.is_relative_to(other):
            raise UsageError(
                f"the {names} one",
                why="its images would count on both sides",
                fix="move it out",
            )


def demand_one_kind(real: FolderImages, synthetic: FolderImages) -> None:
    """Raise CohortError unless both folders hold images of one kind on one grid."""
    if real.kind != synthetic.kind:
        raise CohortError(
            "the two folders hold different kinds of images",
            why=f"the real one is of {real.kind}s, the synthetic one of {synthetic.kind}s",
            fix="give two folders of one kind; --kind chooses one where a folder mixes several",
        )
    if real.grid != synthetic.grid:
        raise CohortError(
            "the two folders were read to different grids", fix="read both to one grid"
        )


def find_shared(real: FolderImages, synthetic: FolderImages) -> Shared:
    """Return the files of the synthetic folder that are files of the real one, and the patients.

    Images that could not be used are compared by their bytes all the same. Paths are for the eyes
    of the one who asked.
    """
    by_bytes = dict(_pairs(_by_bytes(real), _by_bytes(synthetic)))
    by_content = dict(_pairs(_by_content(real), _by_content(synthetic)))
    named = {
        name
        for name in {*real.patients} & {*synthetic.patients} - {""}
        if {real.teller, synthetic.teller} <= _NAMES_PEOPLE
    }
    return Shared(
        same_bytes=tuple((own, copy) for copy, own in by_bytes.items()),
        same_content=tuple((own, copy) for copy, own in by_content.items() if copy not in by_bytes),
        patients=tuple(sorted(named)),
    )


def _by_bytes(images: FolderImages) -> Iterator[tuple[Digest, str]]:
    for digests in (*images.file_digests, *(one.digests for one in images.refused)):
        yield from digests.items()


def _by_content(images: FolderImages) -> Iterator[tuple[Digest, str]]:
    return zip(images.content_digest, images.paths, strict=True)


def _pairs(
    real: Iterable[tuple[Digest, str]], synthetic: Iterable[tuple[Digest, str]]
) -> Iterator[tuple[str, str]]:
    """Yield each synthetic path with the first real one of the same digest."""
    places: dict[Digest, str] = {}
    for digest, path in real:
        places.setdefault(digest, path)
    for digest, path in synthetic:
        if digest in places:
            yield path, places[digest]
