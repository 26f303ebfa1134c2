"""The search: how near candidates come to the scans of a gallery, member by member.

Similarities are whole rows, candidate by scan, and not the few nearest of ``neighbors.nearest``:
the null allows each patient other scans than the next, the scans of one patient must not take the
places of three, and the numbers are a thousandth of what a candidate's regions take.

Axes: B candidates, N scans of the gallery, R regions, P pairs.
"""

from __future__ import annotations

import math
import time
from dataclasses import dataclass
from typing import Final

import numpy as np
import torch

from vitrael.privacy.reid.gallery import Gallery
from vitrael.privacy.reid.latents import Latents, margins
from vitrael.privacy.reid.lens import (
    ENCODERS,
    Parts,
    Views,
    Work,
    see_identity,
    see_parts,
    see_planes,
    view,
)
from vitrael.privacy.reid.pairs import registered_pairs
from vitrael.privacy.reid.planes import Planes, best_planes
from vitrael.privacy.reid.regions import best_regions
from vitrael.privacy.reid.template import chunk_of

TOP: Final = 3
"""Patients to whose nearest scan a candidate is registered, of each member that finds the
nearest."""


@dataclass(frozen=True, slots=True, repr=False)
class Matches:
    """How near each candidate comes to the scans that were allowed; private."""

    best_BK: np.ndarray
    """The largest cosine of the copy encoder, of the patient encoder, the largest registered
    similarity, and where there is a codec likelihood ratio and margin among latents."""
    region_BR: np.ndarray
    """The largest correlation over each region, and what the planes say."""

    def __repr__(self) -> str:
        """Show nothing of a patient."""
        return "Matches(private)"

    def __len__(self) -> int:
        """Return the number of candidates."""
        return len(self.best_BK)

    def larger(self, other: Matches) -> Matches:
        """Return the nearer of two looks at the same candidates, number by number."""
        return Matches(
            np.maximum(self.best_BK, other.best_BK), np.maximum(self.region_BR, other.region_BR)
        )

    def behind(self, first: Matches) -> Matches:
        """Return the candidates of ``first`` and then these."""
        return Matches(
            np.concatenate([first.best_BK, self.best_BK]),
            np.concatenate([first.region_BR, self.region_BR]),
        )


def match(
    image_BCDHW: np.ndarray,
    gallery: Gallery,
    *,
    allowed_BN: np.ndarray | None = None,
    work: Work | None = None,
) -> Matches:
    """Return how near candidates come to the allowed scans; each is judged for itself."""
    work = work or Work()
    count = 3 if gallery.lens.latents is None else 5
    whole = Matches(
        np.empty((0, count), np.float32), np.empty((0, gallery.lens.scores), np.float32)
    )
    size = chunk_of(image_BCDHW.shape[2:])
    for at in range(0, len(image_BCDHW), size):
        allowed = None if allowed_BN is None else torch.from_numpy(allowed_BN[at : at + size])
        found = _match_chunk(image_BCDHW[at : at + size], gallery, allowed, work)
        whole = found.behind(whole)
    return whole


@torch.no_grad()
def _match_chunk(
    image_BCDHW: np.ndarray, gallery: Gallery, allowed_BN: torch.Tensor | None, work: Work
) -> Matches:
    lens = gallery.lens
    now = time.perf_counter()
    views = view(image_BCDHW, lens.template)
    mirrored = views.mirrored(lens.template)
    now = work.spend("laid", now)
    sides = [see_parts(one, lens) for one in (views, mirrored)]
    now = work.spend("regions", now)
    shortlist, best = [], []
    for name in ENCODERS:
        identity = see_identity(views.laid_BCDHW, lens, name)
        cosine = _only(identity @ gallery.embedding_NE[name].T, allowed_BN)
        best.append(cosine.amax(1))
        shortlist.append(nearest_patients(cosine, gallery.patient_N))
        now = work.spend(name, now)
    nearer, side = torch.stack([one.form_BV @ gallery.parts.form_BV.T for one in sides]).max(0)
    shortlist.append(nearest_patients(_only(nearer.cpu(), allowed_BN), gallery.patient_N))
    scan_BP = torch.cat(shortlist, 1)
    laid = torch.from_numpy(np.stack([views.laid_BCDHW[:, 0], mirrored.laid_BCDHW[:, 0]]))
    best.append(_registered(laid, scan_BP, side.cpu(), gallery, allowed_BN, work=work))
    now = work.spend("registered", now)
    if lens.latents is not None and gallery.latent_NS is not None:
        looks, known_NS = (views, mirrored), gallery.latent_NS
        best += _among_latents(
            looks, lens.latents, known_NS, gallery.patient_N, allowed_BN=allowed_BN
        )
        now = work.spend("latents", now)
    device = lens.template.device
    where = None if allowed_BN is None else allowed_BN.to(device)
    regions = [
        _regions(parts, one, gallery, where)
        for parts, one in zip(sides, (views, mirrored), strict=True)
    ]
    region = torch.maximum(regions[0], regions[1])
    work.spend("regions", now)
    return Matches(torch.stack(best, 1).numpy(), region.cpu().numpy())


