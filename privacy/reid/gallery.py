"""The gallery: every scan that a candidate could be a copy of, and how near a candidate comes.

A generator that copies a patient shows the scan as the study's autoencoder leaves it, so each
scan is in the gallery twice: as it is, and after the autoencoder's round trip. Nearest neighbours
are exact, by matrix products: a filter that misses a neighbour for speed is none.

Four members look at a candidate, each in its own way, and any of them can drop it: the *copy*
encoder, which learned that a disguised scan is that scan; the *patient* encoder, which learned
that another visit is the same patient; *registered*, the correlation of own forms after
registering the candidate to the scans that the others find nearest; and *regions*, the same over
parts of the image. All of them see images that went the one way of ``lay_onto``.

Axes: B candidates, N scans of the gallery, E embedding, R regions, P pairs.
"""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

import numpy as np
import torch

from vitrael.core.errors import DataError
from vitrael.core.records import PatientImages
from vitrael.privacy.reid.planes import (
    PlaneBasis,
    Planes,
    describe_planes,
    fit_planes,
    join_planes,
    plane_axes,
)
from vitrael.privacy.reid.regions import (
    Parceled,
    Parcels,
    cut_parcels,
    join_parceled,
    parcel,
)
from vitrael.privacy.reid.roles import RoundTrip
from vitrael.privacy.reid.similarity import own_detail, own_form
from vitrael.privacy.reid.template import Template, lay_both_ways, volumes_of

if TYPE_CHECKING:
    from vitrael.core.interfaces import Embedder

MEMBERS: Final = ("copy", "patient", "registered", "regions")
"""Who judges a candidate; any of them drops it."""
ENCODERS: Final = MEMBERS[:2]
_CHUNK: Final = 64


@dataclass(frozen=True, slots=True)
class Encoders:
    """The learned members; both embed laid images."""

    copy: Embedder
    patient: Embedder

    def named(self, name: str) -> Embedder:
        """Return the encoder of a member."""
        return self.copy if name == "copy" else self.patient


@dataclass(frozen=True, slots=True, repr=False)
class Seen:
    """Images as the members see them; private."""

    laid_BCDHW: np.ndarray
    upright_BCDHW: np.ndarray
    """The same, but not registered."""
    embedding_BE: dict[str, torch.Tensor]
    form_BV: torch.Tensor
    """Own forms of the laid images."""

    def __repr__(self) -> str:
        """Show nothing of a patient."""
        return "Seen(private)"


@dataclass(frozen=True, slots=True, repr=False)
class Gallery:
    """Private: the scans of split T as the filter sees them."""

    template: Template
    encoders: Encoders
    seen: Seen
    parcels: tuple[Parcels, Parcels]
    """Of laid images, and of those that are only upright."""
    parceled: tuple[Parceled, Parceled]
    bases: tuple[PlaneBasis, ...]
    planes: tuple[Planes, ...]
    patient_N: np.ndarray
    device: str = "cpu"

    def __repr__(self) -> str:
        """Show nothing of a patient, not even how many there are."""
        return "Gallery(private)"

    @property
    def patients(self) -> int:
        """How many patients there are."""
        return len(np.unique(self.patient_N))


@dataclass(slots=True)
class Work:
    """What a search has cost, for those who plan an audit."""

    pairs: int = 0
    """Registered to each other."""
    seconds: dict[str, float] = field(default_factory=dict)
    """By member, and ``laid`` for bringing images onto the template."""

    def spend(self, name: str, since: float) -> float:
        """Add the time since a moment to a name; return the moment."""
        now = time.perf_counter()
        self.seconds[name] = self.seconds.get(name, 0.0) + now - since
        return now


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
    images: PatientImages, encoders: Encoders, template: Template, *, device: str = "cpu"
) -> Gallery:
    """Return the gallery of all scans of all patients; raise DataError when there is none.

    The template should hold the patients of the gallery and those of the null alike, and many.
    """
    if len(images) == 0:
        raise DataError("the gallery is empty", fix="give the training split at least one patient")
    seen = look(images.image_BCDHW, encoders, template, device=device)
    forms = (seen.form_BV, own_detail(seen.upright_BCDHW, template))
    laid, upright = (cut_parcels(form, template) for form in forms)
    volume = volumes_of(images.image_BCDHW)
    bases = tuple(fit_planes(volume, axis) for axis in plane_axes(tuple(volume.shape[1:])))
    return Gallery(
        template=template,
        encoders=encoders,
        seen=seen,
        parcels=(laid, upright),
        parceled=(parcel(forms[0], laid), parcel(forms[1], upright)),
        bases=bases,
        planes=tuple(describe_planes(volume, basis) for basis in bases),
        patient_N=images.patient_B.copy(),
        device=device,
    )


def extend_gallery(gallery: Gallery, images: PatientImages) -> Gallery:
    """Return the gallery with more patients; template and parcels stay as they are.

    The new patients get numbers of their own, after those that are there.
    """
    if len(images) == 0:
        return gallery
    first = int(gallery.patient_N.max()) + 1
    more = look(images.image_BCDHW, gallery.encoders, gallery.template, device=gallery.device)
    seen = Seen(
        np.concatenate([gallery.seen.laid_BCDHW, more.laid_BCDHW]),
        np.concatenate([gallery.seen.upright_BCDHW, more.upright_BCDHW]),
        {
            name: torch.cat([gallery.seen.embedding_BE[name], more.embedding_BE[name]])
            for name in ENCODERS
        },
        torch.cat([gallery.seen.form_BV, more.form_BV]),
    )
    forms = (more.form_BV, own_detail(more.upright_BCDHW, gallery.template))
    joined = [
        join_parceled(there, parcel(form, parcels))
        for there, form, parcels in zip(gallery.parceled, forms, gallery.parcels, strict=True)
    ]
    return Gallery(
        template=gallery.template,
        encoders=gallery.encoders,
        seen=seen,
        parcels=gallery.parcels,
        parceled=(joined[0], joined[1]),
        bases=gallery.bases,
        planes=tuple(
            join_planes(there, describe_planes(volumes_of(images.image_BCDHW), basis))
            for there, basis in zip(gallery.planes, gallery.bases, strict=True)
        ),
        patient_N=np.concatenate([gallery.patient_N, first + images.patient_B]),
        device=gallery.device,
    )


def look(
    image_BCDHW: np.ndarray,
    encoders: Encoders,
    template: Template,
    *,
    device: str = "cpu",
    work: Work | None = None,
) -> Seen:
    """Return images as the members see them, each by itself: real and synthetic go one way."""
    work = work or Work()
    now = time.perf_counter()
    laid, upright = lay_both_ways(image_BCDHW, template)
    now = work.spend("laid", now)
    embedding = {}
    for name in ENCODERS:
        embedding[name] = torch.from_numpy(embed(laid, encoders.named(name), device=device))
        now = work.spend(name, now)
    form = own_form(laid, template)
    work.spend("laid", now)
    return Seen(laid, upright, embedding, form)


@torch.no_grad()
def embed(image_BCDHW: np.ndarray, encoder: Embedder, *, device: str = "cpu") -> np.ndarray:
    """Return ``[B, E]`` float32 unit vectors, computed in chunks."""
    rows = []
    for at in range(0, len(image_BCDHW), _CHUNK):
        part = np.ascontiguousarray(image_BCDHW[at : at + _CHUNK], dtype=np.float32)
        rows.append(encoder.embed(torch.from_numpy(part).to(device)).float().cpu().numpy())
    return np.concatenate(rows) if rows else np.empty((0, 1), dtype=np.float32)
