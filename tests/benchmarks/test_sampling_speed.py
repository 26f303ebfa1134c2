"""B1: DDIM of 50 steps with a copy for inference beside MONAI's ``LatentDiffusionInferer.sample``.

Both ways use the same U-Net of 41.3 million parameters, the same noise of 3 x 20 x 28 x 20, and 50
steps of MONAI's ``DDIMScheduler``, whose state is float32; the peer computes in float32 as it
comes. Nothing is decoded: the peer is given an autoencoder that does nothing.

A fresh U-Net answers zero, so its weights are perturbed, and it stands beside the answer that is
right for Gaussian latents, ``sqrt(1 - alpha) x``: the path stays at unit variance, as that of a
trained network does, and the U-Net moves it. How far is printed: the cosine with the path of the
Gaussian answer alone, which must fail the bound.

Ways are taken in turn A B C A B C; one call of each before is the warm-up, printed as cold. The
target holds for a processor with avx512_bf16 or AMX, and each run prints whether it is met. It is
demanded with AMX alone: avx512_bf16 works through bfloat16 at half the rate of float32, the target
is out of reach there, and printed as not met beside the float32 copy, which is what
``arithmetic_dtype`` chooses there. On a busy machine no time is demanded at all: the test is
skipped after the latents are checked.
"""

from __future__ import annotations

import json
import os
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

STEPS = 50
SAMPLES = 2
ROUNDS = 2
COSINE = 0.999
TIME = 0.45


def build() -> tuple[Any, Any]:
    """Return the network and a scheduler."""
    import torch
    from monai.networks.nets.diffusion_model_unet import DiffusionModelUNet
    from monai.networks.schedulers import DDIMScheduler

    from vitrael.core.rng import seeded_initialization, torch_stream

    scheduler = DDIMScheduler(
        num_train_timesteps=1000,
        schedule="scaled_linear_beta",
        beta_start=0.0015,
        beta_end=0.0195,
        clip_sample=False,
    )
    scheduler.set_timesteps(STEPS)

    class BesideGaussian(torch.nn.Module):
        """A U-Net beside the answer for latents of a standard normal distribution."""

        def __init__(self, net: torch.nn.Module, gain: float) -> None:
            super().__init__()
            self.net, self.gain = net, gain

        def forward(self, x: Any, timesteps: Any, context: Any = None) -> Any:
            alpha = scheduler.alphas_cumprod[timesteps.long()].reshape(-1, 1, 1, 1, 1)
            moved = 0.0 if self.gain == 0 else self.gain * self.net(x, timesteps, context)
            return (1 - alpha).sqrt() * x + moved

    with seeded_initialization(1, "unet"):
        net = DiffusionModelUNet(
            3,
            in_channels=3,
            out_channels=3,
            num_res_blocks=2,
            channels=(64, 128, 256),
            attention_levels=(False, False, True),
            num_head_channels=(0, 0, 256),
        ).eval()
    rng = torch_stream(1, "perturbation")
    with torch.no_grad():
        for weight in net.parameters():
            size = 0.05 if weight.ndim < 2 else 0.3 * weight[0].numel() ** -0.5
            weight.add_(torch.randn(weight.shape, generator=rng), alpha=size)
    return BesideGaussian, (net, scheduler)


def run(threads: int, *, samples: int = SAMPLES, rounds: int = ROUNDS) -> dict[str, Any]:
    """Return by way cold, best and median seconds, and the cosine with the peer's latents."""
    import torch
    from monai.inferers.inferer import LatentDiffusionInferer

    from vitrael.core.models.nets.precision import inference_copy
    from vitrael.core.rng import torch_stream

    torch.set_num_threads(threads)
    beside, (unet, scheduler) = build()
    noise = torch.randn((samples, 3, 20, 28, 20), generator=torch_stream(1, "noise"))
    peer = beside(unet, 2.0).eval()
    nets = {
        "peer, float32": peer,
        "copy, float32": inference_copy(peer, dtype=torch.float32),
        "copy, bfloat16": inference_copy(peer, dtype=torch.bfloat16),
    }
    nothing = torch.nn.Module()
    nothing.decode_stage_2_outputs = lambda z: z
    inferer = LatentDiffusionInferer(scheduler, scale_factor=1.0)

    def sample(net: Any) -> Any:
        with torch.inference_mode():
            return inferer.sample(noise, nothing, net, scheduler, verbose=False).float()

    found: dict[str, Any] = {}
    for name, net in nets.items():
        found[name] = {"cold_s": seconds(lambda net=net: call_once(net, noise))[0]}
    times: dict[str, list[float]] = {name: [] for name in nets}
    latents = {}
    for _ in range(rounds):
        for name, net in nets.items():
            taken, latents[name] = seconds(lambda net=net: sample(net))
            times[name].append(taken)
    reference = latents["peer, float32"]
    for name, taken in times.items():
        found[name] |= {
            "min_s": min(taken),
            "median_s": statistics.median(taken),
            "cosine": cosine(latents[name], reference),
        }
    found["Gaussian alone"] = {"cosine": cosine(sample(beside(unet, 0.0)), reference)}
    return found


