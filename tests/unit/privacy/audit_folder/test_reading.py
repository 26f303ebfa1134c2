"""What becomes of each file of a folder: an image on the grid, or a reason."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from pydicom import dcmread
from pydicom.uid import DigitalXRayImageStorageForPresentation

from tests.unit.privacy.audit_folder.conftest import (
    draw_volume,
    write_clip,
    write_png,
    write_series,
    write_us,
    write_volume,
)
from vitrael.core.data.nifti import write_nifti
from vitrael.core.data.scan import Scan
from vitrael.core.errors import CohortError, UsageError
from vitrael.privacy.audit_folder.prepare import Grid
from vitrael.privacy.audit_folder.reading import read_folder


def test_every_format_of_a_kind_is_read_to_one_grid(tmp_path: Path) -> None:
    write_volume(tmp_path / "a/x.nii.gz", 1)
    write_volume(tmp_path / "a/y.nii", 2)
    write_series(tmp_path / "a/series", 3)
    write_clip(tmp_path / "b/x.avi", 1)
    write_clip(tmp_path / "b/y.mp4", 2)
    write_us(tmp_path / "b/IM0001", 3)
    write_png(tmp_path / "c/x.png", 1)
    write_png(tmp_path / "c/y.jpg", 2, shape=(90, 20))
    volumes, clips, pictures = (read_folder(tmp_path / name, side="synthetic") for name in "abc")
    assert (volumes.kind, volumes.image_BCDHW.shape) == ("volume", (3, 1, 32, 32, 32))
    assert (clips.kind, clips.image_BCDHW.shape) == ("clip", (3, 1, 16, 64, 64))
    assert (pictures.kind, pictures.image_BCDHW.shape) == ("picture", (2, 1, 1, 64, 64))
    for images in (volumes, clips, pictures):
        assert images.image_BCDHW.dtype == np.float32
        assert images.image_BCDHW.min() == 0
        assert 0.9 < images.image_BCDHW.max() <= 1
        assert images.patient_B.dtype == images.visit_B.dtype == np.int64


def test_a_dicom_series_shows_what_its_volume_shows_as_nifti(tmp_path: Path) -> None:
    write_volume(tmp_path / "a/x.nii.gz", 3)
    write_series(tmp_path / "b/series", 3)
    nifti, dicom = (read_folder(tmp_path / name) for name in "ab")
    assert np.abs(nifti.image_BCDHW - dicom.image_BCDHW).max() < 1e-3
    assert dicom.contrast_B == ("T1w",)


def test_a_radiograph_of_dicom_is_a_picture_and_one_of_several_frames_a_clip(
    tmp_path: Path,
) -> None:
    write_us(tmp_path / "a/IM1", 1, frames=1)
    write_us(tmp_path / "a/IM2", 2, frames=1)
    header = dcmread(tmp_path / "a/IM2")
    header.SOPClassUID = header.file_meta.MediaStorageSOPClassUID = (
        DigitalXRayImageStorageForPresentation
    )
    header.Modality = "DX"
    header.save_as(tmp_path / "a/IM2")
    pictures = read_folder(tmp_path / "a")
    assert (pictures.kind, pictures.contrast_B) == ("picture", ("US", "DX"))
    write_us(tmp_path / "a/IM3", 3)
    with pytest.raises(CohortError, match="2 pictures and 1 clip"):
        read_folder(tmp_path / "a")


def test_a_name_that_is_no_text_stops_nothing(tmp_path: Path) -> None:
    folder = tmp_path / "a"
    write_png(folder / "1.png", 1).rename(os.fsdecode(os.fsencode(folder) + b"/\xff.png"))
    assert read_folder(folder).paths == ("?.png",)


def test_several_processes_return_the_same(tmp_path: Path) -> None:
    for number in range(5):
        write_png(tmp_path / f"a/{number}.png", number)
    alone, shared = (read_folder(tmp_path / "a", workers=workers) for workers in (1, 2))
    assert np.array_equal(alone.image_BCDHW, shared.image_BCDHW)
    assert (alone.paths, alone.content_digest) == (shared.paths, shared.content_digest)


def test_pictures_of_unequal_size_go_together(tmp_path: Path) -> None:
    write_png(tmp_path / "a/1.png", 1, shape=(300, 20))
    write_png(tmp_path / "a/2.png", 2, shape=(64, 64))
    images = read_folder(tmp_path / "a", grid=Grid(edge_px=32))
    assert images.image_BCDHW.shape == (2, 1, 1, 32, 32)
    assert not images.refused


def test_a_mix_of_kinds_is_refused_with_their_counts_unless_one_is_chosen(tmp_path: Path) -> None:
    for number in range(3):
        write_png(tmp_path / f"a/{number}.png", number)
    write_volume(tmp_path / "a/x.nii.gz", 1)
    write_clip(tmp_path / "a/y.avi", 1)
    with pytest.raises(CohortError, match="3 pictures, 1 clip and 1 volume"):
        read_folder(tmp_path / "a")
    chosen = read_folder(tmp_path / "a", kind="clip")
    assert len(chosen) == 1
    assert chosen.reasons == {
        "it is a picture, and the audit is of clips": 3,
        "it is a volume, and the audit is of clips": 1,
    }
    (tmp_path / "a/y.avi").unlink()
    with pytest.raises(CohortError, match="no clips: it holds 3 pictures and 1 volume"):
        read_folder(tmp_path / "a", kind="clip")


def test_what_cannot_be_used_is_refused_with_one_clause_and_stops_nothing(tmp_path: Path) -> None:
    folder = tmp_path / "a"
    write_volume(folder / "good.nii.gz", 1)
    values = draw_volume(2).image_CDHW
    broken = values.copy()
    whole = (folder / "good.nii.gz").read_bytes()
    write_nifti(Scan(values[:, :, :, 10:15], np.eye(4), "T1w"), folder / "thin.nii.gz")
    (folder / "cut.nii.gz").write_bytes(whole[: len(whole) // 2])
    (folder / "empty.nii.gz").touch()
    (folder / "text.nii.gz").write_text("no image")
    for name, value in (("nan", np.nan), ("constant", 3.0)):
        broken[:] = value
        scan = Scan(values, np.eye(4), "T1w")
        scan.image_CDHW[:] = broken if name == "constant" else np.where(values > 0.5, value, values)
        write_nifti(scan, folder / f"{name}.nii")
        values = draw_volume(2).image_CDHW
    images = read_folder(folder)
    assert images.paths == ("good.nii.gz",)
    reasons = {one.place: one.reason for one in images.refused}
    assert reasons == {
        "thin.nii.gz": "the volume is too thin: an axis has 5 voxels, and 8 are needed",
        "cut.nii.gz": "the file is cut short or damaged",
        "empty.nii.gz": "the file is empty",
        "text.nii.gz": "the file is not a whole NIfTI file",
        "nan.nii": "the image holds values that are not finite",
        "constant.nii": "the image is constant, every voxel has one and the same value",
    }


def test_pictures_and_clips_that_are_constant_or_damaged_are_refused(tmp_path: Path) -> None:
    write_png(tmp_path / "a/good.png", 1)
    Image.fromarray(np.full((30, 30), 9, np.uint8)).save(tmp_path / "a/constant.png")
    (tmp_path / "a/cut.png").write_bytes((tmp_path / "a/good.png").read_bytes()[:300])
    values = np.random.default_rng(0).uniform(0, 1, (30, 30)).astype(np.float32)
    values[3, 3] = np.nan
    Image.fromarray(values).save(tmp_path / "a/nan.tif")
    write_clip(tmp_path / "b/good.avi", 1)
    (tmp_path / "b/cut.avi").write_bytes((tmp_path / "b/good.avi").read_bytes()[:900])
    pictures, clips = (read_folder(tmp_path / name) for name in "ab")
    reasons = {one.place: one.reason.split(":")[0] for one in pictures.refused}
    assert reasons == {
        "constant.png": "the picture is constant",
        "cut.png": "the file is not a whole picture",
        "nan.tif": "the picture holds values that are not finite",
    }
    assert [one.place for one in clips.refused] == ["cut.avi"]


def test_a_folder_without_images_is_refused_and_says_what_it_holds(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="there is none at this path"):
        read_folder(tmp_path / "absent")
    (tmp_path / "file").touch()
    with pytest.raises(UsageError, match="the synthetic folder cannot be read: it is a file"):
        read_folder(tmp_path / "file", side="synthetic")
    (tmp_path / "a").mkdir()
    with pytest.raises(CohortError, match="the real folder is empty"):
        read_folder(tmp_path / "a")
    (tmp_path / "a/readme.txt").write_text("nothing")
    (tmp_path / "a/x.gif").write_text("nothing")
    with pytest.raises(CohortError, match=r"no usable image: .*the format \*.gif is not read"):
        read_folder(tmp_path / "a")


def test_hidden_files_linked_folders_and_masks_are_left_out(tmp_path: Path) -> None:
    write_png(tmp_path / "elsewhere/1.png", 1)
    write_png(tmp_path / "a/2.png", 2)
    write_png(tmp_path / "a/.3.png", 3)
    (tmp_path / "a/linked").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "a/4.png").symlink_to(tmp_path / "elsewhere/1.png")
    (tmp_path / "a/notes.csv").write_text("a,b\n1,2\n")
    images = read_folder(tmp_path / "a")
    assert images.paths == ("2.png", "4.png")
    assert images.left_out == {"hidden": 1, "a table": 1}
    assert images.reasons == {"a link to a folder, which is not followed": 1}
    write_volume(tmp_path / "b/p1_T1w.nii.gz", 1)
    write_volume(tmp_path / "b/p1_lesionmask.nii.gz", 2)
    volumes = read_folder(tmp_path / "b")
    assert volumes.paths == ("p1_T1w.nii.gz",)
    assert volumes.left_out == {"a mask or a label map, which is no scan": 1}


def test_a_slice_alone_is_a_picture_only_where_pictures_are_asked_for(tmp_path: Path) -> None:
    paths = write_series(tmp_path / "a", 1)
    middle = paths[len(paths) // 2]
    for path in paths:
        if path != middle:
            path.unlink()
    with pytest.raises(CohortError, match="one slice is no volume"):
        read_folder(tmp_path / "a")
    assert read_folder(tmp_path / "a", kind="picture").paths == (middle.name,)


def test_contrasts_are_scans_of_their_own(tmp_path: Path) -> None:
    for contrast in ("T1w", "T2w", "FLAIR"):
        write_volume(tmp_path / f"a/sub-1/sub-1_{contrast}.nii.gz", 1)
        write_volume(tmp_path / f"a/sub-2/sub-2_{contrast}.nii.gz", 2)
    images = read_folder(tmp_path / "a")
    assert images.contrast_B == ("FLAIR", "T1w", "T2w") * 2
    assert images.patient_B.tolist() == [0, 0, 0, 1, 1, 1]
    assert not images.visit_B.any()


def test_nothing_private_is_shown(tmp_path: Path, write_table: Callable[..., Path]) -> None:
    write_png(tmp_path / "a/ann.png", 1)
    (tmp_path / "a/bert.png").touch()
    table = write_table("file,patient\nann.png,Ann\nbert.png,Bert\n")
    images = read_folder(tmp_path / "a", patients=table)
    shown = f"{images!r} {images.refused!r} {images.told_B!r} {images.told}".lower()
    assert "ann" not in shown
    assert "bert" not in shown
    assert (images.paths, images.patients) == (("ann.png",), ("Ann",))
