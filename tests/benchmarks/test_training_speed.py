"""How fast a latent diffusion network is trained, beside a plain MONAI loop with the same networks.

The peer is the loop of MONAI's tutorial of 3D latent diffusion: images in memory, encoded at every
step by ``LatentDiffusionInferer``, Adam, automatic mixed precision (bfloat16 on a CPU, float16 with
a scaler on a GPU). Ours is ``fit`` on latents that are computed once; it keeps a moving average.
Seconds are those of the processor on a CPU, and those of the wall on a GPU.
"""

from __future__ import annotations

import json
import os
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn import functional

from vitrael.core.configs import Prediction, TrainingConfig
from vitrael.core.models.brain_ldm import draw_latents
from vitrael.core.rng import seeded_initialization, torch_stream
from vitrael.core.sampling.denoisers import make_denoiser, signal_and_noise
from vitrael.core.sampling.schedules import scaled_linear_sigmas
from vitrael.core.training.compute import prepare_compute
from vitrael.core.training.diffusion import DiffusionObjective
from vitrael.core.training.loop import fit

pytestmark = pytest.mark.bench

EDGE_VOX, ITEMS, HELD_OUT = 48, 16, 8
BATCH, STEPS, RUNS = 2, 4, 3
LEAST_RATIO = 3.0
BF16_FRAC = 2.0**-8
"""What bfloat16 rounds off."""
BUDGET_S = 16.0
SIGMAS = scaled_linear_sigmas(1000, beta_start=0.0015, beta_end=0.0205)


class Unconditional(nn.Module):
    """MONAI's U-Net of the tutorial, called as ours are."""

    def __init__(self) -> None:
        from monai.networks.nets.diffusion_model_unet import DiffusionModelUNet

        super().__init__()
        self.net = DiffusionModelUNet(
            spatial_dims=3,
            in_channels=3,
            out_channels=3,
            channels=(32, 64, 64),
            attention_levels=(False, True, True),
            num_res_blocks=1,
            num_head_channels=(0, 64, 64),
        )

    def forward(self, state: torch.Tensor, timestep: torch.Tensor, _: object) -> torch.Tensor:
        answer: torch.Tensor = self.net(state, timesteps=timestep)
        return answer


@dataclass(frozen=True, slots=True)
class Bench:
    """Networks, images and latents that both loops learn with."""

    device: str
    bf16: bool
    codec: Any
    images: torch.Tensor
    latents: torch.Tensor
    scale: float
    encoding_s: float

    def clock(self) -> float:
        if self.device == "cuda":
            torch.cuda.synchronize()
            return time.perf_counter()
        return time.process_time()

    def network(self) -> Unconditional:
        with seeded_initialization(1, "network"):
            return Unconditional().to(self.device)


def draw_images(count: int) -> torch.Tensor:
    """Return ``[B, 1, D, H, W]``: heads with two dark holes of many sizes, and noise."""
    rng = torch_stream(1, "images")
    line = torch.linspace(-1, 1, EDGE_VOX)
    z, y, x = torch.meshgrid(line, line, line, indexing="ij")
    sizes = 0.1 + 0.3 * torch.rand((count, 1, 1, 1), generator=rng)
    head = ((z / 0.8) ** 2 + (y / 0.9) ** 2 + (x / 0.7) ** 2 < 1).float()
    holes = ((z**2 + y**2 + (x.abs() - 0.25) ** 2)[None] < sizes**2).float()
    noise = torch.rand((count, EDGE_VOX, EDGE_VOX, EDGE_VOX), generator=rng)
    return (head * (0.8 - 0.6 * holes) + 0.1 * noise)[:, None].clamp(0, 1)


@pytest.fixture(scope="module")
def bench() -> Bench:
    from monai.networks.nets.autoencoderkl import AutoencoderKL

    device = "cuda" if torch.cuda.is_available() else "cpu"
    compute = prepare_compute(device=device, threads=1, bf16="auto")
    with seeded_initialization(1, "codec"):
        codec = AutoencoderKL(
            spatial_dims=3,
            in_channels=1,
            out_channels=1,
            channels=(32, 64, 64),
            latent_channels=3,
            num_res_blocks=1,
            norm_num_groups=16,
            attention_levels=(False, False, True),
        )
    # The peer draws from the posterior; without spread both learn the same latents.
    spread = codec.quant_conv_log_sigma.get_parameter("conv.bias")
    nn.init.zeros_(codec.quant_conv_log_sigma.get_parameter("conv.weight"))
    nn.init.constant_(spread, -30.0)
    codec.eval().to(device)
    images = draw_images(ITEMS + HELD_OUT).to(device)
    before = time.perf_counter()
    with torch.no_grad():
        latents = torch.cat([codec.encode(part)[0] for part in images.split(BATCH)])
    encoding_s = time.perf_counter() - before
    scale = 1 / latents.std().item()
    return Bench(device, compute.bf16, codec, images, latents * scale, scale, encoding_s)


