"""What a hospital of phantom ultrasound writes is found and read as any hospital's, and is true."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from pydicom import dcmread

from tests.factories.folders import find, partial
from vitrael.core.data.dicom.instance import read_instance
from vitrael.core.data.dicom.read import read_clip
from vitrael.core.data.phantoms.echo_styles import STYLES
from vitrael.core.data.phantoms.hospital import Written, write_hospital
from vitrael.core.data.phantoms.hospital_clips import BAND_PX, FILE_LIST, show_on_screen
from vitrael.core.data.phantoms.orders import Hospital, Kind, order_hospital
from vitrael.core.data.planar import Clip
from vitrael.core.data.tables import read_table
from vitrael.core.data.video import read_video
from vitrael.privacy.pixels import region_mask

EDGE, FRAMES = 48, 6
ECHO_NET = [
    "FileName",
    "EF",
    "ESV",
    "EDV",
    "FrameHeight",
    "FrameWidth",
    "FPS",
    "NumberOfFrames",
    "Split",
]


def order(kind: Kind, **choices: object) -> Hospital:
    usual = {"patients": 3, "visits": 2, "seed": 2, "edge": EDGE, "frames": FRAMES}
    return order_hospital(kind, **{**usual, **choices})  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def videos(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Written]:
    folder = tmp_path_factory.mktemp("videos") / "out"
    return folder, write_hospital(folder, order("echo", site="legacy"))


@pytest.fixture(scope="module")
def sweeps(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Written]:
    folder = tmp_path_factory.mktemp("sweeps") / "out"
    return folder, write_hospital(folder, order("muscle"))


def test_file_list_begins_as_that_of_echonet(videos: tuple[Path, Written]) -> None:
    assert list(FILE_LIST[: len(ECHO_NET)]) == ECHO_NET
    table = read_table(videos[0] / "FileList.csv")
    row = next(table.rows()).cells
    assert (row["frameheight"], row["framewidth"], row["numberofframes"]) == ("48", "48", "6")
    assert float(row["fps"]) == STYLES["legacy"].frame_rate_hz
    assert 15 < float(row["ef"]) < 85  # percent


def test_echo_videos_are_found_with_their_facts(videos: tuple[Path, Written]) -> None:
    folder, written = videos
    found = find(folder, "echo-apical")
    sources = {source.images["image"][0]: source for source in found.sources}
    assert partial(found) == {}
    assert len(sources) == len(written.truth) == 6
    for row in written.truth:
        source = sources[folder / row.path]
        assert (source.subject, source.session) == (row.subject, row.session)
        assert source.labels["view"] == row.facts["view"]
        for name in ("ef_frac", "edv_ml", "esv_ml", "sex"):
            assert source.covariates[name] == pytest.approx(row.facts[name], abs=1e-4)
        assert source.covariates["age_years"] == pytest.approx(row.facts["age_years"], abs=0.006)


def test_echo_videos_have_frames_and_times_as_told(videos: tuple[Path, Written]) -> None:
    folder, written = videos
    for row in written.truth:
        clip = read_video(folder / row.path)
        assert clip.frames_THW.shape == (FRAMES, EDGE, EDGE)
        assert clip.frame_s == pytest.approx(row.facts["frame_s"])


def test_visits_of_one_heart_differ_a_little(videos: tuple[Path, Written]) -> None:
    rows = videos[1].truth
    ef = np.array([float(row.facts["ef_frac"]) for row in rows]).reshape(3, 2)
    within, between = np.abs(np.diff(ef, axis=1)), np.abs(np.diff(ef[:, 0]))
    assert 0 < within.max() < 0.1
    assert between.max() > within.max()


def test_a_patient_stays_in_one_split(videos: tuple[Path, Written]) -> None:
    rows = [row.cells for row in read_table(videos[0] / "FileList.csv").rows()]
    assert {row["split"] for row in rows} <= {"TRAIN", "VAL", "TEST"}
    assert len({(row["patientid"], row["split"]) for row in rows}) == 3


def test_sweeps_are_found_with_their_legs(sweeps: tuple[Path, Written]) -> None:
    folder, written = sweeps
    found = find(folder, "echo-apical")
    sources = {source.images["image"][0]: source for source in found.sources}
    assert partial(found) == {}
    assert len(sources) == len(written.truth) == 12
    for row in written.truth:
        source = sources[folder / row.path]
        assert (source.subject, source.session) == (row.subject, row.session)
        assert (source.labels, source.taken) == ({"label": row.facts["leg"]}, row.taken)
        assert (row.facts["atrophy_frac"] == 0) == (row.session == "1")
        assert read_video(folder / row.path).frames_THW.shape == (FRAMES, EDGE, EDGE)


def test_left_leg_is_the_mirror_image_of_the_right_one(sweeps: tuple[Path, Written]) -> None:
    folder, written = sweeps
    left, right = (
        read_video(folder / row.path).frames_THW.mean(axis=0) for row in written.truth[:2]
    )
    assert [row.facts["leg"] for row in written.truth[:2]] == ["left", "right"]
    assert np.corrcoef(left[:, ::-1].ravel(), right.ravel())[0, 1] > 0.8
    assert (
        np.corrcoef(left[:, ::-1].ravel(), right.ravel())[0, 1]
        > np.corrcoef(left.ravel(), right.ravel())[0, 1] + 0.05
    )


def test_sweeps_in_dicom_are_those_of_the_videos_with_the_leg_in_the_header(
    sweeps: tuple[Path, Written], tmp_path: Path
) -> None:
    written = write_hospital(tmp_path, order("muscle", file_format="dicom"))
    uids, studies = set(), set()
    for row, twin in zip(written.truth, sweeps[1].truth, strict=True):
        assert (row.subject, row.session, row.facts) == (twin.subject, twin.session, twin.facts)
        header = dcmread(tmp_path / row.path)
        assert header.Laterality == {"left": "L", "right": "R"}[str(row.facts["leg"])]
        assert header.file_meta.MediaStorageSOPInstanceUID == header.SOPInstanceUID
        uids |= {str(header.SOPInstanceUID), str(header.SeriesInstanceUID)}
        studies.add(str(header.StudyInstanceUID))
        instance, identity = read_instance(tmp_path / row.path, code=str)
        assert (identity.subject, instance.taken) == (row.subject, row.taken)
        assert instance.plane_mm == pytest.approx((row.facts["row_mm"], row.facts["column_mm"]))
        assert instance.frame_s == pytest.approx(row.facts["frame_s"])
        assert instance.burned_in
        visible_HW = region_mask(header)
        inside = read_clip(tmp_path / row.path).frames_THW[:, visible_HW].astype(float)
        video = read_video(sweeps[0] / twin.path).frames_THW.reshape(FRAMES, -1).astype(float)
        assert np.abs(inside - video).mean() < 8  # a video loses a little
    assert len(uids) == 2 * len(written.truth) == 24
    assert len(studies) == 6


@pytest.mark.parametrize("site", STYLES)
def test_name_is_burned_in_outside_the_region_alone(site: str, tmp_path: Path) -> None:
    hospital = order("echo", file_format="dicom", site=site, patients=1, visits=1)
    (row,) = write_hospital(tmp_path, hospital).truth
    clip = read_clip(tmp_path / row.path)
    visible_HW = region_mask(dcmread(tmp_path / row.path, stop_before_pixels=True))
    outside = clip.frames_THW[:, ~visible_HW]
    assert visible_HW.sum() == EDGE**2
    assert outside.max() > 200
    assert np.ptp(outside, axis=0).max() < 10
    inside = clip.frames_THW[:, visible_HW]
    assert np.ptp(inside, axis=0).max() > 30
    frame_HW = clip.frames_THW[0]
    assert (frame_HW[:BAND_PX] > 200).sum() > 30  # letters
    assert (frame_HW[BAND_PX:][~visible_HW[BAND_PX:]] > 20).sum() == 0


def test_echo_dicom_is_what_the_truth_says(tmp_path: Path) -> None:
    written = write_hospital(tmp_path, order("echo", file_format="dicom"))
    assert len({row.path for row in written.truth}) == 6
    for row in written.truth:
        instance, identity = read_instance(tmp_path / row.path, code=str)
        assert (identity.subject, instance.taken) == (row.subject, row.taken)
        assert instance.sex == ("M" if row.facts["sex"] else "F")
        assert instance.frame_s == pytest.approx(row.facts["frame_s"])
        assert instance.plane_mm == pytest.approx((row.facts["row_mm"], row.facts["column_mm"]))
        assert instance.burned_in


def test_screen_keeps_every_pixel() -> None:
    frames_THW = np.arange(3 * 60 * 40, dtype=np.uint32).astype(np.uint8).reshape(3, 60, 40)
    shown, (left, top, right, bottom) = show_on_screen(Clip(frames_THW, 0.04, (1.0, 1.0), "US"))
    inside = shown.frames_THW[:, top : bottom + 1, left : right + 1]
    assert np.array_equal(inside, frames_THW)
    assert int(shown.frames_THW.sum()) == int(frames_THW.sum())
    assert top == BAND_PX
