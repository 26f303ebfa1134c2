"""De-identified copies of DICOM files, for the site's own use; nothing of them enters a cohort."""

from __future__ import annotations

import io
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from pydicom import dcmread

from vitrael.client.site.ingest.dicom_folder import EMPTY, NO_IMAGE, NO_PATIENT, UNREADABLE
from vitrael.client.site.ingest.pool import Lost, Pool
from vitrael.client.site.ingest.reasons import clause
from vitrael.core.data.cache import write_private
from vitrael.core.data.dicom.elements import Header, read_header
from vitrael.core.data.dicom.instance import is_dicom, subject_of
from vitrael.core.data.dicom.quiet import quiet
from vitrael.core.data.manifest import pseudonym_of
from vitrael.core.data.sources import LeftOut
from vitrael.core.data.walk import HIDDEN, SPECIAL, walk_files
from vitrael.core.digest import digest_bytes
from vitrael.core.errors import CohortError, ScanError, UsageError
from vitrael.privacy.deidentify import count_removed, deidentified_copy
from vitrael.privacy.dicom_values import check_key
from vitrael.privacy.pixels import read_site_mask

NOT_DICOM = "it is no DICOM file"
SAME_FILE = "it is an exact copy of a file that is copied"
SAME_IDENTIFIER = "another file has the same identifier and other contents"


@dataclass(frozen=True, slots=True, repr=False)
class CopyJob:
    """One file that is to be copied."""

    path: Path
    folder: Path
    key: bytes
    mask: Path | None


@dataclass(frozen=True, slots=True, repr=False)
class Copied:
    """What became of one file."""

    reason: str = ""
    """Why there is no copy; empty when there is one."""
    expected: bool = False
    name: str = ""
    """Of the copy, below the folder of the copies."""
    digest: str = ""
    removed: dict[str, int] = field(default_factory=dict)


@dataclass(slots=True, repr=False)
class CopyReport:
    """Counts of all copies, and what was left out."""

    files: int = 0
    copies: int = 0
    removed: Counter[str] = field(default_factory=Counter)
    """How often which element was left out."""
    left_out: list[LeftOut] = field(default_factory=list)


def copy_folder(
    root: Path,
    folder: Path,
    *,
    key: bytes,
    mask: Path | None,
    workers: int,
    tell: Callable[[str, int, int], None],
) -> CopyReport:
    """Write a de-identified copy of every DICOM file below ``root`` into a new folder.

    A copy lies in the folder of its pseudonym, named by its new identifier; of two files with one
    identifier one is copied, and the other told. Raises ConfigError for a key under 16 bytes,
    UsageError for a folder that is not empty, CohortError without a DICOM image, ScanError for a
    mask that cannot be used, StorageError for a full disk.
    """
    check_key(key)
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise UsageError(f"{folder} is not empty", fix="name a new folder for the copies")
    if mask is not None:
        read_site_mask(mask)
    report = CopyReport()
    copied_as: dict[str, str] = {}
    jobs = []
    for file in walk_files(root):
        report.files += 1
        if file.refusal:
            expected = file.refusal in {HIDDEN, SPECIAL}
            report.left_out.append(LeftOut((file.path,), file.refusal, expected=expected))
        else:
            jobs.append(CopyJob(file.path, folder, key, mask))
    pool: Pool[CopyJob, Copied] = Pool(copy_file, processes=min(workers, len(jobs)))
    for done, (job, result) in enumerate(pool.run(jobs), start=1):
        copied = Copied(reason=result.why) if isinstance(result, Lost) else result
        reason, expected = copied.reason, copied.expected
        if not reason and copied.name in copied_as:
            expected = copied_as[copied.name] == copied.digest
            reason = SAME_FILE if expected else SAME_IDENTIFIER
        if reason:
            report.left_out.append(LeftOut((job.path,), reason, expected=expected))
        else:
            copied_as[copied.name] = copied.digest
            report.copies += 1
            report.removed.update(copied.removed)
        tell("copying", done, len(jobs))
    if not report.copies and all(left.expected for left in report.left_out):
        raise CohortError("the folder holds no DICOM image", fix="check the path")
    return report


def copy_file(job: CopyJob) -> Copied:
    """Write the copy of one file, or say why there is none; runs in a worker."""
    try:
        with job.path.open("rb") as file:  # raises where is_dicom would only say no
            is_empty = not file.read(1)
        if is_empty or not is_dicom(job.path):
            return Copied(EMPTY) if is_empty else Copied(NOT_DICOM, expected=True)
        header = read_header(job.path)
        if header.pixels is None and not header.cut and not header.elements.size("Rows"):
            return Copied(NO_IMAGE, expected=True)
        data, name, removed = _copy(job, header)
    except ScanError as error:
        return Copied(clause(error))
    except (OSError, MemoryError):
        return Copied(UNREADABLE)
    except Exception as error:  # noqa: BLE001 - one bad file among thousands
        return Copied(f"it cannot be copied: unexpected {type(error).__name__}")
    if not (job.folder / name).exists():  # the first one stays; whoever comes later is told
        write_private(job.folder / name, data)
    return Copied(name=name, digest=digest_bytes(data), removed=removed)


def _copy(job: CopyJob, header: Header) -> tuple[bytes, str, dict[str, int]]:
    if header.cut:
        raise ScanError("its header is cut short", fix="copy the file again")
    subject = subject_of(header.elements)  # as an intake reads it: both give one pseudonym
    if not subject:
        raise ScanError(NO_PATIENT, fix="give the file a Patient ID")
    mask_HW: np.ndarray | None = None if job.mask is None else read_site_mask(job.mask)
    target = io.BytesIO()
    with quiet():
        source = dcmread(job.path, force=True)
        copy = deidentified_copy(source, key=job.key, subject=subject, mask_HW=mask_HW)
        copy.save_as(target, enforce_file_format=True)
        removed = dict(count_removed(source))
    name = f"{pseudonym_of(subject, key=job.key)}/{copy.SOPInstanceUID}.dcm"
    return target.getvalue(), name, removed
