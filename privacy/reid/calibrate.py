"""The operating point of the filter, frozen at the site before any candidate is seen.

What is a conspicuous match? One that fewer than ``false_match_rate`` of patients who are *not* in
the gallery would have. The null is size-matched, because a maximum over more scans is higher:
each training patient is left out in turn, with a calibration patient put in the empty place, and
each calibration patient meets the whole gallery, so every null maximum and every maximum at use
runs over the same number of patients.

Two scores are joined by OR. Both thresholds are set at one common rank r of their null, the lowest
at which the OR as a whole keeps the nominal rate: a newcomer exceeds one of two thresholds of
rank r among n as often as, among n + 1 exchangeable patients, one has a rank above r in either
score, and that is at most 2 of n + 1 more than were counted in the null itself.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from pydantic import Field

from vitrael.core.configs import Section
from vitrael.core.digest import Digest, digest_json
from vitrael.core.errors import DataError
from vitrael.core.interfaces import Embedder
from vitrael.core.records import PatientImages
from vitrael.privacy.leakage import SMALLEST_COUNT
from vitrael.privacy.reid.gallery import Gallery, embed, extend_gallery, match, with_round_trips
from vitrael.privacy.reid.roles import RoundTrip


class OperatingPoint(Section):
    """The frozen thresholds; they never leave the site, only their commitment does."""

    embedding: float
    """A candidate whose best cosine is above this is dropped."""
    similarity: float
    """A candidate whose best registered similarity is above this is dropped."""
    false_match_rate: float = Field(gt=0, lt=1)
    null_patients: int = Field(ge=1)
    gallery_patients: int = Field(ge=1)
    salt: str = Field(pattern=r"^[0-9a-f]{32}$")
    """Secret: without it the commitment could be tried against guessed thresholds."""

    def __repr__(self) -> str:
        """Show no threshold."""
        return "OperatingPoint(private)"

    __str__ = __repr__

    @property
    def commitment(self) -> Digest:
        """The digest that is published before screening."""
        return digest_json(self.model_dump(mode="json"))


@dataclass(frozen=True, slots=True)
class Verification:
    """How well the encoder knows a patient again: a sum of wins over the patients tried."""

    wins: float
    """For each patient the share of strangers who are less alike than the other visit, summed."""
    patients: int


def null_scores(
    training: PatientImages,
    calibration: PatientImages,
    gallery: Gallery,
    encoder: Embedder,
    *,
    round_trip: RoundTrip | None = None,
    device: str = "cpu",
) -> np.ndarray:
    """Return ``[n, 2]``: the best match of each patient who is not in the gallery, one row each.

    ``gallery`` is that of ``training``. Each patient comes with the first visit, as it is and
    after the autoencoder, whichever matches better. Without calibration patients the left-out
    place stays empty; the null is then one patient short of size.
    """
    left_out = first_visits(training)
    wide = extend_gallery(
        gallery, with_round_trips(calibration, round_trip), encoder, device=device
    )
    own = wide.patient_N[None, :] == training.patient_B[left_out][:, None]
    inside = np.arange(len(wide.patient_N)) < len(gallery.patient_N)
    allowed = inside[None, :] & ~own
    strangers = np.unique(wide.patient_N[~inside])
    if len(strangers):
        substitute = strangers[np.arange(len(left_out)) % len(strangers)]
        allowed = allowed | (wide.patient_N[None, :] == substitute[:, None])
    if not allowed.any(1).all():
        return np.empty((0, 2), dtype=np.float32)
    rows = []
    for form in (_as_it_is, round_trip or _as_it_is):
        query = form(training.image_BCDHW[left_out])
        best = match(query, wide, encoder, device=device).best(allowed)
        if len(calibration):
            fresh = form(calibration.image_BCDHW[first_visits(calibration)])
            best = np.concatenate([best, match(fresh, gallery, encoder, device=device).best()])
        rows.append(best)
    return np.asarray(np.max(rows, axis=0))


def freeze(
    null_N2: np.ndarray, *, false_match_rate: float, gallery_patients: int, salt: str
) -> OperatingPoint | None:
    """Return the operating point, or None when the null is too small for the rate.

    The OR of two maxima already has a rate of 2 / (n + 1): 5 % takes 39 patients, 1 % takes 199.
    Raises DataError when a score is not finite.
    """
    if not np.isfinite(null_N2).all():
        raise DataError("the null of the filter holds scores that are not finite")
    count = len(null_N2)
    allowed = math.floor((count + 1) * false_match_rate + 1e-9) - 2
    if allowed < 0:
        return None
    rising = np.sort(null_N2, axis=0)
    ranks = np.stack(
        [np.searchsorted(rising[:, k], null_N2[:, k], side="right") for k in range(2)], axis=1
    )
    rank = int(np.sort(ranks.max(1))[count - 1 - allowed])
    return OperatingPoint(
        embedding=float(rising[rank - 1, 0]),
        similarity=float(rising[rank - 1, 1]),
        false_match_rate=false_match_rate,
        null_patients=count,
        gallery_patients=gallery_patients,
        salt=salt,
    )


def least_null_patients(false_match_rate: float) -> int:
    """Return how many patients the null needs before the rate can be held."""
    return math.ceil(2 / false_match_rate - 1 - 1e-9)


def verify_encoder(
    images: PatientImages, encoder: Embedder, *, device: str = "cpu"
) -> Verification:
    """Return how often two visits of a patient are more alike than visits of two patients.

    Only patients with two visits count; the images are those of patients whom the encoder has
    never seen. Fewer than ``SMALLEST_COUNT`` such patients give no trial.
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


def _as_it_is(image_BCDHW: np.ndarray) -> np.ndarray:
    return image_BCDHW


def first_visits(images: PatientImages) -> np.ndarray:
    """Return the row of each patient's first scan."""
    order = np.lexsort((images.visit_B, images.patient_B))
    _, start = np.unique(images.patient_B[order], return_index=True)
    return order[start]
