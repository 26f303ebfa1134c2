"""A recipe is read whole or refused by key; a model has one denoiser."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.factories.models import RECIPE
from vitrael.core.errors import ConfigError
from vitrael.core.protocols import COVARIATES
from vitrael.core.workbench.recipe import ModelRecipe, read_recipe

PRESET = """
[model]
preset = "pinaya2022"
[data]
grid_vox = [160, 224, 160]
spacing_mm = 1.0
covariates.age_years = { low = 44.0, high = 82.0 }
covariates.sex = { low = 0.0, high = 1.0 }
covariates.ventricle_ml = { low = 0.0, high = 110.0 }
covariates.brain_ml = { low = 800.0, high = 1800.0 }
"""


def read(folder: Path, text: str) -> ModelRecipe:
    path = folder / "recipe.toml"
    path.write_text(text, encoding="utf-8")
    return read_recipe(path)


def test_recipe_needs_no_student(tmp_path: Path) -> None:
    recipe = read(tmp_path, RECIPE)
    assert recipe.model.teacher.channels == (8, 16)
    assert recipe.model.student.channels == recipe.model.teacher.channels
    assert recipe.data.validation_frac == pytest.approx(0.15)


def test_covariates_stand_in_the_order_of_the_condition(tmp_path: Path) -> None:
    ordered = read(tmp_path, RECIPE).data.ordered
    assert tuple(covariate.name for covariate in ordered) == COVARIATES
    assert all(covariate.unit for covariate in ordered)


def test_preset_stands_for_both_networks(tmp_path: Path) -> None:
    model = read(tmp_path, PRESET).model
    assert model.codec.channels == (64, 128, 128, 128)
    assert model.teacher.channels == (256, 512, 768)
    changed = PRESET.replace("[data]", "[model.denoiser]\ncondition_dropout = 0.1\n[data]")
    assert read(tmp_path, changed).model.teacher.condition_dropout == pytest.approx(0.1)


@pytest.mark.parametrize(
    ("old", "new", "told"),
    [
        ("timesteps = 100", "timestep = 100", r"model\.denoiser\.timestep .*the key is unknown"),
        ("spacing_mm = 12.0", "", r"data\.spacing_mm.*missing"),
        ("[16, 16, 16]", "[16, 16, 18]", "multiple of"),
        (
            "[model.codec]",
            "[model.codec]\ncritic = { layers = 3 }",
            "critic needs axes of",
        ),
        ("covariates.sex = { low = 0.0, high = 1.0 }", "", "ranges are missing for sex"),
        ("[model.denoiser]", "[model.teacher]", "codec and denoiser"),
        ("[model.codec]", "[model.codec", "is not TOML"),
        ("length_images = 32", "rounds = 2, length_images = 32", "rounds"),
        ("[model.codec]", "[model]\ndimensions = 2\n[model.codec]", "3 dimensions"),
    ],
)
def test_fault_is_named(tmp_path: Path, old: str, new: str, told: str) -> None:
    assert old in RECIPE
    with pytest.raises(ConfigError, match=told):
        read(tmp_path, RECIPE.replace(old, new))


def test_recipe_that_is_not_there_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="cannot be read"):
        read_recipe(tmp_path / "none.toml")


def test_recipe_of_the_documentation_can_be_read(tmp_path: Path, root: Path) -> None:
    page = (root / "docs" / "systems" / "brain-ldm.md").read_text(encoding="utf-8")
    text = page.split("```toml\n", 1)[1].split("```", 1)[0]
    recipe = read(tmp_path, text)
    assert recipe.model.preset == "cpu-3d"
    assert recipe.model.teacher.condition_dropout == pytest.approx(0.1)
