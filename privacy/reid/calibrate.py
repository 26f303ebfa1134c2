"""The operating point of the filter, frozen at the site before any candidate is seen.

What is a conspicuous match? One that fewer than ``false_match_rate`` of patients who are *not* in
the gallery would have. The null is size-matched, because a maximum over more scans is higher:
each training patient is left out in turn, with a calibration patient put in the empty place, and
each calibration patient meets the whole gallery, so every null maximum and every maximum at use
runs over the same number of patients.

The members are joined by OR on one scale: each score, through Fisher's z, is counted in spreads of
its own null, and the largest of all decides. A spread is that of the upper half: how far scores
fall below the mean says nothing of how high they rise. Patients of the null are measured with mean
and spread of the others alone, since a newcomer has no part in them either. The threshold is an
order statistic of these largest scores, one place higher than among independent ones: two patients
who are nearest to each other are both high, and a newcomer would have lifted one more
(``core.metrics.conformal``).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
from pydantic import Field

from vitrael.core.configs import Section
from vitrael.core.digest import Digest, digest_bytes, digest_json
from vitrael.core.errors import DataError
from vitrael.core.interfaces import Embedder
from vitrael.core.metrics.conformal import frozen_threshold, least_null
from vitrael.core.records import PatientImages
from vitrael.core.weights import Tensors, pack_tensors
from vitrael.privacy.leakage import SMALLEST_COUNT
from vitrael.privacy.reid.gallery import Gallery, extend_gallery, with_round_trips
from vitrael.privacy.reid.lens import embed
from vitrael.privacy.reid.roles import RoundTrip
from vitrael.privacy.reid.search import Matches, match

_LARGEST_R: Final = 1 - 1e-6
"""Above it Fisher's z is no longer told apart from that of equal images."""
_LEAST_SPREAD: Final = 1e-3
_OF_LATENTS: Final = 3
"""From this column on the best matches are those among latents, two of one member."""
_FEWEST: Final = 3
"""Patients of a null without whom a spread of the others is none."""
SCORES: Final = 2
"""Raised whenever the same images score otherwise: a threshold says nothing of other scores."""
LIFTED: Final = 1
"""Of a null of left-out patients: the one who is nearest to a newcomer."""


class Scale(Section):
    """Mean and upper spread of Fisher's z over the null, one for each score."""

    mean: tuple[float, ...]
    spread: tuple[float, ...]
    """Root mean square of what is above the mean: only there a match is conspicuous."""

    def measure(self, score_BK: np.ndarray) -> np.ndarray:
        """Return scores in spreads of the null, ``[B, K]``."""
        return np.asarray((fisher_z(score_BK) - np.array(self.mean)) / np.array(self.spread))


class OperatingPoint(Section):
    """The frozen scales and the threshold; they never leave the site, only their digest does."""

    best: Scale
    """Of the two encoders, the registered similarity, and if there is a codec the likelihood ratio
    and the margin among latents."""
    region: Scale
    """Of each region."""
    regions: Scale
    """Of the largest over the regions, in their spreads."""
    threshold: float
    """A candidate with a larger score, in spreads, is dropped."""
    false_match_rate: float = Field(gt=0, lt=1)
    null_patients: int = Field(ge=1)
    gallery_patients: int = Field(ge=1)
    made_with: str = Field(pattern=r"^(sha256:[0-9a-f]{64})?$")
    """Names the filter that it was frozen for (``name_filter``); empty where none is kept."""
    salt: str = Field(pattern=r"^[0-9a-f]{32}$")
    """Secret: without it the commitment could be tried against guessed thresholds."""

    def __repr__(self) -> str:
        """Show no threshold."""
        return "OperatingPoint(private)"

    __str__ = __repr__

    @property
    def commitment(self) -> Digest:
        """The digest that is published before screening; it binds what ``made_with`` names."""
        return digest_json(self.model_dump(mode="json"))

    def members(self, matches: Matches) -> np.ndarray:
        """Return ``[B, M]``: what each member says, in spreads, in the order of ``MEMBERS``."""
        best_BK = self.best.measure(matches.best_BK)
        largest = self.region.measure(matches.region_BR).max(1, keepdims=True)
        spread, mean = np.array(self.regions.spread), np.array(self.regions.mean)
        regions_B1 = (largest - mean) / spread
        told = [best_BK[:, :_OF_LATENTS], regions_B1]
        if best_BK.shape[1] > _OF_LATENTS:
            told.append(best_BK[:, _OF_LATENTS:].max(1, keepdims=True))
        return np.concatenate(told, axis=1)


