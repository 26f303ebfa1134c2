"""Scores are what a frozen threshold stands on: whoever changes them has to say so."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch.nn import functional

from tests.factories.filter_power import FlatEmbedder, Hospital, draw_patients
from vitrael.core.rng import stream
from vitrael.core.weights import Tensors
from vitrael.privacy.audit.plants.geometry import bend_each
from vitrael.privacy.reid import calibrate
from vitrael.privacy.reid.calibrate import SCORES, name_filter
from vitrael.privacy.reid.lens import Encoders

_EDGE_VOX = 16
_KNOWN = 2
"""The way of scoring that the figures below are of."""
_MEMBERS = np.array(
    [
        [4.56, 4.56, 9.54, 15.12, 1.70],
        [0.20, 0.20, 0.03, 2.91, 0.46],
        [4.61, 4.61, 9.58, 15.08, 2.05],
        [-1.00, -1.00, -1.01, 1.02, 0.86],
    ]
)
_WEIGHTS: dict[str, Tensors] = {"copies": {"bias": np.ones(2, np.float32)}}


def _pool(image_BCDHW: np.ndarray) -> np.ndarray:
    return functional.avg_pool3d(torch.from_numpy(image_BCDHW), 4).numpy() * 4


def _score() -> np.ndarray:
    """Return what members say of a bent copy, a blend, a weak mirrored copy, a fresh patient."""
    hospital = Hospital(
        training=draw_patients("T", 40, visits=1, edge_vox=_EDGE_VOX),
        learning=draw_patients("F", 8, visits=2, edge_vox=_EDGE_VOX),
        calibration=draw_patients("C", 8, visits=1, edge_vox=_EDGE_VOX),
        strangers=draw_patients("S", 2, visits=1, edge_vox=_EDGE_VOX),
        fresh=draw_patients("A", 2, visits=1, edge_vox=_EDGE_VOX),
    )
    screener = hospital.screener(Encoders(FlatEmbedder(), FlatEmbedder()), encode=_pool)
    scan, fresh = hospital.training.image_BCDHW[:1], hospital.fresh.image_BCDHW[:1]
    bent = bend_each(scan, turn_deg=5, stretch_frac=0.05, shift_vox=1, rng=stream(1, "bent"))
    shown = np.concatenate([bent, 0.6 * scan + 0.4 * fresh, 0.7 * np.flip(bent, 2), fresh]).astype(
        np.float32
    )
    return screener.members(shown)


def test_same_images_score_as_they_did_when_the_way_of_scoring_was_counted() -> None:
    found = _score()
    told = np.round(found, 2).tolist()
    words = f"scores have changed: raise SCORES, and note it here, and {told}"
    assert SCORES == _KNOWN, words
    np.testing.assert_allclose(found, _MEMBERS, atol=0.05, err_msg=words)


def test_filter_that_scores_otherwise_has_another_name(monkeypatch: pytest.MonkeyPatch) -> None:
    scans = {"training": [("one", "sha256:" + "0" * 64)]}
    named = name_filter(_WEIGHTS, scans=scans)
    assert name_filter(_WEIGHTS, scans=scans) == named  # the control
    monkeypatch.setattr(calibrate, "SCORES", SCORES + 1)
    assert name_filter(_WEIGHTS, scans=scans) != named
