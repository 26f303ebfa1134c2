"""MedicalNet from named tensors: frozen features; whatever does not fit is named."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from monai.networks.nets.resnet import ResNet

from vitrael.core.errors import WeightsError
from vitrael.core.models.nets.medicalnet import MedicalNet
from vitrael.core.rng import seeded_initialization


def weights(block: str = "basic", layers: tuple[int, ...] = (1, 1, 1, 1)) -> dict[str, np.ndarray]:
    """Return made-up weights of the published shapes, with their prefix and a head."""
    with seeded_initialization(1, "medicalnet"):
        net = ResNet(
            block=block,
            layers=list(layers),
            block_inplanes=[64, 128, 256, 512],
            n_input_channels=1,
            conv1_t_stride=2,
            bias_downsample=False,
            num_classes=2,
        )
    return {f"module.{name}": tensor.numpy() for name, tensor in net.state_dict().items()}


def volume() -> torch.Tensor:
    return torch.rand((1, 1, 16, 16, 16), generator=torch.Generator().manual_seed(1))


def test_features_are_those_of_the_network_the_weights_are_of() -> None:
    tensors = weights()
    net = MedicalNet(tensors)
    assert net.depth == 10
    stages = net(volume())
    assert [tuple(stage.shape[1:]) for stage in stages] == [
        (64, 4, 4, 4),
        (128, 2, 2, 2),
        (256, 1, 1, 1),
        (512, 1, 1, 1),
    ]
    pooled = net.net(volume())
    torch.testing.assert_close(stages[-1].mean((2, 3, 4)), pooled)
    assert not any(parameter.requires_grad for parameter in net.parameters())
    assert not net.training


def test_depth_is_read_from_the_names() -> None:
    assert MedicalNet(weights("bottleneck")).depth == 14
    assert MedicalNet(weights("basic", (1, 2, 1, 1))).depth == 12


def test_counters_of_normalization_may_be_missing_but_no_weight() -> None:
    tensors = {n: t for n, t in weights().items() if not n.endswith("num_batches_tracked")}
    MedicalNet(tensors)
    del tensors["module.layer3.0.conv2.weight"]
    with pytest.raises(WeightsError, match=r"tensor layer3\.0\.conv2\.weight is missing"):
        MedicalNet(tensors)


def test_weights_of_another_network_are_refused() -> None:
    with pytest.raises(WeightsError, match="no weights of MedicalNet") as caught:
        MedicalNet({"conv.weight": np.zeros((1, 1))})
    assert "resnet_10" in caught.value.fix
    tensors = weights()
    tensors["module.conv1.weight"] = tensors["module.conv1.weight"][:, :, :3]
    with pytest.raises(WeightsError, match=r"conv1\.weight"):
        MedicalNet(tensors)
