"""A codec's perceptual term compares what the evaluation sees, and says whose weights they are."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from tests.factories.medicalnet import write_medicalnet
from tests.factories.systems import brain_ldm
from vitrael.core.configs import BrainLDMConfig
from vitrael.core.digest import digest_file
from vitrael.core.errors import WeightsError
from vitrael.core.metrics.features import extract_features, standardize_volumes
from vitrael.core.metrics.medicalnet import medicalnet_extractor
from vitrael.core.models.codec_learning import codec_learning
from vitrael.core.rng import torch_stream
from vitrael.core.training.perceptual import FeaturePerceptual

VOLUMES = torch.rand((2, 1, 32, 24, 16), generator=torch_stream(1, "volumes"))


def system() -> BrainLDMConfig:
    told = brain_ldm().model_dump()
    told["codec"] |= {"perceptual_weight": 0.1, "perceptual": "medicalnet"}
    return BrainLDMConfig.model_validate(told)


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_medicalnet(tmp_path_factory.mktemp("weights") / "resnet10.safetensors")


def test_features_are_those_of_the_published_network(weights: Path) -> None:
    perceptual = codec_learning(system(), seed=1, weights=weights).objective.perceptual
    assert isinstance(perceptual, FeaturePerceptual)
    with torch.no_grad():
        stages = perceptual.network(standardize_volumes(VOLUMES))
    assert [tuple(stage.shape[1:]) for stage in stages] == [
        (64, 8, 6, 4),
        (128, 4, 3, 2),
        (256, 4, 3, 2),
        (512, 4, 3, 2),
    ]
    extracted = extract_features(medicalnet_extractor(weights), VOLUMES)
    torch.testing.assert_close(stages[-1].flatten(2).mean(2), torch.from_numpy(extracted).float())


def test_features_stay_frozen_and_the_image_learns(weights: Path) -> None:
    perceptual = codec_learning(system(), seed=1, weights=weights).objective.perceptual
    assert perceptual is not None
    image = (VOLUMES / 2).requires_grad_()
    before = perceptual(image, VOLUMES.flip(2))
    before.backward()
    assert image.grad is not None
    assert image.grad.abs().sum() > 0
    assert torch.equal(perceptual(image, VOLUMES.flip(2)), before)  # its norms keep no account


def test_name_tells_one_file_of_weights_from_another(weights: Path, tmp_path: Path) -> None:
    other = write_medicalnet(tmp_path / "other.safetensors", seed=2)
    names = [codec_learning(system(), seed=1, weights=path).perceptual for path in (weights, other)]
    digits = digest_file(weights).removeprefix("sha256:")[:12]
    assert names[0] == f"medicalnet-resnet10-{digits}" == medicalnet_extractor(weights).name
    assert names[1] != names[0]
    assert codec_learning(system(), seed=1).perceptual.startswith("gradients (fallback")


def test_weights_that_are_missing_are_refused(tmp_path: Path) -> None:
    with pytest.raises(WeightsError, match="MedicalNet cannot be read"):
        codec_learning(system(), seed=1, weights=tmp_path / "none")
