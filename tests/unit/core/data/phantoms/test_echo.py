"""The truth of an echo is in its pictures: fraction, labels, landmarks, motion, style, marks."""

from __future__ import annotations

from dataclasses import replace
from functools import cache

import numpy as np
import pytest
from scipy import ndimage

from vitrael.core.data.phantoms.cues import Cue
from vitrael.core.data.phantoms.echo import (
    EchoExam,
    EchoTruth,
    draw_exam,
    label_echo,
    render_echo,
    steady_exam,
)
from vitrael.core.data.phantoms.echo_styles import STYLES, draw_view
from vitrael.core.data.phantoms.echo_views import LANDMARKS, VIEWS
from vitrael.core.data.phantoms.heart import END_SYSTOLE, Heart, draw_heart
from vitrael.core.data.phantoms.heart_field import (
    AORTA,
    BACKGROUND,
    CAVITY,
    LEFT_ATRIUM,
    MYOCARDIUM,
    OUTSIDE,
    RIGHT_ATRIUM,
    RIGHT_VENTRICLE,
)
from vitrael.core.data.planar import Clip
from vitrael.core.errors import DataError
from vitrael.core.metrics.cardiac import (
    biplane_ejection_fraction,
    ejection_fraction,
    long_axis,
    volume_curve_ml,
)
from vitrael.core.rng import stream

PATIENTS = 100
APICAL = ("A4C", "A2C", "A3C")


def heart_of(number: int) -> Heart:
    return draw_heart(stream(31, "heart", number))


def exam_of(number: int, style: str = "clinic") -> EchoExam:
    return draw_exam(stream(31, "exam", number), STYLES[style])


@cache
def extremes(number: int, view: str, edge_px: int) -> EchoTruth:
    """Return a patient at end-diastole and end-systole, nothing foreshortened."""
    heart = heart_of(number)
    beat_s = 60 / heart.heart_rate_bpm
    return label_echo(
        heart,
        steady_exam(exam_of(number)),
        view=view,
        frames=2,
        edge_px=edge_px,
        frame_s=END_SYSTOLE * beat_s,
    )


@cache
def clip_of(
    number: int, view: str, style: str = "clinic", speckle: int = 0
) -> tuple[Clip, EchoTruth]:
    """Return most of a beat as a site would record it."""
    rng = stream(31, "speckle", number, speckle)
    heart, exam = heart_of(number), exam_of(number, style)
    return render_echo(heart, exam, view=view, frames=14, edge_px=96, rng=rng, frame_s=0.04)


def masks(truth: EchoTruth) -> tuple[np.ndarray, np.ndarray]:
    return truth.labels_THW[0] == CAVITY, truth.labels_THW[1] == CAVITY


def measured(number: int, edge_px: int) -> float:
    truth = extremes(number, "A4C", edge_px)
    return ejection_fraction(*masks(truth), spacing_mm=truth.spacing_mm)


def test_fraction_measured_from_masks_is_the_one_asked_for() -> None:
    asked = np.array([heart_of(number).ef_frac for number in range(PATIENTS)])
    fine = np.array([measured(number, 224) for number in range(PATIENTS)])
    assert np.abs(fine - asked).max() <= 0.01
    assert np.abs(fine - asked).mean() <= 0.002
    coarse = np.array([measured(number, 112) for number in range(PATIENTS)])
    assert np.abs(coarse - asked).mean() <= 0.004
    assert (np.abs(coarse - asked) <= 0.01).mean() >= 0.95  # the rest is beyond single pixels
    assert np.ptp(asked) > 0.3
    # Controls: another patient's fraction, and another patient's systole.
    assert np.abs(fine - np.roll(asked, 1)).mean() > 0.05
    swapped = [
        ejection_fraction(
            masks(extremes(number, "A4C", 112))[0],
            masks(extremes(number + 1, "A4C", 112))[1],
            spacing_mm=extremes(number, "A4C", 112).spacing_mm,
        )
        for number in range(PATIENTS - 1)
    ]
    assert np.abs(np.array(swapped) - asked[:-1]).mean() > 0.05


def test_two_planes_measure_the_fraction_of_every_heart_at_the_size_of_the_field() -> None:
    asked, found = [], []
    for number in range(PATIENTS):
        four, two = (extremes(number, view, 112) for view in ("A4C", "A2C"))
        pairs = tuple(zip(masks(four), masks(two), strict=True))
        spacings_mm = (four.spacing_mm, two.spacing_mm)
        found.append(biplane_ejection_fraction(*pairs, spacings_mm=spacings_mm))
        asked.append(four.ef_frac)
    error = np.array(found) - asked
    assert np.abs(error).max() <= 0.01
    assert np.abs(error).mean() <= 0.004
    assert abs(error.mean()) <= 0.0015
    assert np.abs(np.array(found) - np.roll(asked, 1)).mean() > 0.05  # control: someone else's


