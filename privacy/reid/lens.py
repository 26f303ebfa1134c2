"""The lens: all that the filter has learned, from patients whom it does not judge.

Template, encoders, and what regions and planes are described by come from split F alone. A patient
of the null, one of the gallery and a newcomer are then seen alike: none of them has helped to make
what they are seen through. With a template or components of the gallery's own scans, patients of
the null would be less like each other than newcomers are, and too many newcomers dropped.

Five members look at a candidate, each in its own way, and any of them can drop it: the *copy*
encoder, which learned that a disguised scan is that scan; the *patient* encoder, which learned
that another visit is the same patient; *registered*, the correlation of own forms after
registering the candidate to the scans that the others find nearest; *regions*, the same over parts
of the image, single planes among them; and, where images come out of a codec, *latents*, which
knows what a generator has made anew but for the coarse of it.

The template says whether images are volumes or clips. Of clips the encoders see all frames, what is
registered are their stills (``template``), regions are those of the still, and planes are frames.

Axes: B images, E embedding, V voxels within the template's mask.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

import numpy as np
import torch

from vitrael.core.errors import DataError
from vitrael.core.records import PatientImages
from vitrael.privacy.reid.latents import Encode, Latents, fit_latents
from vitrael.privacy.reid.planes import (
    SHARES,
    PlaneBasis,
    Planes,
    describe_planes,
    fit_planes,
    join_planes,
    plane_axes,
)
from vitrael.privacy.reid.regions import Parceled, Parcels, cut_parcels, join_parceled, parcel
from vitrael.privacy.reid.similarity import mirror, own_detail, own_form
from vitrael.privacy.reid.template import (
    Template,
    chunk_of,
    lay_both_ways,
    still_of,
    volumes_of,
)

if TYPE_CHECKING:
    from vitrael.core.interfaces import Embedder

MEMBERS: Final = ("copy", "patient", "registered", "regions", "latents")
"""Who judges a candidate; any of them drops it. Without a codec the last one is not there."""
ENCODERS: Final = MEMBERS[:2]


@dataclass(frozen=True, slots=True)
class Encoders:
    """The learned members; both embed laid images."""

    copy: Embedder
    patient: Embedder

    def named(self, name: str) -> Embedder:
        """Return the encoder of a member."""
        return self.copy if name == "copy" else self.patient


@dataclass(frozen=True, slots=True, repr=False)
class Lens:
    """What images are seen through; private, since it was learned from patients."""

    template: Template
    encoders: Encoders
    parcels: tuple[Parcels, Parcels]
    """Of laid images, and of those that are only upright."""
    bases: tuple[PlaneBasis, ...]
    latents: Latents | None = None
    """None where there is no codec."""
    device: str = "cpu"

    def __repr__(self) -> str:
        """Show nothing of a patient."""
        return "Lens(private)"

    @property
    def scores(self) -> int:
        """How many regions and means over planes there are."""
        return sum(parcels.regions for parcels in self.parcels) + len(SHARES) * len(self.bases)


@dataclass(frozen=True, slots=True, repr=False)
class Views:
    """Images as they were given, upright, and laid onto the template; private."""

    given_BCDHW: np.ndarray
    upright_BCDHW: np.ndarray
    laid_BCDHW: np.ndarray

    def mirrored(self, template: Template) -> Views:
        """Return the left-right mirror images."""
        given, upright, laid = (
            mirror(one, template) for one in (self.given_BCDHW, self.upright_BCDHW, self.laid_BCDHW)
        )
        return Views(given, upright, laid)


@dataclass(frozen=True, slots=True, repr=False)
class Parts:
    """Images as the members see them that do not learn; private."""

    form_BV: torch.Tensor
    """Own forms of the laid images."""
    parceled: tuple[Parceled, Parceled]
    planes: tuple[Planes, ...]

    def __repr__(self) -> str:
        """Show nothing of a patient."""
        return "Parts(private)"


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


def fit_lens(
    images: PatientImages,
    encoders: Encoders,
    template: Template,
    *,
    encode: Encode | None = None,
    device: str = "cpu",
) -> Lens:
    """Return the lens of the patients that encoders and template were made from.

    ``encode`` is the codec of the generator whose samples are judged, if there is one.
    Raises DataError for no image.
    """
    if len(images) == 0:
        raise DataError("there is nobody to learn from", fix="give split F at least one patient")
    laid, upright = _see_forms(view(images.image_BCDHW, template), template)
    parcels = cut_parcels(laid, template), cut_parcels(upright, template)
    volume = volumes_of(images.image_BCDHW)
    axes = plane_axes(tuple(volume.shape[1:]), along=template.along)
    bases = (fit_planes(volume, axis) for axis in axes)
    on_device = tuple(PlaneBasis(one.axis, one.basis_KV.to(template.device)) for one in bases)
    latents = None if encode is None else fit_latents(images, encode)
    return Lens(template, encoders, parcels, on_device, latents, device)


def view(image_BCDHW: np.ndarray, template: Template) -> Views:
    """Return the views of images, each by itself: real and synthetic go one way."""
    laid, upright = lay_both_ways(image_BCDHW, template)
    return Views(np.asarray(image_BCDHW, dtype=np.float32), upright, laid)


def see_parts(views: Views, lens: Lens, *, step: int = 1) -> Parts:
    """Return what regions and every ``step``-th plane of images look like."""
    form, detail = _see_forms(views, lens.template)
    laid, upright = lens.parcels
    return Parts(
        form,
        (parcel(form, laid), parcel(detail, upright)),
        see_planes(views.given_BCDHW, lens, step=step),
    )


def see_planes(image_BCDHW: np.ndarray, lens: Lens, *, step: int = 1) -> tuple[Planes, ...]:
    """Return what every ``step``-th plane of images looks like, axis by axis."""
    volume = volumes_of(image_BCDHW).to(lens.template.device)
    return tuple(describe_planes(volume, basis, step=step) for basis in lens.bases)


def join_parts(parts: Sequence[Parts]) -> Parts:
    """Return all images, in order."""
    laid, upright = ([part.parceled[way] for part in parts] for way in range(2))
    return Parts(
        torch.cat([part.form_BV for part in parts]),
        (join_parceled(laid), join_parceled(upright)),
        tuple(join_planes(along) for along in zip(*(part.planes for part in parts), strict=True)),
    )


def see_identity(laid_BCDHW: np.ndarray, lens: Lens, name: str) -> torch.Tensor:
    """Return ``[B, E]``: what the encoder of a member sees."""
    return torch.from_numpy(embed(laid_BCDHW, lens.encoders.named(name), device=lens.device))


def _see_forms(views: Views, template: Template) -> tuple[torch.Tensor, torch.Tensor]:
    """Return own forms of laid and of upright images, ``[B, V]`` each; of clips, of the stills."""
    laid, upright = (
        still_of(volumes_of(one), along=template.along)[:, None]
        for one in (views.laid_BCDHW, views.upright_BCDHW)
    )
    return own_form(laid, template), own_detail(upright.numpy(), template)


@torch.no_grad()
def embed(image_BCDHW: np.ndarray, encoder: Embedder, *, device: str = "cpu") -> np.ndarray:
    """Return ``[B, E]`` float32 unit vectors, computed in chunks."""
    rows = []
    size = chunk_of(image_BCDHW.shape[2:])
    for at in range(0, len(image_BCDHW), size):
        part = np.ascontiguousarray(image_BCDHW[at : at + size], dtype=np.float32)
        rows.append(encoder.embed(torch.from_numpy(part).to(device)).float().cpu().numpy())
    return np.concatenate(rows) if rows else np.empty((0, 1), dtype=np.float32)
