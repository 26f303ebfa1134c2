"""Weights that others have published, made into a folder of the workbench."""

from __future__ import annotations

from pathlib import Path
from typing import Final

from vitrael.core.configs import BrainLDMConfig
from vitrael.core.data.files import demand_free
from vitrael.core.data.recipes import settings_for
from vitrael.core.models.bundle import ORIENTATION, read_bundle
from vitrael.core.version import package_version
from vitrael.core.workbench.covariates import UNITS, Covariate
from vitrael.core.workbench.folder import (
    ModelDocument,
    Provenance,
    Weights,
    write_model,
)

_GRID_VOX: Final = (160, 224, 160)
_SPACING_MM: Final = 1.0
HEADS: Final = (
    "probably trained on whole heads that were placed rigidly and scaled, not on brains alone, "
    "which the recipe brain-t1 makes"
)
"""What is known of the scans behind the weights, which nobody here has seen."""
_SHARE: Final = "share of the range in the UK Biobank, 0 to 1"
_COVARIATES: Final = (
    Covariate(name="age_years", low=44.0, high=82.0, unit=UNITS["age_years"]),
    Covariate(name="sex", low=0.0, high=1.0, unit=UNITS["sex"]),
    Covariate(name="ventricle_ml", low=0.0, high=1.0, unit=_SHARE),
    Covariate(name="brain_ml", low=0.0, high=1.0, unit=_SHARE),
)
"""In the order of ``core.study.COVARIATES``. The ranges of the two volumes were never published."""


def import_pinaya(
    bundle: Path, to: Path, *, system: BrainLDMConfig | None = None, dry_run: bool = False
) -> ModelDocument:
    """Write the model of a local copy of the bundle of Pinaya et al. 2022; return its document.

    ``system`` is what the bundle's networks are, None those of the paper. With ``dry_run`` the
    bundle is read and nothing is written. Raises WeightsError for tensors that are not those of
    the system, StorageError when something lies at ``to``.
    """
    demand_free(to)
    if system is None:
        system = BrainLDMConfig.model_validate({"kind": "brain_ldm", "preset": "pinaya2022"})
    codec, denoiser = read_bundle(bundle, system)
    document = ModelDocument(
        system=system,
        grid_vox=_GRID_VOX,
        spacing_mm=_SPACING_MM,
        recipe=settings_for("brain-t1", grid_vox=_GRID_VOX, spacing_mm=_SPACING_MM),
        orientation=ORIENTATION,
        covariates=_COVARIATES,
        provenance=Provenance(
            package_version=package_version(),
            origin="imported",
            perceptual="as published",
            critic=True,
            notes=(
                "weights of the MONAI bundle brain_image_synthesis_latent_diffusion_model",
                HEADS,
                "ventricle_ml and brain_ml are asked for as shares, not in ml",
            ),
        ),
    )
    return document if dry_run else write_model(document, Weights(codec, denoiser), to)
