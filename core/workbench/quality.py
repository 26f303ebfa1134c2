"""How good a model became, told with it: the codec's ceiling, and whether the samples obey.

Axes: B rows, K covariates.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from vitrael.core.data.measure import measure_volumes
from vitrael.core.metrics.intervals import pearson_interval, pearson_r, permuted_r
from vitrael.core.records import SampleRequest
from vitrael.core.rng import stream, stream_seed
from vitrael.core.workbench.batches import reconstruct_rows
from vitrael.core.workbench.covariates import Covariate, unscale_values
from vitrael.core.workbench.progress import Tell, silent

if TYPE_CHECKING:
    from vitrael.core.interfaces import Generator
    from vitrael.core.models.nets.autoencoder import KLCodec
    from vitrael.core.workbench.intake import Rows

_ASKED: Final = "ventricle_ml"
_PERMUTATIONS: Final = 1000
_FEWEST_PAIRS: Final = 4
"""Below which a correlation says nothing."""
_BATCH_IMAGES: Final = 8


def measure_ceiling(codec: KLCodec, held: Rows, *, bf16: bool = False) -> dict[str, Any]:
    """Return how well ventricle volumes of held-out scans survive the codec: no sample does better.

    ``r`` with its interval (None for fewer than four scans), ``mae_ml`` and ``n``.
    """
    before, after = [], []
    for row, item in enumerate(held.items):
        affine = np.array(item.affine)
        decoded = reconstruct_rows(codec, held, [row], bf16=bf16)
        before.append(measure_volumes(held.images.batch([row]), affine)[0][0])
        after.append(measure_volumes(decoded, affine)[0][0])
    return correlate(np.array(before), np.array(after))


def measure_obedience(
    generator: Generator,
    condition_BK: np.ndarray,
    covariates: Sequence[Covariate],
    *,
    seed: int,
    tell: Tell = silent,
) -> dict[str, Any]:
    """Return how the ventricle volumes that are asked for and those that are drawn go together.

    As ``measure_ceiling``; beside it the mean and the 95 % quantile of ``|r|`` over 1,000
    shufflings of what was asked, which is the control.
    """
    found = []
    for first in range(0, len(condition_BK), _BATCH_IMAGES):
        part = condition_BK[first : first + _BATCH_IMAGES]
        samples = generator.sample(
            SampleRequest(part, seed=stream_seed(seed, "audit"), first=first)
        )
        found.append(measure_volumes(samples.image_BCDHW, samples.affine)[0])
        tell("draw samples", first + len(part), len(condition_BK))
    column = [covariate.name for covariate in covariates].index(_ASKED)
    asked, drawn = unscale_values(condition_BK, covariates)[:, column], np.concatenate(found)
    report = correlate(asked, drawn)
    if report["r"] is not None:
        rng = stream(seed, "audit control")
        control = permuted_r(asked, drawn, rng=rng, draws=_PERMUTATIONS)
        report |= {"shuffled_r": control.mean, "shuffled_r_high": control.high}
    return report


def correlate(first_B: np.ndarray, second_B: np.ndarray) -> dict[str, Any]:
    """Return ``r``, ``r_low``, ``r_high``, ``mae_ml`` and ``n`` of two series in ml.

    ``r`` is None for fewer than four pairs and for a series that does not vary.
    """
    n = len(first_B)
    r = pearson_r(first_B, second_B) if n >= _FEWEST_PAIRS else math.nan
    low, high = pearson_interval(r, n)
    known = math.isfinite(r)
    return {
        "r": r if known else None,
        "r_low": low if known else None,
        "r_high": high if known else None,
        "mae_ml": float(np.abs(first_B - second_B).mean()),
        "n": n,
    }
