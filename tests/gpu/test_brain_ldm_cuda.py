"""The published model at its size, and a 3D model trained for minutes: what a GPU makes of them.

The figures are printed, to be kept under ``docs/measured``. Where ``VITRAEL_GPU_WORK`` names a
folder, training keeps its checkpoints there, and a second run goes on where the first was stopped.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

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
from vitrael.core.models.brain_ldm import (
    LatentGenerator,
    build_codec,
    build_denoiser,
    latent_denoiser,
    latent_levels,
)
from vitrael.core.models.nets.autoencoder import KLCodec
from vitrael.core.models.nets.precision import inference_copy
from vitrael.core.models.nets.unet import HybridUNet
from vitrael.core.records import SampleRequest
from vitrael.core.rng import stream, torch_stream
from vitrael.core.sampling.samplers import SAMPLERS

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="torch finds no CUDA device here"),
]

SEED = 5_113
PUBLISHED_GRID, SMALL_GRID = (160, 224, 160), (64, 80, 64)
PATIENTS, HELD_OUT, SAMPLES = 1_500, 200, 200
CARD_TFLOPS = {"H200": 989.0, "H100": 989.0, "A100": 312.0, "L40S": 362.0}
"""bfloat16 in the matrix units without sparsity, as the maker states it, by a part of the name."""
_PRODUCT_EDGE = 8_192

Result = TypeVar("Result")


def evaluation_flop(config: BrainLDMConfig) -> float:
    """Return the operations of one call of the U-Net, a product and a sum counted as two."""
    with torch.device("meta"):
        denoiser = build_denoiser(config, config.teacher, seed=SEED)
        latent, condition = torch.zeros(1, 3, 20, 28, 20), torch.zeros(1, 4)
        with FlopCounterMode(display=False) as counter:
            denoiser(latent, torch.zeros(1), condition)
    return float(counter.get_total_flops())


def timed(work: Callable[[], Result]) -> tuple[float, Result]:
    """Return the seconds of a second call, and what it gave: the first prepares kernels."""
    work()
    torch.cuda.synchronize()
    began = time.perf_counter()
    result = work()
    torch.cuda.synchronize()
    return time.perf_counter() - began, result


def card_rate() -> tuple[float, str]:
    """Return the card's TFLOP/s in bfloat16 and whose word that is: the maker's, or a product's."""
    name = torch.cuda.get_device_name()
    for part, tflops in CARD_TFLOPS.items():
        if part in name:
            return tflops, f"stated for {part}"
    square = torch.ones((_PRODUCT_EDGE,) * 2, dtype=torch.bfloat16, device="cuda")
    took_s, _ = timed(lambda: square @ square)
    return 2 * _PRODUCT_EDGE**3 / took_s / 1e12, f"of one product on {name}"


def sample_apart(
    codec: KLCodec, denoiser: HybridUNet, part: DiffusionConfig
) -> tuple[float, float, int]:
    """Return seconds of the sampler without a decode, of the decode alone, and the evaluations.

    The same functions that the generator calls, one after the other.
    """
    spec, levels = SAMPLERS[part.sampler], latent_levels(part)
    fast = latent_denoiser(inference_copy(denoiser, dtype=torch.bfloat16), part)
    noise = torch.randn((1, 3, 20, 28, 20), generator=torch_stream(SEED, "noise")).cuda()
    told = torch.full((1, 4), 0.5, device="cuda")
    with torch.no_grad():
        unet_s, z_0 = timed(lambda: spec.sample(fast, noise * levels[0], levels, told))
        decode_s, _ = timed(lambda: codec.decode_in_parts(z_0, dtype=torch.bfloat16))
    return unet_s, decode_s, spec.evaluations(len(levels) - 1)


def test_published_model_samples_one_volume() -> None:
    config = BrainLDMConfig.model_validate({"kind": "brain_ldm", "preset": "pinaya2022"})
    codec = build_codec(config, seed=SEED).cuda()
    denoiser = build_denoiser(config, config.teacher, seed=SEED).cuda()
    request = SampleRequest(np.full((1, 4), 0.5, np.float32), seed=SEED)
    flop, (card_tflops, source) = evaluation_flop(config), card_rate()
    print(f"\none evaluation {flop / 1e12:.3f} TFLOP; card {card_tflops:.0f} TFLOP/s, {source}")

    def sample(part: DiffusionConfig) -> tuple[float, float]:
        generator = LatentGenerator(
            codec,
            denoiser,
            part,
            grid_vox=PUBLISHED_GRID,
            affine=centered_affine(PUBLISHED_GRID, spacing=1.0),
            bf16=True,
        )
        torch.cuda.reset_peak_memory_stats()
        took_s, samples = timed(lambda: generator.sample(request))
        image = samples.image_BCDHW
        assert image.shape == (1, 1, *PUBLISHED_GRID)
        assert np.isfinite(image).all()
        return took_s, torch.cuda.max_memory_allocated() / 2**30

    fast = config.teacher.model_copy(update={"sampler": "unipc", "sampling_steps": 12})
    for name, part in (("DDIM-50", config.teacher), ("UniPC-12", fast)):
        took_s, peak_gib = sample(part)
        unet_s, decode_s, evaluations = sample_apart(codec, denoiser, part)
        tflops = evaluations * flop / unet_s / 1e12
        print(
            f"{name}: {took_s:.2f} s, peak {peak_gib:.1f} GiB; U-Net {evaluations} times in "
            f"{unet_s:.2f} s, {tflops:.0f} TFLOP/s, {tflops / card_tflops:.0%} of the card; "
            f"decode {decode_s:.2f} s"
        )


@pytest.fixture
def work(tmp_path: Path) -> Path:
    """Return where checkpoints lie: of this run alone, unless a folder is named."""
    named = os.environ.get("VITRAEL_GPU_WORK")
    return Path(named) if named else tmp_path


def test_volumes_obey_after_minutes_of_training(work: Path) -> None:
    model = begin("gpu-3d", SMALL_GRID, 2.5, VOLUME_RANGES, seed=SEED, device="cuda")
    grid = {"grid_vox": SMALL_GRID, "spacing_mm": 2.5, "processes": os.cpu_count() or 1}
    began = time.perf_counter()
    learned = show_volumes(SEED, PATIENTS, **grid)
    print(f"\n{PATIENTS} phantoms in {time.perf_counter() - began:.0f} s")
    began = time.perf_counter()
    train(model, learned, seed=SEED, mirrored_axis=2, bf16=True, checkpoints=work)
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
