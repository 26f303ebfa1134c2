"""Signals of the tissues stand in the order that every radiologist knows."""

from __future__ import annotations

from math import exp

import numpy as np
import pytest

from vitrael.core.data.phantoms.contrasts import (
    CONTRASTS,
    RELAXATION,
    Relaxation,
    Sequence,
    nulling_ti_ms,
    signal_of,
    signals,
)
from vitrael.core.data.phantoms.tissues import Tissue


def levels(name: str) -> dict[str, float]:
    level_K = signals(CONTRASTS[name])
    return {tissue.name: float(level_K[tissue]) for tissue in Tissue}


def test_t1_weighted_white_is_brighter_than_gray_and_gray_than_fluid() -> None:
    level = levels("T1w")
    assert level["WHITE"] == pytest.approx(0.85, rel=0.01)
    assert level["CORTEX"] == pytest.approx(0.55, rel=0.01)
    assert level["CSF"] == pytest.approx(0.15, rel=0.01)
    assert level["WHITE"] > level["WMH"] > level["TUMOR_CORE"]


def test_t2_weighted_order_is_reversed() -> None:
    level = levels("T2w")
    assert level["CSF"] > level["CORTEX"] > level["WHITE"]
    assert min(level[name] for name in ("WMH", "EDEMA", "TUMOR_RIM")) > level["CORTEX"]


def test_flair_nulls_fluid_and_lights_up_lesions() -> None:
    level = levels("FLAIR")
    assert level["CSF"] == pytest.approx(0, abs=1e-6)
    assert min(level[name] for name in ("WMH", "EDEMA")) > 1.5 * level["CORTEX"]
    # Control: a tenth off the nulling time, fluid shines again.
    flair = CONTRASTS["FLAIR"]
    late = Sequence(flair.tr_ms, flair.te_ms, 1.1 * nulling_ti_ms(flair.tr_ms), flair.gain)
    assert signal_of(RELAXATION[Tissue.CSF], late) > 0.05


def test_signal_equations_by_hand() -> None:
    tissue = Relaxation(1000, 100, 0.8)
    echo = Sequence(tr_ms=2000, te_ms=50, ti_ms=None, gain=2.0)
    assert signal_of(tissue, echo) == pytest.approx(2 * 0.8 * (1 - exp(-2)) * exp(-0.5))
    inverted = Sequence(tr_ms=2000, te_ms=50, ti_ms=100, gain=1.0)
    recovery = abs(1 - 2 * exp(-0.1) + exp(-2))
    assert signal_of(tissue, inverted) == pytest.approx(0.8 * recovery * exp(-0.5))


def test_contrast_moves_white_matter_alone() -> None:
    plain, wide = (signals(CONTRASTS["T1w"], contrast=c) for c in (1.0, 1.2))
    assert wide[Tissue.WHITE] - wide[Tissue.CORTEX] == pytest.approx(1.2 * 0.3, rel=0.01)
    kept = [Tissue.CSF, Tissue.CORTEX, Tissue.THALAMUS, Tissue.SCALP]
    assert np.array_equal(plain[kept], wide[kept])


def test_every_tissue_has_its_parameters_and_the_background_none() -> None:
    assert set(RELAXATION) == set(Tissue) - {Tissue.BACKGROUND}
    assert signals(CONTRASTS["T2w"])[Tissue.BACKGROUND] == 0
