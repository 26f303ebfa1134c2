"""The attack suite for clips, on phantom echoes."""

from __future__ import annotations

import numpy as np
import pytest

from tests.unit.privacy.audit.test_plants import DEMANDS as VOLUME_DEMANDS
from vitrael.core.data.phantoms.echo import draw_exam, render_echo
from vitrael.core.data.phantoms.echo_styles import STYLES
from vitrael.core.data.phantoms.heart import draw_heart
from vitrael.core.records import PatientImages
from vitrael.core.rng import stream
from vitrael.privacy.audit.plants import (
    CLIP_PLANTS,
    Means,
    Sources,
    draw_sources,
    make_plants,
    why_empty,
)

_FRAMES, _EDGE = 12, 41  # an odd edge: H.264 takes even ones

_OWN_DEMANDS = {
    **dict.fromkeys(("speckle", "depth", "sector"), (False, 0.95)),
    "h264_30": (True, 0.95),
    **dict.fromkeys(("reversed", "phase_shift", "speed_half", "speed_double"), (False, 0.98)),
    **dict.fromkeys(("every_second", "loop"), (False, 0.98)),
    "frames_50": (False, 0.95),
    "frames_10": (False, 0.85),
    "frame_1": (False, 0.85),
    "other_view": (False, None),
    "animated_still": (True, 0.95),
}


def _clip(patient: int, *, view: str = "A4C") -> np.ndarray:
    heart = draw_heart(stream(1, "heart", patient))
    exam = draw_exam(stream(1, "exam", patient, view), STYLES["clinic"])
    rng = stream(1, "speckle", patient, view)
    clip, _ = render_echo(heart, exam, view=view, frames=_FRAMES, edge_px=_EDGE, rng=rng)
    return clip.frames_THW[None].astype(np.float32) / 255


@pytest.fixture(scope="module")
def sources() -> Sources:
    clips, views = (np.stack([_clip(p, view=v) for p in range(8)]) for v in ("A4C", "A2C"))
    nothing = np.zeros((4, 4), np.float32), np.arange(4), np.zeros(4, dtype=np.int64)
    return draw_sources(
        PatientImages(clips[:4], *nothing),
        4,
        rng=stream(1, "sources"),
        strangers=PatientImages(clips[4:], *nothing),
        sequence_BCDHW=views[:4],
    )


@pytest.fixture(scope="module")
def plants(sources: Sources) -> dict[str, np.ndarray]:
    return make_plants(CLIP_PLANTS, sources, Means(), rng=stream(2, "plants"))


def test_every_class_demands_what_the_table_says() -> None:
    found = {p.name: (p.must, p.demanded) for p in CLIP_PLANTS.values()}
    own = {name: found[name] for name in found if name not in VOLUME_DEMANDS}
    assert own == _OWN_DEMANDS
    assert all(found[name] == VOLUME_DEMANDS[name] for name in found.keys() - own.keys())


def test_every_class_is_made_on_the_grid_in_the_range(
    plants: dict[str, np.ndarray], sources: Sources
) -> None:
    for name, made in plants.items():
        lacking = {"round_trip", "renoise", "latent_blend", "memorized", "embedder", "visit"}
        lacking |= {"video_generator"}
        usual = 0 if lacking & set(CLIP_PLANTS[name].needs) else 4
        usual *= CLIP_PLANTS[name].group_images
        assert made.shape == (usual, 1, _FRAMES, _EDGE, _EDGE), name
        assert made.dtype == np.float32
        if usual:
            assert made.min() >= 0
            assert made.max() <= 1
            exact = np.abs(made[: len(sources)] - sources.image_PCDHW).max() == 0
            assert exact == (name == "exact"), name


def test_animated_still_waits_for_a_generator_and_says_so(sources: Sources) -> None:
    still = CLIP_PLANTS["animated_still"]
    assert still.make is None
    assert still.must
    assert why_empty(still, sources, Means()) == "no video generator was given"
    with_one = Means(animate=lambda frame: frame)
    assert why_empty(still, sources, with_one) == "nothing makes such plants yet"


def test_time_is_what_is_changed(plants: dict[str, np.ndarray], sources: Sources) -> None:
    clip = sources.image_PCDHW
    assert np.array_equal(plants["reversed"][:, :, ::-1], clip)
    assert np.array_equal(plants["every_second"][:, :, 5], clip[:, :, 4])
    assert np.array_equal(plants["speed_half"][:, :, 6], clip[:, :, 3])
    assert np.array_equal(plants["speed_double"][:, :, 3], clip[:, :, 6])
    for one, source in zip(plants["phase_shift"], clip, strict=True):
        turns = [np.array_equal(np.roll(one, turn, 1), source) for turn in range(_FRAMES)]
        assert turns.count(True) == 1
        assert not turns[0]
    loop = plants["loop"]
    assert np.array_equal(loop[:, :, :6], loop[:, :, 6:][:, :, ::-1])


@pytest.mark.parametrize(("name", "count"), [("frames_50", 6), ("frames_10", 1), ("frame_1", 1)])
def test_frames_are_as_many_as_it_says(
    plants: dict[str, np.ndarray], sources: Sources, name: str, count: int
) -> None:
    assert sources.other_PCDHW is not None
    copied = (plants[name] == sources.image_PCDHW).all((1, 3, 4)).sum(1)
    theirs = (plants[name] == sources.other_PCDHW).all((1, 3, 4)).sum(1)
    assert (copied == count).all()
    assert (theirs == _FRAMES - count).all()


def test_codecs_keep_the_clip_and_not_every_pixel(
    plants: dict[str, np.ndarray], sources: Sources
) -> None:
    for name in ("jpeg_30", "h264_30"):
        error = np.abs(plants[name] - sources.image_PCDHW)
        assert 0.001 < error.mean() < 0.05
        alike = np.corrcoef(plants[name].ravel(), sources.image_PCDHW.ravel())[0, 1]
        assert alike > 0.9


def test_narrower_sector_only_darkens(plants: dict[str, np.ndarray], sources: Sources) -> None:
    made, clip = plants["sector"], sources.image_PCDHW
    kept = made == clip
    assert (made[~kept] == 0).all()
    seen = clip > 0.05
    assert 0.6 < (made > 0.05).sum() / seen.sum() < 0.95


def test_pictures_of_one_clip_are_cut_alike(plants: dict[str, np.ndarray]) -> None:
    still = np.repeat(stream(1, "still").uniform(0, 1, (3, 1, 1, 16, 16)), 5, axis=2)
    images = PatientImages(
        still.astype(np.float32), np.zeros((3, 4)), np.arange(3), np.zeros(3, dtype=np.int64)
    )
    sources = draw_sources(images, 3, rng=stream(1, "s"))
    table = {name: CLIP_PLANTS[name] for name in ("crop_70", "depth", "flip_x", "sector")}
    for made in make_plants(table, sources, Means(), rng=stream(1, "p")).values():
        assert np.abs(made - made[:, :, :1]).max() < 1e-6