def test_measured_volume_follows_the_whole_beat() -> None:
    truth = clip_of(1, "A4C")[1]
    curve = volume_curve_ml(truth.labels_THW == CAVITY, spacing_mm=truth.spacing_mm)
    assert np.corrcoef(curve, truth.volume_T_ml)[0, 1] > 0.99
    assert abs(int(curve.argmin()) - truth.es_frame) <= 1
    assert np.corrcoef(curve, truth.volume_T_ml[::-1])[0, 1] < 0.8  # control: time runs forward


@pytest.mark.parametrize(
    ("view", "seen", "unseen"),
    [
        ("A4C", {CAVITY, MYOCARDIUM, LEFT_ATRIUM, RIGHT_VENTRICLE, RIGHT_ATRIUM}, {AORTA}),
        ("A2C", {CAVITY, MYOCARDIUM, LEFT_ATRIUM}, {RIGHT_VENTRICLE, RIGHT_ATRIUM}),
        ("A3C", {CAVITY, MYOCARDIUM, LEFT_ATRIUM, AORTA}, {RIGHT_ATRIUM}),
        ("A5C", {CAVITY, MYOCARDIUM, AORTA, RIGHT_VENTRICLE}, set()),
        ("PLAX", {CAVITY, MYOCARDIUM, LEFT_ATRIUM, RIGHT_VENTRICLE, AORTA}, {RIGHT_ATRIUM}),
        ("PSAX", {CAVITY, MYOCARDIUM, RIGHT_VENTRICLE}, {LEFT_ATRIUM, AORTA}),
        ("PSAX-MV", {CAVITY, MYOCARDIUM, RIGHT_VENTRICLE}, {AORTA}),
        ("PSAX-AP", {CAVITY, MYOCARDIUM}, {LEFT_ATRIUM, RIGHT_ATRIUM, AORTA}),
        ("SC4C", {CAVITY, MYOCARDIUM, LEFT_ATRIUM, RIGHT_VENTRICLE, RIGHT_ATRIUM}, set()),
    ],
)
def test_view_shows_its_chambers(view: str, seen: set[int], unseen: set[int]) -> None:
    for number in range(6):
        labels = extremes(number, view, 96).labels_THW[0]
        share = np.bincount(labels.ravel(), minlength=8) / (labels > OUTSIDE).sum()
        assert all(share[label] > 0.01 for label in seen)
        assert all(share[label] < 0.01 for label in unseen)
    assert set(VIEWS) >= {name for style in STYLES.values() for name in style.label_set}


@pytest.mark.parametrize("view", list(VIEWS))
def test_labels_and_light_keep_to_the_cone(view: str) -> None:
    clip, truth = clip_of(2, view)
    assert truth.labels_THW.dtype == np.uint8
    assert truth.labels_THW.shape == clip.frames_THW.shape == (14, 96, 96)
    for labels in truth.labels_THW:
        assert np.array_equal(labels > OUTSIDE, truth.sector_HW)
    outside = ~truth.sector_HW & ~truth.cue_HW
    assert not clip.frames_THW[:, outside].any()
    assert (clip.frames_THW[:, truth.sector_HW] > 0).mean() > 0.4


@pytest.mark.parametrize("style", list(STYLES))
@pytest.mark.parametrize("view", ["A4C", "PLAX", "PSAX"])
def test_blood_is_dark_and_muscle_is_bright(view: str, style: str) -> None:
    clip, truth = clip_of(3, view, style)
    gray = [
        float(clip.frames_THW[truth.labels_THW == label].mean()) for label in (CAVITY, MYOCARDIUM)
    ]
    assert gray[1] > 40
    assert gray[0] < 0.5 * gray[1]
    elsewhere = np.roll(truth.labels_THW, 20, axis=2) == CAVITY  # control: not where it is
    elsewhere &= truth.sector_HW
    assert clip.frames_THW[elsewhere].mean() > 1.2 * gray[0]


def test_picture_tells_systole_from_diastole() -> None:
    for number in range(6):
        clip, truth = clip_of(number, "A4C")
        at_ed = truth.labels_THW[truth.ed_frame] == CAVITY
        entered = at_ed & (truth.labels_THW[truth.es_frame] == MYOCARDIUM)
        assert entered.sum() > 30
        ed, es = (clip.frames_THW[t][entered].mean() for t in (truth.ed_frame, truth.es_frame))
        assert es > ed * 1.4


