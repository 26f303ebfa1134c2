"""The gallery: every scan that a candidate could be a copy of, as the filter sees it.

A generator that copies a patient shows the scan as the study's autoencoder leaves it, so each
scan is in the gallery twice: as it is, and after the autoencoder's round trip.

Axes: B images, N scans of the gallery, E embedding.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

from vitrael.core.errors import DataError
from vitrael.core.records import PatientImages
from vitrael.privacy.reid.lens import (
    ENCODERS,
    Lens,
    Parts,
    join_parts,
    see_identity,
    see_parts,
    view,
)
from vitrael.privacy.reid.planes import gallery_step
from vitrael.privacy.reid.roles import RoundTrip
from vitrael.privacy.reid.template import chunk_of


@dataclass(frozen=True, slots=True, repr=False)
class Gallery:
    """Private: the scans of split T as the filter sees them."""

    lens: Lens
    laid_NCDHW: np.ndarray
    embedding_NE: dict[str, torch.Tensor]
    """By encoder."""
    parts: Parts
    patient_N: np.ndarray
    latent_NS: torch.Tensor | None = None
    """None where there is no codec."""

    def __repr__(self) -> str:
        """Show nothing of a patient, not even how many there are."""
        return "Gallery(private)"

    @property
    def patients(self) -> int:
        """How many patients there are."""
        return len(np.unique(self.patient_N))


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


def build_gallery(images: PatientImages, lens: Lens) -> Gallery:
    """Return the gallery of all scans of all patients; raise DataError when there is none."""
    if len(images) == 0:
        raise DataError("the gallery is empty", fix="give the training split at least one patient")
    size = chunk_of(images.image_BCDHW.shape[2:])
    step = gallery_step(images.image_BCDHW.shape[2], along=lens.template.along)
    laid, parts = [], []
    for at in range(0, len(images), size):
        views = view(images.image_BCDHW[at : at + size], lens.template)
        laid.append(views.laid_BCDHW)
        parts.append(see_parts(views, lens, step=step))
    laid_NCDHW, latents = np.concatenate(laid), lens.latents
    return Gallery(
        lens=lens,
        laid_NCDHW=laid_NCDHW,
        embedding_NE={name: see_identity(laid_NCDHW, lens, name) for name in ENCODERS},
        parts=join_parts(parts),
        patient_N=images.patient_B.copy(),
        latent_NS=None if latents is None else latents.see(images.image_BCDHW),
    )


def extend_gallery(gallery: Gallery, images: PatientImages) -> Gallery:
    """Return the gallery with more patients.

    The new patients get numbers of their own, after those that are there.
    """
    if len(images) == 0:
        return gallery
    more = build_gallery(images, gallery.lens)
    first = int(gallery.patient_N.max()) + 1
    latents = [one.latent_NS for one in (gallery, more) if one.latent_NS is not None]
    return Gallery(
        lens=gallery.lens,
        laid_NCDHW=np.concatenate([gallery.laid_NCDHW, more.laid_NCDHW]),
        embedding_NE={
            name: torch.cat([gallery.embedding_NE[name], more.embedding_NE[name]])
            for name in ENCODERS
        },
        parts=join_parts([gallery.parts, more.parts]),
        patient_N=np.concatenate([gallery.patient_N, first + more.patient_N]),
        latent_NS=torch.cat(latents) if latents else None,
    )
