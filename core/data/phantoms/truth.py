"""What a phantom brain holds, told from its shapes; no image is looked at.

Axes: D H W of the grid of the images, P points of it, K tissues.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from vitrael.core.data.phantoms.anatomy import EFFECTS, Anatomy
from vitrael.core.data.phantoms.lesions import Lesions
from vitrael.core.data.phantoms.tissues import BRAIN, Tissue
from vitrael.core.data.phantoms.view import View

_HALF = np.float32(0.5)


@dataclass(frozen=True, slots=True, repr=False, eq=False)
class BrainTruth:
    """What a phantom holds, as it lies on the grid of its images; no image was looked at.

    Of a slice the arrays are ``[1, H, W]``, rows from front to back, columns from left to right.
    """

    labels_DHW: np.ndarray
    """uint8: the ``Tissue`` that fills most of a voxel."""
    brain_DHW: np.ndarray
    """bool: inside the brain's outer surface, with fissures and ventricles."""
    face_DHW: np.ndarray
    """bool: what a step that hides the face must take away; empty without a head."""
    lesion_DHW: Mapping[str, np.ndarray]
    """bool, by kind: ``wmh``, ``tumor`` (core and rim), ``edema``."""
    volumes_ml: Mapping[str, float]
    """Present on the grid, by the shares of all voxels: every tissue in lower case, ``brain`` and
    ``tumor``. Of a slice: of a slab as thick as its pixels are wide."""
    covariates: Mapping[str, float]
    """What was asked for: ``age_years``, ``sex``, ``disease``, and volumes (``_ml``)."""
    coefficients: Mapping[str, float]
    """By which age, sex and disease act: ``anatomy.EFFECTS``."""

    def __repr__(self) -> str:
        """Show the shape alone."""
        return f"BrainTruth({'x'.join(map(str, self.labels_DHW.shape))})"


def tell_truth(view: View, anatomy: Anatomy, lesions: Lesions) -> BrainTruth:
    """Return the truth of what was looked at."""
    fraction, brain = view.mixture.fraction_KP, view.mixture.brain_P >= _HALF
    outer = fraction[Tissue.SKULL :]
    beyond = np.concatenate([(1 - view.mixture.brain_P - outer.sum(0))[None], outer])
    first_brain, first_outer = int(BRAIN[0]), int(Tissue.SKULL)
    outside = beyond.argmax(0)
    outside = np.where(outside > 0, outside + first_outer - 1, 0)
    label_P = np.where(brain, fraction[first_brain:first_outer].argmax(0) + first_brain, outside)
    labels = view.spread(label_P.astype(np.uint8))
    voxel_ml = view.grid.spacing_mm**3 / 1000
    present = fraction.sum(1, dtype=np.float64) * voxel_ml
    volumes = {tissue.name.lower(): float(present[tissue]) for tissue in Tissue if tissue}
    volumes["brain"] = float(view.mixture.brain_P.sum(dtype=np.float64)) * voxel_ml
    volumes["tumor"] = volumes["tumor_core"] + volumes["tumor_rim"]
    return BrainTruth(
        labels_DHW=labels,
        brain_DHW=view.spread(brain),
        face_DHW=(labels == Tissue.FACE) | (labels == Tissue.EYES),
        lesion_DHW={
            "wmh": labels == Tissue.WMH,
            "tumor": (labels == Tissue.TUMOR_CORE) | (labels == Tissue.TUMOR_RIM),
            "edema": labels == Tissue.EDEMA,
        },
        volumes_ml=volumes,
        covariates={
            "age_years": anatomy.age_years,
            "sex": anatomy.sex,
            "disease": anatomy.disease,
            "brain_ml": anatomy.brain_ml,
            "ventricle_ml": anatomy.ventricle_ml,
            "hippocampus_ml": anatomy.hippocampus_ml,
            **{f"{kind}_ml": asked for kind, asked in lesions.asked_ml.items()},
        },
        coefficients=EFFECTS,
    )
