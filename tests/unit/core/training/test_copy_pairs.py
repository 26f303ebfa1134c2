"""What the copy encoder is shown: who counts as somebody else, and how a clip is disguised."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import torch

from vitrael.core.records import PatientImages
from vitrael.core.rng import torch_stream
from vitrael.core.training.copy_pairs import CopyPairs, Disguise, as_channels, disguise, retime
from vitrael.core.training.warps import Pose

_PLAIN = Disguise(
    pose=Pose(rotation_rad=0, stretch_frac=0, shift_frac=0),
    bend_frac=0,
    blend_share=0,
    replaced_share=0,
    cut_share=0,
    blur_share=0,
    gamma=0,
    shade=0,
    gain=0,
    noise=0,
)


def _images(image: np.ndarray, *, scans: int) -> PatientImages:
    count = len(image)
    patient, visit = np.arange(count) // scans, np.arange(count) % scans
    return PatientImages(image, np.zeros((count, 4), np.float32), patient, visit)


def test_no_scan_of_one_patient_stands_for_somebody_else() -> None:
    """Each has two visits, and both after the autoencoder."""
    images = _images(np.zeros((32, 1, 4, 4, 4), np.float32), scans=4)
    pairs, rng = CopyPairs(images), torch_stream(1, "rows")
    for _ in range(20):
        row, other = (images.patient_B[rows.numpy()] for rows in pairs.draw_rows(8, rng))
        assert len(set(row)) == 8
        assert (row != other).all()
    # The control: scans that are drawn as if each were of another patient.
    drawn = torch.randperm(32, generator=rng)[:8].numpy()
    assert len(set(images.patient_B[drawn])) < 8


def test_neighbors_are_of_two_patients_where_a_batch_takes_more_than_there_are() -> None:
    images = _images(np.zeros((10, 1, 4, 4, 4), np.float32), scans=2)
    pairs, rng = CopyPairs(images), torch_stream(2, "rows")
    for count in (3, 6, 11, 16):
        row, _ = pairs.draw_rows(count, rng)
        patient = images.patient_B[row.numpy()]
        assert (patient != np.roll(patient, 1)).all()


def test_two_views_of_a_pair_hold_two_strangers() -> None:
    level = torch.linspace(0.1, 0.9, 8).reshape(8, 1, 1, 1, 1)
    image = level.expand(8, 1, 4, 4, 4).contiguous()
    blended = replace(_PLAIN, blend_share=1.0)
    one, two = (
        disguise(image, blended, torch_stream(3, "views"), stranger=step)[:, 0, 2, 2, 2]
        for step in (1, -1)
    )
    mine, before, after = (level.roll(step, 0).flatten() for step in (0, 1, -1))
    assert _between(one, mine, before).all()
    assert _between(two, mine, after).all()
    assert not _between(two, mine, before).all()


def test_frames_of_a_clip_are_disguised_alike() -> None:
    rng = np.random.default_rng(4)
    still = np.repeat(rng.uniform(0.2, 0.8, (6, 1, 1, 12, 12)), 8, axis=2).astype(np.float32)
    quiet = Disguise(noise=0)
    for along in ("time", "space"):
        one, two = CopyPairs(_images(still, scans=1), along=along, disguise=quiet)(
            12, torch_stream(4, "clip")
        )
        assert one.shape == two.shape == (6, 1, 8, 12, 12)
        spread = torch.cat([one, two]).std(2).amax()
        assert (spread < 1e-5) == (along == "time")  # as a volume its frames would be bent apart
        assert (one - two).abs().amax() > 0.05


def test_clip_is_played_from_any_frame_at_any_speed_either_way() -> None:
    number = torch.arange(16.0).reshape(1, 16, 1, 1, 1).expand(200, 16, 1, 1, 1)
    shown = retime(number, torch_stream(5, "time"))[:, :, 0, 0, 0]
    step = (shown.diff(dim=1) + 8) % 16 - 8
    assert set(shown[:, 0].tolist()) == set(range(16))
    forward = (step >= 0).all(1)
    assert 0.3 < forward.float().mean() < 0.7
    assert (step[~forward] <= 0).all()
    mean = step.mean(1).abs()
    assert mean.min() >= 0.4
    assert mean.max() <= 2.2
    assert ((step == 0).float().mean(1) > 0.3).any()  # frames that stand still
    assert (as_channels(as_channels(number)) == number).all()


def _between(value: torch.Tensor, one: torch.Tensor, two: torch.Tensor) -> torch.Tensor:
    low, high = torch.minimum(one, two) - 1e-5, torch.maximum(one, two) + 1e-5
    return (value >= low) & (value <= high)
