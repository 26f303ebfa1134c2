"""The smallest model of the workbench: its recipe, its scans, its folder, trained or not."""

from __future__ import annotations

from pathlib import Path

import torch

from tests.factories.systems import GRID, brain_ldm
from vitrael.core.configs import BrainLDMConfig
from vitrael.core.data.phantoms.cohorts import write_phantom_files
from vitrael.core.data.recipes import settings_for
from vitrael.core.models.brain_ldm import build_codec, build_denoiser
from vitrael.core.weights import module_tensors
from vitrael.core.workbench.covariates import UNITS, Covariate
from vitrael.core.workbench.folder import (
    Model,
    ModelDocument,
    Provenance,
    Weights,
    load_model,
    write_model,
)

SPACING_MM = 12.0

RANGES = {
    "age_years": (18.0, 95.0),
    "sex": (0.0, 1.0),
    "ventricle_ml": (0.0, 110.0),
    "brain_ml": (800.0, 1800.0),
}

RECIPE = """
conditioning_samples = 4

[model.codec]
channels = [8, 16]
latent_channels = 2
training = { length_images = 32, batch_images = 8 }

[model.denoiser]
channels = [8, 16]
timesteps = 100
sampling_steps = 3
condition_dropout = 0.2
training = { length_images = 32, batch_images = 8 }

[data]
grid_vox = [16, 16, 16]
spacing_mm = 12.0
covariates.age_years = { low = 18.0, high = 95.0 }
covariates.sex = { low = 0.0, high = 1.0 }
covariates.ventricle_ml = { low = 0.0, high = 110.0 }
covariates.brain_ml = { low = 800.0, high = 1800.0 }
"""
"""A training of four steps for each network."""

ASKED = ("age_years=70", "sex=F", "ventricle_ml=40", "brain_ml=1200")


def covariates() -> tuple[Covariate, ...]:
    """Return the four covariates with the ranges of the recipe."""
    return tuple(
        Covariate(name=name, low=low, high=high, unit=UNITS[name])
        for name, (low, high) in RANGES.items()
    )


def write_scans(folder: Path, *, patients: int = 5, visits: int = 1) -> Path:
    """Write phantom scans on the grid of the tiny model, laid out as in BIDS."""
    write_phantom_files(
        folder,
        seed=3,
        site="north",
        patients=patients,
        visits=visits,
        grid_vox=GRID,
        spacing_mm=SPACING_MM,
    )
    return folder


def document(*, dropout: float = 0.0) -> ModelDocument:
    """Return the document of the tiny model."""
    system = brain_ldm().model_dump()
    system["teacher"]["condition_dropout"] = dropout
    return ModelDocument(
        system=BrainLDMConfig.model_validate(system),
        grid_vox=GRID,
        spacing_mm=SPACING_MM,
        recipe=settings_for("brain-t1", grid_vox=GRID, spacing_mm=SPACING_MM),
        covariates=covariates(),
        provenance=Provenance(package_version="0", seed=1, training_images=0),
    )


def write_untrained(folder: Path, *, dropout: float = 0.0, seed: int = 1) -> Path:
    """Write a tiny model whose weights are drawn and have left their start."""
    described = document(dropout=dropout)
    system = described.system
    codec = build_codec(system, seed=seed)
    denoiser = build_denoiser(system, system.teacher, seed=seed)
    rng = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in denoiser.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=rng), alpha=0.05)
    write_model(described, Weights(module_tensors(codec), module_tensors(denoiser)), folder)
    return folder


def untrained(folder: Path, *, dropout: float = 0.0) -> Model:
    """Return a tiny model with weights that are drawn, from its folder."""
    return load_model(write_untrained(folder, dropout=dropout))
