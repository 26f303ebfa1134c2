"""How near the synthetic images lie to real ones, beside how near strangers lie to each other.

Distances prove nothing by themselves: sets that pass every such test have been attacked with
success (Yao et al. 2025), and a model may give away a patient without an image that resembles one.
They are told since a reader asks, and since a copy that lies at no distance is one.

Axes: B synthetic images, N real ones, P patients, V values.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from vitrael.core.errors import DataError
from vitrael.core.records import PatientImages
from vitrael.privacy.reid.neighbors import Excluded, nearest
from vitrael.privacy.reid.similarity import mirror, own_form
from vitrael.privacy.reid.template import Template, fit_template, lay_onto

_Views = Callable[[np.ndarray], list[np.ndarray]]
"""From images to unit vectors ``[B, V]``: of each image, and where there is one of its mirror
image."""


@dataclass(frozen=True, slots=True, repr=False, eq=False)
class Closeness:
    """Private: nearest real images, and distances on both sides to equally many patients."""

    nearest_B: np.ndarray
    """Row of the nearest real image of all."""
    distance_B: np.ndarray
    """To that, between unit vectors: from 0 to 2, the root of 2 for what has nothing in common."""
    matched_B: np.ndarray
    """To the nearest without one random patient."""
    stranger_P: np.ndarray
    """Of one random real image of each patient to the nearest of another patient."""

    def __repr__(self) -> str:
        """Show nothing of a patient."""
        return "Closeness(private)"


def measure_closeness(
    synthetic_BCDHW: np.ndarray,
    real: PatientImages,
    *,
    is_clip: bool,
    rng: np.random.Generator,
) -> Closeness | None:
    """Return the nearest real image of each synthetic one and distances; None for one patient.

    Volumes and pictures are laid onto the template and compared by what sets them apart from it,
    clips by their values. Those that are compared run over equally many patients: a real image
    meets all but its own, and so each synthetic one meets all but a random one.
    """
    patients = np.unique(real.patient_B)
    if len(patients) < 2:  # noqa: PLR2004 - there is no stranger
        return None
    views = _standardized if is_clip else _views_of(real.image_BCDHW)
    row_P = np.array([rng.choice(np.flatnonzero(real.patient_B == one)) for one in patients])
    synthetic = views(synthetic_BCDHW)
    found = views(real.image_BCDHW)
    index_B, distance_B = _nearest(synthetic, found[0], None)
    lacking_B = rng.choice(patients, len(synthetic_BCDHW))
    _, matched_B = _nearest(synthetic, found[0], Excluded(lacking_B, real.patient_B))
    own = Excluded(patients, real.patient_B)
    _, stranger_P = _nearest([view[row_P] for view in found], found[0], own)
    return Closeness(index_B, distance_B, matched_B, stranger_P)


def _views_of(real_NCDHW: np.ndarray) -> _Views:
    """Return how images are laid onto what the real ones share; as they are where that is dark."""
    try:
        return _laid(fit_template(real_NCDHW))
    except DataError:
        return _standardized


def _laid(template: Template) -> _Views:
    def views(image_BCDHW: np.ndarray) -> list[np.ndarray]:
        laid = lay_onto(image_BCDHW, template)
        return [own_form(one, template).numpy() for one in (laid, mirror(laid, template))]

    return views


def _standardized(image_BCDHW: np.ndarray) -> list[np.ndarray]:
    flat_BV = image_BCDHW.reshape(len(image_BCDHW), -1).astype(np.float32)
    centered_BV = flat_BV - flat_BV.mean(1, keepdims=True)
    length_B1 = np.linalg.norm(centered_BV, axis=1, keepdims=True)
    return [centered_BV / np.maximum(length_B1, np.finfo(np.float32).tiny)]


def _nearest(
    view_BV: list[np.ndarray], real_NV: np.ndarray, excluded: Excluded | None
) -> tuple[np.ndarray, np.ndarray]:
    """Return rows and distances of the nearest, whichever view of the image is nearer."""
    found = [nearest(one, real_NV, excluded=excluded) for one in view_BV]
    similarity_2B = np.stack([one.similarity_Bk[:, 0] for one in found])
    side_B = similarity_2B.argmax(0)
    index_B = np.stack([one.index_Bk[:, 0] for one in found])[side_B, np.arange(len(side_B))]
    distance_B = np.sqrt(np.maximum(2 - 2 * similarity_2B.max(0).astype(np.float64), 0))
    return index_B, distance_B
