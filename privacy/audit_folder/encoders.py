"""The encoders of an audit, trained on one part of the patients of the real folder."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

import numpy as np

from vitrael.core.configs import LocalTrainingConfig, ReidEncoderConfig
from vitrael.core.models.reid import Learns, ReidEncoder, build_reid_encoder
from vitrael.core.records import PatientImages
from vitrael.core.rng import torch_stream
from vitrael.privacy.reid.encoders import train_encoder
from vitrael.privacy.reid.lens import Encoders

FEWEST_SEEN_AGAIN: Final = 4
"""Patients of a part with several scans, without whom no encoder learns to know a patient again."""
_BATCH: Final = 32
_LEARNING_RATE: Final = 2e-3


@dataclass(frozen=True, slots=True)
class Budget:
    """How long the encoders are trained, and how large they are."""

    length_images: int = 4096
    """Drawn for each encoder."""
    channels: tuple[int, ...] = (8, 16, 32)
    embedding: int = 64


def seen_again(patient_B: np.ndarray) -> int:
    """Return how many patients have several scans."""
    return int((np.unique(patient_B, return_counts=True)[1] > 1).sum())


def train_encoders(
    laid: PatientImages,
    budget: Budget,
    *,
    seed: int,
    part: int,
    knows_visits: bool,
    tell: Callable[[int], None],
) -> Encoders:
    """Return the encoders of a part; its images were laid onto the template.

    Without ``knows_visits`` the copy encoder is both. ``tell`` hears of images drawn.
    """
    copy = _train(laid, budget, learns="copies", seed=seed, name=f"copy/{part}", tell=tell)
    if not knows_visits:
        return Encoders(copy, copy)
    patient = _train(
        laid,
        budget,
        learns="visits",
        seed=seed,
        name=f"patient/{part}",
        tell=lambda done: tell(budget.length_images + done),
    )
    return Encoders(copy, patient)


def _train(
    laid: PatientImages,
    budget: Budget,
    *,
    learns: Learns,
    seed: int,
    name: str,
    tell: Callable[[int], None],
) -> ReidEncoder:
    config = ReidEncoderConfig(
        kind="reid_encoder",
        channels=budget.channels,
        embedding=budget.embedding,
        training=LocalTrainingConfig(
            length_images=budget.length_images, batch_images=_BATCH, learning_rate=_LEARNING_RATE
        ),
    )
    encoder = build_reid_encoder(config, seed=seed, learns=learns)
    train_encoder(
        encoder,
        laid,
        config,
        learns=learns,
        rng=torch_stream(seed, "audit-folder", name),
        progress=lambda done, _total: tell(done),
    )
    return encoder
