"""The published model at its size, and a 3D model trained for minutes: what a GPU makes of them.

The figures are printed, to be kept under ``docs/measured``. Training keeps checkpoints in the
folder ``VITRAEL_GPU_WORK`` names, so that a second run goes on where the first one was stopped.
"""

from __future__ import annotations

import os
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from tests.factories.trained import (
    VENTRICLE,
    VOLUME_RANGES,
    begin,
    show_volumes,
    train,
)
from vitrael.core.configs import BrainLDMConfig, DiffusionConfig
from vitrael.core.geometry import centered_affine
from vitrael.core.metrics.conditioning import audit_condition
from vitrael.core.metrics.distribution import kernel_distance
from vitrael.core.metrics.features import extract_features, random_conv_extractor
from vitrael.core.models.brain_ldm import LatentGenerator, build_codec, build_denoiser
from vitrael.core.records import SampleRequest
from vitrael.core.rng import stream

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="torch finds no CUDA device here"),
]

SEED = 5_113
PUBLISHED_GRID, SMALL_GRID = (160, 224, 160), (64, 80, 64)
PATIENTS, HELD_OUT, SAMPLES = 1_500, 200, 200
_WORK = Path(os.environ.get("VITRAEL_GPU_WORK", "/tmp/vitrael-gpu"))  # noqa: S108


def evaluation_flop(config: BrainLDMConfig) -> float:
    """Return the operations of one call of the U-Net, a product and a sum counted as two."""
    with torch.device("meta"):
        denoiser = build_denoiser(config, config.teacher, seed=SEED)
        latent, condition = torch.zeros(1, 3, 20, 28, 20), torch.zeros(1, 4)
        with FlopCounterMode(display=False) as counter:
            denoiser(latent, torch.zeros(1), condition)
    return float(counter.get_total_flops())


def test_published_model_samples_one_volume() -> None:
    config = BrainLDMConfig.model_validate({"kind": "brain_ldm", "preset": "pinaya2022"})
    codec = build_codec(config, seed=SEED).cuda()
    denoiser = build_denoiser(config, config.teacher, seed=SEED).cuda()
    request = SampleRequest(np.full((1, 4), 0.5, np.float32), seed=SEED)
    flop = evaluation_flop(config)

    def sample(part: DiffusionConfig) -> tuple[float, float]:
        generator = LatentGenerator(
            codec,
            denoiser,
            part,
            grid_vox=PUBLISHED_GRID,
            affine=centered_affine(PUBLISHED_GRID, spacing=1.0),
            bf16=True,
        )
        generator.sample(request)  # the first call prepares kernels
        torch.cuda.reset_peak_memory_stats()
        began = time.perf_counter()
        image = generator.sample(request).image_BCDHW
        took_s = time.perf_counter() - began
        assert image.shape == (1, 1, *PUBLISHED_GRID)
        assert np.isfinite(image).all()
        return took_s, torch.cuda.max_memory_allocated() / 2**30

    fast = config.teacher.model_copy(update={"sampler": "unipc", "sampling_steps": 12})
    for name, part in (("DDIM-50", config.teacher), ("UniPC-12", fast)):
        took_s, peak_gib = sample(part)
        rate = part.sampling_steps * flop / took_s / 1e12
        print(f"\n{name}: {took_s:.2f} s, peak {peak_gib:.1f} GiB, U-Net alone {rate:.0f} TFLOP/s")


def test_volumes_obey_after_minutes_of_training() -> None:
    model = begin("gpu-3d", SMALL_GRID, 2.5, VOLUME_RANGES, seed=SEED, device="cuda")
    grid = {"grid_vox": SMALL_GRID, "spacing_mm": 2.5, "processes": os.cpu_count() or 1}
    began = time.perf_counter()
    learned = show_volumes(SEED, PATIENTS, **grid)
    print(f"\n{PATIENTS} phantoms in {time.perf_counter() - began:.0f} s")
    began = time.perf_counter()
    train(model, learned, seed=SEED, mirrored_axis=2, bf16=True, checkpoints=_WORK)
    print(f"trained in {time.perf_counter() - began:.0f} s (what a checkpoint had left)")
    real = show_volumes(SEED + 1, HELD_OUT, **grid)
    ceiling = np.corrcoef(
        model.measure(model.reconstruct(real.image)), real.covariate_BK[:, VENTRICLE]
    )[0, 1]
    request = SampleRequest(model.conditions(real.covariate_BK)[:SAMPLES], seed=SEED)
    generator = model.generator(bf16=True)
    image = generator.sample(request).image_BCDHW
    found = audit_condition(
        real.covariate_BK[:SAMPLES, VENTRICLE],
        model.measure(image),
        condition="ventricle",
        measurer="declared",
        rng=stream(SEED, "audit"),
    )
    extractor = random_conv_extractor()
    features = [
        extract_features(extractor, torch.from_numpy(images)) for images in (real.image, image)
    ]
    kid = kernel_distance(*features, extractor=extractor.name)
    print(f"ceiling r {ceiling:.4f}; r {found.r.value:.4f} ({found.r.low:.4f}-{found.r.high:.4f})")
    print(f"KID {kid.value:.5f} ({kid.low:.5f} to {kid.high:.5f}), {kid.extractor}, n {kid.n}")
    assert found.r.value >= 0.95
