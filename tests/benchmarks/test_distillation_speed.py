"""B16: generate, screen, retrain, end to end, beside the same steps scripted with MONAI.

Both begin with one trained codec, teacher, copy encoder and gallery, and end with a student of
equal size after an equal number of images. The peer is what MONAI's tutorials come to when they are
put together: 50 steps of ``DDIMScheduler`` through ``LatentDiffusionInferer``, candidates written
to and read from NIfTI, ``torch.cdist`` between embeddings, affine registration to the nearest scans
by local cross-correlation and Adam, and a training loop that encodes at every step. Ours samples by
UniPC in ten evaluations, screens with all four members, and trains on latents computed once.

Beside the times stands whether the work is as good: how far candidates of equal noise lie apart,
how many bent copies each filter finds among as many strangers, and both students' error on latents
of phantoms that nobody learned.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Final

import nibabel
import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional

from tests.benchmarks.peers import correlate, register_affinely
from tests.factories.filter_power import Hospital, draw_patients
from vitrael.core.configs import BrainLDMConfig
from vitrael.core.data.augment import draw_moved
from vitrael.core.geometry import centered_affine
from vitrael.core.models import SYSTEMS
from vitrael.core.models.brain_ldm import (
    LatentGenerator,
    build_codec,
    build_denoiser,
    draw_latents,
    latent_denoiser,
)
from vitrael.core.models.nets.autoencoder import KLCodec
from vitrael.core.models.nets.unet import HybridUNet
from vitrael.core.records import SampleRequest
from vitrael.core.rng import stream, torch_stream
from vitrael.core.study import load_study
from vitrael.core.training.loop import fit
from vitrael.core.training.objectives import companion_of
from vitrael.privacy.audit.plants.geometry import bend_each
from vitrael.privacy.reid.screen import Screener

pytestmark = pytest.mark.bench

EDGE_VOX: Final = 24
CANDIDATES, STUDENT_IMAGES = 48, 1_600
NEAREST = 3
"""Scans that the peer registers a candidate to; ours takes nine."""
TIME: Final = 0.4


@dataclass(frozen=True)
class Start:
    """What both ways begin with."""

    config: BrainLDMConfig
    hospital: Hospital
    codec: KLCodec
    teacher: HybridUNet
    screener: Screener
    fresh_latents: torch.Tensor

    @cached_property
    def condition(self) -> np.ndarray:
        return stream(1, "conditions").uniform(0, 1, (CANDIDATES, 4)).astype(np.float32)

    @cached_property
    def copies(self) -> np.ndarray:
        """Bent copies of patients, and as many strangers."""
        scans = self.hospital.training.image_BCDHW[:40]
        rng = stream(1, "bent")
        bent = bend_each(scans, turn_deg=5, stretch_frac=0.05, shift_vox=5, rng=rng)
        return np.concatenate([bent, self.hospital.fresh.image_BCDHW[:40]])

    @cached_property
    def known(self) -> torch.Tensor:
        """What the copy encoder sees of the training scans, which no clock counts."""
        return embed(self, torch.from_numpy(self.hospital.training.image_BCDHW))

    def student(self) -> HybridUNet:
        return build_denoiser(self.config, self.config.student, seed=5)

    @torch.no_grad()
    def error(self, student: HybridUNet) -> float:
        """Return the mean square error of latents at middling noise."""
        rng = torch_stream(1, "held out")
        noise = torch.randn(self.fresh_latents.shape, generator=rng)
        sigma = torch.ones(len(noise))
        found = latent_denoiser(student.eval(), self.config.student)(
            self.fresh_latents + noise, sigma, torch.full((len(noise), 4), 0.5)
        )
        return float(((found - self.fresh_latents) ** 2).mean())


@pytest.fixture(scope="module")
def start(root: Path) -> Start:
    torch.set_num_threads(1)
    config = load_study(root / "deploy/studies/brain-demo.toml").synthesis.generator
    hospital = Hospital(
        training=draw_patients("T", 80, visits=1, edge_vox=EDGE_VOX),
        learning=draw_patients("F", 16, visits=2, edge_vox=EDGE_VOX),
        calibration=draw_patients("C", 20, visits=1, edge_vox=EDGE_VOX),
        strangers=draw_patients("S", 2, visits=1, edge_vox=EDGE_VOX),
        fresh=draw_patients("A", 40, visits=1, edge_vox=EDGE_VOX),
    )
    images = torch.from_numpy(hospital.training.image_BCDHW)
    codec = build_codec(config, seed=1)
    learn(
        config,
        codec,
        "codec",
        draw_moved(len(images), lambda rows: images[rows], device="cpu"),
        2_000,
    )
    with torch.no_grad():
        mean = torch.cat([codec.posterior(part)[0] for part in images.split(16)])
        axes = (0, 2, 3, 4)
        codec.latent_mean.copy_(mean.mean(axes))
        codec.latent_std.copy_(mean.std(axes))
        latents = codec.scale(mean)
        fresh = codec.encode(torch.from_numpy(hospital.fresh.image_BCDHW))
    condition = torch.from_numpy(stream(2, "told").uniform(0, 1, (len(images), 4))).float()
    teacher = build_denoiser(config, config.teacher, seed=2)
    learn(config, teacher, "teacher", draw_latents(latents, condition), 8_000)
    return Start(
        config=config,
        hospital=hospital,
        codec=codec.eval(),
        teacher=teacher.eval(),
        screener=hospital.screener(hospital.encoders(480, seed=5)),
        fresh_latents=fresh,
    )


def learn(config: BrainLDMConfig, model: nn.Module, part: str, draw: Any, images: int) -> None:
    """Train a part of the generator for so many images."""
    objective = SYSTEMS[config.kind].objective(config, part)
    fit(
        model,
        objective,
        draw,
        getattr(config, part).training,
        length_images=images,
        rng=torch_stream(1, part),
        companion=companion_of(objective),
    )


@dataclass
class Done:
    """What a way came to."""

    seconds: dict[str, float]
    candidates: np.ndarray
    found: np.ndarray
    student: HybridUNet


class Clock:
    """Processor seconds by step."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}

    def run(self, name: str, work: Callable[[], Any]) -> Any:
        before = time.process_time()
        done = work()
        self.seconds[name] = time.process_time() - before
        return done


