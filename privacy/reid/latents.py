"""Latents: who is meant by an image when only the coarse of it is left.

A generator that noises a scan part of the way and denoises it keeps the leading directions of the
latents and draws the rest anew. In voxels the result looks like many people; among the study's own
latents, each direction weighed by how much patients differ along it, one patient stands out. So
what counts is a margin: how much nearer the best patient is than the next ones.

Mean and directions come from split F, as all that the filter has learned. Axes: B images, N scans
of the gallery, M patients, Z numbers of a latent, K directions.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

import numpy as np
import torch
from torch.nn import functional

NEXT_PATIENTS: Final = 20
"""Behind the best, whose mean the margin is measured from."""
_FLOOR: Final = 2.0
"""Variances of the mean direction that are added to each: what the generator draws anew."""

Encode = Callable[[np.ndarray], np.ndarray]
"""The study's codec: from images ``[B, C, D, H, W]`` to scaled latents ``[B, ...]``."""


@dataclass(frozen=True, slots=True, repr=False)
class Latents:
    """How images are seen in latents; private, since it was learned from patients."""

    encode: Encode
    mean_Z: torch.Tensor
    basis_KZ: torch.Tensor
    gain_K: torch.Tensor
    """Of each direction, over that of what no direction holds."""

    def __repr__(self) -> str:
        """Show nothing of a patient."""
        return "Latents(private)"

    def see(self, image_BCDHW: np.ndarray) -> torch.Tensor:
        """Return ``[B, Z]`` of unit length: latents, their directions evened out."""
        offset_BZ = _flat(self.encode(image_BCDHW)) - self.mean_Z
        along_BK = offset_BZ @ self.basis_KZ.T
        evened_BZ = offset_BZ + (along_BK * (self.gain_K - 1)) @ self.basis_KZ
        return functional.normalize(evened_BZ, dim=1, eps=1e-6)


def fit_latents(image_BCDHW: np.ndarray, encode: Encode) -> Latents:
    """Return how images are seen, learned from these: square root of a regularized covariance."""
    latent_BZ = _flat(encode(image_BCDHW))
    mean_Z = latent_BZ.mean(0)
    _, spread_K, basis_KZ = torch.linalg.svd(latent_BZ - mean_Z, full_matrices=False)
    variance_K = spread_K.square() / len(latent_BZ)
    floor = (_FLOOR * variance_K.sum() / latent_BZ.shape[1]).clamp_min(1e-8)
    return Latents(encode, mean_Z, basis_KZ, (floor / (variance_K + floor)).sqrt())


def margins(cosine_BN: torch.Tensor, patient_N: np.ndarray) -> torch.Tensor:
    """Return ``[B]`` in [-1, 1]: half of how much nearer the best patient is than the next twenty.

    A patient is as near as the nearest of the scans; -inf marks a scan that is not allowed. With
    one patient alone it is half the cosine.
    """
    _, number_N = np.unique(patient_N, return_inverse=True)
    number_BN = torch.from_numpy(number_N).to(cosine_BN.device).expand_as(cosine_BN)
    best_BM = torch.full((len(cosine_BN), int(number_N.max()) + 1), -torch.inf)
    best_BM = best_BM.to(cosine_BN).scatter_reduce(1, number_BN, cosine_BN, "amax")
    near_BM = best_BM.topk(min(1 + NEXT_PATIENTS, best_BM.shape[1]), dim=1).values
    there_BM = near_BM[:, 1:].isfinite()
    next_B = near_BM[:, 1:].masked_fill(~there_BM, 0).sum(1) / there_BM.sum(1).clamp_min(1)
    return (near_BM[:, 0] - next_B) / 2


def _flat(latent: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(np.ascontiguousarray(latent, dtype=np.float32)).flatten(1)