@pytest.mark.parametrize("view", ["A4C", "A2C", "A3C", "PLAX", "SC4C"])
def test_landmarks_lie_on_the_contour(view: str) -> None:
    for number in range(4):
        heart, exam = heart_of(number), exam_of(number, "bedside")
        truth = label_echo(heart, exam, view=view, frames=8, edge_px=160, frame_s=0.06)
        assert truth.landmarks_TK2.shape == (8, len(LANDMARKS), 2)
        miss, moved = [], []
        for labels, points in zip(truth.labels_THW, truth.landmarks_TK2, strict=True):
            cavity = labels == CAVITY
            edge = cavity ^ ndimage.binary_erosion(cavity)
            edge &= ndimage.binary_erosion(truth.sector_HW, iterations=2)
            off = ndimage.distance_transform_edt(~edge)
            shown = truth.sector_HW & ndimage.binary_erosion(truth.sector_HW, iterations=3)
            for shift, found in ((0, miss), (6, moved)):
                rows, columns = np.round(points).astype(int).T + shift
                inside = (np.minimum(rows, columns) >= 0) & (np.maximum(rows, columns) < 160)
                inside[inside] &= shown[rows[inside], columns[inside]]
                found.extend(off[rows[inside], columns[inside]])
        assert len(miss) > 16
        assert max(miss) <= 2.5
        assert np.mean(miss) <= 1.0
        assert np.mean(moved) > 2.5  # control: landmarks a few pixels off are not on it


def test_landmarks_are_ordered_and_short_axes_have_none() -> None:
    truth = extremes(0, "A4C", 112)
    place = dict(zip(LANDMARKS, truth.landmarks_TK2[0], strict=True))
    for height in ("basal", "mid", "apical"):
        assert place[f"{height}-left"][1] < place["apex"][1] + 30 < place[f"{height}-right"][1] + 30
    rows = [place[name][0] for name in ("apex", "apical-left", "mid-left", "basal-left")]
    assert rows == sorted(rows)
    _, axis = long_axis(masks(truth)[0], spacing_mm=truth.spacing_mm)
    middle = (place["basal-left"] + place["basal-right"]) / 2
    way = (middle - place["apex"]) * truth.spacing_mm
    assert way @ axis / np.linalg.norm(way) > 0.99
    assert extremes(0, "PSAX", 96).landmarks_TK2.shape == (2, 0, 2)


def test_one_heart_is_imaged_twice() -> None:
    first, truth = clip_of(4, "A4C")
    again, same = clip_of(4, "A4C", speckle=1)
    assert np.array_equal(truth.labels_THW, same.labels_THW)
    muscle = truth.labels_THW[0] == MYOCARDIUM
    assert abs(np.corrcoef(first.frames_THW[0][muscle], again.frames_THW[0][muscle])[0, 1]) < 0.6
    heart = heart_of(4)
    other = label_echo(heart, exam_of(5), view="A4C", frames=14, edge_px=96, frame_s=0.04)
    assert (other.ef_frac, other.edv_ml) == (truth.ef_frac, truth.edv_ml)
    assert not np.array_equal(other.labels_THW, truth.labels_THW)
    someone = label_echo(heart_of(5), exam_of(4), view="A4C", frames=14, edge_px=96, frame_s=0.04)
    assert someone.ef_frac != truth.ef_frac


def test_equal_streams_give_equal_clips() -> None:
    clips = []
    for _ in range(2):
        rng = stream(31, "speckle", 0, 0)
        clip, _ = render_echo(
            heart_of(0), exam_of(0), view="PSAX", frames=3, edge_px=64, rng=rng, frame_s=0.04
        )
        clips.append(clip.frames_THW)
    assert np.array_equal(*clips)


def test_truth_without_a_picture_is_the_truth_of_the_picture() -> None:
    _, drawn = clip_of(1, "A2C")
    told = label_echo(heart_of(1), exam_of(1), view="A2C", frames=14, edge_px=96, frame_s=0.04)
    for name in ("labels_THW", "landmarks_TK2", "sector_HW", "cue_HW", "phase_T", "volume_T_ml"):
        assert np.array_equal(getattr(drawn, name), getattr(told, name))


def test_speckle_stays_with_the_muscle_from_frame_to_frame() -> None:
    heart, exam = heart_of(6), steady_exam(exam_of(6))
    clip, truth = render_echo(
        heart, exam, view="A4C", frames=3, edge_px=112, rng=stream(31, "s"), frame_s=0.002
    )
    other, _ = render_echo(
        heart, exam, view="A4C", frames=1, edge_px=112, rng=stream(31, "t"), frame_s=0.002
    )
    muscle = truth.labels_THW[0] == MYOCARDIUM
    fine = [
        (frame - ndimage.gaussian_filter(frame, 4.0))[muscle]
        for frame in (*clip.frames_THW[:2].astype(float), other.frames_THW[0].astype(float))
    ]
    stays = np.corrcoef(fine[0], fine[1])[0, 1]
    assert stays > 0.4
    assert np.corrcoef(fine[0], fine[2])[0, 1] < stays - 0.25  # control: other scatterers


