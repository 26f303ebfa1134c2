"""The search: how near candidates come to the scans of a gallery, member by member.

Axes: B candidates, N scans of the gallery, R regions, P pairs.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
import torch

from vitrael.privacy.reid.gallery import ENCODERS, Gallery, Work, look
from vitrael.privacy.reid.pairs import registered_pairs
from vitrael.privacy.reid.planes import SHARES, best_planes, describe_planes
from vitrael.privacy.reid.regions import best_regions, parcel
from vitrael.privacy.reid.similarity import mirror, own_detail, own_form
from vitrael.privacy.reid.template import volumes_of

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
    rows = [
        _match_chunk(
            image_BCDHW[at : at + _CHUNK],
            gallery,
            None if allowed_BN is None else torch.from_numpy(allowed_BN[at : at + _CHUNK]),
            work or Work(),
        )
        for at in range(0, len(image_BCDHW), _CHUNK)
    ]
    if not rows:
        regions = sum(parcels.regions for parcels in gallery.parcels)
        regions += len(SHARES) * len(gallery.bases)
        return Matches(np.empty((0, 3), np.float32), np.empty((0, regions), np.float32))
    whole = rows[0]
    for row in rows[1:]:
        whole = row.behind(whole)
    return whole


def _match_chunk(
    image_BCDHW: np.ndarray, gallery: Gallery, allowed_BN: torch.Tensor | None, work: Work
) -> Matches:
    template = gallery.template
    seen = look(image_BCDHW, gallery.encoders, template, device=gallery.device, work=work)
    flipped = mirror(seen.laid_BCDHW, template)
    forms = (seen.form_BV, own_form(flipped, template))
    now = time.perf_counter()
    shortlist, best = [], []
    for name in ENCODERS:
        cosine = seen.embedding_BE[name] @ gallery.seen.embedding_BE[name].T
        cosine = _only(cosine, allowed_BN)
        best.append(cosine.amax(1))
        shortlist.append(_nearest(cosine))
        now = work.spend(name, now)
    sides = torch.stack([form @ gallery.seen.form_BV.T for form in forms])
    nearer, side = sides.max(0)
    nearer = _only(nearer, allowed_BN)
    shortlist.append(_nearest(nearer))
    scan_BP = torch.cat(shortlist, 1)
    views = torch.stack([torch.from_numpy(v[:, 0]) for v in (seen.laid_BCDHW, flipped)])
    best.append(_registered(views, scan_BP, side, gallery, allowed_BN))
    work.pairs += scan_BP.numel()
    now = work.spend("registered", now)
    upright = (seen.upright_BCDHW, mirror(seen.upright_BCDHW, template))
    given = (image_BCDHW, mirror(image_BCDHW, template))
    region = torch.cat(
        [
            _regions((forms, [own_detail(way, template) for way in upright]), gallery, allowed_BN),
            *_planes(given, gallery, allowed_BN),
        ],
        dim=1,
    )
    work.spend("regions", now)
    return Matches(torch.stack(best, 1).cpu().numpy(), region.cpu().numpy())


def _registered(
    views_2BDHW: torch.Tensor,
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
    fixed = torch.from_numpy(gallery.seen.laid_BCDHW[:, 0])
    device = gallery.template.device
    found = torch.cat(
        [
            registered_pairs(
                views_2BDHW[side[part], rows[part]].to(device),
                fixed[scans[part]].to(device),
                gallery.template,
            )
            for part in torch.arange(len(rows)).split(_CHUNK)
        ]
    ).cpu()
    similarity_BP = found.reshape(scan_BP.shape)
    if allowed_BN is not None:
        similarity_BP = similarity_BP.masked_fill(~allowed_BN.gather(1, scan_BP), -1.0)
    return similarity_BP.amax(1)


def _regions(
    forms: Sequence[Sequence[torch.Tensor]], gallery: Gallery, allowed_BN: torch.Tensor | None
) -> torch.Tensor:
    """Return ``[B, R]``: of laid and of upright images, each with its mirror image."""
    ways = zip(forms, gallery.parceled, gallery.parcels, strict=True)
    return torch.cat(
        [
            torch.stack(
                [
                    best_regions(parcel(form, parcels), scans, parcels, allowed_BN=allowed_BN)
                    for form in way
                ]
            ).amax(0)
            for way, scans, parcels in ways
        ],
        dim=1,
    )


def _planes(
    given: Sequence[np.ndarray], gallery: Gallery, allowed_BN: torch.Tensor | None
) -> list[torch.Tensor]:
    """Return ``[B, 4]`` for each axis, of images and their mirror images the better."""
    volumes = [volumes_of(way) for way in given]
    return [
        torch.stack(
            [
                best_planes(describe_planes(volume, basis), scans, allowed_BN=allowed_BN)
                for volume in volumes
            ]
        ).amax(0)
        for basis, scans in zip(gallery.bases, gallery.planes, strict=True)
    ]


def _nearest(similarity_BN: torch.Tensor) -> torch.Tensor:
    return similarity_BN.topk(min(TOP, similarity_BN.shape[1]), dim=1).indices


def _only(similarity_BN: torch.Tensor, allowed_BN: torch.Tensor | None) -> torch.Tensor:
    return similarity_BN if allowed_BN is None else similarity_BN.masked_fill(~allowed_BN, -1.0)
