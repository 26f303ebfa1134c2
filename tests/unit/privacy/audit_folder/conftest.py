"""Small folders of phantom images, real and made up."""

from __future__ import annotations

from collections.abc import Callable
from datetime import date
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from vitrael.core.data.dicom.write import DicomIdentity, write_dicom_clip, write_dicom_series
from vitrael.core.data.nifti import write_nifti
from vitrael.core.data.phantoms.cohorts import draw_scan
from vitrael.core.data.planar import Clip
from vitrael.core.data.scan import Scan
from vitrael.core.data.video import write_video
from vitrael.core.rng import stream


def draw_volume(patient: int, visit: int = 0) -> Scan:
    return draw_scan(1, "a", patient, visit, grid_vox=(32, 32, 32), spacing_mm=6.0)[0]


def draw_clip(number: int, *, frames: int = 20) -> Clip:
    """A bright disk that beats."""
    row, column = np.indices((48, 64))
    size = 12 + 4 * np.sin(np.arange(frames) / 2 + number) + number
    distance = np.hypot(row - 24, column - 30)
    frames_THW = 200 * (distance < size[:, None, None]) + 10 * (distance < 22)
    return Clip(frames_THW.astype(np.uint8), 0.05, None, "US")


def write_png(path: Path, number: int, *, shape: tuple[int, int] = (40, 30)) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    image_HW = stream(7, "picture", str(number)).integers(0, 255, shape).astype(np.uint8)
    Image.fromarray(image_HW).save(path)
    return path


def write_volume(path: Path, patient: int, visit: int = 0) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    write_nifti(draw_volume(patient, visit), path)
    return path


def write_clip(path: Path, number: int, *, frames: int = 20) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    write_video(draw_clip(number, frames=frames), path)
    return path


def identity(patient: str) -> DicomIdentity:
    return DicomIdentity(patient, "Doe^Jo", date(1970, 1, 2), "F", date(2020, 3, 4))


def write_series(folder: Path, patient: int) -> tuple[Path, ...]:
    return write_dicom_series(
        draw_volume(patient), folder, identity=identity(f"P{patient}"), seed=patient
    )


def write_us(path: Path, number: int, *, frames: int = 20) -> None:
    write_dicom_clip(
        draw_clip(number, frames=frames), path, identity=identity(f"P{number}"), seed=number
    )


@pytest.fixture
def write_table(tmp_path: Path) -> Callable[..., Path]:
    def write(text: str, name: str = "patients.csv") -> Path:
        path = tmp_path / name
        path.write_text(text, encoding="utf-8")
        return path

    return write
