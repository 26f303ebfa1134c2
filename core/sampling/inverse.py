"""InverseSR: a frozen generator searched for the image behind a measurement (Wang et al. 2023).

Nothing is trained. Either a decoder is searched over its latents (the paper's *Decoder* strategy,
for dense input), or decoder and whole deterministic sampler over the sampler's noise and the
condition together (its *LDM* strategy, for sparse input).

Deviations from the release: the distance in feature space is pluggable and falls back to
differences of gradients; the learning rate warms up and falls; a row stops once it no longer
improves; several starts give a map of what the measurement left open.

Axes: B images, C channels, K conditions.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal

import torch
from torch.utils.checkpoint import checkpoint

from vitrael.core.errors import DataError, UsageError
from vitrael.core.rng import torch_stream
from vitrael.core.sampling.samplers import Sampler, ddim
from vitrael.core.sampling.search import (
    Distance,
    GradientDistance,
    Inversion,
    InversionSettings,
    Progress,
    Search,
    Variables,
)

if TYPE_CHECKING:
    from vitrael.core.interfaces import Denoiser
    from vitrael.core.sampling.operators import Operator

__all__ = [
    "Distance",
    "GradientDistance",
    "Inversion",
    "InversionSettings",
    "Prior",
    "SuperResolver",
    "invert_latent",
    "invert_noise",
    "recompute",
]

Decode = Callable[[torch.Tensor], torch.Tensor]
"""Latents to images. One that clips gives no gradient where it does; better one that does not."""


def recompute(denoiser: Denoiser) -> Denoiser:
    """Return the denoiser, of whose calls only the inputs are kept for the gradient.

    Each is evaluated again on the way back. So the memory of the network is that of one evaluation,
    whatever the sampler and the number of its steps. The denoiser must draw nothing.
    """

    def estimate(x_t: torch.Tensor, sigma: torch.Tensor, condition: torch.Tensor) -> torch.Tensor:
        x_0: torch.Tensor = checkpoint(
            denoiser, x_t, sigma, condition, use_reentrant=False, preserve_rng_state=False
        )
        return x_0

    return estimate


@dataclass(frozen=True, slots=True, eq=False)
class Prior:
    """The generator before the decoder: what a search over noise goes through."""

    denoiser: Denoiser
    sigmas: torch.Tensor
    """Falling noise levels that end at 0."""
    condition: torch.Tensor
    """``[B, K]``, or ``[K]`` for all rows: where the search begins."""
    free: torch.Tensor | None = None
    """``[K]`` bool: the entries that are searched; None frees all. Others stay, whatever they are,
    such as -1 throughout for the null condition."""
    sampler: Sampler = ddim
    """Deterministic; one that asks for noise refuses."""


def invert_latent(
    decode: Decode,
    operator: Operator,
    low: torch.Tensor,
    start: torch.Tensor,
    *,
    settings: InversionSettings | None = None,
    distance: Distance | None = None,
    seed: int = 0,
    first: int = 0,
    progress: Progress | None = None,
) -> Inversion:
    """Return images ``decode(z_0)`` whose measurement is ``low``, searched over ``z_0``.

    ``start`` is ``[B, C, ...]``: the mean of training latents, or a sample for each row. Sparse
    measurements say little of a latent, so it decides much; zeros, which are no image's latents,
    can lose to cubic interpolation.
    Rows do not touch each other: row ``i`` draws from streams named by ``first + i``. Raises
    DataError for NaN or infinity in the input, for shapes that do not go together, and when no
    iteration of a row gives a finite loss.
    """
    settings = settings or InversionSettings()
    _demand_rows(low, start=start)
    shape, center = tuple(start.shape[1:]), start.detach().to(low.device, torch.float32)

    def begin(restart: int) -> Variables:
        if not restart:
            return (center.clone(),)
        noise = _noise(shape, center, restart=restart, seed=seed, first=first)
        return (center + settings.jitter * noise,)

    return Search(
        generate=lambda variables: decode(variables[0]),
        operator=operator,
        low=low.detach().float(),
        distance=distance or GradientDistance(),
        settings=settings,
        progress=progress,
        center=center,
    ).run(begin)


def invert_noise(
    prior: Prior,
    decode: Decode,
    operator: Operator,
    low: torch.Tensor,
    *,
    latent_shape: tuple[int, ...],
    settings: InversionSettings | None = None,
    distance: Distance | None = None,
    seed: int = 0,
    first: int = 0,
    progress: Progress | None = None,
) -> Inversion:
    """Return images of the whole generator whose measurement is ``low``.

    Searched are the noise of ``latent_shape`` (C and space), which starts as a draw from the
    standard normal, and the free entries of the condition. These stay in [0, 1]: after each step
    they are put back into it. Rows and errors as in ``invert_latent``; a free entry that starts
    outside [0, 1] is refused.
    """
    settings = settings or InversionSettings()
    condition = prior.condition.detach().to(low.device, torch.float32)
    condition = condition.expand(len(low), -1) if condition.ndim == 1 else condition
    _demand_rows(low, condition=condition)
    free = _free_entries(prior.free, condition)
    level = float(prior.sigmas[0])
    denoiser = recompute(prior.denoiser) if settings.checkpointed else prior.denoiser

    def generate(variables: Variables) -> torch.Tensor:
        noise, asked = variables
        return decode(prior.sampler(denoiser, level * noise, prior.sigmas, asked))

    def begin(restart: int) -> Variables:
        noise = _noise(latent_shape, condition, restart=restart, seed=seed, first=first)
        return noise, condition.clone()

    return Search(
        generate=generate,
        operator=operator,
        low=low.detach().float(),
        distance=distance or GradientDistance(),
        settings=settings,
        progress=progress,
        free=free,
    ).run(begin)


@dataclass(frozen=True, slots=True, eq=False)
class SuperResolver:
    """A Predictor of full images from measured ones, by one of the two inversions.

    ``strategy`` "latent" begins at ``start``, the mean of training latents, or without one at one
    sample of the prior for each row; "noise" needs the prior.
    """

    decode: Decode
    operator: Operator
    latent_shape: tuple[int, ...]
    """C and space of one latent."""
    prior: Prior | None = None
    start: torch.Tensor | None = None
    """``[C, ...]``"""
    strategy: Literal["latent", "noise"] = "latent"
    settings: InversionSettings = field(default_factory=InversionSettings)
    distance: Distance = field(default_factory=GradientDistance)
    seed: int = 0
    progress: Progress | None = None

    def __post_init__(self) -> None:
        """Raise UsageError where there is nothing to begin with."""
        if self.prior is None and (self.strategy == "noise" or self.start is None):
            raise UsageError(
                "an inversion has nothing to begin with",
                fix="give a prior, or the strategy latent a start such as the mean of latents",
            )

    def predict(self, x: torch.Tensor) -> torch.Tensor:
        """Return the full images behind measured ones, ``[B, 1, ...]``."""
        return self.invert(x).image

    def invert(self, x: torch.Tensor, *, first: int = 0) -> Inversion:
        """Return all that is found; ``first`` is the index of the first row in the whole work."""
        if self.strategy == "noise" and self.prior is not None:
            return invert_noise(
                self.prior,
                self.decode,
                self.operator,
                x,
                latent_shape=self.latent_shape,
                settings=self.settings,
                distance=self.distance,
                seed=self.seed,
                first=first,
                progress=self.progress,
            )
        return invert_latent(
            self.decode,
            self.operator,
            x,
            self._start(x, first),
            settings=self.settings,
            distance=self.distance,
            seed=self.seed,
            first=first,
            progress=self.progress,
        )

    @torch.no_grad()
    def _start(self, x: torch.Tensor, first: int) -> torch.Tensor:
        """Return ``[B, C, ...]``: where a search over latents begins."""
        if self.start is not None or self.prior is None:
            start = torch.zeros(self.latent_shape) if self.start is None else self.start
            return start.to(x.device, torch.float32).expand(len(x), *self.latent_shape)
        noise = _noise(self.latent_shape, x, restart=0, seed=self.seed, first=first)
        condition = self.prior.condition.to(x.device, torch.float32).expand(len(x), -1)
        x_t = float(self.prior.sigmas[0]) * noise
        return self.prior.sampler(self.prior.denoiser, x_t, self.prior.sigmas, condition)


def _noise(
    shape: tuple[int, ...], like: torch.Tensor, *, restart: int, seed: int, first: int
) -> torch.Tensor:
    """Return ``[B, *shape]`` of a standard normal: a stream for each row and restart."""
    rows = [
        torch.randn(shape, generator=torch_stream(seed, "inversion", restart, first + row))
        for row in range(len(like))
    ]
    return torch.stack(rows).to(like.device)


def _demand_rows(low: torch.Tensor, **parts: torch.Tensor) -> None:
    """Raise DataError unless all is finite and has as many rows as ``low``, at least one."""
    if not len(low):
        raise DataError("there is no image to invert", fix="give one row or more")
    for name, tensor in {"image": low, **parts}.items():
        if not torch.isfinite(tensor).all():
            raise DataError(
                f"the {name} of an inversion holds values that are not finite",
                fix="replace NaN and infinity, or mask these voxels out and set them to 0",
            )
        if len(tensor) != len(low):
            raise DataError(
                f"the {name} of an inversion has another number of rows than the image",
                why=f"{len(tensor)} and {len(low)}",
                fix="give one row for each image",
            )


def _free_entries(free: torch.Tensor | None, condition: torch.Tensor) -> torch.Tensor:
    """Return ``[K]`` bool; DataError unless the free entries start in [0, 1]."""
    entries = condition.shape[1]
    free = torch.ones(entries, dtype=torch.bool) if free is None else free
    if free.shape != (entries,) or free.dtype != torch.bool:
        raise DataError(
            "the free entries do not fit the condition", fix=f"give {entries} truth values"
        )
    free = free.to(condition.device)
    inside = (condition >= 0) & (condition <= 1)
    if not inside[:, free].all():
        raise DataError(
            "a condition to be searched starts outside of [0, 1]",
            why="the generator has learned nothing there",
            fix="start at 0.5, or leave the entry fixed",
        )
    return free