def _registered(
    laid_2BDHW: torch.Tensor,
    scan_BP: torch.Tensor,
    side_BN: torch.Tensor,
    gallery: Gallery,
    allowed_BN: torch.Tensor | None,
    *,
    work: Work,
) -> torch.Tensor:
    """Return ``[B]``: the best registered similarity with the scans of the shortlist.

    Of the mirror images the one that is nearer before registration is taken. A scan that several
    members have found is registered once.
    """
    count, scans = len(scan_BP), len(gallery.laid_NCDHW)
    row_BP = torch.arange(count)[:, None] + count * side_BN.gather(1, scan_BP)
    pair_P, place_BP = (row_BP * scans + scan_BP).unique(return_inverse=True)
    found = registered_pairs(
        laid_2BDHW.flatten(0, 1),
        torch.from_numpy(gallery.laid_NCDHW[:, 0]),
        gallery.lens.template,
        row_P=pair_P // scans,
        scan_P=pair_P % scans,
    ).cpu()
    work.pairs += len(pair_P)
    similarity_BP = found[place_BP]
    if allowed_BN is not None:
        similarity_BP = similarity_BP.masked_fill(~allowed_BN.gather(1, scan_BP), -1.0)
    return similarity_BP.amax(1)


def _regions(
    seen: Parts, views: Views, gallery: Gallery, allowed_BN: torch.Tensor | None
) -> torch.Tensor:
    """Return ``[B, R]``: of laid and of upright images over regions, and of planes.

    The planes of an image that was turned or inverted are looked at as it came and as it was put
    upright: a turned stranger may hold a slice of somebody's.
    """
    known, lens = gallery.parts, gallery.lens
    over = [
        best_regions(mine, theirs, parcels, allowed_BN=allowed_BN)
        for mine, theirs, parcels in zip(seen.parceled, known.parceled, lens.parcels, strict=True)
    ]
    along = _planes(seen.planes, known.planes, allowed_BN, over[0])
    row_b = np.flatnonzero((views.upright_BCDHW != views.given_BCDHW).any(axis=(1, 2, 3, 4)))
    if len(row_b) and lens.bases:
        where = torch.from_numpy(row_b).to(along.device)
        turned = _planes(
            see_planes(views.upright_BCDHW[row_b], lens),
            known.planes,
            None if allowed_BN is None else allowed_BN[where],
            over[0],
        )
        along[where] = torch.maximum(along[where], turned)
    return torch.cat([*over, along], dim=1)


def _planes(
    seen: tuple[Planes, ...],
    known: tuple[Planes, ...],
    allowed_BN: torch.Tensor | None,
    like: torch.Tensor,
) -> torch.Tensor:
    """Return ``[B, R]``: what the planes along every axis say; a picture has none."""
    found = [
        best_planes(mine, theirs, allowed_BN=allowed_BN)
        for mine, theirs in zip(seen, known, strict=True)
    ]
    return torch.cat(found, dim=1) if found else like[:, :0]


def nearest_patients(similarity_BN: torch.Tensor, patient_N: np.ndarray) -> torch.Tensor:
    """Return ``[B, 3]``: the nearest scan of each of the three nearest patients.

    With fewer patients there are as many scans as patients.
    """
    _, number_N = np.unique(patient_N, return_inverse=True)
    number_BN = torch.from_numpy(number_N).expand_as(similarity_BN)
    patients = int(number_N.max()) + 1
    best_BM = torch.full((len(similarity_BN), patients), -torch.inf)
    best_BM = best_BM.scatter_reduce(1, number_BN, similarity_BN, "amax")
    chosen_BT = best_BM.topk(min(TOP, patients), dim=1).indices
    theirs_BTN = number_BN[:, None] == chosen_BT[:, :, None]
    return similarity_BN[:, None].masked_fill(~theirs_BTN, -torch.inf).argmax(2)


def _among_latents(
    looks: tuple[Views, Views],
    latents: Latents,
    known_NS: torch.Tensor,
    patient_N: np.ndarray,
    *,
    allowed_BN: torch.Tensor | None,
) -> list[torch.Tensor]:
    """Return ``[B]`` twice: the largest likelihood ratio and margin of both looks, each by itself.

    The second is the mirrored one, which has to be nearer.
    """
    told = []
    for look, mirrored in zip(looks, (False, True), strict=True):
        seen = latents.see(look.given_BCDHW)
        likely_BN, near_BN = (
            _only(each_BN, allowed_BN, otherwise=-math.inf)
            for each_BN in (
                latents.likely(seen, known_NS, mirrored=mirrored),
                latents.cosines(seen, known_NS),
            )
        )
        told.append((likely_BN.amax(1), margins(near_BN, patient_N, mirrored=mirrored)))
    return [torch.maximum(*score) for score in zip(*told, strict=True)]


def _only(
    similarity_BN: torch.Tensor, allowed_BN: torch.Tensor | None, *, otherwise: float = -1.0
) -> torch.Tensor:
    if allowed_BN is None:
        return similarity_BN
    return similarity_BN.masked_fill(~allowed_BN.to(similarity_BN.device), otherwise)