def call_once(net: Any, noise: Any) -> Any:
    import torch

    with torch.inference_mode():
        return net(noise, torch.full((len(noise),), 500))


def seconds(work: Callable[[], Any]) -> tuple[float, Any]:
    """Return processor seconds of this process over its threads, and the result.

    Not the clock's: other work on the machine would count.
    """
    import torch

    start = time.process_time()
    result = work()
    return (time.process_time() - start) / torch.get_num_threads(), result


def cosine(latents: Any, reference: Any) -> float:
    """Return the least of all samples."""
    import torch

    return float(torch.cosine_similarity(latents.flatten(1), reference.flatten(1)).min())


def show(threads: int, samples: int, found: dict[str, Any]) -> None:
    peer = found["peer, float32"]
    print(f"\nDDIM-{STEPS}, {samples} at once, {threads} threads, load {os.getloadavg()[0]:.1f}")
    for name, figures in found.items():
        line = f"  {name:15} cosine {figures['cosine']:.6f}"
        if "min_s" in figures:
            ratios = ", ".join(f"{figures[k] / peer[k]:.2f}" for k in ("min_s", "median_s"))
            line += (
                f"; cold call {figures['cold_s']:.2f} s, min {figures['min_s']:.1f} median "
                f"{figures['median_s']:.1f} s: {ratios} of the peer"
            )
        print(line)


def show_target(found: dict[str, Any]) -> None:
    """Print the best copy's share of the peer's time beside what it may be, where it is asked."""
    import torch

    known = torch.cpu.get_capabilities()
    units = [name for name in ("avx512_bf16", "amx_bf16") if known.get(name, False)]
    copies = {name: found[name]["min_s"] for name in found if name.startswith("copy")}
    best = min(copies, key=copies.__getitem__)
    for name in sorted({"copy, bfloat16", best}):
        ratio = copies[name] / found["peer, float32"]["min_s"]
        print(
            f"  {name}: time {ratio:.2f} of the peer, target {TIME:.2f}: "
            f"{'met' if ratio <= TIME else 'not met'}"
            f"{'' if units else ' (asked with avx512_bf16 or amx_bf16 alone)'}"
            f"{'' if 'amx_bf16' in units else ' (no matrix units here: not demanded)'}"
        )


@pytest.mark.bench
@pytest.mark.parametrize("threads", [1, 2])
def test_copy_samples_the_same_latents_sooner(threads: int) -> None:
    import torch

    from vitrael.core.training.compute import computes_in_bfloat16

    load = os.getloadavg()[0]
    found = run(threads)
    show(threads, SAMPLES, found)
    show_target(found)
    print("  " + json.dumps(found))
    if place := os.environ.get("VITRAEL_BENCH_DIR"):
        text = json.dumps(found, indent=1)
        (Path(place) / f"sampling-{threads}.json").write_text(text, encoding="utf-8")
    assert found["Gaussian alone"]["cosine"] < COSINE  # the control: the U-Net matters
    assert found["copy, float32"]["cosine"] >= 1 - 1e-5
    assert found["copy, bfloat16"]["cosine"] >= COSINE
    if load > (os.cpu_count() or 1):
        pytest.skip(f"load {load:.1f} before the first call: times are not demanded of it")
    if computes_in_bfloat16(torch.device("cpu")):
        assert found["copy, bfloat16"]["min_s"] <= TIME * found["peer, float32"]["min_s"]