def run_ours(start: Start) -> Done:
    """Return what Vitrael makes of it."""
    clock, config = Clock(), start.config
    part = config.teacher.model_copy(update={"sampler": "unipc", "sampling_steps": 10})
    grid = (EDGE_VOX,) * 3
    generator = LatentGenerator(
        start.codec, start.teacher, part, grid_vox=grid, affine=centered_affine(grid, spacing=8.0)
    )
    request = SampleRequest(start.condition, seed=7)
    images = clock.run("generate", lambda: generator.sample(request).image_BCDHW)
    keep = clock.run("screen", lambda: start.screener(images))
    student = start.student()

    def retrain() -> None:
        with torch.no_grad():
            kept = torch.from_numpy(images[keep]).split(16)
            latents = torch.cat([start.codec.encode(part) for part in kept])
        condition = torch.from_numpy(start.condition[keep])
        learn(config, student, "student", draw_latents(latents, condition), STUDENT_IMAGES)

    clock.run("retrain", retrain)
    return Done(clock.seconds, images, ~start.screener(start.copies), student)


class PeerCodec(nn.Module):
    """The codec, called as MONAI's inferer calls an autoencoder."""

    def __init__(self, codec: KLCodec) -> None:
        super().__init__()
        self.codec = codec

    def encode_stage_2_inputs(self, x: torch.Tensor) -> torch.Tensor:
        return self.codec.encode(x)

    def decode_stage_2_outputs(self, z: torch.Tensor) -> torch.Tensor:
        return self.codec.decode(z)


class PeerUNet(nn.Module):
    """A denoiser, called as MONAI's inferer calls a network."""

    def __init__(self, net: HybridUNet) -> None:
        super().__init__()
        self.net = net

    def forward(
        self, x: torch.Tensor, timesteps: torch.Tensor, context: torch.Tensor
    ) -> torch.Tensor:
        return self.net(x, timesteps.expand(len(x)).float(), context)


def run_peer(start: Start, folder: Path) -> Done:
    """Return what the script makes of it."""
    clock, scheduler = Clock(), peer_scheduler(start)
    assert len(start.known) == start.screener.gallery.patients
    images = clock.run("generate", lambda: generate_by_peer(start, scheduler, folder))
    # As usual: the threshold is a high percentile of validation scans against training scans.
    calibration = start.hospital.calibration.image_BCDHW
    threshold = similar_by_peer(start, calibration).quantile(0.95)
    screened = clock.run("screen", lambda: similar_by_peer(start, images))
    keep = (screened <= threshold).numpy()
    if not keep.any():
        keep[:] = True
    student = start.student()
    kept, condition = torch.from_numpy(images[keep]), torch.from_numpy(start.condition[keep])
    clock.run("retrain", lambda: retrain_by_peer(start, scheduler, student, kept, condition))
    found = (similar_by_peer(start, start.copies) > threshold).numpy()
    return Done(clock.seconds, images, found, student)


def peer_scheduler(start: Start) -> Any:
    """Return the noise schedule of the teacher, as MONAI's scheduler for 50 steps."""
    from monai.networks.schedulers import DDIMScheduler

    config = start.config.teacher
    scheduler = DDIMScheduler(
        num_train_timesteps=config.timesteps,
        schedule="scaled_linear_beta",
        beta_start=config.beta_start,
        beta_end=config.beta_end,
        prediction_type="v_prediction",
        clip_sample=False,
    )
    scheduler.set_timesteps(50)
    return scheduler


