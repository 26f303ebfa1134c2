from __future__ import annotations

import numpy as np
import pytest
import torch

from vitrael.core.configs import ReidEncoderConfig, TrainingConfig
from vitrael.core.errors import DataError
from vitrael.core.models.reid import Learns, ReidEncoder, build_reid_encoder
from vitrael.core.records import PatientImages
from vitrael.core.rng import stream, torch_stream
from vitrael.core.training.contrastive import VisitPairs
from vitrael.core.weights import module_tensors
from vitrael.privacy.reid.encoders import count_patients, pairs_of, train_encoder

_VOLUME, _PICTURE = (8, 8, 8), (1, 16, 16)
_CONFIG = ReidEncoderConfig(
    kind="reid_encoder",
    channels=(4, 8),
    embedding=8,
    training=TrainingConfig(rounds=2, length_images=160, batch_images=16, learning_rate=3e-3),
)


def _images(
    patients: int, *, visits: int = 2, grid: tuple[int, int, int] = _VOLUME
) -> PatientImages:
    rng = stream(1, "f")
    own = np.repeat(rng.uniform(0, 1, (patients, 1, *grid)), visits, axis=0)
    image = np.clip(own + rng.normal(0, 0.02, own.shape), 0, 1).astype(np.float32)
    return PatientImages(
        image,
        np.zeros((len(image), 4), np.float32),
        np.repeat(np.arange(patients), visits),
        np.tile(np.arange(visits), patients),
    )


def _train(
    images: PatientImages, learns: Learns, *, rounds: int = 1
) -> tuple[ReidEncoder, list[float]]:
    encoder = build_reid_encoder(_CONFIG, seed=2, learns=learns)
    losses: list[float] = []
    length = 160 // rounds
    for number in range(rounds):
        curve = train_encoder(
            encoder,
            images,
            _CONFIG,
            learns=learns,
            rng=torch_stream(3, learns, number),
            length_images=length,
            start_images=number * length,
        )
        losses += curve.losses["total"]
        assert curve.images[-1] == (number + 1) * length
    return encoder, losses


@pytest.mark.parametrize("learns", ["visits", "copies"])
@pytest.mark.parametrize("grid", [_VOLUME, _PICTURE])
def test_both_encoders_learn_from_volumes_and_from_pictures(
    learns: Learns, grid: tuple[int, int, int]
) -> None:
    _, losses = _train(_images(6, grid=grid), learns)
    assert np.mean(losses[-3:]) < np.mean(losses[:3])


def test_rounds_go_on_where_the_last_one_ended() -> None:
    whole, _ = _train(_images(4), "visits")
    once, _ = _train(_images(4), "visits", rounds=2)
    again, _ = _train(_images(4), "visits", rounds=2)
    first, second, other = (module_tensors(one) for one in (once, again, whole))
    assert all(np.array_equal(first[name], second[name]) for name in first)
    assert not all(np.array_equal(first[name], other[name]) for name in first)  # the control


def test_patient_of_one_volume_is_paired_with_it_and_one_of_one_picture_is_left_out() -> None:
    volumes = pairs_of(_images(3, visits=1), learns="visits")
    pictures = pairs_of(_some_once(_PICTURE), learns="visits")
    assert isinstance(volumes, VisitPairs)
    assert isinstance(pictures, VisitPairs)
    assert [len(rows) for rows in volumes.rows] == [1, 1, 1]
    assert [len(rows) for rows in pictures.rows] == [2, 2]
    with pytest.raises(DataError, match="two patients"):
        pairs_of(_images(3, visits=1, grid=_PICTURE), learns="visits")


@pytest.mark.filterwarnings("ignore:.*affine_grid:UserWarning")
def test_pictures_differ_in_gray_values_and_stay_flat() -> None:
    rng = torch_stream(4, "draw")
    bright = pairs_of(_images(4, grid=_PICTURE), learns="visits")(16, rng)
    assert bright[0].shape == bright[1].shape == (8, 1, 1, 16, 16)
    as_they_are = VisitPairs(_images(4, grid=_PICTURE), view=lambda image, _: image)
    plain = as_they_are(16, torch_stream(4, "draw"))
    assert _exponents(bright) > 5 * _exponents(plain)


@pytest.mark.parametrize("learns", ["visits", "copies"])
def test_one_patient_is_nobody_to_tell_apart(learns: Learns) -> None:
    alone = _images(1, visits=1)
    with pytest.raises(DataError):
        _train(alone, learns)
    assert (count_patients(alone), count_patients(_images(3))) == (1, 3)


def _some_once(grid: tuple[int, int, int]) -> PatientImages:
    """Return two patients with two images, and behind them one with one."""
    images = _images(3, grid=grid)
    return PatientImages(
        images.image_BCDHW[:5], images.condition_BK[:5], images.patient_B[:5], images.visit_B[:5]
    )


def _exponents(pair: tuple[torch.Tensor, torch.Tensor]) -> float:
    """Return by how much the mean gray value differs within the pairs."""
    one, two = (view.flatten(1).mean(1).clamp_min(1e-3).log() for view in pair)
    return float((one - two).abs().mean())
