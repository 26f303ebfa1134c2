"""A folder of images, all brought to one grid, with whose they are: read once for an audit.

Reading keeps to one image at a time; what cannot be used is refused with its reason, and stops no
other.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np

from vitrael.core.data.dicom.read import read_clip, read_picture, read_volume
from vitrael.core.data.layouts.kinds import PLURALS
from vitrael.core.data.nifti import read_nifti
from vitrael.core.data.pictures import read_picture_file
from vitrael.core.data.planar import Clip, Picture
from vitrael.core.data.scan import Scan
from vitrael.core.data.video import read_video
from vitrael.core.digest import Digest, digest_bytes
from vitrael.core.errors import CohortError, ScanError, UsageError
from vitrael.core.workbench.progress import Tell, silent
from vitrael.privacy.audit_folder.found import (
    KINDS,
    MASK,
    FoundFolder,
    FoundImage,
    Refused,
    clause,
    digests_of,
    find_images,
    run_each,
)
from vitrael.privacy.audit_folder.images import FolderImages, Images, ReadImage, put_together
from vitrael.privacy.audit_folder.patients import (
    Side,
    Told,
    demand_table,
    read_patients,
    tell_patients,
)
from vitrael.privacy.audit_folder.prepare import Grid, Kind, prepare_image

_REASONS: Final = 3
"""How many an error tells."""


def read_folder(
    root: Path,
    *,
    kind: Kind | None = None,
    patients: Path | None = None,
    grid: Grid | None = None,
    workers: int = 1,
    side: Side = "real",
    tell: Tell = silent,
) -> FolderImages:
    """Return the images of a folder, all of one kind and each prepared by itself.

    The kind is that of all images; a folder that mixes them needs ``kind``, and the others are
    refused. ``patients`` is a table, see ``patients``. Raises UsageError when the folder is missing
    or a file; CohortError when it is empty, mixed, or holds nothing that can be used; for a table
    that does not fit; and, for the real folder, when one image stands there under two patients.
    """
    if patients is not None:
        demand_table(patients)
    grid = grid or Grid()
    found = _find(root, kind=kind, workers=workers, side=side)
    kind = kind or _one_kind(found.images, side=side)
    table = None
    if patients is not None:
        table = read_patients(patients, root, places=found.places, side=side)
        if side == "synthetic" and not table.rows:
            table = None
    own = [image for image in found.images if image.kind == kind]
    told, teller = tell_patients(own, table=table, side=side)
    refused = [*found.refused, *_refuse(found.images, own, told, kind=kind)]
    taken = [pair for pair in zip(own, told, strict=True) if not pair[1].refused]
    images = Images(np.empty((len(taken), 1, *grid.shape(kind)), np.float32))
    jobs = [_Job(image, grid) for image, _ in taken]
    for done, result in enumerate(run_each(_read_one, jobs, workers=workers), start=1):
        if isinstance(result, Refused):
            refused.append(result)
        else:
            images.add(*taken[done - 1], result)
        tell(f"read the {side} folder", done, len(jobs))
    if not images.found:
        raise _nothing_usable(refused, side=side)
    notes = [] if table is None or not table.absent else [_tell_absent(table.absent)]
    return put_together(images, side=side, grid=grid, teller=teller, refused=refused, notes=notes)


@dataclass(frozen=True, slots=True, repr=False)
class _Job:
    image: FoundImage
    grid: Grid


def read_image(image: FoundImage) -> Scan | Clip | Picture:
    """Return one image as its files hold it, of any format; raises ScanError or OSError."""
    path, header = image.paths[0], image.header
    if image.plan is not None:
        if image.kind == "volume":
            return read_volume(image.paths, image.plan)
        return read_clip(path, header) if image.kind == "clip" else read_picture(path, header)
    if image.kind == "volume":
        return read_nifti(path, label="it")
    return read_video(path) if image.kind == "clip" else read_picture_file(path)


def content_of(image: Scan | Clip | Picture) -> Digest:
    """Return the digest of an image's values in their order; no header has a part in it."""
    if isinstance(image, Scan):
        values = image.image_CDHW
    else:
        values = image.frames_THW if isinstance(image, Clip) else image.image_HW
    plain = np.ascontiguousarray(values, dtype="<f4") + np.float32(0)  # -0 becomes 0
    return digest_bytes(repr(plain.shape).encode() + plain.tobytes())


