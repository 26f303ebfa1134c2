"""The gallery: every scan that a candidate could be a copy of, and how alike they are.

A generator that copies a patient shows the scan as the study's autoencoder leaves it, so each
scan is in the gallery twice: as it is, and after the autoencoder's round trip. Nearest neighbours
are exact, by matrix products: a filter that misses a neighbour for speed is none.
Axes: B candidates, N scans of the gallery, E embedding.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch

from vitrael.core.errors import DataError
from vitrael.core.records import PatientImages
from vitrael.privacy.reid.roles import RoundTrip
from vitrael.privacy.reid.similarity import (
    Reference,
    Template,
    add_scans,
    build_reference,
    registered_similarity,
)

if TYPE_CHECKING:
    from vitrael.core.interfaces import Embedder

_CHUNK = 128


@dataclass(frozen=True, slots=True, repr=False)
class Gallery:
    """Private: the scans of split T as the filter sees them."""

    reference: Reference
    embedding_NE: np.ndarray
    patient_N: np.ndarray

    def __repr__(self) -> str:
        """Show nothing of a patient, not even how many there are."""
        return "Gallery(private)"

    @property
    def patients(self) -> int:
        """How many patients there are."""
        return len(np.unique(self.patient_N))


@dataclass(frozen=True, slots=True, repr=False)
class Matches:
    """How alike each candidate and each scan of the gallery are; private."""

    embedding_BN: np.ndarray
    """Cosine of the embeddings."""
    similarity_BN: np.ndarray
    """Registered similarity."""

    def best(self, allowed_BN: np.ndarray | None = None) -> np.ndarray:
        """Return ``[B, 2]``: the best embedding and the best similarity over the allowed scans."""
        scores_BN2 = np.stack([self.embedding_BN, self.similarity_BN], axis=2)
        if allowed_BN is not None:
            scores_BN2 = np.where(allowed_BN[:, :, None], scores_BN2, -np.inf)
        return np.asarray(scores_BN2.max(1))


def with_round_trips(images: PatientImages, round_trip: RoundTrip | None) -> PatientImages:
    """Return the images with those after the autoencoder behind them, as later visits."""
    if round_trip is None or len(images) == 0:
        return images
    later = int(images.visit_B.max()) + 1 + images.visit_B
    return PatientImages(
        image_BCDHW=np.concatenate([images.image_BCDHW, round_trip(images.image_BCDHW)]),
        condition_BK=np.concatenate([images.condition_BK, images.condition_BK]),
        patient_B=np.concatenate([images.patient_B, images.patient_B]),
        visit_B=np.concatenate([images.visit_B, later]),
    )


def build_gallery(
    images: PatientImages, encoder: Embedder, template: Template, *, device: str = "cpu"
) -> Gallery:
    """Return the gallery of all scans of all patients; raise DataError when there is none.

    The template should hold the patients of the gallery and those of the null alike, and many.
    """
    if len(images) == 0:
        raise DataError("the gallery is empty", fix="give the training split at least one patient")
    return Gallery(
        reference=build_reference(images.image_BCDHW, template),
        embedding_NE=embed(images.image_BCDHW, encoder, device=device),
        patient_N=images.patient_B.copy(),
    )


def extend_gallery(
    gallery: Gallery, images: PatientImages, encoder: Embedder, *, device: str = "cpu"
) -> Gallery:
    """Return the gallery with more patients; the template stays as it is.

    The new patients get numbers of their own, after those that are there.
    """
    if len(images) == 0:
        return gallery
    first = int(gallery.patient_N.max()) + 1
    more = embed(images.image_BCDHW, encoder, device=device)
    return Gallery(
        reference=add_scans(gallery.reference, images.image_BCDHW),
        embedding_NE=np.concatenate([gallery.embedding_NE, more]),
        patient_N=np.concatenate([gallery.patient_N, first + images.patient_B]),
    )


def match(
    image_BCDHW: np.ndarray, gallery: Gallery, encoder: Embedder, *, device: str = "cpu"
) -> Matches:
    """Return how alike candidates and gallery are; each candidate is judged for itself."""
    embedding = embed(image_BCDHW, encoder, device=device)
    return Matches(
        embedding_BN=embedding @ gallery.embedding_NE.T,
        similarity_BN=registered_similarity(image_BCDHW, gallery.reference),
    )


@torch.no_grad()
def embed(image_BCDHW: np.ndarray, encoder: Embedder, *, device: str = "cpu") -> np.ndarray:
    """Return ``[B, E]`` float32 unit vectors, computed in chunks."""
    rows = []
    for at in range(0, len(image_BCDHW), _CHUNK):
        part = np.ascontiguousarray(image_BCDHW[at : at + _CHUNK], dtype=np.float32)
        rows.append(encoder.embed(torch.from_numpy(part).to(device)).float().cpu().numpy())
    return np.concatenate(rows) if rows else np.empty((0, 1), dtype=np.float32)
