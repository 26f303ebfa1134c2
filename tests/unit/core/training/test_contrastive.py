from __future__ import annotations

import numpy as np
import pytest
import torch

from vitrael.core.configs import LocalTrainingConfig, ReidEncoderConfig
from vitrael.core.errors import DataError
from vitrael.core.interfaces import Embedder
from vitrael.core.models.reid import build_reid_encoder
from vitrael.core.records import PatientImages
from vitrael.core.rng import stream, torch_stream
from vitrael.core.training.contrastive import ContrastiveObjective, VisitPairs
from vitrael.core.training.loop import fit

_CONFIG = ReidEncoderConfig(
    kind="reid_encoder",
    channels=(4, 8),
    embedding=8,
    training=LocalTrainingConfig(length_images=160, batch_images=16, learning_rate=3e-3),
)


def _images(patients: int, visits: int = 2) -> PatientImages:
    image = stream(1, "f").uniform(0, 1, (patients * visits, 1, 8, 8, 8)).astype(np.float32)
    return PatientImages(
        image,
        np.zeros((len(image), 4), np.float32),
        np.repeat(np.arange(patients), visits),
        np.tile(np.arange(visits), patients),
    )


def test_embedding_has_unit_length_and_ignores_the_mirror_and_the_batch() -> None:
    encoder = build_reid_encoder(_CONFIG, seed=1)
    assert isinstance(encoder, Embedder)
    x = torch.rand(5, 1, 8, 8, 8, generator=torch_stream(1, "x"))
    with torch.no_grad():
        whole = encoder.embed(x)
        assert torch.allclose(whole.norm(dim=1), torch.ones(5), atol=1e-5)
        assert torch.allclose(whole, encoder.embed(x.flip(2)), atol=1e-5)
        assert torch.allclose(whole[:1], encoder.embed(x[:1]), atol=1e-5)
        assert torch.allclose(whole, encoder.embed(x * 2 + 1), atol=1e-4)


def test_pairs_are_reproducible_and_of_the_asked_size() -> None:
    draw = VisitPairs(_images(5))
    first, second = draw(16, torch_stream(2, "draw"))
    again, _ = draw(16, torch_stream(2, "draw"))
    assert first.shape == second.shape == (8, 1, 8, 8, 8)
    assert torch.equal(first, again)
    assert not torch.equal(first, second)


def test_one_visit_is_paired_with_itself() -> None:
    first, second = VisitPairs(_images(3, visits=1))(8, torch_stream(3, "draw"))
    assert first.shape == second.shape == (4, 1, 8, 8, 8)


def test_one_patient_is_nobody_to_tell_apart() -> None:
    with pytest.raises(DataError):
        VisitPairs(_images(1))


def test_loss_is_low_for_equal_pairs_and_high_for_crossed_ones() -> None:
    objective = ContrastiveObjective(temperature=0.1)
    points = torch.eye(4)
    model = torch.nn.Identity()
    good = objective(model, (points, points), torch_stream(4, "o"))
    bad = objective(model, (points, points.roll(1, 0)), torch_stream(4, "o"))
    assert float(good.total) < 0.01
    assert float(bad.total) > 1
    assert float(good.parts["found_frac"]) == 1


def test_training_lowers_the_loss() -> None:
    encoder = build_reid_encoder(_CONFIG, seed=2)
    curve = fit(
        encoder,
        ContrastiveObjective(_CONFIG.temperature),
        VisitPairs(_images(6)),
        _CONFIG.training,
        length_images=160,
        rng=torch_stream(5, "fit"),
    )
    losses = curve.losses["total"]
    assert np.mean(losses[-3:]) < np.mean(losses[:3])
