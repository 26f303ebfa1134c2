"""What a scanner's sequence makes of a tissue: T1, T2 and proton density to a gray value.

Spin echo: ``S = PD (1 - exp(-TR/T1)) exp(-TE/T2)``. With an inversion pulse before it:
``S = PD |1 - 2 exp(-TI/T1) + exp(-TR/T1)| exp(-TE/T2)`` (Bernstein, King and Zhou, Handbook of MRI
Pulse Sequences, 2004, sections 14.2 and 14.3). The healthy tissues' parameters are those of
BrainWeb at 1.5 T (Kwan, Evans and Pike 1999, IEEE TMI 18:1085); those of tumors and of what lies
outside the brain were chosen.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from math import exp, log1p
from types import MappingProxyType
from typing import NamedTuple

import numpy as np

from vitrael.core.data.phantoms.tissues import Tissue


class Relaxation(NamedTuple):
    """What a tissue answers to a sequence with."""

    t1_ms: float
    t2_ms: float
    density: float
    """Of protons, relative to water."""


_WATER = Relaxation(2569, 329, 1.0)
_GRAY = Relaxation(833, 83, 0.86)
_WHITE = Relaxation(500, 70, 0.77)

RELAXATION: Mapping[Tissue, Relaxation] = MappingProxyType(
    {
        Tissue.CSF: _WATER,
        Tissue.CORTEX: _GRAY,
        Tissue.WHITE: _WHITE,
        Tissue.VENTRICLES: _WATER,
        Tissue.THIRD_VENTRICLE: _WATER,
        Tissue.THALAMUS: _GRAY,
        Tissue.CAUDATE: _GRAY,
        Tissue.PUTAMEN: _GRAY,
        Tissue.HIPPOCAMPUS: _GRAY,
        Tissue.CEREBELLUM_GRAY: _GRAY,
        Tissue.CEREBELLUM_WHITE: _WHITE,
        Tissue.BRAINSTEM: Relaxation(550, 74, 0.78),
        Tissue.WMH: Relaxation(752, 237, 0.76),
        Tissue.TUMOR_CORE: Relaxation(1800, 260, 0.95),
        Tissue.TUMOR_RIM: Relaxation(1100, 140, 0.88),
        Tissue.EDEMA: Relaxation(1000, 170, 0.84),
        Tissue.SKULL: Relaxation(350, 70, 0.05),
        Tissue.SCALP: Relaxation(450, 62, 0.75),
        Tissue.NECK: Relaxation(900, 47, 1.0),
        Tissue.FACE: Relaxation(600, 58, 0.9),
        Tissue.EYES: Relaxation(2400, 280, 0.98),
    }
)
"""Of every tissue but the background, which gives no signal."""


@dataclass(frozen=True, slots=True)
class Sequence:
    """How a contrast is taken; without ``ti_ms`` it is a plain spin echo."""

    tr_ms: float
    te_ms: float
    ti_ms: float | None
    gain: float
    """Puts the brightest tissue of the brain near 0.9."""


def nulling_ti_ms(tr_ms: float) -> float:
    """Return the inversion time at which water gives no signal."""
    return _WATER.t1_ms * (log1p(1.0) - log1p(exp(-tr_ms / _WATER.t1_ms)))


CONTRASTS: Mapping[str, Sequence] = MappingProxyType(
    {
        "T1w": Sequence(tr_ms=1111, te_ms=4, ti_ms=600.6, gain=2.304),
        "T2w": Sequence(tr_ms=4000, te_ms=100, ti_ms=None, gain=1.6),
        "FLAIR": Sequence(tr_ms=9000, te_ms=110, ti_ms=nulling_ti_ms(9000), gain=2.4),
    }
)
"""By BIDS suffix. The T1w is set so that white, gray and fluid stand as 0.85 : 0.55 : 0.15."""


def signal_of(tissue: Relaxation, sequence: Sequence) -> float:
    """Return the magnitude of a tissue's signal."""
    t1_ms, t2_ms, density = tissue
    recovery = 1 - exp(-sequence.tr_ms / t1_ms)
    if sequence.ti_ms is not None:
        recovery = abs(1 - 2 * exp(-sequence.ti_ms / t1_ms) + exp(-sequence.tr_ms / t1_ms))
    return sequence.gain * density * recovery * exp(-sequence.te_ms / t2_ms)


def signals(sequence: Sequence, *, contrast: float = 1.0) -> np.ndarray:
    """Return ``[K]`` float32: the gray value of every tissue, in the order of ``Tissue``.

    ``contrast`` widens or narrows the gap between gray and white matter, on the side of the white.
    """
    level_K = np.zeros(len(Tissue))
    for tissue, relaxation in RELAXATION.items():
        level_K[tissue] = signal_of(relaxation, sequence)
    gray = level_K[Tissue.CORTEX]
    for tissue in (Tissue.WHITE, Tissue.CEREBELLUM_WHITE, Tissue.BRAINSTEM):
        level_K[tissue] = gray + (level_K[tissue] - gray) * contrast
    return level_K.astype(np.float32)
