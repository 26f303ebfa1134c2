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

An image is looked at as it is and mirrored. A generator mirrors its patients seldom, so that a
mirrored look must be the nearer one by some margin: with equal chances the null would be lifted as
if there were twice the patients.

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
from scipy.optimize import isotonic_regression

from vitrael.core.records import PatientImages

NEXT_PATIENTS: Final = 20
"""Behind the best, whose mean the margin is measured from."""
_NOISE: Final = 0.05
"""Variance that a generator drew anew, of latents whose channels have variance one."""
_DULLEST: Final = 1e-3
_FLOOR: Final = 0.3
"""Variance that is added to each direction before all are evened out."""
_MIRRORED_NATS: Final = 0.035
"""For each number of the latent, by which a mirrored look must be likelier."""
_MIRRORED_MARGIN: Final = 0.02
"""By which its margin must be larger; each is about half a spread of the null."""
_FOLDS: Final = 8
_FEWEST: Final = 4
"""Patients of whom some can be left out."""
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

    def likely(
        self, seen_BS: torch.Tensor, known_NS: torch.Tensor, *, mirrored: bool = False
    ) -> torch.Tensor:
        """Return ``[B, N]`` in [-1, 1]: of each scan the log-likelihood ratio.

        It is the tanh of nats per number of the latent: Fisher's z, through which every score of
        the filter is read, gives them back. That of a ``mirrored`` look has to be larger.
        """
        spread, to = self.spread, self.spread.each
        # x y w / (1 - w^2) in units of the direction: one over noise (1 + w).
        product = to(lambda variance: 1 / (_NOISE * (1 + _correlation(variance))))
        own = to(lambda v: _correlation(v) / (2 * _NOISE * (1 + _correlation(v))))
        usual = to(lambda variance: -(1 - _correlation(variance).square()).log() / 2)
        nats_BN = spread.total(usual) + spread.products(seen_BS, known_NS, product)
        nats_BN = nats_BN - spread.squares(seen_BS, own)[:, None] - spread.squares(known_NS, own)
        nats_BN = nats_BN - self._dullness(seen_BS)[:, None]
        return (nats_BN / len(spread.mean_Z) - _MIRRORED_NATS * mirrored).tanh()

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
    """Return how images are seen, learned from these: mean, directions, and variances.

    Directions fit those whom they were learned from, who vary along the first more than others do
    and along the last less. So the variance along each is that of patients who were left out, by
    the directions of the rest, made to fall by isotonic regression (Bartz 2016, arXiv 1611.00798).
    With fewer than four patients all are equal.
    """
    latent_BZ = _flat(encode(images.image_BCDHW))
    mean_Z, basis_KZ = _decompose(latent_BZ)
    patients = np.unique(images.patient_B)
    if len(patients) < _FEWEST:
        mean = (latent_BZ - mean_Z).square().mean().clamp_min(_LEAST_VARIANCE)
        return Latents(encode, Spread(mean_Z, basis_KZ, mean.expand(len(basis_KZ)), mean))
    square_K, rest = torch.zeros(len(basis_KZ)), torch.zeros(())
    for fold in np.array_split(patients, min(_FOLDS, len(patients))):
        out_B = torch.from_numpy(np.isin(images.patient_B, fold))
        center_Z, learned_kZ = _decompose(latent_BZ[~out_B])
        offset_bZ = latent_BZ[out_B] - center_Z
        along_k = (offset_bZ @ learned_kZ.T).square().sum(0)
        besides = latent_BZ.shape[1] - len(learned_kZ)
        left = (offset_bZ.square().sum() - along_k.sum()) / max(1, besides)
        rest += left
        square_K[: len(along_k)] += along_k
        square_K[len(along_k) :] += left
    falling_K = isotonic_regression((square_K / len(latent_BZ)).numpy(), increasing=False).x
    variance_K = torch.from_numpy(np.array(falling_K, np.float32)).clamp_min(_LEAST_VARIANCE)
    rest = (rest / len(latent_BZ)).clamp_min(_LEAST_VARIANCE)
    return Latents(encode, Spread(mean_Z, basis_KZ, variance_K, rest))


def _decompose(latent_BZ: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Return mean ``[Z]`` and directions ``[K, Z]``, those of the largest variance first."""
    mean_Z = latent_BZ.mean(0)
    _, _, basis_KZ = torch.linalg.svd(latent_BZ - mean_Z, full_matrices=False)
    return mean_Z, basis_KZ


def margins(
    cosine_BN: torch.Tensor, patient_N: np.ndarray, *, mirrored: bool = False
) -> torch.Tensor:
    """Return ``[B]`` in [-1, 1]: half of how much nearer the best patient is than the next twenty.

    A patient is as near as the nearest of the scans; -inf marks a scan that is not allowed. With
    one patient alone it is half the cosine. That of a ``mirrored`` look has to be larger.
    """
    _, number_N = np.unique(patient_N, return_inverse=True)
    number_BN = torch.from_numpy(number_N).to(cosine_BN.device).expand_as(cosine_BN)
    best_BM = torch.full((len(cosine_BN), int(number_N.max()) + 1), -torch.inf)
    best_BM = best_BM.to(cosine_BN).scatter_reduce(1, number_BN, cosine_BN, "amax")
    near_BM = best_BM.topk(min(1 + NEXT_PATIENTS, best_BM.shape[1]), dim=1).values
    there_BM = near_BM[:, 1:].isfinite()
    next_B = near_BM[:, 1:].masked_fill(~there_BM, 0).sum(1) / there_BM.sum(1).clamp_min(1)
    return (near_BM[:, 0] - next_B) / 2 - _MIRRORED_MARGIN * mirrored


def _correlation(variance: torch.Tensor) -> torch.Tensor:
    """Return ``w``: how much of a direction is still the scan's."""
    return variance / (variance + _NOISE)


def _flat(latent: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(np.ascontiguousarray(latent, dtype=np.float32)).flatten(1)
