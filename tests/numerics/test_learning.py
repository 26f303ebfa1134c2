"""Every network can learn one batch by heart; a control that may not change does not."""

from __future__ import annotations

import pytest
import torch

from tests.factories.systems import CONFIGS, batch, brain_ldm, images
from vitrael.core.configs import TrainingConfig
from vitrael.core.models import SYSTEMS
from vitrael.core.models.brain_ldm import build_codec
from vitrael.core.training.loop import fit

BUDGET = {"codec": (60, 0.35), "teacher": (80, 0.8), "encoder": (40, 0.5)}
"""Part to its steps and the share of the first loss that it must come below."""


@pytest.mark.parametrize(
    ("kind", "part"),
    [("brain_ldm", "codec"), ("brain_ldm", "teacher"), ("reid_encoder", "encoder")],
)
def test_one_batch_is_learned_by_heart(kind: str, part: str) -> None:
    spec, config = SYSTEMS[kind], CONFIGS[kind]
    network, objective = spec.build(config, 1)[part], spec.objective(config, part)
    learned = batch(kind, part)
    steps, share = BUDGET[part]
    training = TrainingConfig(length_images=4 * steps, batch_images=4, learning_rate=4e-3)

    def loss_now() -> float:
        with torch.no_grad():
            rngs = [torch.Generator().manual_seed(seed) for seed in range(4)]
            return sum(objective(network, learned, rng).total.item() for rng in rngs)

    before = loss_now()
    rng = torch.Generator().manual_seed(9)
    fit(network, objective, lambda *_: learned, training, length_images=4 * steps, rng=rng)
    assert loss_now() < share * before


def test_codec_that_learned_a_batch_reproduces_it() -> None:
    codec, objective = build_codec(brain_ldm(), seed=1), SYSTEMS["brain_ldm"].objective
    shown, other = images(4), images(4, seed=8)

    def error(x: torch.Tensor) -> float:
        with torch.no_grad():
            return (codec.decode(codec.encode(x)) - x).abs().mean().item()

    before = error(shown)
    training = TrainingConfig(length_images=400, batch_images=4, learning_rate=4e-3)
    fit(
        codec,
        objective(brain_ldm(), "codec"),
        lambda *_: shown,
        training,
        length_images=400,
        rng=torch.Generator().manual_seed(9),
    )
    assert error(shown) < 0.3 * before
    assert error(shown) < error(other)
