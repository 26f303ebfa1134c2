"""Latents: whether an image is one of the patients, drawn anew in part.

A generator that noises a scan part of the way and denoises it leaves each direction of the latents
as it usually is, and correlated with that of the scan: much where patients differ more than the
noise, hardly where they differ less (SDEdit, Meng et al. 2022, arXiv 2108.01073). An image that
owes nothing to the scan is not correlated with it. So each scan of the gallery is asked two things.

*How likely* it is that the image came from it so, beside that it did not: the log-likelihood ratio
of two normal vectors that are correlated to two that are not,

    sum over directions of  -log(1 - w^2) / 2 - [w^2 (x^2 + y^2) - 2 w x y] / (2 (1 - w^2))

with x, y candidate and scan in spreads of the direction and ``w = variance / (variance + noise)``.

*How much nearer* it is than the next patients' scans, by a cosine in which no direction outweighs
the others: what was blended or blurred is weaker than a scan drawn anew, and still somebody's.

Mean, directions and variances come from split F, as all that the filter has learned. Axes: B
images, N scans of the gallery, M patients, Z numbers of a latent, K directions, S numbers that are
seen: K along the directions, and Z of what is left.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

import numpy as np
import torch

from vitrael.core.records import PatientImages

NEXT_PATIENTS: Final = 20
"""Behind the best, whose mean the margin is measured from."""
_NOISE: Final = 0.05
"""Variance that a generator drew anew, of latents whose channels have variance one."""
_DULLEST: Final = 1e-3
_FLOOR: Final = 0.3
"""Variance that is added to each direction before all are evened out."""
_SHRINKAGES: Final = (0.02, 0.05, 0.1, 0.2, 0.35, 0.5, 0.7, 0.9)
_FOLDS: Final = 8
_LEAST_VARIANCE: Final = 1e-6

Encode = Callable[[np.ndarray], np.ndarray]
"""The study's codec: from images ``[B, C, D, H, W]`` to scaled latents ``[B, ...]``."""
Each = tuple[torch.Tensor, torch.Tensor]
"""``[K]``, a number for each direction, and one for every direction outside the basis."""


@dataclass(frozen=True, slots=True, repr=False)
class Spread:
    """A normal distribution of latents; private, since it was learned from patients."""

    mean_Z: torch.Tensor
    basis_KZ: torch.Tensor
    variance_K: torch.Tensor
    rest: torch.Tensor
    """Variance of every direction outside the basis."""

    def split(self, latent_BZ: torch.Tensor) -> torch.Tensor:
        """Return ``[B, S]``: how far from the mean, along the directions and besides."""
        offset_BZ = latent_BZ - self.mean_Z
        along_BK = offset_BZ @ self.basis_KZ.T
        return torch.cat([along_BK, offset_BZ - along_BK @ self.basis_KZ], dim=1)

    def each(self, of: Callable[[torch.Tensor], torch.Tensor]) -> Each:
        """Return a function of the variance of every direction."""
        return of(self.variance_K), of(self.rest)

    def total(self, of: Each) -> torch.Tensor:
        """Return the sum over all directions, those outside the basis too."""
        along_K, left = of
        return along_K.sum() + (len(self.mean_Z) - len(along_K)) * left

    def products(self, seen_BS: torch.Tensor, known_NS: torch.Tensor, weight: Each) -> torch.Tensor:
        """Return ``[B, N]``: scalar products, every direction with its weight."""
        directions = len(self.variance_K)
        along_BN = (seen_BS[:, :directions] * weight[0]) @ known_NS[:, :directions].T
        return along_BN + weight[1] * (seen_BS[:, directions:] @ known_NS[:, directions:].T)

    def squares(self, seen_BS: torch.Tensor, weight: Each) -> torch.Tensor:
        """Return ``[B]``: products with themselves."""
        directions, square_BS = len(self.variance_K), seen_BS.square()
        return square_BS[:, :directions] @ weight[0] + weight[1] * square_BS[:, directions:].sum(1)

    def log_density(self, latent_BZ: torch.Tensor) -> torch.Tensor:
        """Return ``[B]``, but for a constant."""
        apart_B = self.squares(self.split(latent_BZ), self.each(torch.reciprocal))
        return -(apart_B + self.total(self.each(torch.log))) / 2


@dataclass(frozen=True, slots=True, repr=False)
class Latents:
    """How images are seen in latents; private, since it was learned from patients."""

    encode: Encode
    spread: Spread

    def __repr__(self) -> str:
        """Show nothing of a patient."""
        return "Latents(private)"

    def see(self, image_BCDHW: np.ndarray) -> torch.Tensor:
        """Return ``[B, S]``."""
        return self.spread.split(_flat(self.encode(image_BCDHW)))

    def likely(self, seen_BS: torch.Tensor, known_NS: torch.Tensor) -> torch.Tensor:
        """Return ``[B, N]`` in [-1, 1]: of each scan the log-likelihood ratio.

        It is the tanh of nats per number of the latent: Fisher's z, through which every score of
        the filter is read, gives them back.
        """
        spread, to = self.spread, self.spread.each
        # x y w / (1 - w^2) in units of the direction: one over noise (1 + w).
        product = to(lambda variance: 1 / (_NOISE * (1 + _correlation(variance))))
        own = to(lambda v: _correlation(v) / (2 * _NOISE * (1 + _correlation(v))))
        usual = to(lambda variance: -(1 - _correlation(variance).square()).log() / 2)
        nats_BN = spread.total(usual) + spread.products(seen_BS, known_NS, product)
        nats_BN = nats_BN - spread.squares(seen_BS, own)[:, None] - spread.squares(known_NS, own)
        nats_BN = nats_BN - self._dullness(seen_BS)[:, None]
        return (nats_BN / len(spread.mean_Z)).tanh()

    def _dullness(self, seen_BS: torch.Tensor) -> torch.Tensor:
        """Return ``[B]``, in nats: how much likelier an image is among those as near to the mean.

        An average of many patients is near to it as nobody is, and so near to everybody who is.
        It is held against strangers of its own kind; of an image as far off as patients it is 0.
        """
        spread, directions = self.spread, len(self.spread.variance_K)
        apart_B = (seen_BS[:, :directions].square() / spread.variance_K).sum(1)
        share_B = (apart_B / directions).clamp(_DULLEST, 1.0)
        return ((1 - 1 / share_B) * apart_B - directions * share_B.log()) / 2

    def cosines(self, seen_BS: torch.Tensor, known_NS: torch.Tensor) -> torch.Tensor:
        """Return ``[B, N]``: cosines, the directions evened out."""
        even = self.spread.each(lambda variance: 1 / (variance + _FLOOR))
        long_B, long_N = (
            self.spread.squares(seen, even).sqrt().clamp_min(1e-6) for seen in (seen_BS, known_NS)
        )
        return self.spread.products(seen_BS, known_NS, even) / (long_B[:, None] * long_N)


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


def _correlation(variance: torch.Tensor) -> torch.Tensor:
    """Return ``w``: how much of a direction is still the scan's."""
    return variance / (variance + _NOISE)


def _flat(latent: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(np.ascontiguousarray(latent, dtype=np.float32)).flatten(1)
