"""Attackers on what sites tell of their classes who know more than those of the library.

Axes: B images, D what all experts see of one.
"""

from __future__ import annotations

import numpy as np

from vitrael.core.models.fusion_learning import SiteOutlook
from vitrael.core.scoring.in_distribution import toward_round
from vitrael.privacy.audit.expert_attacks import (
    Guesses,
    Seen,
    guess_by_likelihood,
    guess_by_nearness,
    guess_under_noise,
    lay_out,
)


def guess_by_covariances(known: Seen, strange: Seen) -> Guesses:
    """Return minus the distance from the mean of one's class in its own covariance, by expert."""
    guesses = Guesses(np.zeros(len(known.labels)), np.zeros(len(strange.labels)))
    for expert in known.readings.features:
        rows = [lay_out(side.readings, [expert]) for side in (known, strange)]
        for name in dict.fromkeys(known.labels):
            own_BD = rows[0][known.rows_of([name])]
            inverse_DD = np.linalg.inv(toward_round(np.cov(own_BD.T, bias=True)))
            for side, row_BD, guess_B in zip((known, strange), rows, guesses, strict=True):
                here = side.rows_of([name])
                offset_BD = row_BD[here] - own_BD.mean(axis=0)
                guess_B[here] -= ((offset_BD @ inverse_DD) * offset_BD).sum(axis=1)
    return guesses


def guess_from_means(
    told: SiteOutlook, *, known: Seen, strange: Seen, noise_frac: float
) -> dict[str, Guesses]:
    """Return the guesses of each attacker on means, by what they have beside them."""
    return {
        "": guess_by_nearness(told, known=known, strange=strange),
        " and strangers": guess_by_likelihood(told, known=known, strange=strange),
        ", strangers and the noise": guess_under_noise(
            told, known=known, strange=strange, noise_frac=noise_frac
        ),
    }
