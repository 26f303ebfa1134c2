"""Two folders beside each other: what they share at the first glance, and what cannot be."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.unit.privacy.audit_folder.conftest import write_png, write_series, write_us, write_volume
from vitrael.core.data.nifti import read_nifti, write_nifti
from vitrael.core.data.scan import Scan
from vitrael.core.errors import CohortError, UsageError
from vitrael.core.records import PatientImages
from vitrael.core.rng import stream
from vitrael.privacy.audit_folder.closeness import measure_closeness
from vitrael.privacy.audit_folder.pair import demand_one_kind, find_shared, read_pair
from vitrael.privacy.audit_folder.prepare import Grid
from vitrael.privacy.audit_folder.reading import read_folder
from vitrael.privacy.audit_folder.turns import AS_IT_IS, Turn, find_turn


def copy(source: Path, target: Path) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    shutil.copy(source, target)


def test_files_with_the_same_bytes_or_the_same_values_are_found(tmp_path: Path) -> None:
    for number in range(3):
        write_png(tmp_path / f"real/{number}.png", number)
        write_png(tmp_path / f"synthetic/new{number}.png", 10 + number)
    copy(tmp_path / "real/1.png", tmp_path / "synthetic/deep/x.png")
    Image.open(tmp_path / "real/2.png").save(tmp_path / "synthetic/y.bmp")
    shared = find_shared(*read_pair(tmp_path / "real", tmp_path / "synthetic"))
    assert shared.same_bytes == (("1.png", "deep/x.png"),)
    assert shared.same_content == (("2.png", "y.bmp"),)
    assert repr(shared) == "Shared(1 by bytes, 1 by content, 0 patients)"


def test_a_copy_with_another_header_has_the_same_content(tmp_path: Path) -> None:
    write_volume(tmp_path / "real/a.nii.gz", 1)
    scan = read_nifti(tmp_path / "real/a.nii.gz")
    (tmp_path / "synthetic").mkdir()
    plain = Scan(scan.image_CDHW, np.eye(4), "T1w")
    write_nifti(plain, tmp_path / "synthetic/b.nii")
    louder = Scan(scan.image_CDHW * 2, np.eye(4), "T1w")
    write_nifti(louder, tmp_path / "synthetic/c.nii")
    shared = find_shared(*read_pair(tmp_path / "real", tmp_path / "synthetic"))
    assert (shared.same_bytes, shared.same_content) == ((), (("a.nii.gz", "b.nii"),))


def test_one_slice_of_a_series_and_a_refused_file_are_found_too(tmp_path: Path) -> None:
    for folder in ("real", "synthetic"):
        write_volume(tmp_path / folder / "whole.nii.gz", 5 if folder == "real" else 6)
        (tmp_path / folder / "broken.nii").write_bytes(b"broken" * 90)
    slices = write_series(tmp_path / "real/series", 1)
    copy(slices[4], tmp_path / "synthetic/IM9")
    real = read_folder(tmp_path / "real", side="synthetic")
    synthetic = read_folder(tmp_path / "synthetic", side="synthetic")
    assert synthetic.reasons["one slice is no volume"] == 1
    assert set(find_shared(real, synthetic).same_bytes) == {
        ("broken.nii", "broken.nii"),
        ("series/IM00005", "IM9"),
    }


def test_patients_that_are_named_in_both_folders_are_told(
    tmp_path: Path, write_table: Callable[..., Path]
) -> None:
    for number in range(3):
        write_png(tmp_path / f"real/{number}.png", number)
        write_png(tmp_path / f"synthetic/{number}.png", 10 + number)
    rows = "real/0.png,X\nreal/1.png,Y\nreal/2.png,Z\nsynthetic/1.png,Y\n"
    table = write_table(f"file,patient\n{rows}")
    pair = read_pair(tmp_path / "real", tmp_path / "synthetic", patients=table)
    assert find_shared(*pair).patients == ("Y",)
    assert pair[0].told == ("Patients are told by the table (3 patients, 3 images).",)
    alone = read_pair(tmp_path / "real", tmp_path / "synthetic")
    assert find_shared(*alone).patients == ()


def test_the_patient_id_of_a_real_patient_in_a_synthetic_file_is_told(tmp_path: Path) -> None:
    write_us(tmp_path / "real/IM1", 1)
    write_us(tmp_path / "real/IM2", 2)
    write_us(tmp_path / "synthetic/IM2", 2)
    shared = find_shared(*read_pair(tmp_path / "real", tmp_path / "synthetic"))
    assert shared.patients == ("P2",)


def test_bids_numbers_of_two_folders_are_not_one_patients(tmp_path: Path) -> None:
    write_volume(tmp_path / "real/sub-01_T1w.nii.gz", 1)
    write_volume(tmp_path / "synthetic/sub-01_T1w.nii.gz", 2)
    shared = find_shared(*read_pair(tmp_path / "real", tmp_path / "synthetic"))
    assert shared.patients == ()


def test_one_folder_in_the_other_is_refused_by_any_name(tmp_path: Path) -> None:
    write_png(tmp_path / "a/1.png", 1)
    write_png(tmp_path / "a/b/1.png", 2)
    (tmp_path / "link").symlink_to(tmp_path / "a")
    for real, synthetic, says in (
        ("a", "a", "are the same"),
        ("a", "link", "are the same"),
        ("a", "a/b", "synthetic folder lies inside the real one"),
        ("link/b", "a", "real folder lies inside the synthetic one"),
    ):
        with pytest.raises(UsageError, match=says):
            read_pair(tmp_path / real, tmp_path / synthetic)


def test_a_synthetic_folder_that_is_missing_is_told_before_the_real_one_is_read(
    tmp_path: Path,
) -> None:
    write_png(tmp_path / "a/1.png", 1)
    write_volume(tmp_path / "a/1.nii.gz", 1)
    for real, synthetic, side in (("a", "typo", "synthetic"), ("typo", "a", "real")):
        says = f"the {side} folder cannot be read: there is none at this path. To do: check"
        with pytest.raises(UsageError, match=says):
            read_pair(tmp_path / real, tmp_path / synthetic)
    write_png(tmp_path / "b/1.png", 2)
    with pytest.raises(CohortError, match="mixes kinds"):  # what reading it would have said
        read_pair(tmp_path / "a", tmp_path / "b")


def test_folders_of_different_kinds_or_grids_are_refused(tmp_path: Path) -> None:
    write_png(tmp_path / "a/1.png", 1)
    write_volume(tmp_path / "b/1.nii.gz", 1)
    with pytest.raises(CohortError, match="real one is of pictures, the synthetic one of volumes"):
        read_pair(tmp_path / "a", tmp_path / "b")
    one, other = read_folder(tmp_path / "a"), read_folder(tmp_path / "a", grid=Grid(edge_px=32))
    demand_one_kind(one, one)
    with pytest.raises(CohortError, match="different grids"):
        demand_one_kind(one, other)


def test_a_synthetic_folder_that_lies_turned_is_told(tmp_path: Path) -> None:
    axes = {"same": (0, 1, 2), "turned": (2, 0, 1)}
    for patient in range(10):
        write_volume(tmp_path / f"real/{patient}.nii", patient)
        own = read_nifti(write_volume(tmp_path / "x.nii", 20 + patient))
        for name, order in axes.items():
            (tmp_path / name).mkdir(exist_ok=True)
            values = np.ascontiguousarray(own.image_CDHW[0].transpose(order)[::-1, :, :])
            values = values if name == "turned" else own.image_CDHW[0]
            write_nifti(Scan(values[None], np.eye(4), "T1w"), tmp_path / name / f"{patient}.nii")
    real, same, turned = (read_folder(tmp_path / name) for name in ("real", "same", "turned"))
    assert find_turn(real, same) == AS_IT_IS
    found = find_turn(real, turned)
    assert found.axes == (1, 2, 0)
    assert found.mirrored[2]
    assert np.corrcoef(found.apply(turned.image_BCDHW).ravel(), same.image_BCDHW.ravel())[0, 1] > (
        0.9
    )


def test_a_turn_moves_axes_first_and_mirrors_them_then() -> None:
    image = np.arange(8, dtype=np.float32).reshape(1, 1, 2, 2, 2)
    turn = Turn((1, 2, 0), (False, False, True))
    assert np.array_equal(turn.apply(image)[0, 0], image[0, 0].transpose(1, 2, 0)[:, :, ::-1])
    assert np.array_equal(AS_IT_IS.apply(image), image)


@pytest.mark.parametrize("is_clip", [False, True])
def test_a_copy_lies_at_no_distance_and_a_stranger_at_some(*, is_clip: bool) -> None:
    image = stream(1, "real").random((9, 1, 1, 24, 24)).astype(np.float32)
    real = PatientImages(image, np.zeros((9, 1), np.float32), np.arange(9) // 2, np.arange(9) % 2)
    new = stream(2, "new").random((1, 1, 1, 24, 24)).astype(np.float32)
    found = measure_closeness(
        np.concatenate([image[4:5], new]), real, is_clip=is_clip, rng=stream(1, "closeness")
    )
    assert found is not None
    assert found.nearest_B[0] == 4
    assert found.distance_B[0] < 0.01
    assert found.distance_B[1] > 0.3
    assert len(found.stranger_P) == 5
    assert found.stranger_P.min() > 0.3


def test_one_patient_has_no_stranger() -> None:
    image = stream(1, "real").random((2, 1, 1, 24, 24)).astype(np.float32)
    real = PatientImages(image, np.zeros((2, 1), np.float32), np.zeros(2, np.int64), np.arange(2))
    assert measure_closeness(image, real, is_clip=False, rng=stream(1, "closeness")) is None


def test_dark_pictures_are_compared_without_a_template() -> None:
    image = 0.01 * stream(1, "dark").random((4, 1, 1, 24, 24)).astype(np.float32)
    real = PatientImages(image, np.zeros((4, 1), np.float32), np.arange(4), np.zeros(4, np.int64))
    found = measure_closeness(image[2:3], real, is_clip=False, rng=stream(1, "closeness"))
    assert found is not None
    assert found.nearest_B[0] == 2