@torch.no_grad()
def generate_by_peer(start: Start, scheduler: Any, folder: Path) -> np.ndarray:
    """Return candidates as they come back from the files that they were written to."""
    from monai.inferers import LatentDiffusionInferer

    inferer = LatentDiffusionInferer(scheduler, scale_factor=1.0)
    codec, told = PeerCodec(start.codec), torch.from_numpy(start.condition)
    shape = tuple(start.fresh_latents.shape[1:])
    for at in range(0, CANDIDATES, 8):
        rows = range(at, at + 8)
        noise = torch.stack(
            [torch.randn(shape, generator=torch_stream(7, "candidate", r)) for r in rows]
        )
        images = inferer.sample(
            noise, codec, PeerUNet(start.teacher), scheduler,
            conditioning=told[at : at + 8], verbose=False,
        )  # fmt: skip
        for row, image in zip(rows, images, strict=True):
            nibabel.save(
                nibabel.Nifti1Image(image[0].numpy(), np.diag([8.0, 8.0, 8.0, 1.0])),
                folder / f"{row:03d}.nii.gz",
            )
    paths = sorted(folder.glob("*.nii.gz"))
    return np.stack([nibabel.load(path).get_fdata(dtype=np.float32)[None] for path in paths])


def similar_by_peer(start: Start, image: np.ndarray) -> torch.Tensor:
    """Return the correlation of each image with the best of its nearest scans, registered."""
    scans = torch.from_numpy(start.hospital.training.image_BCDHW)
    candidates = torch.from_numpy(np.ascontiguousarray(image))
    apart = torch.cdist(embed(start, candidates), start.known)
    near = apart.topk(NEAREST, largest=False).indices
    best = []
    for row, scan in enumerate(near):
        fixed = scans[scan, 0]
        laid = register_affinely(candidates[row].expand(NEAREST, -1, -1, -1).clone(), fixed)
        best.append(correlate(laid, fixed).max())
    return torch.stack(best)


def retrain_by_peer(
    start: Start,
    scheduler: Any,
    student: HybridUNet,
    kept: torch.Tensor,
    condition: torch.Tensor,
) -> None:
    """Train the student on what was kept; each batch is encoded anew."""
    config, codec = start.config, PeerCodec(start.codec)
    optimizer = torch.optim.Adam(student.parameters(), lr=config.student.training.learning_rate)
    batch, rng = config.student.training.batch_images, torch_stream(1, "peer")
    shape = tuple(start.fresh_latents.shape[1:])
    net = PeerUNet(student.train())
    for _ in range(STUDENT_IMAGES // batch):
        rows = torch.randint(len(kept), (batch,), generator=rng)
        noise = torch.randn((batch, *shape), generator=rng)
        steps = torch.randint(0, config.teacher.timesteps, (batch,), generator=rng)
        with torch.no_grad():
            z_0 = codec.encode_stage_2_inputs(kept[rows])
        optimizer.zero_grad(set_to_none=True)
        noisy = scheduler.add_noise(z_0, noise, steps)
        target = scheduler.get_velocity(z_0, noise, steps)
        functional.mse_loss(net(noisy, steps, condition[rows]), target).backward()
        optimizer.step()


@torch.no_grad()
def embed(start: Start, image: torch.Tensor) -> torch.Tensor:
    """Return what the copy encoder sees of images as they lie."""
    encoder = start.screener.gallery.lens.encoders.copy
    return torch.cat([encoder.embed(part) for part in image.split(32)])


def test_generate_screen_retrain_beside_a_script(start: Start, tmp_path: Path) -> None:
    ours, peer = run_ours(start), run_peer(start, tmp_path)
    apart = np.abs(ours.candidates.mean(0) - peer.candidates.mean(0)).mean()
    report: dict[str, Any] = {
        "candidates": CANDIDATES, "student_images": STUDENT_IMAGES, "load": os.getloadavg()[0],
        "ours_s": ours.seconds, "peer_s": peer.seconds,
        "ratio": sum(ours.seconds.values()) / sum(peer.seconds.values()),
        "ratio_by_step": {name: ours.seconds[name] / peer.seconds[name] for name in ours.seconds},
        "mean_images_apart": float(apart),
        "copies_found": [float(done.found[:40].mean()) for done in (ours, peer)],
        "strangers_dropped": [float(done.found[40:].mean()) for done in (ours, peer)],
        "student_error": [start.error(done.student) for done in (ours, peer)],
        "untrained_error": start.error(start.student()),
    }  # fmt: skip
    print("\nB16 " + json.dumps(report, indent=1))
    if place := os.environ.get("VITRAEL_BENCH_DIR"):
        text = json.dumps(report, indent=1)
        (Path(place) / "distillation-speed.json").write_text(text, encoding="utf-8")
    assert report["mean_images_apart"] < 0.05
    assert report["copies_found"][0] >= report["copies_found"][1]
    assert report["student_error"][0] <= 1.1 * report["student_error"][1]
    assert report["student_error"][0] < 0.8 * report["untrained_error"]
    assert report["ratio"] <= TIME
