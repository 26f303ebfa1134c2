"""Folders of real scans, where they are on the machine."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from vitrael.core.errors import CohortError
from vitrael.privacy.audit_folder.reading import read_folder


def test_x_rays_are_read_with_their_patients(data_home: Path) -> None:
    images = read_folder(data_home / "cxr", patients=data_home / "index.csv")
    assert (len(images), len(images.patients), images.kind) == (126, 36, "picture")
    assert not images.refused
    assert images.visit_B.max() == 21
    assert len(read_folder(data_home / "cxr").patients) == 126


def test_visits_and_contrasts_of_the_brain_are_told(data_home: Path) -> None:
    folder = data_home / "brain_ms/longitudinal"
    images = read_folder(folder, patients=data_home / "index.csv")
    assert set(images.contrast_B) == {"T1w", "T2w", "FLAIR"}
    assert set(images.visit_B.tolist()) == {0, 1}
    assert all("mask" not in path for path in images.paths)
    flat_BN = images.image_BCDHW.reshape(len(images), -1)
    assert (flat_BN.std(axis=1) > 0.1).all()


def test_slices_and_clips_of_dicom_are_told_apart(data_home: Path) -> None:
    with pytest.raises(CohortError, match="1 clip and 2 volumes"):
        read_folder(data_home / "dicom")
    volumes = read_folder(data_home / "dicom", kind="volume")
    assert len(volumes) == 2
    assert volumes.reasons["one slice is no volume"] == 2
    assert np.isfinite(volumes.image_BCDHW).all()


def test_images_of_which_nobody_is_told_count_one_by_one(data_home: Path) -> None:
    images = read_folder(data_home / "mednist/Hand")
    assert (images.teller, len(images)) == ("file", 100)