def train_ours(
    bench: Bench,
    network: Unconditional,
    *,
    steps: int,
    amp: bool,
    prediction: Prediction = "noise",
) -> float:
    """Return the seconds that our loop took; ``amp`` is bfloat16."""
    latents = bench.latents[:ITEMS]
    config = TrainingConfig(
        length_images=steps * BATCH,
        batch_images=BATCH,
        learning_rate=1e-3,
        ema_halflife_images=max(1, steps * BATCH // 10),
    )
    before = bench.clock()
    fit(
        network,
        DiffusionObjective(SIGMAS, prediction=prediction),
        draw_latents(latents, torch.zeros(len(latents), 0, device=bench.device)),
        config,
        length_images=config.length_images,
        rng=torch_stream(1, "training"),
        bf16=amp,
    )
    return bench.clock() - before


def train_peer(bench: Bench, network: Unconditional, *, steps: int, amp: bool) -> float:
    """Return the seconds that the tutorial's loop took."""
    from monai.inferers import LatentDiffusionInferer
    from monai.networks.schedulers import DDPMScheduler

    scheduler = DDPMScheduler(
        num_train_timesteps=1000, schedule="scaled_linear_beta", beta_start=0.0015, beta_end=0.0205
    )
    inferer = LatentDiffusionInferer(scheduler, scale_factor=bench.scale)
    half = torch.float16 if bench.device == "cuda" else torch.bfloat16
    scaler = torch.amp.GradScaler(bench.device, enabled=amp and half is torch.float16)
    optimizer = torch.optim.Adam(network.parameters(), lr=1e-3)
    rng = torch_stream(1, "training")
    network.train()
    before = bench.clock()
    for _ in range(steps):
        rows = torch.randint(ITEMS, (BATCH,), generator=rng).to(bench.device)
        images = bench.images[rows]
        optimizer.zero_grad(set_to_none=True)
        with torch.autocast(bench.device, dtype=half, enabled=amp):
            noise = torch.randn_like(bench.latents[:BATCH])
            timesteps = torch.randint(0, 1000, (BATCH,), device=bench.device).long()
            predicted = inferer(
                inputs=images,
                autoencoder_model=bench.codec,
                diffusion_model=network.net,
                noise=noise,
                timesteps=timesteps,
            )
            loss = functional.mse_loss(predicted.float(), noise.float())
        scaler.scale(loss).backward()
        scaler.step(optimizer)
        scaler.update()
    took = bench.clock() - before
    network.eval()
    return took


def losses_of_one_batch(bench: Bench, *, bf16: bool) -> tuple[float, float]:
    """Return our loss and the peer's of equal images, noise and timesteps."""
    from monai.inferers import LatentDiffusionInferer
    from monai.networks.schedulers import DDPMScheduler

    network = bench.network()
    with torch.no_grad(), seeded_initialization(1, "last layer"):
        # MONAI begins with a last layer of zeros, which would hide all else.
        nn.init.normal_(network.net.out[-1].conv.weight, std=0.05)
    z_0 = bench.latents[:BATCH]
    rng = torch_stream(1, "one batch")
    timesteps = torch.randint(1000, (BATCH,), generator=rng).to(bench.device)
    noise = torch.randn(z_0.shape, generator=rng).to(bench.device)
    with torch.no_grad(), torch.autocast(bench.device, dtype=torch.bfloat16, enabled=bf16):
        objective = DiffusionObjective(SIGMAS, prediction="noise")
        nothing = torch.zeros(BATCH, 0, device=bench.device)
        ours = objective(network, (z_0, nothing), torch_stream(1, "one batch")).total
        scheduler = DDPMScheduler(
            num_train_timesteps=1000,
            schedule="scaled_linear_beta",
            beta_start=0.0015,
            beta_end=0.0205,
        )
        predicted = LatentDiffusionInferer(scheduler, scale_factor=bench.scale)(
            inputs=bench.images[:BATCH],
            autoencoder_model=bench.codec,
            diffusion_model=network.net,
            noise=noise,
            timesteps=timesteps,
        )
        peer = functional.mse_loss(predicted.float(), noise)
    return ours.item(), peer.item()


def measure(work: Callable[[], float]) -> float:
    """Return images for each second, the median of some runs after one that does not count."""
    work()
    return BATCH * STEPS / statistics.median(work() for _ in range(RUNS))


def measure_rates(bench: Bench, *, amp: bool) -> dict[str, float]:
    return {
        "ours": measure(lambda: train_ours(bench, bench.network(), steps=STEPS, amp=amp)),
        "monai": measure(lambda: train_peer(bench, bench.network(), steps=STEPS, amp=amp)),
    }


def test_training_on_cached_latents_is_three_times_as_fast(bench: Bench) -> None:
    rates = {"float32": measure_rates(bench, amp=False)}
    if bench.bf16:
        rates["amp"] = measure_rates(bench, amp=True)
    exact, rounded = (losses_of_one_batch(bench, bf16=bf16) for bf16 in (False, True))
    ratios = {precision: rate["ours"] / rate["monai"] for precision, rate in rates.items()}
    report = {
        "device": bench.device,
        "images": f"{BATCH} of {EDGE_VOX} cubed",
        "images_per_s": rates,
        "ratio": ratios,
        "best_over_best": max(rate["ours"] for rate in rates.values())
        / max(rate["monai"] for rate in rates.values()),
        "losses": {"float32": exact, "bf16": rounded},
        "encoding_once_s": bench.encoding_s,
        "load": os.getloadavg()[0],
    }
    print(f"\nB4 {json.dumps(report)}")
    if place := os.environ.get("VITRAEL_BENCH_DIR"):
        path = Path(place) / f"training-speed-{bench.device}.json"
        path.write_text(json.dumps(report, indent=1), encoding="utf-8")
    assert exact[0] == pytest.approx(exact[1], rel=1e-4)
    assert rounded[0] == pytest.approx(rounded[1], rel=2 * BF16_FRAC)
    assert min(ratios.values()) >= LEAST_RATIO


@torch.no_grad()
def held_out_errors(
    bench: Bench, network: Unconditional, prediction: Prediction
) -> dict[str, float]:
    """Return mean square errors on latents that nobody learned, over all levels.

    They are of the noise, which is what the peer minimizes, and of ``v``, which is what ours does.
    """
    denoise = make_denoiser(network, prediction, sigmas=SIGMAS.to(bench.device))
    z_0 = bench.latents[ITEMS:]
    rng = torch_stream(1, "held out")
    errors: dict[str, list[torch.Tensor]] = {"noise_mse": [], "v_mse": []}
    for step in torch.linspace(20, 980, 9).long():
        sigma = SIGMAS[step].expand(len(z_0)).to(bench.device)
        noise = torch.randn(z_0.shape, generator=rng).to(bench.device)
        found = denoise(z_0 + sigma[0] * noise, sigma, torch.zeros(len(z_0), 0).to(bench.device))
        square = ((found - z_0) ** 2).mean()
        _, beta = signal_and_noise(sigma[:1], 1)
        errors["noise_mse"].append(square / sigma[0] ** 2)
        errors["v_mse"].append(square / beta[0] ** 2)
    return {name: torch.stack(values).mean().item() for name, values in errors.items()}


def test_quality_after_equal_budgets_is_reported(bench: Bench) -> None:
    # B15: nothing is claimed of it but that ours learns.
    amp = bench.device == "cuda"  # on a CPU without matrix units float32 is faster for both
    found: dict[str, Any] = {"untrained": held_out_errors(bench, bench.network(), "velocity")}
    ways: dict[str, tuple[Callable[[Unconditional, int], float], Prediction]] = {
        "ours": (
            lambda net, steps: train_ours(bench, net, steps=steps, amp=amp, prediction="velocity"),
            "velocity",
        ),
        "monai": (lambda net, steps: train_peer(bench, net, steps=steps, amp=amp), "noise"),
    }
    for name, (train, prediction) in ways.items():
        train(bench.network(), 1)
        took = train(bench.network(), STEPS)
        steps = max(1, int(BUDGET_S / took * STEPS))
        network = bench.network()
        took = train(network, steps)
        errors = held_out_errors(bench, network, prediction)
        found[name] = {**errors, "images": steps * BATCH, "seconds": took}
    print(f"\nB15 {json.dumps({'device': bench.device, **found})}")
    assert found["ours"]["v_mse"] < found["untrained"]["v_mse"]
