"""The seven Protocols of Vitrael: structural, without base classes, at most two methods each.

Axes: B batch, E embedding; ``x`` is an image or latent batch ``[B, C, D, H, W]``.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

if TYPE_CHECKING:
    import torch

    from vitrael.core.records import Loss, SampleRequest, Samples


@runtime_checkable
class Denoiser(Protocol):
    """Estimates the clean ``x_0`` behind a noisy ``x_t`` at noise level ``sigma``."""

    def __call__(
        self, x_t: torch.Tensor, sigma: torch.Tensor, condition: torch.Tensor
    ) -> torch.Tensor:
        """Return the estimate of ``x_0``, shaped like ``x_t``."""


@runtime_checkable
class Codec(Protocol):
    """Maps images to latents and back."""

    def encode(self, x: torch.Tensor) -> torch.Tensor:
        """Return the latents ``z``."""

    def decode(self, z: torch.Tensor) -> torch.Tensor:
        """Return the images."""


@runtime_checkable
class Objective(Protocol):
    """What a training step minimizes."""

    def __call__(self, model: Any, batch: Any, rng: torch.Generator) -> Loss:  # noqa: ANN401
        """Return the loss of one batch."""


@runtime_checkable
class Generator(Protocol):
    """Makes samples."""

    def sample(self, request: SampleRequest) -> Samples:
        """Return one sample for each row of the request; equal requests, equal samples."""


@runtime_checkable
class Scorer(Protocol):
    """Says how foreign an image is: higher is more foreign, everywhere."""

    def score(self, x: torch.Tensor) -> torch.Tensor:
        """Return one number for each image, ``[B]``."""


@runtime_checkable
class Embedder(Protocol):
    """Maps images to points of the unit sphere."""

    def embed(self, x: torch.Tensor) -> torch.Tensor:
        """Return unit vectors ``[B, E]``."""


@runtime_checkable
class Predictor(Protocol):
    """Predicts something about an image."""

    def predict(self, x: torch.Tensor) -> Any:  # noqa: ANN401 - logits, landmarks, volumes
        """Return the prediction of each image."""
