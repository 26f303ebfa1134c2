"""Latents: whether an image is one of the patients, drawn anew in part.

A generator that noises a scan part of the way and denoises it leaves each direction of the latents
as it usually is, and correlated with that of the scan: much where patients differ more than the
noise, hardly where they differ less (SDEdit, Meng et al. 2022, arXiv 2108.01073). An image that
owes nothing to the scan is not correlated with it. So what is asked of each scan of the gallery is
a likelihood ratio, of two normal vectors that are correlated to two that are not:

    sum over directions of  -log(1 - w^2) / 2 - [w^2 (x^2 + y^2) - 2 w x y] / (2 (1 - w^2))

with x, y candidate and scan in spreads of the direction and ``w = variance / (variance + noise)``.

Mean, directions and variances come from split F, as all that the filter has learned. Axes: B
images, N scans of the gallery, Z numbers of a latent, K directions, S numbers that are seen: Z, and
one more.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

import numpy as np
import torch

from vitrael.core.records import PatientImages

_NOISE: Final = 0.1
"""Variance that the generator drew anew, of latents whose channels have variance one: a third of
their spread."""
_SHRINKAGES: Final = (0.02, 0.05, 0.1, 0.2, 0.35, 0.5, 0.7, 0.9)
_FOLDS: Final = 8
_LEAST_VARIANCE: Final = 1e-6

Encode = Callable[[np.ndarray], np.ndarray]
"""The study's codec: from images ``[B, C, D, H, W]`` to scaled latents ``[B, ...]``."""


@dataclass(frozen=True, slots=True, repr=False)
class Spread:
    """A normal distribution of latents; private, since it was learned from patients."""

    mean_Z: torch.Tensor
    basis_KZ: torch.Tensor
    variance_K: torch.Tensor
    rest: torch.Tensor
    """Variance of every direction outside the basis."""

    def log_density(self, latent_BZ: torch.Tensor) -> torch.Tensor:
        """Return ``[B]``, but for a constant."""
        offset_BZ = latent_BZ - self.mean_Z
        along_BK = offset_BZ @ self.basis_KZ.T
        left_B = offset_BZ.square().sum(1) - along_BK.square().sum(1)
        outside = latent_BZ.shape[1] - len(self.variance_K)
        volume = self.variance_K.log().sum() + outside * self.rest.log()
        return -((along_BK.square() / self.variance_K).sum(1) + left_B / self.rest + volume) / 2


@dataclass(frozen=True, slots=True, repr=False)
class Latents:
    """How images are seen in latents; private, since it was learned from patients."""

    encode: Encode
    spread: Spread

    def __repr__(self) -> str:
        """Show nothing of a patient."""
        return "Latents(private)"

    def see(self, image_BCDHW: np.ndarray) -> torch.Tensor:
        """Return ``[B, S]``: latents, weighed so that a product of two is ``w x y / (1 - w^2)``.

        The last number is the image's own term, the sum of ``w^2 x^2 / (2 (1 - w^2))``.
        """
        spread = self.spread
        offset_BZ = _flat(self.encode(image_BCDHW)) - spread.mean_Z
        along_BK = offset_BZ @ spread.basis_KZ.T
        left_B = offset_BZ.square().sum(1) - along_BK.square().sum(1)
        weigh_K, weigh = (_scalar_weight(one) for one in (spread.variance_K, spread.rest))
        evened_BZ = weigh.sqrt() * offset_BZ
        evened_BZ += (along_BK * (weigh_K.sqrt() - weigh.sqrt())) @ spread.basis_KZ
        own_B = (along_BK.square() * weigh_K * _correlation(spread.variance_K)).sum(1)
        own_B += left_B * weigh * _correlation(spread.rest)
        return torch.cat([evened_BZ, own_B[:, None] / 2], dim=1)

    def compare(self, seen_BS: torch.Tensor, known_NS: torch.Tensor) -> torch.Tensor:
        """Return ``[B, N]`` in [-1, 1]: of each scan the log-likelihood ratio.

        It is the tanh of nats per number of the latent: Fisher's z, through which every score of
        the filter is read, gives them back.
        """
        spread, numbers = self.spread, seen_BS.shape[1] - 1
        outside = numbers - len(spread.variance_K)
        usual = _information(spread.variance_K).sum() + outside * _information(spread.rest)
        product_BN = seen_BS[:, :-1] @ known_NS[:, :-1].T
        nats_BN = usual + product_BN - seen_BS[:, -1:] - known_NS[None, :, -1]
        return (nats_BN / numbers).tanh()


def fit_latents(images: PatientImages, encode: Encode) -> Latents:
    """Return how images are seen, learned from these: mean and a covariance that is shrunk.

    Of the shrinkages towards equal variances that one is taken under which patients who were left
    out are likeliest. With a single patient there is nobody to leave out, and it is the largest.
    """
    latent_BZ = _flat(encode(images.image_BCDHW))
    patients = np.unique(images.patient_B)
    log_density = np.zeros(len(_SHRINKAGES))
    if len(patients) > 1:
        for fold in np.array_split(patients, min(_FOLDS, len(patients))):
            out = torch.from_numpy(np.isin(images.patient_B, fold))
            learned = _decompose(latent_BZ[~out])
            log_density += [
                float(_shrink(learned, share).log_density(latent_BZ[out]).double().sum())
                for share in _SHRINKAGES
            ]
        best = _SHRINKAGES[int(log_density.argmax())]
    else:
        best = _SHRINKAGES[-1]
    return Latents(encode, _shrink(_decompose(latent_BZ), best))


def _decompose(latent_BZ: torch.Tensor) -> Spread:
    """Return the sample's own mean, directions and variances; ``rest`` is the mean variance."""
    mean_Z = latent_BZ.mean(0)
    _, singular_K, basis_KZ = torch.linalg.svd(latent_BZ - mean_Z, full_matrices=False)
    variance_K = singular_K.square() / max(1, len(latent_BZ) - 1)
    mean = (variance_K.sum() / latent_BZ.shape[1]).clamp_min(_LEAST_VARIANCE)
    return Spread(mean_Z, basis_KZ, variance_K, mean)


def _shrink(sample: Spread, share: float) -> Spread:
    rest = share * sample.rest
    variance_K = (1 - share) * sample.variance_K + rest
    return Spread(sample.mean_Z, sample.basis_KZ, variance_K, rest)


def _correlation(variance: torch.Tensor) -> torch.Tensor:
    """Return ``w``: how much of a direction is still the patient's."""
    return variance / (variance + _NOISE)


def _scalar_weight(variance: torch.Tensor) -> torch.Tensor:
    """Return ``w / (1 - w^2)`` in units of the direction: one over ``noise (1 + w)``."""
    return 1 / (_NOISE * (1 + _correlation(variance)))


def _information(variance: torch.Tensor) -> torch.Tensor:
    return -(1 - _correlation(variance).square()).log() / 2


def _flat(latent: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(np.ascontiguousarray(latent, dtype=np.float32)).flatten(1)