def test_frames_follow_the_clock_of_the_heart() -> None:
    heart, exam = heart_of(0), steady_exam(exam_of(0))
    clip, truth = clip_of(0, "A4C")
    assert clip.frame_s == truth.frame_s == 0.04
    own = label_echo(heart, exam, view="A4C", frames=5, edge_px=64)
    assert own.frame_s == pytest.approx(1 / 50)
    step = own.frame_s * heart.heart_rate_bpm / 60
    np.testing.assert_allclose(own.phase_T, step * np.arange(5), atol=1e-9)
    uneven = replace(exam, beats=(0.5, 1.5), start_phase=0.9)
    beats = label_echo(heart, uneven, view="A4C", frames=80, edge_px=32, frame_s=0.02).phase_T
    assert beats[0] == pytest.approx(0.9)
    speed = np.diff(np.unwrap(2 * np.pi * beats)) / (2 * np.pi * step)
    assert speed.max() == pytest.approx(2, rel=0.01)
    assert speed.min() == pytest.approx(1 / 1.5, rel=0.01)


def test_tilted_probe_foreshortens_the_ventricle() -> None:
    heart, exam = heart_of(2), steady_exam(exam_of(2))
    tilted = replace(exam, tilt_rad=0.3, shift_mm=(0.0, -20.0))
    lengths = []
    for held in (exam, tilted):
        truth = label_echo(heart, held, view="A4C", frames=1, edge_px=160)
        points = dict(zip(LANDMARKS, truth.landmarks_TK2[0], strict=True))
        base = (points["basal-left"] + points["basal-right"]) / 2
        lengths.append(float(np.linalg.norm((base - points["apex"]) * truth.spacing_mm)))
    assert lengths[1] < 0.97 * lengths[0]


def test_styles_are_different_machines() -> None:
    assert len(STYLES) >= 3
    spread, shares = [], []
    for name in STYLES:
        pixels, cone = [], []
        for number in range(3):
            clip, truth = clip_of(number, "A4C", name)
            pixels.append(clip.frames_THW[:, truth.sector_HW].ravel())
            cone.append(truth.sector_HW.mean())
        gray = np.concatenate(pixels).astype(float)
        spread.append((gray.mean(), gray.std()))
        shares.append(float(np.mean(cone)))
    gaps = [
        float(np.hypot(*np.subtract(a, b)) + 100 * abs(s - t))
        for i, (a, s) in enumerate(zip(spread, shares, strict=True))
        for b, t in zip(spread[:i], shares[:i], strict=True)
    ]
    assert min(gaps) > 4
    style = STYLES["clinic"]
    views = [draw_view(stream(31, "view", number), style) for number in range(400)]
    assert views.count("A4C") / len(views) == pytest.approx(0.6, abs=0.08)
    assert set(views) == set(style.label_set) == {"A4C", "A2C"}


def test_machine_and_population_vary_independently() -> None:
    style = replace(STYLES["clinic"], population=STYLES["tertiary"].population)
    assert style.population != STYLES["clinic"].population
    assert draw_exam(stream(1), style).gain_db == draw_exam(stream(1), STYLES["clinic"]).gain_db


def test_burned_in_name_is_in_the_picture_and_in_the_truth() -> None:
    name = Cue("text", "top-left", text="PAT-042")
    heart, exam = heart_of(0), exam_of(0)
    marked, truth = render_echo(
        heart, exam, view="A4C", frames=2, edge_px=112, rng=stream(31, "c"), cues=[name]
    )
    plain, bare = render_echo(heart, exam, view="A4C", frames=2, edge_px=112, rng=stream(31, "c"))
    added = truth.cue_HW & ~bare.cue_HW
    assert added.sum() > 60
    assert (marked.frames_THW[:, added] > 200).all()
    assert not plain.frames_THW[:, added].any()
    assert not (truth.cue_HW & truth.sector_HW).any()
    assert np.array_equal(marked.frames_THW[:, ~added], plain.frames_THW[:, ~added])


def test_every_pixel_in_the_cone_has_a_name() -> None:
    labels = extremes(1, "PLAX", 96).labels_THW
    assert set(np.unique(labels)) <= set(range(8))
    assert (labels == BACKGROUND).mean() > 0.05


@pytest.mark.parametrize("asked", [{"view": "A9C"}, {"frames": 0}, {"edge_px": 8}])
def test_impossible_clip_is_refused(asked: dict[str, object]) -> None:
    arguments = {"view": "A4C", "frames": 2, "edge_px": 64, **asked}
    with pytest.raises(DataError):
        label_echo(heart_of(0), exam_of(0), **arguments)  # type: ignore[arg-type]


def test_truth_shows_nothing_of_a_patient() -> None:
    assert "0." not in repr(extremes(0, "A4C", 112))
