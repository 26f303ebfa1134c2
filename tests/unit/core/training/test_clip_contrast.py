"""Neighbouring clips are pairs, only surely different places are rivals, no distortion is idle."""

from __future__ import annotations

from dataclasses import fields, replace

import numpy as np
import pytest
import torch

from vitrael.core.configs import LocalTrainingConfig, ViewRetrievalConfig
from vitrael.core.errors import DataError
from vitrael.core.models.view_retrieval import build_view_encoder
from vitrael.core.rng import stream, torch_stream
from vitrael.core.training.clip_contrast import (
    DISTORTION,
    ClipContrastObjective,
    ClipDistortion,
    ClipPairs,
    NeighborClips,
    Sweep,
    Windows,
    distort_clips,
)
from vitrael.core.training.loop import fit

FRAMES = 40
STILL = ClipDistortion(**{field.name: 0.0 for field in fields(ClipDistortion)})
WINDOWS = Windows(per_sweep=4, apart_frames=12)


def numbered(sweep: int, patient: int) -> Sweep:
    """Return a sweep whose pixels tell the frame on the left and the sweep on the right."""
    frames = np.empty((FRAMES, 8, 8), np.uint8)
    frames[..., :4] = np.arange(FRAMES)[:, None, None]
    frames[..., 4:] = 100 + sweep
    return Sweep(frames, patient)


