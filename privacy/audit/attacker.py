"""An attacker who is no member of the filter: a re-identification network of another shape.

It learned from patients of split F, whom neither generator nor gallery knows, from images as they
came: neither the filter's template nor its registration stand between. It takes an image for a
patient when it is nearer to one of the gallery's scans than strangers are, each of whom comes as a
generator shows people: out of the study's autoencoder.

Axes: B images, N scans of the gallery, P patients, E embedding.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np

from vitrael.core.configs import ReidEncoderConfig, TrainingConfig
from vitrael.core.digest import Digest, digest_bytes
from vitrael.core.metrics.conformal import frozen_threshold
from vitrael.core.models.reid import ReidEncoder
from vitrael.core.records import PatientImages
from vitrael.core.weights import module_tensors, pack_tensors
from vitrael.privacy.reid.calibrate import first_visits
from vitrael.privacy.reid.gallery import with_round_trips
from vitrael.privacy.reid.lens import embed
from vitrael.privacy.reid.roles import RoundTrip

_WIDER: Final = 1.5
_NARROWER: Final = 0.75


def attacker_config(config: ReidEncoderConfig) -> ReidEncoderConfig:
    """Return a network that has one level fewer than the filter's, and wider ones, all at once.

    Of a filter with a single level it has one more. Its embedding is smaller.
    """
    levels = config.channels[:-1] or (*config.channels, 2 * config.channels[0])
    training = {**config.training.model_dump(), "rounds": 1}
    return ReidEncoderConfig(
        kind=config.kind,
        channels=tuple(max(2, round(_WIDER * width)) for width in levels),
        embedding=max(2, round(_NARROWER * config.embedding)),
        temperature=config.temperature,
        training=TrainingConfig.model_validate(training),
    )


def name_network(encoder: ReidEncoder) -> Digest:
    """Return the digest of a network's weights."""
    return digest_bytes(pack_tensors(module_tensors(encoder)))


@dataclass(frozen=True, slots=True, repr=False)
class Attacker:
    """Private: the network with the scans that it knows, and from where on it is sure."""

    encoder: ReidEncoder
    known_NE: np.ndarray
    threshold: float
    device: str = "cpu"

    def __repr__(self) -> str:
        """Show nothing of a patient."""
        return "Attacker(private)"

    def __call__(self, image_BCDHW: np.ndarray) -> np.ndarray:
        """Return ``[B]`` bool: whether each image is taken for a patient of the gallery."""
        return np.asarray(self.score(image_BCDHW) > self.threshold)

    def score(self, image_BCDHW: np.ndarray) -> np.ndarray:
        """Return ``[B]``: the largest cosine with a scan of the gallery."""
        embedding_BE = embed(image_BCDHW, self.encoder, device=self.device)
        return np.asarray((embedding_BE @ self.known_NE.T).max(1))


def as_drawn(images: PatientImages, round_trip: RoundTrip | None) -> np.ndarray:
    """Return the first scan of each patient as a generator would show it."""
    firsts = images.image_BCDHW[first_visits(images)]
    return firsts if round_trip is None else round_trip(firsts)


def join_strangers(parts: Sequence[PatientImages]) -> PatientImages:
    """Return the images of several splits; the patients of each keep numbers of their own."""
    first, patients = 0, []
    for part in parts:
        patients.append(first + part.patient_B)
        first += 1 + int(part.patient_B.max(initial=0))
    return PatientImages(
        image_BCDHW=np.concatenate([part.image_BCDHW for part in parts]),
        condition_BK=np.concatenate([part.condition_BK for part in parts]),
        patient_B=np.concatenate(patients),
        visit_B=np.concatenate([part.visit_B for part in parts]),
    )


def arm_attacker(
    encoder: ReidEncoder,
    training: PatientImages,
    strangers: PatientImages,
    *,
    rate: float,
    round_trip: RoundTrip | None = None,
    device: str = "cpu",
) -> Attacker | None:
    """Return an attacker of the ``training`` patients who takes ``rate`` of newcomers for one.

    The null holds the strangers, and each training patient left out of the gallery with a stranger
    in the empty place, so that every maximum runs over as many people; since likeness is mutual,
    one of them counts as high in any case (``frozen_threshold``). None where they are too few.
    """
    gallery = with_round_trips(training, round_trip)
    known_NE = embed(gallery.image_BCDHW, encoder, device=device)
    left_out_PE = embed(as_drawn(training, round_trip), encoder, device=device)
    similarity_PN = left_out_PE @ known_NE.T
    patient_P = training.patient_B[first_visits(training)]
    similarity_PN[patient_P[:, None] == gallery.patient_B] = -np.inf
    null_P = similarity_PN.max(1)
    if len(strangers):
        others = with_round_trips(strangers, round_trip)
        other_NE = embed(others.image_BCDHW, encoder, device=device)
        names = np.unique(others.patient_B)
        put_P = names[np.arange(len(patient_P)) % len(names)]
        beside_PN = left_out_PE @ other_NE.T
        beside_PN[put_P[:, None] != others.patient_B] = -np.inf
        null_P = np.maximum(null_P, beside_PN.max(1))
        strange_PE = embed(as_drawn(strangers, round_trip), encoder, device=device)
        null_P = np.concatenate([null_P, (strange_PE @ known_NE.T).max(1)])
    threshold = frozen_threshold(null_P, rate, lifted=1)
    return None if threshold is None else Attacker(encoder, known_NE, threshold, device)
