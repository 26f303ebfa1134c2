"""What a folder holds for an audit: images by their kind, and everything else with its reason.

No pixel is read. A file is judged by the end of its name; one whose name tells nothing by its
header, as DICOM is. Hidden files and links are treated as wherever folders are walked.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass, field
from multiprocessing import get_context
from pathlib import Path
from typing import Final, TypeVar

from vitrael.core.data.dicom.instance import VOLUME_KINDS, Instance, is_dicom, read_instance
from vitrael.core.data.dicom.pixels import digest_pixels
from vitrael.core.data.dicom.series import ONE_SLICE, SeriesPlan, group_series
from vitrael.core.data.layouts.kinds import is_table, is_taken, judge_other
from vitrael.core.data.layouts.names import read_name
from vitrael.core.data.walk import HIDDEN, SPECIAL, FoundFile, walk_files
from vitrael.core.digest import Digest, digest_file
from vitrael.core.errors import ProcessError, ScanError, VitraelError
from vitrael.privacy.audit_folder.prepare import Kind

Job = TypeVar("Job")
Result = TypeVar("Result")

KINDS: Final[tuple[Kind, ...]] = ("picture", "clip", "volume")
MASK: Final = "a mask or a label map, which is no scan"
TABLE: Final = "a table"
_NOT_KNOWN: Final = "no image that is known here"
_NO_IMAGE: Final = "it is another kind of DICOM object"
_UNREADABLE: Final = "it cannot be opened"
_MOST_IN_ONE_PART: Final = 64


@dataclass(frozen=True, slots=True, repr=False)
class Refused:
    """A file that is no part of the audit, and why."""

    place: str
    """Below the folder, for the eyes of the one who asked."""
    reason: str
    """One clause without a name or a value of a patient."""
    expected: bool = False
    """Whether nobody would take it for an image of the audit: a table, a text, a mask."""
    digests: Mapping[Digest, str] = field(default_factory=dict)
    """Of the bytes of its files, where it is an image: one that is refused may be a copy all the
    same. With the place of each."""

    def __repr__(self) -> str:
        """Show the reason alone."""
        return f"Refused({self.reason!r})"


@dataclass(frozen=True, slots=True, repr=False)
class FoundImage:
    """One image: a file, or the files of a DICOM series in order."""

    kind: Kind
    paths: tuple[Path, ...]
    places: tuple[str, ...]
    """The same below the folder, and behind them those of exact copies of its slices."""
    plan: SeriesPlan | None = None
    """Of DICOM."""
    subject: str = ""
    """The Patient ID that DICOM tells."""

    def __repr__(self) -> str:
        """Show the kind alone."""
        return f"FoundImage({self.kind}, {len(self.paths)} files)"

    @property
    def place(self) -> str:
        """Its first file below the folder."""
        return self.places[0]

    @property
    def header(self) -> Instance | None:
        """What DICOM tells of its first file."""
        return self.plan.instances[0] if self.plan else None


@dataclass(slots=True, repr=False)
class FoundFolder:
    """All that a folder holds; every file stands in one place."""

    images: list[FoundImage] = field(default_factory=list)
    """In the order of their first files."""
    refused: list[Refused] = field(default_factory=list)
    places: set[str] = field(default_factory=set)
    """Every file, below the folder."""


def find_images(root: Path, *, kind: Kind | None = None, workers: int = 1) -> FoundFolder:
    """Return the images of a folder and what else it holds.

    Slices of CT, MR and PET that make no volume are refused, but for those that stand alone where
    pictures are asked for. Raises CohortError when the folder cannot be read.
    """
    found = FoundFolder()
    unclear: list[Path] = []
    order: dict[str, int] = {}
    for file in walk_files(root):
        place = _place_of(file.path, root)
        found.places.add(place)
        order[place] = len(order)
        if reason := _judge(file):
            found.refused.append(Refused(place, *reason))
        elif own := _kind_of(file.path.name):
            if own == "volume" and read_name(file.path.relative_to(root)).mask:
                found.refused.append(Refused(place, MASK, expected=True))
            else:
                found.images.append(FoundImage(own, (file.path,), (place,)))
        else:
            unclear.append(file.path)
    _add_dicom(found, root, unclear, kind=kind, workers=workers)
    found.images.sort(key=lambda image: order[image.place])
    return found


def run_each(
    act: Callable[[Job], Result], jobs: Sequence[Job], *, workers: int
) -> Iterator[Result]:
    """Yield what a function makes of each job, in their order; several processes share them.

    Raises ProcessError when one of them is killed.
    """
    if workers <= 1 or len(jobs) < 2:  # noqa: PLR2004 - nothing to share
        yield from map(act, jobs)
        return
    part = max(1, min(_MOST_IN_ONE_PART, len(jobs) // (4 * workers)))
    with ProcessPoolExecutor(min(workers, len(jobs)), mp_context=get_context("spawn")) as pool:
        try:
            yield from pool.map(act, jobs, chunksize=part)
        except BrokenProcessPool:
            raise ProcessError(
                "a process that prepares images ended",
                why="perhaps the memory did not suffice",
                fix="use fewer workers",
            ) from None


def digests_of(paths: Sequence[Path], places: Sequence[str]) -> dict[Digest, str]:
    """Return the digest of each file's bytes with its place; none where one cannot be read.

    Of equal files the first is told.
    """
    try:
        digests = [digest_file(path) for path in paths]
    except OSError:
        return {}
    return dict(zip(digests[::-1], places[: len(paths)][::-1], strict=True))


def clause(error: VitraelError) -> str:
    """Return what an error says, and why, without its advice."""
    return f"{error.what}: {error.why}" if error.why else error.what


def _place_of(path: Path, root: Path) -> str:
    """Return where a file lies below the folder; what is no text in its name becomes ``?``."""
    return path.relative_to(root).as_posix().encode(errors="replace").decode()


def _kind_of(name: str) -> Kind | None:
    return next((kind for kind in KINDS if is_taken(name, kind)), None)


def _judge(file: FoundFile) -> tuple[str, bool] | None:
    """Return why a file is no image, and whether that is to be expected."""
    name = file.path.name
    if file.refusal:
        return file.refusal, file.refusal in {HIDDEN, SPECIAL}
    if is_table(name):
        return TABLE, True
    if _kind_of(name):
        return None
    judged = [told for kind in KINDS if (told := judge_other(name, kind))]
    return next((told for told in judged if not told[1]), judged[0]) if judged else None


def _add_dicom(
    found: FoundFolder, root: Path, paths: Sequence[Path], *, kind: Kind | None, workers: int
) -> None:
    """Add the images that files without a telling name make, if they are DICOM."""
    instances: list[Instance] = []
    subjects: list[str] = []
    files: list[Path] = []
    for path, told in zip(paths, run_each(_read_header, paths, workers=workers), strict=True):
        if isinstance(told, str):
            place = _place_of(path, root)
            found.refused.append(Refused(place, told, expected=told in {_NOT_KNOWN, _NO_IMAGE}))
        else:
            instances.append(told[0])
            subjects.append(told[1])
            files.append(path)

    def content(index: int) -> str:
        return digest_pixels(files[index], instances[index].stored)

    for plan in group_series(instances, content=content):
        places = tuple(_place_of(files[index], root) for index in (*plan.indices, *plan.copies))
        own = _use_of(plan, kind=kind)
        if own is None:
            reason = plan.fault or ONE_SLICE
            members = (*plan.indices, *plan.copies)
            found.refused += [
                Refused(place, reason, digests=digests_of([files[index]], [place]))
                for index, place in zip(members, places, strict=True)
            ]
            continue
        taken = tuple(files[index] for index in plan.indices)
        image = FoundImage(own, taken, places, plan, subjects[plan.indices[0]])
        found.images.append(image)


def _use_of(plan: SeriesPlan, *, kind: Kind | None) -> Kind | None:
    """Return what the files of a plan are to an audit; None when they can be nothing."""
    is_slice = plan.instances[0].kind in VOLUME_KINDS
    if "picture" in plan.kinds and len(plan.indices) == 1 and (not is_slice or kind == "picture"):
        return "picture"
    return next((each for each in plan.kinds if each != "picture"), None)


def _read_header(path: Path) -> tuple[Instance, str] | str:
    """Return the facts of a DICOM file and its Patient ID, or why there are none."""
    try:
        if path.stat().st_size == 0:
            return "the file is empty"
        if not is_dicom(path):
            return _NOT_KNOWN
        instance, identity = read_instance(path, code=_code)
    except ScanError as error:
        return clause(error) if error.why != _NO_IMAGE else _NO_IMAGE
    except (OSError, MemoryError):
        return _UNREADABLE
    except Exception as error:  # noqa: BLE001 - one bad file among thousands
        return f"its header cannot be read: unexpected {type(error).__name__}"
    return instance, identity.subject


def _code(text: str) -> str:
    """Return a code of an identifier, which is compared with others and never kept."""
    return hashlib.sha256(text.encode()).hexdigest()