@dataclass(frozen=True, slots=True)
class Verification:
    """How well the encoder knows a patient again: a sum of wins over the patients tried."""

    wins: float
    """For each patient the share of strangers who are less alike than the other visit, summed."""
    patients: int


def null_matches(
    training: PatientImages,
    calibration: PatientImages,
    gallery: Gallery,
    *,
    round_trip: RoundTrip | None = None,
) -> Matches | None:
    """Return the best match of each patient who is not in the gallery, one row each, or None.

    ``gallery`` is that of ``training``. Without calibration patients the left-out place stays
    empty; the null is then one patient short of size. None when nobody is left to compare with.

    Each patient comes with the first visit, as a candidate comes: out of the autoencoder, if there
    is one. A new patient's scan that has not been through it is no candidate, and the rate says
    nothing of it.
    """
    left_out = first_visits(training)
    wide = extend_gallery(gallery, with_round_trips(calibration, round_trip))
    own = wide.patient_N[None, :] == training.patient_B[left_out][:, None]
    inside = np.arange(len(wide.patient_N)) < len(gallery.patient_N)
    allowed = inside[None, :] & ~own
    strangers = np.unique(wide.patient_N[~inside])
    if len(strangers):
        substitute = strangers[np.arange(len(left_out)) % len(strangers)]
        allowed = allowed | (wide.patient_N[None, :] == substitute[:, None])
    if not allowed.any(1).all():
        return None
    come = round_trip or _as_it_is
    matches = match(come(training.image_BCDHW[left_out]), wide, allowed_BN=allowed)
    if len(calibration):
        fresh = come(calibration.image_BCDHW[first_visits(calibration)])
        matches = match(fresh, gallery).behind(matches)
    return matches


def name_filter(
    weights: Mapping[str, Tensors], *, scans: Mapping[str, Sequence[tuple[str, Digest]]]
) -> Digest:
    """Return a digest of all that a filter follows from: another one has other scores.

    ``weights`` are those of the encoders and of the codec. ``scans`` are those of each split that
    the filter is made of, in their order, each by its patient and its digest. Template, components
    and gallery follow from them, by the way of scoring that ``SCORES`` counts.
    """
    named = {name: digest_bytes(pack_tensors(tensors)) for name, tensors in weights.items()}
    every = {split: [list(scan) for scan in own] for split, own in scans.items()}
    return digest_json({"weights": named, "scans": every, "scores": SCORES})


def freeze(
    null: Matches | None,
    *,
    false_match_rate: float,
    gallery_patients: int,
    salt: str,
    made_with: str = "",
) -> OperatingPoint | None:
    """Return the operating point, or None when the null is too small for the rate.

    5 % takes 39 patients, 1 % takes 199. A point that is kept has to say what it was ``made_with``.
    Raises DataError when a score is not finite.
    """
    if null is None:
        return None
    if not all(np.isfinite(scores).all() for scores in (null.best_BK, null.region_BR)):
        raise DataError("the null of the filter holds scores that are not finite")
    if len(null) < max(_FEWEST, least_null_patients(false_match_rate)):
        return None
    best_BK, region_BR = fisher_z(null.best_BK), fisher_z(null.region_BR)
    largest_B1 = _among_others(region_BR).max(1, keepdims=True)
    joined_B = np.concatenate([_among_others(best_BK), _among_others(largest_B1)], axis=1).max(1)
    threshold = frozen_threshold(joined_B, false_match_rate, lifted=LIFTED)
    if threshold is None:
        return None
    return OperatingPoint(
        best=_scale(best_BK),
        region=_scale(region_BR),
        regions=_scale(largest_B1),
        threshold=threshold,
        false_match_rate=false_match_rate,
        null_patients=len(null),
        gallery_patients=gallery_patients,
        made_with=made_with,
        salt=salt,
    )


