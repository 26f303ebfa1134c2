"""Brain LDMs that are trained for tests on phantom slices or volumes, by preset and seed."""

from __future__ import annotations

from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import torch

from tests.factories.planes import draw_planes
from vitrael.core.configs import BrainLDMConfig
from vitrael.core.data.measure import measure_volumes
from vitrael.core.data.measure_areas import measure_areas
from vitrael.core.data.phantoms.cohorts import draw_scan
from vitrael.core.digest import Digest, digest_bytes, digest_json
from vitrael.core.geometry import Affine, centered_affine
from vitrael.core.models import SYSTEMS
from vitrael.core.models.brain_ldm import (
    LatentGenerator,
    build_codec,
    build_denoiser,
    draw_latents,
)
from vitrael.core.models.nets.autoencoder import KLCodec
from vitrael.core.models.nets.unet import HybridUNet
from vitrael.core.rng import torch_stream
from vitrael.core.training.checkpoints import FileCheckpoints
from vitrael.core.training.loop import fit
from vitrael.core.training.objectives import companion_of
from vitrael.core.version import lock_digest

PLANE_RANGES = np.array([[18.0, 95.0], [0.0, 1.0], [2.0, 34.0], [95.0, 205.0]])
"""Years, sex, ventricle and brain area in square centimeters: low and high."""
VOLUME_RANGES = np.array([[18.0, 95.0], [0.0, 1.0], [0.0, 110.0], [800.0, 1900.0]])
"""Years, sex, ventricle and brain volume in milliliters."""
PLANE_SPACING_MM, VOLUME_SPACING_MM = 6.0, 8.0
VENTRICLE = 2
"""Column of the ventricles among the covariates."""
_CHUNK = 64


@dataclass(frozen=True)
class Shown:
    """Images with what is known of them: ages, sexes and what is measured, in their units."""

    image: np.ndarray
    covariate_BK: np.ndarray


@dataclass(frozen=True)
class Trained:
    """A trained model with its way of measuring."""

    config: BrainLDMConfig
    codec: KLCodec
    denoiser: HybridUNet
    ranges_K2: np.ndarray
    grid_vox: tuple[int, ...]
    spacing_mm: float

    @property
    def affine(self) -> Affine:
        """Return where a voxel lies; of slices, that of a slab one voxel thick."""
        x, y, z = (*self.grid_vox, 1)[:3]
        return centered_affine((x, y, z), spacing=self.spacing_mm)

    @property
    def device(self) -> torch.device:
        return next(self.denoiser.parameters()).device

    def generator(self, *, bf16: bool = False) -> LatentGenerator:
        return LatentGenerator(
            self.codec,
            self.denoiser,
            self.config.teacher,
            grid_vox=self.grid_vox,
            affine=self.affine,
            bf16=bf16,
        )

    def conditions(self, covariate_BK: np.ndarray) -> np.ndarray:
        """Return conditions in [0, 1] of covariates in their units."""
        low, high = self.ranges_K2.T
        return np.clip((covariate_BK - low) / (high - low), 0, 1).astype(np.float32)

    @torch.no_grad()
    def encode(self, image: np.ndarray) -> np.ndarray:
        """Return the scaled latents of images."""
        parts = torch.from_numpy(np.array(image, dtype=np.float32, order="C")).split(_CHUNK)
        return torch.cat([self.codec.encode(part.to(self.device)) for part in parts]).cpu().numpy()

    @torch.no_grad()
    def reconstruct(self, image: np.ndarray) -> np.ndarray:
        """Return images after the codec alone."""
        parts = torch.from_numpy(image).split(_CHUNK)
        back = [self.codec.decode(self.codec.encode(part.to(self.device))) for part in parts]
        return torch.cat(back).cpu().numpy()

    def measure(self, image: np.ndarray) -> np.ndarray:
        """Return ventricle size of slices in square centimeters, of volumes in milliliters."""
        if len(self.grid_vox) == 2:
            return measure_areas(image, spacing_mm=self.spacing_mm)[0]
        return measure_volumes(image, self.affine)[0]


def show_planes(seed: int, count: int, *, contrast: str = "T1w") -> Shown:
    """Return slices of as many new patients."""
    planes = draw_planes(seed, count, spacing_mm=PLANE_SPACING_MM, contrast=contrast)
    areas = measure_areas(planes.image_B1HW, spacing_mm=PLANE_SPACING_MM)
    return Shown(planes.image_B1HW, np.stack([planes.age_years, planes.sex, *areas], axis=1))


def show_volumes(
    seed: int,
    count: int,
    *,
    grid_vox: tuple[int, int, int] = (24, 24, 24),
    spacing_mm: float = VOLUME_SPACING_MM,
    processes: int = 1,
) -> Shown:
    """Return volumes of as many new patients."""
    draw = partial(_draw_volume, seed=seed, grid_vox=grid_vox, spacing_mm=spacing_mm)
    if processes > 1:
        with ProcessPoolExecutor(processes) as pool:
            drawn = list(pool.map(draw, range(count), chunksize=16))
    else:
        drawn = [draw(patient) for patient in range(count)]
    image, *facts = (np.stack(column) for column in zip(*drawn, strict=True))
    return Shown(image, np.stack(facts, axis=1))


