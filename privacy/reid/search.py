"""The search: how near candidates come to the scans of a gallery, member by member.

Axes: B candidates, N scans of the gallery, R regions, P pairs.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Final

import numpy as np
import torch

from vitrael.privacy.reid.gallery import Gallery
from vitrael.privacy.reid.lens import ENCODERS, Parts, Work, see_identity, see_parts, view
from vitrael.privacy.reid.pairs import registered_pairs
from vitrael.privacy.reid.planes import best_planes
from vitrael.privacy.reid.regions import best_regions

TOP: Final = 3
"""Scans that a candidate is registered to, of each member that finds the nearest."""
_CHUNK: Final = 64


@dataclass(frozen=True, slots=True, repr=False)
class Matches:
    """How near each candidate comes to the scans that were allowed; private."""

    best_B3: np.ndarray
    """The largest cosine of the copy encoder, of the patient encoder, the largest registered
    similarity."""
    region_BR: np.ndarray
    """The largest correlation over each region, and what the planes say."""

    def __repr__(self) -> str:
        """Show nothing of a patient."""
        return "Matches(private)"

    def __len__(self) -> int:
        """Return the number of candidates."""
        return len(self.best_B3)

    def larger(self, other: Matches) -> Matches:
        """Return the nearer of two looks at the same candidates, number by number."""
        return Matches(
            np.maximum(self.best_B3, other.best_B3), np.maximum(self.region_BR, other.region_BR)
        )

    def behind(self, first: Matches) -> Matches:
        """Return the candidates of ``first`` and then these."""
        return Matches(
            np.concatenate([first.best_B3, self.best_B3]),
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
    whole = Matches(np.empty((0, 3), np.float32), np.empty((0, gallery.lens.scores), np.float32))
    for at in range(0, len(image_BCDHW), _CHUNK):
        allowed = None if allowed_BN is None else torch.from_numpy(allowed_BN[at : at + _CHUNK])
        found = _match_chunk(image_BCDHW[at : at + _CHUNK], gallery, allowed, work)
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
        shortlist.append(_nearest(cosine))
        now = work.spend(name, now)
    nearer, side = torch.stack([one.form_BV @ gallery.parts.form_BV.T for one in sides]).max(0)
    shortlist.append(_nearest(_only(nearer.cpu(), allowed_BN)))
    scan_BP = torch.cat(shortlist, 1)
    laid = torch.from_numpy(np.stack([views.laid_BCDHW[:, 0], mirrored.laid_BCDHW[:, 0]]))
    best.append(_registered(laid, scan_BP, side.cpu(), gallery, allowed_BN))
    work.pairs += scan_BP.numel()
    now = work.spend("registered", now)
    device = lens.template.device
    where = None if allowed_BN is None else allowed_BN.to(device)
    regions = [_regions(one, gallery, where) for one in sides]
    region = torch.maximum(regions[0], regions[1])
    work.spend("regions", now)
    return Matches(torch.stack(best, 1).numpy(), region.cpu().numpy())


def _registered(
    laid_2BDHW: torch.Tensor,
    scan_BP: torch.Tensor,
    side_BN: torch.Tensor,
    gallery: Gallery,
    allowed_BN: torch.Tensor | None,
) -> torch.Tensor:
    """Return ``[B]``: the best registered similarity with the scans of the shortlist.

    Of the mirror images the one that is nearer before registration is taken.
    """
    row_BP = torch.arange(len(scan_BP))[:, None].expand_as(scan_BP)
    side = side_BN.gather(1, scan_BP).reshape(-1)
    rows, scans = row_BP.reshape(-1), scan_BP.reshape(-1)
    fixed = torch.from_numpy(gallery.laid_NCDHW[:, 0])
    template = gallery.lens.template
    found = torch.cat(
        [
            registered_pairs(
                laid_2BDHW[side[part], rows[part]].to(template.device),
                fixed[scans[part]].to(template.device),
                template,
            )
            for part in torch.arange(len(rows)).split(_CHUNK)
        ]
    ).cpu()
    similarity_BP = found.reshape(scan_BP.shape)
    if allowed_BN is not None:
        similarity_BP = similarity_BP.masked_fill(~allowed_BN.gather(1, scan_BP), -1.0)
    return similarity_BP.amax(1)


def _regions(seen: Parts, gallery: Gallery, allowed_BN: torch.Tensor | None) -> torch.Tensor:
    """Return ``[B, R]``: of laid and of upright images over regions, and of planes."""
    known, lens = gallery.parts, gallery.lens
    over = [
        best_regions(mine, theirs, parcels, allowed_BN=allowed_BN)
        for mine, theirs, parcels in zip(seen.parceled, known.parceled, lens.parcels, strict=True)
    ]
    along = [
        best_planes(mine, theirs, allowed_BN=allowed_BN)
        for mine, theirs in zip(seen.planes, known.planes, strict=True)
    ]
    return torch.cat([*over, *along], dim=1)


def _nearest(similarity_BN: torch.Tensor) -> torch.Tensor:
    return similarity_BN.topk(min(TOP, similarity_BN.shape[1]), dim=1).indices


def _only(similarity_BN: torch.Tensor, allowed_BN: torch.Tensor | None) -> torch.Tensor:
    return similarity_BN if allowed_BN is None else similarity_BN.masked_fill(~allowed_BN, -1.0)
