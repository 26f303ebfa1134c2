"""A ModelRecipe: the TOML document that says which model is trained, and on what.

::

    [model]
    preset = "cpu-3d"            # or the tables [model.codec] and [model.denoiser]

    [data]
    grid_vox = [24, 24, 24]
    spacing_mm = 8.0
    covariates.age_years = { low = 18.0, high = 95.0 }   # and sex, ventricle_ml, brain_ml

A model of the workbench has one denoiser, where a study has a teacher and a student.
"""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, Self

from pydantic import Field, ValidationError, field_validator, model_validator

from vitrael.core.configs import BrainLDMConfig, Positive, Section
from vitrael.core.data.recipes import RecipeSettings, settings_for
from vitrael.core.errors import ConfigError
from vitrael.core.geometry import Affine, centered_affine
from vitrael.core.protocols import COVARIATES, CovariateRange
from vitrael.core.study import explain_fault
from vitrael.core.workbench.covariates import UNITS, Covariate


class ModelData(Section):
    """What a folder's scans are brought to, and what is told to the model of each."""

    recipe: Literal["brain-t1"] = "brain-t1"
    grid_vox: tuple[Positive, Positive, Positive] = Field(description="D, H, W after the recipe")
    spacing_mm: float = Field(gt=0, description="isotropic")
    covariates: dict[Literal["age_years", "sex", "ventricle_ml", "brain_ml"], CovariateRange]
    validation_frac: float = Field(
        default=0.15, gt=0, lt=0.5, description="share of the patients that nothing learns from"
    )

    @model_validator(mode="after")
    def _all_covariates(self) -> Self:
        if missing := set(COVARIATES) - set(self.covariates):
            msg = f"ranges are missing for {', '.join(sorted(missing))}"
            raise ValueError(msg)
        return self

    @property
    def settings(self) -> RecipeSettings:
        """The recipe's settings; ConfigError for a grid or a spacing that it does not know."""
        return settings_for(self.recipe, grid_vox=self.grid_vox, spacing_mm=self.spacing_mm)

    @property
    def affine(self) -> Affine:
        """Voxels of the grid to RAS+ millimetres, its middle at the origin."""
        return centered_affine(self.grid_vox, spacing=self.spacing_mm)

    @property
    def ordered(self) -> tuple[Covariate, ...]:
        """The covariates in the order of the condition vector."""
        ranges = {str(name): span for name, span in self.covariates.items()}
        return tuple(
            Covariate(name=name, low=ranges[name].low, high=ranges[name].high, unit=UNITS[name])
            for name in COVARIATES
        )


class ModelRecipe(Section):
    """The whole document."""

    model: BrainLDMConfig
    """Its ``teacher`` is the denoiser; its ``student`` is the same again and not trained."""
    data: ModelData
    conditioning_samples: int = Field(
        default=64, ge=4, description="drawn at the end to see whether the model obeys"
    )

    @field_validator("model", mode="before")
    @classmethod
    def _as_system(cls, given: Any) -> Any:  # noqa: ANN401 - as pydantic hands it over
        if not isinstance(given, Mapping):
            return given
        if set(given) & {"kind", "teacher", "student"}:
            msg = "a model has the parts codec and denoiser, and no kind"
            raise ValueError(msg)
        table = dict(given)
        denoiser = table.pop("denoiser", {})
        parts = {"teacher": denoiser, "student": denoiser}
        if not denoiser and "preset" not in table:
            parts = {}
        return {"kind": "brain_ldm", **table, **parts}

    @model_validator(mode="after")
    def _agrees(self) -> Self:
        if self.model.codec.training.rounds != 1:
            msg = "a model is trained in one place: leave training.rounds out"
            raise ValueError(msg)
        if self.model.dimensions != len(self.data.grid_vox):
            msg = "scans have 3 dimensions, and the model has another number"
            raise ValueError(msg)
        divisor = self.model.codec.downsampling << (len(self.model.teacher.channels) - 1)
        if any(size % divisor for size in self.data.grid_vox):
            msg = f"every axis of data.grid_vox must be a multiple of {divisor}"
            raise ValueError(msg)
        critic = self.model.codec.critic
        if critic is not None and min(self.data.grid_vox) < critic.least_vox:
            msg = f"the critic needs axes of at least {critic.least_vox} voxels"
            raise ValueError(msg)
        return self


def read_recipe(path: Path) -> ModelRecipe:
    """Return the recipe of a TOML file; raise ConfigError that names file, key and remedy."""
    try:
        document = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(
            f"recipe {path} cannot be read", why=error.strerror or "", fix="check the path"
        ) from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(
            f"recipe {path} is not TOML", why=str(error), fix="mend the line that is named"
        ) from error
    try:
        recipe = ModelRecipe.model_validate(document)
    except ValidationError as error:
        key, why, fix = (_in_words(part) for part in explain_fault(error))
        raise ConfigError(f"recipe {path}: {key}", why=why, fix=fix) from error
    _ = recipe.data.settings
    return recipe


def _in_words(text: str) -> str:
    """Return an explanation with the names that this document has for the parts."""
    return text.replace("model.teacher", "model.denoiser").replace(
        "model.student", "model.denoiser"
    )
