"""Registered similarity to a set of scans: an attacker that learned nothing.

It is what an intruder with the scans in hand would do first, and how the audit looks for copies.

Axes: B candidates, N scans, D H W, V voxels within the mask.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import numpy as np
import torch

from vitrael.privacy.reid.pairs import registered_pairs
from vitrael.privacy.reid.similarity import mirror, own_form
from vitrael.privacy.reid.template import Template, lay_onto

_TOP: Final = 3
"""Scans that a candidate is registered to one by one."""


@dataclass(frozen=True, slots=True, repr=False)
class Reference:
    """Private: scans that were laid onto the template, ready to be compared with."""

    template: Template
    laid_NDHW: torch.Tensor
    form_NV: torch.Tensor

    def __repr__(self) -> str:
        """Show nothing of a patient."""
        return "Reference(private)"


def build_reference(image_BCDHW: np.ndarray, template: Template) -> Reference:
    """Return scans as they are compared with."""
    laid = lay_onto(image_BCDHW, template)
    volume = torch.from_numpy(laid[:, 0]).to(template.device)
    return Reference(template, volume, own_form(laid, template))


@torch.no_grad()
def registered_similarity(
    image_BCDHW: np.ndarray, reference: Reference, *, chunk: int = 64
) -> np.ndarray:
    """Return ``[B, N]`` in [-1, 1]: how alike each candidate and each scan are.

    All pairs are compared as they lie on the template, both mirror images, without an index; the
    three nearest scans of each candidate after registration of the pair as well. The result for
    one candidate does not depend on the others.
    """
    rows = [
        _similarity_of(image_BCDHW[at : at + chunk], reference)
        for at in range(0, len(image_BCDHW), chunk)
    ]
    width = len(reference.form_NV)
    return np.concatenate(rows) if rows else np.empty((0, width), dtype=np.float32)


def _similarity_of(image_BCDHW: np.ndarray, reference: Reference) -> np.ndarray:
    template = reference.template
    laid = lay_onto(image_BCDHW, template)
    sides = (laid, mirror(laid, template))
    similarity, side = torch.stack(
        [own_form(one, template) @ reference.form_NV.T for one in sides]
    ).max(0)
    count = min(_TOP, similarity.shape[1])
    scan_BP = similarity.topk(count, dim=1).indices
    row = torch.arange(len(laid), device=scan_BP.device).repeat_interleave(count)
    scan = scan_BP.reshape(-1)
    volumes = torch.from_numpy(np.stack([one[:, 0] for one in sides])).to(template.device)
    found = registered_pairs(volumes[side[row, scan], row], reference.laid_NDHW[scan], template)
    similarity[row, scan] = torch.maximum(similarity[row, scan], found)
    return similarity.cpu().numpy()
