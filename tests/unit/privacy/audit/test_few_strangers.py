"""A class of which hardly a stranger is there is measured or not, and fails nothing."""

from __future__ import annotations

import numpy as np
import torch

from vitrael.core.models.fusion_learning import tell_site
from vitrael.core.models.score_fusion import Readings
from vitrael.core.rng import stream
from vitrael.privacy.audit.expert_attacks import Seen, guess_under_noise
from vitrael.privacy.audit.expert_risk import measure_members

WIDTH = 6


def seen(name: str, labels: list[str], first: int) -> Seen:
    """Return what one expert sees in pictures, each of another patient."""
    value = torch.from_numpy(stream(3, name).normal(size=(len(labels), WIDTH))).float()
    readings = Readings({"n": value}, {"n": value[:, :4].abs()}, {"n": value[:, 4:]})
    return Seen(readings, labels, [first + number for number in range(len(labels))])


def test_class_with_one_stranger_is_guessed_as_nothing_and_the_rest_is_measured() -> None:
    known = seen("known", ["A2C", "A4C"] * 15, 0)
    strange = seen("strange", ["A2C"] * 14 + ["A4C"], 100)
    told = tell_site(
        known.readings, known.labels, known.patients, noise_frac=0.5, rng=stream(1, "s")
    )
    guesses = guess_under_noise(told, known=known, strange=strange, noise_frac=0.5)
    assert all(np.isfinite(part).all() for part in guesses)
    assert guesses.strange_B[-1] == 0
    assert np.abs(guesses.strange_B[:-1]).min() > 0  # the control
    measured = measure_members(told, known=known, strange=strange, noise_frac=0.5)
    assert all(one.value is not None for one in measured)
