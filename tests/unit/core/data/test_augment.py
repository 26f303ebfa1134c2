"""Pictures are moved with their sectors, and BackMix changes what lies outside and nothing else."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch

from vitrael.core.data.augment import (
    Background,
    BackMix,
    MovedViews,
    PlanarMotion,
    choose_sectors,
    draw_moved,
    move_planar,
)
from vitrael.core.errors import DataError
from vitrael.core.rng import stream, torch_stream

STILL = PlanarMotion(rotation_rad=0.0, mirrored_frac=0.0, brightness=0.0, contrast=0.0)
TURNED = PlanarMotion(rotation_rad=math.radians(30), mirrored_frac=0.5, brightness=0, contrast=0)
EDGE = 16


def rng(seed: int = 1) -> torch.Generator:
    return torch_stream(seed, "augment")


def sector(row: int) -> np.ndarray:
    """Return a triangle with its tip above, a little wider for each row."""
    depth, across = np.mgrid[:EDGE, :EDGE]
    return np.asarray(np.abs(across - EDGE // 2) <= (0.3 + 0.02 * row) * depth)


def pictures(count: int = 12) -> tuple[np.ndarray, np.ndarray, list[np.ndarray | None]]:
    """Return pictures whose sector is ``0.5`` and a bit, and whose background tells the picture."""
    images = np.zeros((count, 1, EDGE, EDGE), np.float32)
    sectors = [sector(row) for row in range(count)]
    for row, inside in enumerate(sectors):
        images[row, 0] = np.where(inside, 0.5 + row / 100, 0.1 + row / 100)
    return images, np.arange(count) % 3, [*sectors]


def mixer(**changes: Any) -> BackMix:
    images, labels, sectors = pictures()
    given: dict[str, Any] = {"sectors": sectors, "classes": 3, "motion": STILL, **changes}
    return BackMix(given.pop("images", images), given.pop("labels", labels), **given)


def test_sector_stays_and_background_is_of_one_donor_without_its_sector() -> None:
    images, labels, sectors = pictures()
    batch = mixer()(40, rng())
    donors = set()
    for image, label in zip(batch.image_BCHW[:, 0].numpy(), batch.label_B, strict=True):
        own = round((float(image[EDGE - 1, EDGE // 2]) - 0.5) * 100)
        inside = sectors[own]
        assert inside is not None
        assert label == labels[own]
        np.testing.assert_allclose(image[inside], images[own, 0][inside], atol=1e-6)
        outside = image[~inside]
        donor = round((float(outside.max()) - 0.1) * 100)
        donor_sector = sectors[donor]
        assert donor_sector is not None
        kept = np.where(donor_sector, 0, images[donor, 0])
        np.testing.assert_allclose(outside, kept[~inside], atol=1e-6)
        donors.add((own, donor))
    classes = {(own % 3, donor % 3) for own, donor in donors}
    assert len(classes) == 9, "donors are of every class, and one of them the picture's own"
    assert bool(batch.is_mixed_B.all())


def test_narrow_sector_on_a_wider_donor_leaves_a_black_wedge() -> None:
    images, labels, sectors = pictures(2)
    sectors[1] = np.abs(np.mgrid[:EDGE, :EDGE][1] - EDGE // 2) <= 6
    batch = BackMix(images, labels, sectors=sectors, classes=3, motion=STILL)(40, rng())
    first = sectors[0]
    assert first is not None
    wedges = [
        float((image[0].numpy()[~first] == 0).mean())
        for image in batch.image_BCHW[batch.label_B == 0]
    ]
    assert {wedge > 0.2 for wedge in wedges} == {True, False}


def test_picture_without_a_sector_is_not_mixed() -> None:
    images, _, sectors = pictures()
    sectors = [inside if row < 3 else None for row, inside in enumerate(sectors)]
    draw = mixer(sectors=sectors)
    assert draw.mixed_frac == pytest.approx(3 / 12)
    batch = draw(60, rng())
    tones = {round(float(image.min()), 6): image for image in images}
    for image, mixed in zip(batch.image_BCHW.numpy(), batch.is_mixed_B, strict=True):
        if not mixed:
            np.testing.assert_allclose(image, tones[round(float(image.min()), 6)], atol=1e-6)
            assert float(image.max()) > 0.525, "one of the first three was passed as plain"
        else:
            assert float(image.max()) < 0.525
            assert float(image[0, 0, 0]) < 0.125, "a donor without a sector was taken"
    assert 0 < int(batch.is_mixed_B.sum()) < 60


def test_donor_is_not_moved_while_the_picture_is() -> None:
    images, labels, sectors = pictures()
    images[:, 0, 0, 0] = 1.0
    draw = BackMix(images, labels, sectors=sectors, classes=3, motion=TURNED)
    batch = draw(30, rng()).image_BCHW
    assert bool((batch[:, 0, 0, 0] == 1).all()), "the donors' mark stands where it stood"
    moved = MovedViews(images, labels, classes=3, motion=TURNED)(30, rng()).image_BCHW
    assert not bool((moved[:, 0, 0, 0] == 1).all())


def test_draws_repeat_with_their_stream_and_differ_without() -> None:
    draw = mixer(motion=PlanarMotion())
    first, again, other = draw(8, rng()), draw(8, rng()), draw(8, rng(2))
    assert torch.equal(first.image_BCHW, again.image_BCHW)
    assert not torch.equal(first.image_BCHW, other.image_BCHW)


@pytest.mark.parametrize("background", ["donor", "black", "noise", "shuffled", "dim"])
def test_every_background_leaves_the_sector_and_stays_in_range(background: Background) -> None:
    images, _, sectors = pictures()
    batch = mixer(background=background)(20, rng())
    assert 0 <= float(batch.image_BCHW.min()) <= float(batch.image_BCHW.max()) <= 1
    for image in batch.image_BCHW[:, 0].numpy():
        own = round((float(image[EDGE - 1, EDGE // 2]) - 0.5) * 100)
        inside = sectors[own]
        assert inside is not None
        np.testing.assert_allclose(image[inside], images[own, 0][inside], atol=1e-6)
        outside, before = image[~inside], images[own, 0][~inside]
        if background == "black":
            assert not outside.any()
        if background == "noise":
            assert outside.max() <= 30 / 255
            assert outside.std() > 0.02
        if background == "dim":
            np.testing.assert_allclose(outside, 0.74 * before, atol=1e-6)


def test_shuffled_background_has_the_same_pixels_elsewhere() -> None:
    images, labels, sectors = pictures(2)
    images[:, 0] = stream(1, "grays").uniform(size=(EDGE, EDGE))
    draw = BackMix(images, labels, sectors=sectors, classes=3, background="shuffled", motion=STILL)
    batch = draw(8, rng())
    own = sectors[int(batch.label_B[0])]
    assert own is not None
    image = batch.image_BCHW[0, 0].numpy()
    before = images[0, 0]
    np.testing.assert_allclose(np.sort(image[~own]), np.sort(before[~own]), atol=1e-5)
    assert not np.allclose(image[~own], before[~own], atol=0.1)


def test_picture_and_sector_are_moved_as_one() -> None:
    _, _, sectors = pictures()
    inside = torch.from_numpy(np.stack([s for s in sectors if s is not None]))[:, None]
    image, moved = move_planar(inside.float(), inside, motion=TURNED, rng=rng())
    assert float(((image > 0.5) == moved).float().mean()) > 0.98
    assert float((inside == moved).float().mean()) < 0.95, "nothing was moved"


def test_no_motion_changes_nothing_and_mirror_is_exact() -> None:
    images = torch.rand(6, 1, 10, 14, generator=rng())
    everywhere = torch.ones_like(images, dtype=torch.bool)
    image, _ = move_planar(images, everywhere, motion=STILL, rng=rng())
    torch.testing.assert_close(image, images, atol=1e-5, rtol=0)
    mirror = PlanarMotion(rotation_rad=0, mirrored_frac=1, brightness=0, contrast=0)
    image, _ = move_planar(images, everywhere, motion=mirror, rng=rng())
    torch.testing.assert_close(image, images.flip(3), atol=1e-5, rtol=0)


def test_turn_keeps_circles_round_and_repeats_the_border() -> None:
    height, width = 24, 40
    y, x = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
    disk = (((y - 11.5) ** 2 + (x - 19.5) ** 2).sqrt() < 9).float().expand(8, 1, -1, -1)
    everywhere = torch.ones_like(disk, dtype=torch.bool)
    image, _ = move_planar(disk, everywhere, motion=TURNED, rng=rng())
    assert float((image - disk).abs().mean()) < 0.02
    gray, kept = move_planar(torch.full_like(disk, 0.3), everywhere, motion=TURNED, rng=rng())
    torch.testing.assert_close(gray, torch.full_like(gray, 0.3))
    assert bool(kept.all()), "a picture without a sector would get a background at its border"


def test_grays_change_within_their_reach_and_are_cut() -> None:
    flat = torch.full((400, 1, 4, 4), 0.5)
    everywhere = torch.ones_like(flat, dtype=torch.bool)
    motion = PlanarMotion(rotation_rad=0.0, mirrored_frac=0.0)
    image, _ = move_planar(flat, everywhere, motion=motion, rng=rng())
    assert 0.5 - 0.225 <= float(image.min()) < 0.32
    assert 0.68 < float(image.max()) <= 0.5 + 0.226
    bright, _ = move_planar(flat + 0.5, everywhere, motion=motion, rng=rng())
    assert float(bright.max()) == 1.0


@pytest.mark.parametrize(
    "reach",
    [{"rotation_rad": math.nan}, {"mirrored_frac": 1.5}, {"brightness": -0.1}, {"contrast": 2.0}],
)
def test_motion_that_cannot_be_is_refused(reach: dict[str, float]) -> None:
    with pytest.raises(DataError, match="cannot be moved"):
        PlanarMotion(**reach)


def test_sectors_are_chosen_by_chance_and_not_by_their_order() -> None:
    sectors: list[np.ndarray | None] = [sector(1)] * 1000
    chosen = [
        [
            row
            for row, kept in enumerate(choose_sectors(sectors, share_frac=0.1, rng=stream(s)))
            if kept is not None
        ]
        for s in (1, 1, 2)
    ]
    assert [len(rows) for rows in chosen] == [100, 100, 100]
    assert chosen[0] == chosen[1] != chosen[2]
    assert len(set(np.diff(chosen[0]).tolist())) > 5
    few = choose_sectors([sector(1), None, None], share_frac=0.01, rng=stream(1))
    assert sum(kept is not None for kept in few) == 1


@pytest.mark.parametrize("share", [0.0, -0.1, 1.1, math.nan])
def test_share_of_sectors_outside_its_range_is_refused(share: float) -> None:
    with pytest.raises(DataError, match="share of sectors"):
        choose_sectors([sector(1)], share_frac=share, rng=stream(1))


def broken(row: int, change: Any) -> dict[str, Any]:
    _, _, sectors = pictures()
    return {"sectors": [change if place == row else s for place, s in enumerate(sectors)]}


IMAGES, LABELS, SECTORS = pictures()
SPOILED = IMAGES.copy()
SPOILED[3, 0, 2, 2] = np.nan


@pytest.mark.parametrize(
    ("changes", "match"),
    [
        ({"sectors": [None] * 12}, "no picture has a sector"),
        ({"sectors": []}, "no picture has a sector"),
        ({"sectors": SECTORS[:5]}, "5 sectors do not belong to 12"),
        (broken(4, np.ones((8, 8), bool)), "picture 4 has another size"),
        (broken(2, np.zeros((EDGE, EDGE), bool)), "covers nothing"),
        (broken(2, np.ones((EDGE, EDGE), bool)), "covers everything"),
        (broken(2, np.where(sector(1), 255, 0)), "zeros and ones"),
        (broken(2, np.where(sector(1), np.nan, 0)), "zeros and ones"),
        ({"images": SPOILED}, "not finite"),
        ({"images": IMAGES * 255}, r"outside \[0, 1\]"),
        ({"images": IMAGES - IMAGES.mean()}, r"outside \[0, 1\]"),
        ({"images": IMAGES.repeat(3, axis=1)}, "not gray pictures"),
        ({"labels": LABELS[:4]}, "labels do not belong"),
        ({"labels": LABELS.astype(float)}, "labels do not belong"),
        ({"labels": LABELS + 1}, "none of the classes"),
        ({"labels": LABELS - 1}, "none of the classes"),
        ({"classes": 1}, "nothing to tell apart"),
        ({"background": "green"}, "'green' is unknown"),
    ],
)
def test_what_cannot_be_mixed_is_refused(changes: dict[str, Any], match: str) -> None:
    with pytest.raises(DataError, match=match):
        mixer(**changes)
    mixer()


def test_sector_of_zeros_and_ones_is_one_of_bools() -> None:
    numbers = mixer(sectors=[np.asarray(s, np.uint8) for s in SECTORS])(6, rng())
    assert torch.equal(numbers.image_BCHW, mixer()(6, rng()).image_BCHW)


def test_moved_scans_stay_near_themselves() -> None:
    scans = torch.rand(3, 1, 6, 6, 6, generator=rng())
    batch = draw_moved(3, lambda rows: scans[rows], device="cpu")(16, rng())
    assert batch.shape == (16, 1, 6, 6, 6)
    assert 0 <= float(batch.min()) <= float(batch.max()) <= 1
    assert len(torch.unique(batch.flatten(1), dim=0)) > 3