def _draw_volume(
    patient: int, *, seed: int, grid_vox: tuple[int, int, int], spacing_mm: float
) -> tuple[np.ndarray, float, float, float, float]:
    scan, age, sex = draw_scan(seed, "lab", patient, 0, grid_vox=grid_vox, spacing_mm=spacing_mm)
    image = np.clip(scan.image_CDHW, 0, 1)
    ventricle_ml, brain_ml = measure_volumes(image[None], scan.affine)
    return image, age, sex, float(ventricle_ml[0]), float(brain_ml[0])


def train_planes(seed: int, *, patients: int = 3000) -> Trained:
    """Return the preset cpu-2d, trained on new slices."""
    model = begin("cpu-2d", (32, 32), PLANE_SPACING_MM, PLANE_RANGES, seed=seed)
    return train(model, show_planes(seed, patients), seed=seed, mirrored_axis=3)


def train_volumes(seed: int, *, patients: int = 1500) -> Trained:
    """Return the preset cpu-3d, trained on new volumes."""
    model = begin("cpu-3d", (24, 24, 24), VOLUME_SPACING_MM, VOLUME_RANGES, seed=seed)
    return train(model, show_volumes(seed, patients), seed=seed, mirrored_axis=2)


def begin(
    preset: str,
    grid_vox: tuple[int, ...],
    spacing_mm: float,
    ranges_K2: np.ndarray,
    *,
    seed: int,
    device: str = "cpu",
) -> Trained:
    """Return a preset's model before it is trained."""
    config = BrainLDMConfig.model_validate({"kind": "brain_ldm", "preset": preset})
    codec = build_codec(config, seed=seed).to(device)
    denoiser = build_denoiser(config, config.teacher, seed=seed).to(device)
    return Trained(config, codec, denoiser, ranges_K2, grid_vox, spacing_mm)


def train(
    model: Trained,
    shown: Shown,
    *,
    seed: int,
    mirrored_axis: int,
    bf16: bool = False,
    checkpoints: Path | None = None,
) -> Trained:
    """Train a model in place on images and their mirror images, and return it.

    ``checkpoints`` is a folder in which an interrupted training is found again; one of other
    images, seed, precision or software there is never gone on from.
    """
    config, codec, device = model.config, model.codec, model.device
    spec, one = SYSTEMS[config.kind], torch.from_numpy(shown.image)
    both = torch.cat([one, one.flip(mirrored_axis)])

    def kept(part: str) -> FileCheckpoints | None:
        if checkpoints is None:
            return None
        key = training_key(model, shown, seed=seed, mirrored_axis=mirrored_axis, bf16=bf16)
        return FileCheckpoints(checkpoints / part, key=key)

    def draw(count: int, rng: torch.Generator) -> torch.Tensor:
        return both[torch.randint(len(both), (count,), generator=rng)].to(device)

    length = config.codec.training.length_images
    objective = spec.objective(config, "codec")
    fit(
        codec,
        objective,
        draw,
        config.codec.training,
        length_images=length,
        rng=torch_stream(seed, "codec training"),
        bf16=bf16,
        checkpoints=kept("codec"),
        companion=companion_of(objective),
    )
    with torch.no_grad():
        mean = torch.cat([codec.posterior(part.to(device))[0] for part in both.split(_CHUNK)])
        axes = [axis for axis in range(mean.ndim) if axis != 1]
        codec.latent_mean.copy_(mean.mean(axes))
        codec.latent_std.copy_(mean.std(axes))
        latents = codec.scale(mean)
    told = torch.from_numpy(model.conditions(shown.covariate_BK)).repeat(2, 1).to(device)
    fit(
        model.denoiser,
        spec.objective(config, "teacher"),
        draw_latents(latents, told),
        config.teacher.training,
        length_images=config.teacher.training.length_images,
        rng=torch_stream(seed, "denoiser training"),
        bf16=bf16,
        checkpoints=kept("denoiser"),
    )
    return model


def training_key(
    model: Trained, shown: Shown, *, seed: int, mirrored_axis: int, bf16: bool
) -> Digest:
    """Return the name of all that decides a training.

    Images are told by their shape and by what was measured of each: equal codes, equal phantoms.
    """
    facts = np.ascontiguousarray(shown.covariate_BK, np.float64)
    return digest_json(
        [
            model.config.model_dump(mode="json"),
            [list(model.grid_vox), model.spacing_mm, model.ranges_K2.tolist()],
            [list(shown.image.shape), str(shown.image.dtype), digest_bytes(facts.tobytes())],
            [seed, mirrored_axis, bf16, str(model.device)],
            lock_digest(),
        ]
    )