SWEEPS = [numbered(sweep, sweep // 2) for sweep in range(8)]
"""Two visits of each of four patients."""


def read(pairs: ClipPairs) -> tuple[np.ndarray, np.ndarray]:
    """Return the first frame and the sweep of each window."""
    first = (pairs.first_P1THW * 255).round().numpy().astype(int)
    return first[:, 0, 0, 0, 0], first[:, 0, 0, 0, 7] - 100


def draw_still(seed: int, windows: Windows = WINDOWS) -> ClipPairs:
    draw = NeighborClips(SWEEPS, windows=windows, distortion=STILL)
    return draw(24, torch_stream(seed, "draw"))


def test_pair_is_two_neighbouring_clips_of_one_sweep() -> None:
    pairs = draw_still(1)
    assert pairs.first_P1THW.shape == pairs.second_P1THW.shape == (12, 1, 5, 8, 8)
    start, sweep = read(pairs)
    second = (pairs.second_P1THW * 255).round().numpy().astype(int)
    assert (second[:, 0, :, 0, 0] == start[:, None] + np.arange(5, 10)).all()
    assert (second[:, 0, :, 0, 7] == 100 + sweep[:, None]).all()


def test_place_that_might_be_the_same_is_never_a_rival() -> None:
    seen = 0
    for seed in range(20):
        pairs = draw_still(seed)
        start, sweep = read(pairs)
        one_patient = sweep[:, None] // 2 == sweep[None] // 2
        assert (sweep[:, None] == sweep[None])[one_patient].all()  # one visit in a batch
        far = np.abs(start[:, None] - start[None]) >= 12
        assert (pairs.rivals_PP.numpy() == (one_patient & far)).all()
        seen += int(pairs.rivals_PP.sum())
    assert seen > 0


def test_other_patients_are_rivals_where_that_is_asked_for() -> None:
    pairs = draw_still(1, replace(WINDOWS, strangers=True))
    _, sweep = read(pairs)
    assert pairs.rivals_PP.numpy()[sweep[:, None] != sweep[None]].all()
    assert not draw_still(1).rivals_PP.numpy()[sweep[:, None] != sweep[None]].any()


def test_windows_reach_from_the_beginning_to_the_end_of_a_sweep() -> None:
    starts = np.concatenate([read(draw_still(seed))[0] for seed in range(60)])
    assert (starts.min(), starts.max()) == (0, FRAMES - 10)


def test_small_batch_still_reaches_over_the_whole_sweep() -> None:
    draw = NeighborClips(SWEEPS, windows=Windows(per_sweep=8), distortion=STILL)
    batches = [draw(20, torch_stream(seed, "draw")) for seed in range(60)]
    assert {len(pairs.first_P1THW) for pairs in batches} == {10}
    for pairs in batches:
        _, sweep = read(pairs)
        assert sorted(np.unique(sweep, return_counts=True)[1]) == [5, 5]
    assert max(read(pairs)[0].max() for pairs in batches) == FRAMES - 10


def clip() -> torch.Tensor:
    return torch.rand(6, 1, 5, 16, 16, generator=torch_stream(1, "clip")) * 0.8 + 0.1


def test_no_distortion_leaves_the_clip_as_it_is() -> None:
    assert torch.allclose(distort_clips(clip(), STILL, torch_stream(1, "d")), clip(), atol=1e-5)


@pytest.mark.parametrize(
    "names",
    [
        ("rotation_rad",),
        ("shift_frac",),
        ("stretch_frac",),
        ("gain",),
        ("gamma",),
        ("noise",),
        ("blur_share",),
        ("cut_share", "cut_frac"),
    ],
)
def test_each_distortion_alone_changes_every_clip(names: tuple[str, ...]) -> None:
    by = replace(STILL, **{name: getattr(DISTORTION, name) for name in names})
    by = by if by.cut_frac == 0 else replace(by, cut_share=1.0)
    by = by if by.blur_share == 0 else replace(by, blur_share=1.0)
    view = distort_clips(clip(), by, torch_stream(1, "d"))
    assert view.shape == clip().shape
    assert (float(view.min()), float(view.max())) >= (0, 0)
    assert float(view.max()) <= 1
    assert ((view - clip()).abs().amax(dim=(1, 2, 3, 4)) > 1e-3).all()


def test_cut_out_is_a_black_square_through_all_frames() -> None:
    by = replace(STILL, cut_share=1.0, cut_frac=0.25)
    view = distort_clips(clip(), by, torch_stream(1, "d"))
    black = view == 0
    assert (black.sum(dim=(1, 3, 4)) == 16).all()
    assert (black == black[:, :, :1]).all()


def test_mirror_is_shared_by_both_clips_of_a_window() -> None:
    draw = NeighborClips(SWEEPS, windows=WINDOWS, distortion=replace(STILL, flip_share=0.5))
    pairs = draw(48, torch_stream(3, "draw"))
    mirrored = [x[:, 0, 0, 0, 0] * 255 > 99 for x in (pairs.first_P1THW, pairs.second_P1THW)]
    assert torch.equal(*mirrored)
    assert 0 < int(mirrored[0].sum()) < len(mirrored[0])


def test_both_clips_are_distorted_apart_and_again_alike() -> None:
    draw = NeighborClips([replace(SWEEPS[0], frames_THW=np.tile(_face(), (FRAMES, 1, 1)))])
    one, again = (draw(8, torch_stream(4, "draw")) for _ in range(2))
    assert torch.equal(one.first_P1THW, again.first_P1THW)
    assert not torch.allclose(one.first_P1THW, one.second_P1THW, atol=0.05)


def _face() -> np.ndarray:
    return stream(5, "face").integers(0, 255, (1, 8, 8)).astype(np.uint8)


def test_loss_is_the_formula_over_the_rivals_alone() -> None:
    a = torch.nn.functional.normalize(torch.randn(4, 3, generator=torch_stream(5, "a")), dim=1)
    b = torch.nn.functional.normalize(torch.randn(4, 3, generator=torch_stream(5, "b")), dim=1)
    rivals = torch.zeros(4, 4, dtype=torch.bool)
    rivals[0, 1] = rivals[1, 0] = rivals[0, 2] = rivals[2, 0] = True
    found = ClipContrastObjective(0.1)(
        torch.nn.Identity(), ClipPairs(a, b, rivals), torch_stream(5, "o")
    )
    terms = []
    for x, y in ((a, b), (b, a)):
        for i in range(4):
            own = np.exp(float(x[i] @ y[i]) / 0.1)
            others = sum(np.exp(float(x[i] @ y[j]) / 0.1) for j in range(4) if rivals[i, j])
            terms.append(-np.log(own / (own + others)))
    assert float(found.total) == pytest.approx(np.mean(terms), rel=1e-4)
    everybody = ClipPairs(a, b, torch.ones(4, 4, dtype=torch.bool))
    other = ClipContrastObjective(0.1)(torch.nn.Identity(), everybody, torch_stream(5, "o"))
    assert float(other.total) != pytest.approx(float(found.total), rel=0.01)  # the control


def test_window_without_rivals_costs_and_teaches_nothing() -> None:
    a = torch.eye(3, requires_grad=True)
    nobody = ClipPairs(a, a.roll(1, 0), torch.zeros(3, 3, dtype=torch.bool))
    loss = ClipContrastObjective(0.1)(torch.nn.Identity(), nobody, torch_stream(5, "o"))
    loss.total.backward()
    assert float(loss.total.detach()) == 0
    assert a.grad is not None
    assert not a.grad.any()


def test_training_lowers_the_loss() -> None:
    ramp = np.linspace(0, 1, 64)[:, None, None] * np.mgrid[:16, :16][0] / 15
    noise = stream(6, "noise").uniform(0, 0.2, (4, 64, 16, 16))
    sweeps = [Sweep(((0.8 * ramp + n) * 255).astype(np.uint8), i) for i, n in enumerate(noise)]
    config = ViewRetrievalConfig(
        kind="view_retrieval",
        channels=(8, 16),
        features=16,
        embedding=8,
        training=LocalTrainingConfig(length_images=1600, batch_images=32, learning_rate=3e-3),
    )
    curve = fit(
        build_view_encoder(config, seed=1),
        ClipContrastObjective(config.temperature),
        NeighborClips(sweeps, distortion=replace(DISTORTION, gain=0.02, gamma=0.05)),
        config.training,
        length_images=1600,
        rng=torch_stream(6, "fit"),
    )
    losses = curve.losses["total"]
    assert np.mean(losses[-5:]) < 0.9 * np.mean(losses[:5])


def test_sweeps_that_cannot_be_learned_from_are_refused() -> None:
    with pytest.raises(DataError, match="no sweep"):
        NeighborClips([])
    with pytest.raises(DataError, match="rows or columns"):
        NeighborClips([SWEEPS[0], replace(SWEEPS[1], frames_THW=SWEEPS[1].frames_THW[:, :6])])
    with pytest.raises(DataError, match="need 25 frames"):
        NeighborClips([replace(SWEEPS[0], frames_THW=SWEEPS[0].frames_THW[:24])])


def test_windows_that_overlap_are_refused_as_rivals() -> None:
    with pytest.raises(DataError, match="overlap"):
        Windows(clip_frames=5, apart_frames=9)
    with pytest.raises(DataError, match="needs frames"):
        Windows(clip_frames=0)


def test_sweep_shows_nothing_of_a_patient() -> None:
    assert repr(SWEEPS[3]) == "Sweep(40 frames)"