def _read_one(job: _Job) -> ReadImage | Refused:
    """Return one image on the grid, or why it cannot be used; runs in a worker."""
    digests: Mapping[Digest, str] = {}
    try:
        digests = _sums(job.image)
        image = read_image(job.image)
        return ReadImage(prepare_image(image, job.grid), digests, content_of(image))
    except ScanError as error:
        reason = clause(error).removeprefix("it cannot be used: ")
    except OSError as error:
        reason = f"it cannot be opened: {error.strerror or 'the system does not say why'}"
    except MemoryError:
        reason = "it does not fit into the memory"
    except Exception as error:  # noqa: BLE001 - one bad file among thousands
        reason = f"it cannot be read: unexpected {type(error).__name__}"
    return Refused(job.image.place, reason, digests=digests)


def _refuse(
    images: Sequence[FoundImage], own: Sequence[FoundImage], told: Sequence[Told], *, kind: Kind
) -> Iterator[Refused]:
    """Yield the images of other kinds, and those of which it is told that they cannot be used."""
    yield from _other_kinds(images, kind)
    for image, one in zip(own, told, strict=True):
        if one.refused:
            is_mask = one.refused == MASK
            yield Refused(image.place, one.refused, expected=is_mask, digests=_sums(image))


def _other_kinds(images: Sequence[FoundImage], kind: Kind) -> Iterator[Refused]:
    for image in images:
        if image.kind != kind:
            reason = f"it is a {image.kind}, and the audit is of {PLURALS[kind]}"
            yield Refused(image.place, reason, digests=_sums(image))


def _sums(image: FoundImage) -> Mapping[Digest, str]:
    return digests_of(image.paths, image.places)


def demand_folder(root: Path, *, side: Side) -> None:
    """Raise UsageError unless there is a folder at this path."""
    if not root.is_dir():
        raise UsageError(
            f"the {side} folder cannot be read",
            why="it is a file" if root.exists() else "there is none at this path",
            fix="check the path; the real folder comes first",
        )


def _find(root: Path, *, kind: Kind | None, workers: int, side: Side) -> FoundFolder:
    demand_folder(root, side=side)
    found = find_images(root, kind=kind, workers=workers)
    if not found.places:
        raise CohortError(
            f"the {side} folder is empty",
            why="there is nothing to compare",
            fix="check the path",
        )
    if not found.images:
        raise _nothing_usable(found.refused, side=side)
    if kind and not any(image.kind == kind for image in found.images):
        raise CohortError(
            f"the {side} folder holds no {PLURALS[kind]}",
            why=f"it holds {_tell_kinds(found.images)}",
            fix="leave --kind out, or name a kind that both folders hold",
        )
    return found


def _one_kind(images: Sequence[FoundImage], *, side: Side) -> Kind:
    counts = Counter(image.kind for image in images)
    if len(counts) > 1:
        raise CohortError(
            f"the {side} folder mixes kinds of images",
            why=f"it holds {_tell_kinds(images)}",
            fix="choose one with --kind, or give a folder of one kind",
        )
    return next(iter(counts))


def _tell_kinds(images: Sequence[FoundImage]) -> str:
    counts = Counter(image.kind for image in images)
    parts = [_count(counts[kind], kind) for kind in KINDS if counts[kind]]
    return " and ".join(part for part in (", ".join(parts[:-1]), parts[-1]) if part)


def _count(number: int, kind: Kind) -> str:
    return f"{number} {kind if number == 1 else PLURALS[kind]}"


def _tell_absent(absent: int) -> str:
    return f"Rows of the table that name a file that is not there: {absent}."


def _nothing_usable(refused: Sequence[Refused], *, side: Side) -> CohortError:
    reasons = Counter(one.reason for one in refused).most_common(_REASONS)
    return CohortError(
        f"the {side} folder holds no usable image",
        why="; ".join(f"{reason} ({count} files)" for reason, count in reasons),
        fix="give NIfTI, PNG, JPEG, MP4, AVI or DICOM files",
    )
