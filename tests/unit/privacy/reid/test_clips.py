"""The filter on clips: one pose for all frames, any line through time, any frame against any."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from scipy import ndimage
from torch.nn import functional

from tests.factories.clip_power import draw_clips
from vitrael.core.configs import ReidEncoderConfig
from vitrael.core.models.reid import build_reid_encoder
from vitrael.core.rng import torch_stream
from vitrael.privacy.reid.encoders import pairs_of
from vitrael.privacy.reid.gallery import Gallery, build_gallery
from vitrael.privacy.reid.lens import Encoders, fit_lens, see_planes
from vitrael.privacy.reid.pairs import lines_through_time, registered_pairs
from vitrael.privacy.reid.planes import best_planes, gallery_step
from vitrael.privacy.reid.search import match
from vitrael.privacy.reid.similarity import own_form
from vitrael.privacy.reid.template import (
    Template,
    fit_template,
    lay_both_ways,
    lay_onto,
    still_of,
)


class StillEmbedder:
    """An Embedder without weights: the mean over time, centred, unit length."""

    def embed(self, x: torch.Tensor) -> torch.Tensor:
        flat = (x + x.flip(4)).mean(2).flatten(1)
        return functional.normalize(flat - flat.mean(1, keepdim=True), dim=1)


@pytest.fixture(scope="module")
def clips() -> np.ndarray:
    return draw_clips("T", 10).image_BCDHW


@pytest.fixture(scope="module")
def strangers() -> np.ndarray:
    return draw_clips("S", 10).image_BCDHW


@pytest.fixture(scope="module")
def template() -> Template:
    return fit_template(draw_clips("F", 12).image_BCDHW, along="time")


@pytest.fixture(scope="module")
def gallery(template: Template) -> Gallery:
    embedder = StillEmbedder()
    lens = fit_lens(draw_clips("F", 12), Encoders(embedder, embedder), template)
    return build_gallery(draw_clips("T", 10), lens)


def test_what_the_first_axis_is_says_the_template_and_not_the_shape(
    clips: np.ndarray, template: Template
) -> None:
    assert template.mask_DHW.shape == (1, 32, 32)
    assert template.mirror == 3
    as_volume = fit_template(clips)
    assert as_volume.mask_DHW.shape == (16, 32, 32)
    assert as_volume.mirror == 1


def test_clip_is_laid_alike_alone_and_among_many(clips: np.ndarray, template: Template) -> None:
    many = lay_both_ways(clips[:5], template)
    for row in range(5):
        alone = lay_both_ways(clips[row : row + 1], template)
        for way in range(2):
            assert np.abs(alone[way][0] - many[way][row]).max() < 1e-4


def test_all_frames_have_the_pose_of_their_still(clips: np.ndarray, template: Template) -> None:
    laid = lay_onto(clips[:4], template)
    still = lay_onto(clips[:4].mean(2, keepdims=True), template)
    assert np.abs(laid.mean(2, keepdims=True) - still).max() < 1e-4
    backward = lay_onto(np.ascontiguousarray(clips[:4, :, ::-1]), template)
    assert np.abs(backward[:, :, ::-1] - laid).max() < 1e-4


@pytest.mark.parametrize("depth", [0.8, 1.25])
def test_clip_at_another_depth_lies_where_its_source_lies(
    clips: np.ndarray, template: Template, depth: float
) -> None:
    offset = (0, 0, 0, 0, (clips.shape[-1] - 1) / 2 * (1 - depth))
    other = ndimage.affine_transform(clips, (1, 1, 1, depth, depth), offset, order=1)
    own, moved, unlaid = (
        own_form(still_of(torch.from_numpy(image[:, 0]), along="time")[:, None], template)
        for image in (lay_onto(clips, template), lay_onto(other, template), other)
    )
    same = (own * moved).sum(1)
    assert same.median() > 0.6
    assert same.median() > (own * moved.roll(1, 0)).sum(1).median() + 0.15
    assert same.median() > (own * unlaid).sum(1).median() + 0.3


@pytest.mark.parametrize(
    "order",
    [np.arange(16)[::-1], np.roll(np.arange(16), 5), 2 * np.arange(16) % 16, np.arange(16) // 2],
    ids=["backward", "begun elsewhere", "twice the speed", "half the speed"],
)
def test_frames_are_paired_along_the_best_line_through_time(
    clips: np.ndarray, template: Template, order: np.ndarray
) -> None:
    laid = torch.from_numpy(lay_onto(clips, template)[:, 0])
    row = torch.arange(len(laid))
    played = laid[:, order.copy()]
    same = registered_pairs(played, laid, template, row_P=row, scan_P=row)
    other = registered_pairs(played, laid, template, row_P=row, scan_P=row.roll(1))
    assert same.min() > 0.97
    assert same.min() > other.max() + 0.05
    frames = [own_form(one.flatten(0, 1)[:, None, None], template) for one in (played, laid)]
    as_they_come = (frames[0] * frames[1]).sum(1).reshape(len(laid), -1).mean(1)
    assert (as_they_come < same).all()  # the control: the first frame with the first


def test_lines_hold_every_offset_and_both_ways() -> None:
    lines = lines_through_time(6).tolist()
    assert [0, 1, 2, 3, 4, 5] in lines
    assert [2, 1, 0, 5, 4, 3] in lines
    assert [0, 2, 4, 0, 2, 4] in lines
    assert lines_through_time(1).unique().tolist() == [0]


def test_one_frame_is_found_in_a_strangers_clip(
    clips: np.ndarray, strangers: np.ndarray, gallery: Gallery
) -> None:
    pasted = strangers.copy()
    pasted[:, :, 3] = clips[:, :, 9]
    found, usual = (match(image, gallery).region_BR[:, -4] for image in (pasted, strangers))
    assert found.min() > 0.999 > usual.max()
    # The control: a gallery of first frames alone.
    first = see_planes(clips[:, :, :1], gallery.lens)
    (seen,), (known,) = see_planes(pasted, gallery.lens), first
    assert best_planes(seen, known, allowed_BN=None)[:, 0].max() < 0.999


def test_gallery_of_long_clips_holds_a_frame_near_every_other() -> None:
    steps = {frames: gallery_step(frames, along="time") for frames in (1, 16, 63, 64, 128, 4096)}
    assert steps == {1: 1, 16: 1, 63: 1, 64: 2, 128: 4, 4096: 4}
    assert gallery_step(4096, along="space") == 1


def test_two_recordings_of_a_patient_are_played_differently_and_bent_alike(
    template: Template,
) -> None:
    seen = draw_clips("F", 6, visits=2)
    laid = replace(seen, image_BCDHW=lay_onto(seen.image_BCDHW, template))
    one, two = pairs_of(laid, learns="visits", along="time")(12, torch_stream(1, "pairs"))
    assert one.shape == two.shape == (6, 1, 16, 32, 32)
    still = [view.mean(2).flatten(1) for view in (one, two)]
    alike = torch.corrcoef(torch.cat(still))
    assert alike[:6, 6:].diag().mean() > alike[:6, 6:].mean()


def test_encoder_of_clips_mirrors_pictures_and_not_time(clips: np.ndarray) -> None:
    config = ReidEncoderConfig.model_validate(
        {
            "kind": "reid_encoder",
            "channels": [8, 8],
            "training": {"length_images": 1, "batch_images": 4, "learning_rate": 1e-3},
        }
    )
    image = torch.from_numpy(clips[:3])
    of_clips, of_volumes = (
        build_reid_encoder(config, seed=1, along=along) for along in ("time", "space")
    )
    with torch.no_grad():
        for encoder, axis in ((of_clips, 4), (of_volumes, 2)):
            same, other = (encoder.embed(image.flip(a)) for a in (axis, 6 - axis))
            assert torch.allclose(encoder.embed(image), same, atol=1e-5)
            assert not torch.allclose(encoder.embed(image), other, atol=1e-3)
