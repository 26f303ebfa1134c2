"""A preset stands for options that a document may override, and for nothing else."""

from __future__ import annotations

import pytest
import torch
from pydantic import ValidationError

from vitrael.core.configs import BrainLDMConfig
from vitrael.core.models.nets.autoencoder import KLCodec
from vitrael.core.models.nets.unet import HybridUNet
from vitrael.core.presets import BRAIN_LDM_PRESETS, fill_preset
from vitrael.core.protocols import COVARIATES


def config(**given: object) -> BrainLDMConfig:
    return BrainLDMConfig.model_validate({"kind": "brain_ldm", **given})


def count(module: torch.nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


def test_published_model_has_the_published_size() -> None:
    """553.2 and 13.8 million parameters, counted without memory for any of them."""
    published = config(preset="pinaya2022")
    with torch.device("meta"):
        codec = KLCodec(published.codec)
        denoiser = HybridUNet(published.teacher, latent_channels=3, conditions=len(COVARIATES))
    assert round(count(denoiser) / 1e6, 1) == 553.2
    assert round(count(codec) / 1e6, 1) == 13.8
    assert codec.latent_shape((160, 224, 160)) == (3, 20, 28, 20)
    assert published.teacher.prediction == "noise"


@pytest.mark.parametrize("name", BRAIN_LDM_PRESETS)
def test_every_preset_is_complete(name: str) -> None:
    assert config(preset=name).preset == name


def test_document_overrides_its_preset_and_keeps_the_rest() -> None:
    given = {"sampling_steps": 12, "training": {"batch_images": 8}}
    changed = config(preset="pinaya2022", teacher=given)
    published = config(preset="pinaya2022")
    assert changed.teacher.sampling_steps == 12
    assert changed.teacher.training.batch_images == 8
    assert changed.teacher.training.learning_rate == published.teacher.training.learning_rate
    assert changed.student == published.student
    assert changed.codec == published.codec


def test_filling_changes_neither_table() -> None:
    given = {"preset": "pinaya2022", "codec": {"latent_channels": 5}}
    before = BRAIN_LDM_PRESETS["pinaya2022"]["codec"]["latent_channels"]
    filled = fill_preset(given, BRAIN_LDM_PRESETS)
    assert filled["codec"]["latent_channels"] == 5
    assert given == {"preset": "pinaya2022", "codec": {"latent_channels": 5}}
    assert BRAIN_LDM_PRESETS["pinaya2022"]["codec"]["latent_channels"] == before


def test_unknown_preset_is_refused() -> None:
    with pytest.raises(ValidationError, match="preset"):
        config(preset="pinaya2023")
    with pytest.raises(ValidationError, match="codec"):
        config()  # nothing is filled in without one
