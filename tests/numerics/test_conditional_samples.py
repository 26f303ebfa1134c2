"""A model that was asked for large ventricles draws large ventricles, and people who differ."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from tests.factories.trained import (
    VENTRICLE,
    Shown,
    Trained,
    show_planes,
    show_volumes,
)
from vitrael.core.metrics.conditioning import audit_condition
from vitrael.core.metrics.diversity import diversity
from vitrael.core.records import SampleRequest
from vitrael.core.rng import stream

pytestmark = pytest.mark.slow

SAMPLES = 64
SEED = 90_017


def check_obedience(model: Trained, shown: Shown) -> None:
    """Hold 64 samples to what was asked; print the codec's ceiling first."""
    asked = shown.covariate_BK
    after = model.measure(model.reconstruct(shown.image))
    ceiling = np.corrcoef(after, asked[:, VENTRICLE])[0, 1]
    print(f"\nceiling of the codec: r {ceiling:.4f} on {len(after)} images")
    request = SampleRequest(model.conditions(asked), seed=SEED)
    image = model.generator().sample(request).image_BCDHW
    rng = stream(SEED, "audit")
    found = audit_condition(
        asked[:, VENTRICLE],
        model.measure(image),
        condition="ventricle",
        measurer="declared",
        rng=rng,
    )
    pairs = diversity(
        torch.from_numpy(image),
        torch.from_numpy(shown.image),
        measure="ms_ssim",
        rng=stream(SEED, "pairs"),
    )
    print(
        f"r {found.r.value:.3f} ({found.r.low:.3f} to {found.r.high:.3f}), n {found.r.n}, "
        f"p {found.p:.4f}, permuted |r| {found.permuted_r.value:.3f}; mean error "
        f"{found.mae.value:.2f} beside {found.permuted_mae:.2f} permuted; similarity of pairs "
        f"{pairs.synthetic.value:.3f} beside {pairs.real.value:.3f} of real ones"
    )
    assert ceiling > 0.95
    assert found.r.value >= 0.85
    assert found.p <= 1 / 1001  # none of 1,000 permutations reaches it
    assert found.permuted_r.value < 0.25  # the control
    assert abs(pairs.difference.value) < 0.1


def test_slices_have_the_ventricles_that_were_asked_for(plane_model: Trained) -> None:
    check_obedience(plane_model, show_planes(SEED, SAMPLES))


def test_volumes_have_the_ventricles_that_were_asked_for(volume_model: Trained) -> None:
    check_obedience(volume_model, show_volumes(SEED, SAMPLES))


def test_sample_without_a_condition_is_a_brain_like_any_other(plane_model: Trained) -> None:
    """The control: nothing that was asked for may show."""
    shown = show_planes(SEED + 1, SAMPLES)
    generator = plane_model.generator()
    generator.guidance = 0.0
    condition_BK = plane_model.conditions(shown.covariate_BK)
    image = generator.sample(SampleRequest(condition_BK, seed=SEED)).image_BCDHW
    r = np.corrcoef(plane_model.measure(image), shown.covariate_BK[:, VENTRICLE])[0, 1]
    low, high = np.quantile(plane_model.measure(show_planes(SEED + 2, 200).image), [0.05, 0.95])
    assert abs(r) < 0.35
    assert low < plane_model.measure(image).mean() < high
