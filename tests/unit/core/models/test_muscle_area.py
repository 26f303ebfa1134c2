"""A muscle that is outlined has an area; one that is not seen has none."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from vitrael.core.configs import LocalTrainingConfig
from vitrael.core.errors import DataError
from vitrael.core.interfaces import Predictor
from vitrael.core.metrics.muscle import cross_section_mm2
from vitrael.core.models.muscle_area import (
    OutlinedFrames,
    OutlineObjective,
    build_muscle_outliner,
    measure_areas,
)
from vitrael.core.rng import stream, torch_stream
from vitrael.core.training.loop import fit

SPACING_MM = (0.9, 0.8)


def draw_disks(count: int, name: str) -> tuple[np.ndarray, np.ndarray]:
    """Return bright disks on a dark ground, and where they are."""
    rng = stream(3, name)
    row, column = np.mgrid[:32, :32]
    middle, radius = rng.uniform(12, 20, (2, count)), rng.uniform(5, 9, count)
    mask = np.stack(
        [(row - y) ** 2 + (column - x) ** 2 < r**2 for y, x, r in zip(*middle, radius, strict=True)]
    )
    return (np.where(mask, 170, 60) + rng.integers(0, 40, mask.shape)).astype(np.uint8), mask


def test_outline_is_learned_and_its_area_is_close() -> None:
    model = build_muscle_outliner(seed=2)
    assert isinstance(model, Predictor)
    frames, mask = draw_disks(6, "new")
    truth = np.array([cross_section_mm2(m, spacing_mm=SPACING_MM) for m in mask])
    untrained = measure_areas(model, frames, spacing_mm=SPACING_MM)
    fit(
        model,
        OutlineObjective(),
        OutlinedFrames(*draw_disks(40, "old")),
        LocalTrainingConfig(length_images=1_600, batch_images=16, learning_rate=1e-2),
        length_images=1_600,
        rng=torch_stream(2, "fit"),
    )
    found = measure_areas(model, frames, spacing_mm=SPACING_MM)
    assert np.abs(found / truth - 1).mean() < 0.1
    assert not np.nanmean(np.abs(untrained / truth - 1)) < 0.1  # the control


def test_frame_without_a_muscle_has_no_area() -> None:
    model = build_muscle_outliner(seed=2)
    for weight in model.parameters():
        weight.data.zero_()
    assert np.isnan(measure_areas(model, draw_disks(2, "new")[0], spacing_mm=SPACING_MM)).all()


def test_masks_follow_the_frames_into_the_mirror() -> None:
    frames, mask = draw_disks(8, "new")
    drawn, outlined = OutlinedFrames(frames, mask)(64, torch_stream(2, "draw"))
    inside = (drawn * outlined).sum() / outlined.sum()
    outside = (drawn * (1 - outlined)).sum() / (1 - outlined).sum()
    assert float(inside - outside) > 0.2
    mirrored = outlined.flip(3)
    strayed = (drawn * mirrored).sum() / mirrored.sum()
    assert float(strayed) < float(inside) - 0.03  # the control


def test_outlines_of_other_frames_are_refused() -> None:
    frames, mask = draw_disks(3, "new")
    with pytest.raises(DataError, match="do not belong together"):
        OutlinedFrames(frames, mask[:2])


def test_frames_that_do_not_halve_and_pixels_without_a_size_are_refused() -> None:
    model = build_muscle_outliner(seed=2)
    with pytest.raises(DataError, match="multiples of 8"):
        model.predict(torch.zeros(1, 1, 30, 32))
    with pytest.raises(DataError, match="no size"):
        measure_areas(model, draw_disks(1, "new")[0], spacing_mm=(0.0, 1.0))
