"""How good a model became, told with it: the codec's ceiling, and whether the samples obey.

Axes: B rows, K covariates.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from vitrael.core.data.measure import measure_volumes
from vitrael.core.errors import DataError
from vitrael.core.metrics.conditioning import audit_condition
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
_MEASURER: Final = "core.data.measure"
_OF_AUDIT: Final = ("r", "r_low", "r_high", "shuffled_r", "shuffled_r_high")
_BATCH_IMAGES: Final = 8


def measure_ceiling(codec: KLCodec, held: Rows, *, bf16: bool = False) -> dict[str, Any]:
    """Return how well ventricle volumes of held-out scans survive the codec: no sample does better.

    ``r`` with its interval (None for fewer than four scans), ``mae_ml`` and ``n``; beside them the
    mean and the 95 % quantile of ``|r|`` over 1,000 shufflings, which is the control.
    """
    before, after = [], []
    for row, item in enumerate(held.items):
        affine = np.array(item.affine)
        decoded = reconstruct_rows(codec, held, [row], bf16=bf16)
        before.append(measure_volumes(held.images.batch([row]), affine)[0][0])
        after.append(measure_volumes(decoded, affine)[0][0])
    rng = stream(0, "ceiling control")
    return audit_volumes(np.array(before), np.array(after), measurer=_MEASURER, rng=rng)


def measure_obedience(
    generator: Generator,
    condition_BK: np.ndarray,
    covariates: Sequence[Covariate],
    *,
    seed: int,
    tell: Tell = silent,
) -> dict[str, Any]:
    """Return how the ventricle volumes that are asked for and those that are drawn go together.

    As ``measure_ceiling``.
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
    rng = stream(seed, "audit control")
    return audit_volumes(asked, drawn, measurer=_MEASURER, rng=rng)


def audit_volumes(
    asked_B: np.ndarray, found_B: np.ndarray, *, measurer: str, rng: np.random.Generator
) -> dict[str, Any]:
    """Return what the audit of two series in ml says: ``core.metrics.conditioning``.

    ``r``, ``r_low``, ``r_high``, ``shuffled_r`` and ``shuffled_r_high`` are None where no
    correlation exists: for fewer than four pairs and for a series that does not vary.
    """
    error_ml = float(np.abs(asked_B - found_B).mean())
    report: dict[str, Any] = {**dict.fromkeys(_OF_AUDIT), "mae_ml": error_ml, "n": len(asked_B)}
    try:
        audit = audit_condition(asked_B, found_B, condition=_ASKED, measurer=measurer, rng=rng)
    except DataError:  # too few pairs, or all the same: the error alone can be told
        return report
    control = audit.permuted_r
    found = (audit.r.value, audit.r.low, audit.r.high, control.value, control.high)
    return report | dict(zip(_OF_AUDIT, found, strict=True))
