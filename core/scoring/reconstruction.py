"""Images seen again through a diffusion model: noised from many start levels and denoised.

The model knows one kind of image. What it removes and cannot put back is foreign (Graham et al.
2023, "Unsupervised 3D out-of-distribution detection with latent diffusion models").

All starts share one list of *relative* levels, so that one batch holds many starts at once: a
start of level ``s`` runs through ``s * ratios``. A deterministic sampler in the coordinates
``x_t = x_0 + sigma * eps`` cannot tell (it is homogeneous in sigma), only the denoiser must be told
the true level. Each row is a run of its own, so no start sees the history of another.

Axes: B images, S starts, R runs (pairs of image and start), F features, C channels of the latent.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Final

import torch

from vitrael.core.configs import SamplerName
from vitrael.core.errors import DataError
from vitrael.core.interfaces import Codec, Denoiser
from vitrael.core.rng import torch_stream
from vitrael.core.sampling.samplers import SAMPLERS
from vitrael.core.scoring.features import (
    IMAGE_METRICS,
    START_METRICS,
    compare_images,
    mean_square,
)

Perceptual = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]
"""``(x, reconstruction) -> [B]``, higher is less alike."""
Decode = Callable[[torch.Tensor], torch.Tensor]
"""Latents to images, as the codec does, but for rounding."""

_CURVE: Final = 3.0
_AT_ONCE_VOX: Final = 1 << 18
"""Voxels of images, and of latents, that are worked on at once: of 64 cubed one image."""
_SPACE: Final = (4, 5)
"""Axes of a batch of images in two and in three dimensions."""


@dataclass(frozen=True, slots=True, kw_only=True)
class StartPlan:
    """From which noise levels images are reconstructed, in how many steps, with which noise."""

    levels: tuple[float, ...]
    """Sigma of every start, rising."""
    steps: int
    """From each start to zero; ``SAMPLERS`` tells the evaluations of the network."""
    seed: int
    condition_K: tuple[float, ...]
    """What the denoiser is told of every image: as a rule ``NULL_CONDITION`` for each."""
    sampler: SamplerName = "ddim"
    """A deterministic one of ``core.sampling.samplers.SAMPLERS``."""

    def __post_init__(self) -> None:
        """Refuse a plan without starts or steps, levels that do not rise, a sampler that draws."""
        if SAMPLERS[self.sampler].stochastic:
            raise DataError(
                f"the sampler {self.sampler} draws noise, so scores would not repeat",
                fix="choose a deterministic one, such as ddim or plms",
            )
        rising = all(a < b for a, b in zip(self.levels, self.levels[1:], strict=False))
        if not self.levels or self.levels[0] <= 0 or not rising or self.steps < 1:
            raise DataError(
                "the start levels cannot be used",
                why="they must be positive and rise, and each needs at least one step",
            )

    def ratios(self) -> torch.Tensor:
        """Return ``[steps + 1]`` levels relative to the start, from 1 to 0, float32.

        They fall as the third power of the steps that are left, so that most lie where the detail
        is decided (Karras et al. 2022, equation 5, with rho 3 and the smallest level at 0).
        """
        left = torch.linspace(1, 0, self.steps + 1, dtype=torch.float64)
        return (left**_CURVE).float()

    def facts(self) -> dict[str, Any]:
        """Return the plan as JSON."""
        return {
            "levels": list(self.levels),
            "steps": self.steps,
            "seed": self.seed,
            "condition": list(self.condition_K),
            "sampler": self.sampler,
        }


@dataclass(frozen=True, slots=True, eq=False)
class Examined:
    """The features of images, and the raw error maps where they were asked for."""

    feature_BF: torch.Tensor
    """float32 on the CPU, in the order of ``Reconstructor.names``."""
    map_B: torch.Tensor | None
    """``[B, (D,) H, W]`` float32 on the CPU: absolute error, mean over starts and channels."""


def spread_starts(sigmas: torch.Tensor, count: int) -> tuple[float, ...]:
    """Return ``count`` rising levels in the middles of equal parts of the trained ``[T]`` levels.

    Seven of a thousand lie at the times 71, 214, ..., 928. Raises DataError for more than T.
    """
    if not 1 <= count <= len(sigmas):
        raise DataError(f"{count} starts cannot be spread over {len(sigmas)} noise levels")
    middles = (torch.arange(count, dtype=torch.float64) + 0.5) * len(sigmas) / count
    return tuple(float(level) for level in sigmas[middles.long()])


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Reconstructor:
    """Measures how images come back from every start of a plan.

    The noise of a start is the same for every image: it is named by seed and start alone. So the
    features of an image do not depend on the batch it came in (but for rounding), and what the
    noise does to the score is part of what calibration sees.
    """

    codec: Codec
    denoiser: Denoiser
    plan: StartPlan
    identity: Mapping[str, str]
    """Whose scores these are: digests of all weights that take part, by what they are for."""
    perceptual: Perceptual | None = None
    batch_latents: int = 64
    """Runs that are denoised at once, at most; fewer of large latents."""
    batch_images: int = 16
    """Images that are encoded, decoded or compared at once, at most; fewer of large volumes."""
    decode: Decode | None = None
    """In the place of ``codec.decode``: one that holds fewer activations of a large volume."""
    device: str | torch.device = "cpu"
    names: tuple[str, ...] = field(init=False)
    """Of the features: ``metric/start``, starts counting from 0, then those of the image."""

    def __post_init__(self) -> None:
        """Name the features."""
        metrics = (*START_METRICS, *(("perceptual",) if self.perceptual else ()))
        names = [f"{metric}/{s}" for metric in metrics for s in range(len(self.plan.levels))]
        object.__setattr__(self, "names", (*names, *IMAGE_METRICS))

    def one_by_one(self) -> Reconstructor:
        """Return one that works on a single run at a time, in the least memory that there is."""
        return replace(self, batch_latents=1, batch_images=1)

    def facts(self) -> dict[str, Any]:
        """Return what a calibration must have been fitted with, as JSON."""
        return {**self.plan.facts(), "names": list(self.names), "identity": dict(self.identity)}

    @torch.no_grad()
    def examine(self, x: torch.Tensor, *, maps: bool = False) -> Examined:
        """Return features, and with ``maps`` the error maps, of images ``[B, C, (D,) H, W]``.

        No more than ``batch_images`` reconstructions exist at a time, of large volumes one. Raises
        DataError for other shapes and for values that are not finite, in the images or in a
        feature.
        """
        if x.ndim not in _SPACE or not len(x):
            raise DataError("the images to score are not [B, C, H, W] or [B, C, D, H, W]")
        if not torch.isfinite(x).all():
            raise DataError("an image to score holds values that are not finite")
        z, column = self._encode(x)
        error_B = torch.zeros(len(x), *x.shape[2:]) if maps else None
        column |= self._reconstruct(x, z, error_B)
        feature_BF = torch.stack([column[name] for name in self.names], dim=1)
        if not torch.isfinite(feature_BF).all():
            raise DataError(
                "a score is not finite",
                why="the codec or the denoiser answered with NaN or infinity",
                fix="check the weights and the precision in which they run",
            )
        return Examined(feature_BF, error_B)

    def _decode(self, z: torch.Tensor) -> torch.Tensor:
        return (self.decode or self.codec.decode)(z)

    def _encode(self, x: torch.Tensor) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        """Return the latents of all images and the features of the codec alone."""
        latents: list[torch.Tensor] = []
        found: dict[str, list[torch.Tensor]] = {name: [] for name in IMAGE_METRICS}
        for part in x.split(_at_once(x, self.batch_images)):
            image = part.to(self.device)
            z = self.codec.encode(image)
            errors = compare_images(image, self._decode(z))
            values = (errors["square"], errors["gradient"], mean_square(z))
            for name, value in zip(IMAGE_METRICS, values, strict=True):
                found[name].append(value.float().cpu())
            latents.append(z)
        return torch.cat(latents), {name: torch.cat(parts) for name, parts in found.items()}

    def _reconstruct(
        self, x: torch.Tensor, z: torch.Tensor, error_B: torch.Tensor | None
    ) -> dict[str, torch.Tensor]:
        """Return the features of all starts; add their errors to ``error_B``."""
        starts = len(self.plan.levels)
        noise_S, ratios = self._noise(z), self.plan.ratios()
        level_S = torch.tensor(self.plan.levels, device=z.device)
        column = {name: torch.zeros(len(x)) for name in self.names if "/" in name}
        for run_R in torch.arange(len(x) * starts).split(_at_once(z, self.batch_latents)):
            image_R, start_R = run_R // starts, run_R % starts
            z_R = z[image_R.to(z.device)]
            level_R = level_S[start_R.to(z.device)]
            told = _Told(self.denoiser, level_R)
            seen = z_R + _rows(level_R, z_R).to(z) * noise_S[start_R.to(z.device)]
            condition = z.new_tensor(self.plan.condition_K).expand(len(run_R), -1)
            back_R = SAMPLERS[self.plan.sampler].sample(told, seen, ratios, condition)
            values = self._compare(x, image_R, back_R, error_B)
            values["latent"] = mean_square(back_R - z_R).float().cpu()
            values["one_step"] = mean_square(told.first() - z_R).float().cpu()
            for metric, value_R in values.items():
                for s in start_R.unique().tolist():
                    column[f"{metric}/{s}"][image_R[start_R == s]] = value_R[start_R == s]
        return column

    def _compare(
        self,
        x: torch.Tensor,
        image_R: torch.Tensor,
        back_R: torch.Tensor,
        error_B: torch.Tensor | None,
    ) -> dict[str, torch.Tensor]:
        """Return the image metrics of runs; they are decoded few at a time and let go."""
        found: list[dict[str, torch.Tensor]] = []
        few = _at_once(x, self.batch_images)
        parts = zip(image_R.split(few), back_R.split(few), strict=True)
        for index, z_part in parts:
            image = x[index].to(self.device)
            back = self._decode(z_part)
            values = compare_images(image, back)
            if self.perceptual is not None:
                values["perceptual"] = self.perceptual(image, back)
            found.append({name: value.float().cpu() for name, value in values.items()})
            if error_B is not None:
                error = (image - back).abs().mean(dim=1).float().cpu()
                error_B.index_add_(0, index, error, alpha=1 / len(self.plan.levels))
        return {name: torch.cat([part[name] for part in found]) for name in found[0]}

    def _noise(self, z: torch.Tensor) -> torch.Tensor:
        """Return the noise of every start, ``[S, C, ...]``; drawn on the CPU, alike everywhere."""
        streams = [
            torch_stream(self.plan.seed, "reconstruction", start)
            for start in range(len(self.plan.levels))
        ]
        return torch.stack([torch.randn(z.shape[1:], generator=rng) for rng in streams]).to(z)


class _Told:
    """A Denoiser over relative levels, which remembers its first answer."""

    def __init__(self, denoiser: Denoiser, level_R: torch.Tensor) -> None:
        self._denoiser = denoiser
        self._level_R = level_R
        self._first: torch.Tensor | None = None

    def __call__(
        self, x_t: torch.Tensor, sigma: torch.Tensor, condition: torch.Tensor
    ) -> torch.Tensor:
        x_0 = self._denoiser(x_t, sigma * self._level_R, condition)
        if self._first is None:
            self._first = x_0
        return x_0

    def first(self) -> torch.Tensor:
        """Return the estimate of ``x_0`` straight from the start level."""
        if self._first is None:
            raise DataError("the sampler never asked the denoiser")
        return self._first


def _at_once(x: torch.Tensor, most: int) -> int:
    """Return how many rows to work on at once: the fewer the larger they are, at least one."""
    return max(1, min(most, _AT_ONCE_VOX // x[0, 0].numel()))


def _rows(value_R: torch.Tensor, like: torch.Tensor) -> torch.Tensor:
    return value_R.reshape(-1, *[1] * (like.ndim - 1))
