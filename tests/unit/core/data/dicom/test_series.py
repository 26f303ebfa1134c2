"""Files are sorted into images by what they are; every irregular stack is told with its reason."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from pydicom import uid
from pydicom.dataset import Dataset as DicomHeader

from tests.factories.dicom import (
    IndexedEdit,
    edit_file,
    facts_of,
    small_scan,
    write_enhanced,
    write_plane,
    write_series,
)
from vitrael.core.data.dicom.instance import Instance
from vitrael.core.data.dicom.pixels import digest_pixels
from vitrael.core.data.dicom.read import read_volume
from vitrael.core.data.dicom.series import TILT_FRAC, UNEVEN_FRAC, SeriesPlan, group_series


def shift(along: Callable[[int], tuple[float, float, float]]) -> IndexedEdit:
    """Return an edit that moves slices of an upright stack by millimetres."""

    def edit(index: int, header: DicomHeader) -> None:
        moved = np.array(header.ImagePositionPatient, dtype=float) + along(index)
        header.ImagePositionPatient = [f"{value:.6f}" for value in moved]

    return edit


def upright(folder: Path, edit: IndexedEdit | None = None, *, slices: int = 6) -> list[Path]:
    scan = small_scan(shape=(12, 10, slices), affine=np.diag([1.0, 1.0, 2.0, 1.0]))
    return write_series(folder, scan, edit=edit)


def plans_of(paths: list[Path]) -> list[SeriesPlan]:
    return group_series(facts_of(paths))


def by_content(paths: list[Path], instances: list[Instance]) -> list[SeriesPlan]:
    return group_series(
        instances, content=lambda index: digest_pixels(paths[index], instances[index].stored)
    )


def faults(folder: Path, along: Callable[[int], tuple[float, float, float]]) -> str:
    (plan,) = plans_of(upright(folder, shift(along)))
    assert ("volume" in plan.kinds) == (plan.fault == "")
    return plan.fault


def test_a_whole_series_is_one_volume_in_order(tmp_path: Path) -> None:
    paths = upright(tmp_path)
    (plan,) = plans_of([paths[index] for index in (2, 5, 0, 4, 1, 3)])
    assert plan.indices == (2, 4, 0, 5, 3, 1)
    assert (plan.kinds, plan.fault, plan.dropped) == (("volume", "picture"), "", 0)
    assert [facts.number for facts in plan.instances] == [1, 2, 3, 4, 5, 6]


@pytest.mark.parametrize("gap", [(2,), (1, 4), (1, 2, 3)])
def test_missing_slices_are_counted(tmp_path: Path, gap: tuple[int, ...]) -> None:
    paths = [path for index, path in enumerate(upright(tmp_path)) if index not in gap]
    (plan,) = plans_of(paths)
    assert plan.fault == f"slices are missing: {len(gap)} of 6"
    assert plan.kinds == ("picture",)


def test_missing_slices_are_told_when_they_are_most(tmp_path: Path) -> None:
    paths = upright(tmp_path, slices=12)
    (plan,) = plans_of([paths[index] for index in (0, 1, 4, 8)])
    assert plan.fault == "slices are missing: 5 of 9"


def test_uneven_steps_are_refused_beyond_the_tolerance(tmp_path: Path) -> None:
    step = 2.0
    for name, frac, fault in (
        ("within", 0.8 * UNEVEN_FRAC, ""),
        ("beyond", 1.2 * UNEVEN_FRAC, "its slices are unevenly spaced"),
        ("half", 0.5, "its slices are unevenly spaced"),
    ):
        one = tmp_path / name
        assert faults(one, lambda index, by=frac * step: (0, 0, by * (index == 5))) == fault


def test_a_tilted_stack_is_refused(tmp_path: Path) -> None:
    for name, frac, fault in (
        ("within", 0.8 * TILT_FRAC, ""),
        ("beyond", 1.2 * TILT_FRAC, "its slices are sheared (gantry tilt)"),
    ):
        one = tmp_path / name
        assert faults(one, lambda index, by=2.0 * frac: (0, by * index, 0)) == fault


def test_a_slight_drift_stays_in_the_affine(tmp_path: Path) -> None:
    drift = 0.5 * TILT_FRAC * 2.0
    paths = upright(tmp_path, shift(lambda index: (0, drift * index, 0)))
    scan = read_volume(paths)
    assert scan.affine[:3, 2] == pytest.approx([0, -drift, 2.0], abs=1e-6)


def test_slices_that_jump_sideways_are_refused(tmp_path: Path) -> None:
    fault = faults(tmp_path, lambda index: (0.4 * (index % 2), 0, 0))
    assert fault == "its slices are shifted against each other"


def test_one_slice_is_a_picture_and_no_volume(tmp_path: Path) -> None:
    (plan,) = plans_of(upright(tmp_path)[:1])
    assert (plan.kinds, plan.fault) == (("picture",), "one slice is no volume")


def test_exact_copies_are_dropped_and_told(tmp_path: Path) -> None:
    paths = upright(tmp_path)
    copy = tmp_path / "copy"
    copy.write_bytes(paths[3].read_bytes())
    renamed = edit_file(
        paths[1], lambda header: setattr(header, "SOPInstanceUID", "1.2.3"), to=tmp_path / "renamed"
    )
    every = [*paths, copy, renamed]
    (plan,) = by_content(every, facts_of(every))
    assert (plan.fault, plan.indices, plan.copies) == ("", tuple(range(6)), (7, 6))
    # By their identifiers alone, the renamed one might be another image.
    (plan,) = plans_of(every)
    assert plan.fault == "different slices are at one place"
    (plan,) = plans_of([*paths, copy])
    assert (plan.fault, plan.copies) == ("", (6,))


def test_different_slices_at_one_place_are_no_copies(tmp_path: Path) -> None:
    def other_pixels(header: DicomHeader) -> None:
        header.PixelData = header.PixelData[::-1]

    paths = upright(tmp_path)
    same_name = edit_file(paths[1], other_pixels, to=tmp_path / "other")
    every = [*paths, same_name]
    (plan,) = by_content(every, facts_of(every))
    assert plan.fault == "different slices are at one place"
    assert plan.dropped == 0


def test_a_file_that_cannot_be_read_is_no_copy(tmp_path: Path) -> None:
    paths = upright(tmp_path)
    copy = tmp_path / "copy"
    copy.write_bytes(paths[3].read_bytes())
    every = [*paths, copy]
    instances = facts_of(every)
    copy.unlink()
    (plan,) = by_content(every, instances)
    assert plan.fault == "different slices are at one place"


@pytest.mark.parametrize(
    "keyword", ["TemporalPositionIdentifier", "AcquisitionNumber", "TriggerTime"]
)
def test_volumes_over_time_are_refused(tmp_path: Path, keyword: str) -> None:
    def later(index: int, header: DicomHeader) -> None:
        header.SOPInstanceUID = f"1.2.3.{index}"
        setattr(header, keyword, "2")

    first = upright(tmp_path / "first")
    (plan,) = plans_of([*first, *upright(tmp_path / "later", later)])
    assert plan.fault == "it holds several volumes over time"
    assert len(plan.indices) == 12
    # Control: the same difference without a shared place is none.
    (plan,) = plans_of([*first[:3], *sorted((tmp_path / "later").iterdir())[3:]])
    assert plan.fault == ""


@pytest.mark.parametrize(
    "change",
    [
        {"ImageOrientationPatient": [0, 1, 0, 0, 0, -1]},
        {"PixelSpacing": ["1.5", "1.5"]},
        {"EchoTime": "90"},
        {"EchoNumbers": "2"},
        {"FrameOfReferenceUID": "1.2.3"},
        {"ImageType": ["DERIVED", "SECONDARY", "M"]},
        {"ImageType": ["ORIGINAL", "PRIMARY", "M", "MADE_UP"]},
        {"Rows": 6, "Columns": 20},
    ],
    ids=str,
)
def test_what_differs_under_one_identifier_is_told_apart(
    tmp_path: Path, change: dict[str, object]
) -> None:
    def other(_: int, header: DicomHeader) -> None:
        for keyword, value in change.items():
            setattr(header, keyword, value)

    whole = upright(tmp_path / "a")
    mixed = [*whole, *upright(tmp_path / "b", other)]
    plans = plans_of(mixed)
    assert plans[0].indices == tuple(range(6))
    assert {index for plan in plans[1:] for index in plan.indices} == set(range(6, 12))
    assert plans[0].fault == ""
    # Control: without the change they are copies of each other.
    (plan,) = plans_of([*whole, *upright(tmp_path / "c")])
    assert plan.dropped == 6


def test_rounding_does_not_tear_a_series_apart(tmp_path: Path) -> None:
    def noise(index: int, header: DicomHeader) -> None:
        tiny = 1e-5 * (-1) ** index
        header.ImageOrientationPatient = [1, 0.0005 + tiny, 0, 0, 1, 0]
        header.PixelSpacing = [f"{1.0005 + tiny:.7f}", "1"]

    (plan,) = plans_of(upright(tmp_path, noise))
    assert (len(plan.indices), plan.fault) == (6, "")


def test_an_echo_time_told_anew_for_each_slice_does_not_halve_a_series(tmp_path: Path) -> None:
    def jitter(index: int, header: DicomHeader) -> None:
        header.EchoTime = "2.984" if index % 2 else "2.985"

    def two_echoes(index: int, header: DicomHeader) -> None:
        header.EchoTime = "2.98" if index % 2 else "5.44"

    (plan,) = plans_of(upright(tmp_path / "a", jitter))
    assert (len(plan.indices), plan.fault) == (6, "")
    # Control: another echo is another image.
    assert len(plans_of(upright(tmp_path / "b", two_echoes))) == 2


def test_patients_and_studies_are_told_apart_under_one_identifier(tmp_path: Path) -> None:
    instances = facts_of(upright(tmp_path))
    for change in ({"patient": "another"}, {"dicom_study": "another"}):
        mixed = [*instances, *(replace(facts, **change) for facts in instances)]
        assert [plan.indices for plan in group_series(mixed)] == [
            tuple(range(6)),
            tuple(range(6, 12)),
        ]


@pytest.mark.parametrize(
    ("change", "fault"),
    [
        ({"ImageType": ["ORIGINAL", "PRIMARY", "LOCALIZER"]}, "it is a localizer"),
        ({"ImageType": ["ORIGINAL", "PRIMARY", "M", "MOSAIC"]}, "its slices lie side by side"),
        ({"ImageOrientationPatient": None}, "its orientation or its pixel spacing is missing"),
        ({"ImageOrientationPatient": ["1", "0", "0"]}, "its orientation or its pixel spacing"),
        ({"ImageOrientationPatient": [1, 0, 0, 1, 0, 0]}, "its orientation is singular"),
        ({"ImageOrientationPatient": [0, 0, 0, 0, 1, 0]}, "its orientation is singular"),
        ({"PixelSpacing": None}, "its orientation or its pixel spacing is missing"),
        ({"PixelSpacing": ["0", "1"]}, "its orientation or its pixel spacing is missing"),
        ({"ImagePositionPatient": None}, "the position of a slice is missing"),
    ],
    ids=str,
)
def test_what_can_be_no_volume_is_told(
    tmp_path: Path, change: dict[str, object], fault: str
) -> None:
    def edit(_: int, header: DicomHeader) -> None:
        for keyword, value in change.items():
            if value is None:
                delattr(header, keyword)
            else:
                setattr(header, keyword, value)

    (plan,) = plans_of(upright(tmp_path, edit))
    assert plan.fault.startswith(fault)
    assert plan.kinds == ("picture",)


@pytest.mark.parametrize("text", ["nan", "1e300", "inf"])
def test_a_position_that_is_no_place_is_missing(tmp_path: Path, text: str) -> None:
    def edit(index: int, header: DicomHeader) -> None:
        if index == 2:
            header["ImagePositionPatient"].value = [text, "0", "0"]

    (plan,) = plans_of(upright(tmp_path, edit))
    assert plan.fault == "the position of a slice is missing"


def test_an_enhanced_file_is_a_volume_of_its_own(tmp_path: Path) -> None:
    slices = upright(tmp_path / "slices")
    path = write_enhanced(tmp_path / "enhanced", slices, order=[3, 0, 4, 1, 5, 2])
    (plan,) = plans_of([path])
    assert (plan.indices, plan.frames, plan.kinds) == ((0,), (1, 3, 5, 0, 2, 4), ("volume",))


def test_an_enhanced_file_is_told_apart_by_its_frames(tmp_path: Path) -> None:
    def second_echo(index: int, frame: DicomHeader) -> None:
        echo = DicomHeader()
        echo.EffectiveEchoTime = 90.0
        if index % 2:
            frame.MREchoSequence = [echo]

    def later(index: int, frame: DicomHeader) -> None:
        frame.FrameContentSequence[0].TemporalPositionIndex = 1 + index % 2

    slices = upright(tmp_path / "slices", slices=4)
    twice = [path for path in slices for _ in range(2)]
    path = tmp_path / "enhanced"
    plans = plans_of([write_enhanced(path, twice, edit_frame=second_echo)])
    assert [plan.frames for plan in plans] == [(0, 2, 4, 6), (1, 3, 5, 7)]
    assert [plan.kinds for plan in plans] == [("volume",)] * 2
    (plan,) = plans_of([write_enhanced(path, twice, edit_frame=later)])
    assert plan.fault == "it holds several volumes over time"
    (plan,) = plans_of([write_enhanced(path, twice)])
    assert plan.fault == "different slices are at one place"


def test_planes_serve_as_what_they_are(tmp_path: Path) -> None:
    still, many = np.eye(16, dtype=np.uint8), np.stack([np.eye(16, dtype=np.uint8)] * 3)
    multi, single = uid.UltrasoundMultiFrameImageStorage, uid.UltrasoundImageStorage
    paths = [
        write_plane(tmp_path / "a", still),
        write_plane(tmp_path / "b", still, sop_class=single),
        write_plane(tmp_path / "c", many, sop_class=multi, FrameTime="40"),
        write_plane(tmp_path / "d", many, sop_class=multi),
        write_plane(tmp_path / "e", many, sop_class=multi, FrameTimeVector=["0", "40", "80"]),
        write_plane(tmp_path / "f", many, sop_class=uid.DigitalXRayImageStorageForPresentation),
    ]
    plans = plans_of(paths)
    assert [(plan.kinds, plan.fault) for plan in plans] == [
        (("picture",), ""),
        (("picture",), ""),
        (("clip",), ""),
        ((), "it has no frame time"),
        ((), "its frames are at unequal times"),
        ((), "it has several frames"),
    ]
    copy = tmp_path / "copy"
    copy.write_bytes(paths[0].read_bytes())
    plans = plans_of([*paths, copy])
    assert (len(plans), plans[0].copies) == (6, (6,))


def test_nothing_of_a_patient_is_shown(tmp_path: Path) -> None:
    (plan,) = plans_of(upright(tmp_path))
    assert repr(plan) == "SeriesPlan(('volume', 'picture'), 6 files, '')"


def test_no_file_makes_no_series() -> None:
    assert group_series([]) == []
