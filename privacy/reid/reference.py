"""Registered similarity to a set of scans: an attacker that learned nothing.

It is what an intruder with the scans in hand would do first, and how the audit looks for copies.
The template comes from patients who are neither among these scans nor among those who say what is
usual: one that was made of the scans makes them less like each other than newcomers are.

Axes: B candidates, N scans, D H W, V voxels within the mask.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import numpy as np
import torch

from vitrael.privacy.reid.pairs import registered_pairs
from vitrael.privacy.reid.similarity import mirror, own_form
from vitrael.privacy.reid.template import Template, chunk_of, lay_onto, still_of

_TOP: Final = 3
"""Scans that a candidate is registered to one by one."""


@dataclass(frozen=True, slots=True, repr=False)
class Reference:
    """Private: scans that were laid onto the template, ready to be compared with."""

    template: Template
    laid_NDHW: torch.Tensor
    form_NV: torch.Tensor
    """Of clips, those of the stills."""

    def __repr__(self) -> str:
        """Show nothing of a patient."""
        return "Reference(private)"


def build_reference(image_BCDHW: np.ndarray, template: Template) -> Reference:
    """Return scans as they are compared with, seen through the template of other patients.

    For a filter's site that is the lens' template, that of split F.
    """
    laid = lay_onto(image_BCDHW, template)
    volume = torch.from_numpy(laid[:, 0]).to(template.device)
    return Reference(template, volume, _still_form(volume, template))


@torch.no_grad()
def registered_similarity(
    image_BCDHW: np.ndarray, reference: Reference, *, chunk: int | None = None
) -> np.ndarray:
    """Return ``[B, N]`` in [-1, 1]: how alike each candidate and each scan are.

    All pairs are compared as they lie on the template, both mirror images, without an index; the
    three nearest scans of each candidate after registration of the pair as well. The result for
    one candidate does not depend on the others.
    """
    size = chunk_of(image_BCDHW.shape[2:]) if chunk is None else chunk
    rows = [
        _similarity_of(image_BCDHW[at : at + size], reference)
        for at in range(0, len(image_BCDHW), size)
    ]
    width = len(reference.form_NV)
    return np.concatenate(rows) if rows else np.empty((0, width), dtype=np.float32)


def _similarity_of(image_BCDHW: np.ndarray, reference: Reference) -> np.ndarray:
    template = reference.template
    laid = lay_onto(image_BCDHW, template)
    volumes = torch.from_numpy(np.stack([laid[:, 0], mirror(laid, template)[:, 0]]))
    volumes = volumes.to(template.device)
    similarity, side = torch.stack(
        [_still_form(one, template) @ reference.form_NV.T for one in volumes]
    ).max(0)
    count = min(_TOP, similarity.shape[1])
    scan_BP = similarity.topk(count, dim=1).indices
    row = torch.arange(len(laid), device=scan_BP.device).repeat_interleave(count)
    scan = scan_BP.reshape(-1)
    found = registered_pairs(
        volumes.flatten(0, 1),
        reference.laid_NDHW,
        template,
        row_P=row + len(laid) * side[row, scan],
        scan_P=scan,
    )
    similarity[row, scan] = torch.maximum(similarity[row, scan], found)
    return similarity.cpu().numpy()


def _still_form(laid_BDHW: torch.Tensor, template: Template) -> torch.Tensor:
    return own_form(still_of(laid_BDHW, along=template.along)[:, None], template)
