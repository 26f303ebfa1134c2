"""Small folders of scans, a home that takes them in within a tenth of a second, and what came."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import replace
from datetime import UTC, date, datetime
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from tests.factories.cohort import draw_brain
from vitrael.client.site.ingest.outcome import IngestReport
from vitrael.client.site.ingest.pipeline import Choices, ingest_folder
from vitrael.client.site.ingest.places import Home
from vitrael.core.data.cache import write_private
from vitrael.core.data.dicom.write import DicomIdentity, write_dicom_clip, write_dicom_series
from vitrael.core.data.manifest import Manifest, read_manifest
from vitrael.core.data.nifti import write_nifti
from vitrael.core.data.planar import Clip
from vitrael.core.data.recipes import RecipeSettings, settings_for
from vitrael.core.data.scan import Scan
from vitrael.core.data.video import write_video
from vitrael.core.geometry import centered_affine
from vitrael.core.rng import stream

KEY = bytes(range(32))
NOW = datetime(2031, 5, 1, 12, tzinfo=UTC)

BRAIN = settings_for("brain-t1", grid_vox=(16, 16, 16), spacing_mm=12.0)
PLANE = settings_for("image-2d", grid_vox=(16, 16))
ECHO = settings_for("echo-apical", grid_vox=(16, 16))

_BRAIN_VOX, _BRAIN_MM = (16, 16, 16), 12.0
_CLIP_FRAMES, _CLIP_PX = 20, 32


def make_home(folder: Path, *, key: bytes = KEY) -> Home:
    """Return a home whose secret is known, so that its pseudonyms and codes are always the same."""
    write_private(folder / "keys" / "split.key", key)
    return Home(folder)


def take_in(
    root: Path,
    home: Home,
    settings: RecipeSettings = BRAIN,
    *,
    name: str = "main",
    may_replace: bool = False,
    tell: Callable[[str, int, int], None] = lambda _what, _done, _total: None,
    **choices: Any,
) -> IngestReport:
    """Take a folder in, in this process unless ``workers`` says otherwise."""
    return ingest_folder(
        root,
        home,
        name,
        choices=Choices(settings, **{"workers": 0, **choices}),
        tell=tell,
        now=NOW,
        may_replace=may_replace,
    )


def manifest_of(home: Home, name: str = "main") -> Manifest:
    """Return the present version of a cohort."""
    return read_manifest(home.cohort(name).manifest)


def refused(report: IngestReport) -> dict[str, int]:
    """Return how many files should have become items and did not, by their reason."""
    counts: Counter[str] = Counter()
    for left in report.left_out:
        if not left.expected:
            counts[left.reason] += len(left.paths)
    return dict(counts)


def set_aside(report: IngestReport) -> dict[str, int]:
    """Return how many files are left out as is to be expected, by their reason."""
    counts: Counter[str] = Counter()
    for left in report.left_out:
        if left.expected:
            counts[left.reason] += len(left.paths)
    return dict(counts)


def reason_of(report: IngestReport, path: Path) -> str:
    """Return why one file was left out; empty where it was not."""
    found = [left.reason for left in report.left_out if path in left.paths]
    assert len(found) <= 1, "a file is left out once"
    return found[0] if found else ""


def files_below(folder: Path) -> dict[str, bytes]:
    """Return every plain file below a folder with its bytes."""
    paths = sorted(path for path in folder.rglob("*") if path.is_file() and not path.is_symlink())
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in paths}


def shard_files(home: Home, name: str = "main") -> set[str]:
    """Return the names of all shards on disk, needed or not."""
    shards = home.cohort(name).shards
    return {path.relative_to(shards).as_posix() for path in shards.rglob("*.safetensors")}


def leftovers(home: Home, name: str = "main") -> set[str]:
    """Return what was begun and not finished, and the shards that no item needs."""
    partial = {path.name for path in home.folder.rglob(".partial-*")}
    path = home.cohort(name).manifest
    needed = {item.shard for item in read_manifest(path).items} if path.exists() else set()
    return partial | (shard_files(home, name) - needed)


def small_brain(patient: int, *, visit: int = 0, shift: float = 0.0) -> Scan:
    """Return a brain without a skull; another patient, visit or shift is another image."""
    image = draw_brain(patient, visit, grid_vox=_BRAIN_VOX) * 1000
    image += np.float32(shift) * (image > 0)
    return Scan(np.rint(image), centered_affine(_BRAIN_VOX, spacing=_BRAIN_MM), "T1w")


def write_brain(path: Path, patient: int, *, visit: int = 0, shift: float = 0.0) -> Path:
    """Write a brain as NIfTI."""
    write_nifti(small_brain(patient, visit=visit, shift=shift), path, dtype="int16")
    return path


def write_brains(root: Path, patients: Iterable[int] = range(3)) -> list[Path]:
    """Write one visit of some patients under BIDS names."""
    return [write_brain(root / f"sub-{p:02d}_T1w.nii.gz", p) for p in patients]


def identity_of(patient: int) -> DicomIdentity:
    """Return a made-up patient."""
    return DicomIdentity(
        patient_id=f"VX-{patient:05d}",
        name=f"Amendoeira^Iris{patient}",
        birth_date=date(1957, 4, 1 + patient),
        sex="F",
        study_date=date(2021, 11, 30),
    )


def write_slices(
    folder: Path, patient: int, *, series: int = 1, modality: str = "T1w", **options: Any
) -> list[Path]:
    """Write a brain as DICOM slices."""
    scan = replace(small_brain(patient), modality=modality)
    identity = identity_of(patient)
    return list(
        write_dicom_series(scan, folder, identity=identity, seed=7, series=series, **options)
    )


def small_clip(patient: int) -> Clip:
    """Return a clip of a sector that beats, 0.76 s long."""
    rng = stream(patient, "clip")
    rows, columns = np.mgrid[0:_CLIP_PX, 0:_CLIP_PX]
    sector = (rows > 2) & (np.abs(columns - _CLIP_PX / 2) < rows / 2)
    frames = rng.integers(40, 200, (_CLIP_FRAMES, _CLIP_PX, _CLIP_PX)) * sector
    return Clip(frames.astype(np.uint8), 0.04, None, "US")


def write_clip(path: Path, patient: int) -> Path:
    """Write a clip as a video that loses nothing."""
    path.parent.mkdir(parents=True, exist_ok=True)
    write_video(small_clip(patient), path)
    return path


def write_dicom_echo(path: Path, patient: int, **options: Any) -> Path:
    """Write a clip as DICOM ultrasound; without ``region`` it tells none."""
    path.parent.mkdir(parents=True, exist_ok=True)
    write_dicom_clip(small_clip(patient), path, identity=identity_of(patient), seed=7, **options)
    return path


def write_picture(path: Path, patient: int, *, size: tuple[int, int] = (24, 20)) -> Path:
    """Write a gray picture of noise."""
    path.parent.mkdir(parents=True, exist_ok=True)
    values = stream(patient, "picture").integers(0, 256, size, dtype=np.uint8)
    Image.fromarray(values).save(path)
    return path


def write_pictures(root: Path, patients: Iterable[int] = range(4)) -> list[Path]:
    """Write one picture for each of some patients under BIDS names."""
    return [write_picture(root / f"sub-{p:02d}_xray.png", p) for p in patients]