def least_null_patients(false_match_rate: float) -> int:
    """Return how many patients the null needs before the rate can be held."""
    return least_null(false_match_rate, lifted=LIFTED)


def fisher_z(score: np.ndarray) -> np.ndarray:
    """Return Fisher's z of cosines and correlations, float64."""
    return np.asarray(np.arctanh(np.clip(score.astype(np.float64), -_LARGEST_R, _LARGEST_R)))


def verify_encoder(
    images: PatientImages, encoder: Embedder, *, device: str = "cpu"
) -> Verification:
    """Return how often two visits of a patient are more alike than visits of two patients.

    Only patients with two visits count; the images are those of patients whom the encoder has
    never seen, as it is shown them. Fewer than ``SMALLEST_COUNT`` such patients give no trial.
    """
    pairs = [
        (rows[0], rows[1])
        for patient in np.unique(images.patient_B)
        if len(rows := np.flatnonzero(images.patient_B == patient)) > 1
    ]
    if len(pairs) < SMALLEST_COUNT:
        return Verification(0.0, 0)
    first, second = np.array(pairs).T
    embedding = embed(images.image_BCDHW, encoder, device=device)
    cosine = embedding[first] @ embedding[second].T
    same = np.diag(cosine)[:, None]
    wins = (cosine < same) + 0.5 * (cosine == same)
    np.fill_diagonal(wins, 0.0)
    return Verification(float(wins.sum() / (len(pairs) - 1)), len(pairs))


def first_visits(images: PatientImages) -> np.ndarray:
    """Return the row of each patient's first scan."""
    order = np.lexsort((images.visit_B, images.patient_B))
    _, start = np.unique(images.patient_B[order], return_index=True)
    return order[start]


def _as_it_is(image_BCDHW: np.ndarray) -> np.ndarray:
    return image_BCDHW


def _scale(z_BK: np.ndarray) -> Scale:
    mean_K = z_BK.mean(0)
    over_BK = np.maximum(z_BK - mean_K, 0)
    spread_K = np.sqrt((over_BK**2).sum(0) / np.maximum(1, (over_BK > 0).sum(0)))
    spread = np.maximum(spread_K, _LEAST_SPREAD)
    return Scale(mean=tuple(mean_K.tolist()), spread=tuple(spread.tolist()))


def _among_others(z_BK: np.ndarray) -> np.ndarray:
    """Return each row in mean and upper spread of all the other rows, column by column."""
    n = len(z_BK)
    mean_BK = (z_BK.sum(0) - z_BK) / (n - 1)
    falling = np.sort(z_BK, axis=0)[::-1]
    # Of the largest 0, 1, 2, ... numbers: sum, and sum of squares.
    sum_BK, squares_BK = (
        np.concatenate([np.zeros((1, z_BK.shape[1])), np.cumsum(part, axis=0)])
        for part in (falling, falling**2)
    )
    columns = zip(falling[::-1].T, mean_BK.T, strict=True)
    below_BK = np.stack([np.searchsorted(z, mean, "right") for z, mean in columns], axis=1)
    count_BK = n - below_BK
    sum_BK, squares_BK = (np.take_along_axis(part, count_BK, 0) for part in (sum_BK, squares_BK))
    own_BK = np.maximum(z_BK - mean_BK, 0)
    over_BK = squares_BK - 2 * mean_BK * sum_BK + count_BK * mean_BK**2 - own_BK**2
    spread_BK = np.sqrt(np.maximum(over_BK, 0) / np.maximum(1, count_BK - (own_BK > 0)))
    return np.asarray((z_BK - mean_BK) / np.maximum(spread_BK, _LEAST_SPREAD))
