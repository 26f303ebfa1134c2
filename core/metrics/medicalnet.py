"""MedicalNet's 3D residual networks as features, from weights on this disk.

One network serves the distances between sets and the perceptual term of a codec. It is that of Chen
et al. 2019 (*Med3D*), as the 3D Fréchet distance of Pinaya et al. 2022 uses it: MONAI's residual
network with the stride of 2 in the stem, and with the last two stages dilated by 2 and 4 where
MONAI's would stride, so that the last map is an eighth of the image. Axes: B images, D H W, E
features.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Final, NamedTuple, Protocol

import numpy as np
import torch
from monai.networks.nets.resnet import resnet10, resnet50
from torch import nn

from vitrael.core.digest import digest_bytes
from vitrael.core.errors import DataError, WeightsError
from vitrael.core.metrics.features import Extractor, standardize_volumes
from vitrael.core.weights import load_weights, module_tensors, unpack_tensors


class _Build(Protocol):
    def __call__(
        self,
        *,
        spatial_dims: int,
        n_input_channels: int,
        conv1_t_stride: int,
        feed_forward: bool,
        shortcut_type: str,
        bias_downsample: bool,
    ) -> nn.Module: ...


NETWORKS: Final[Mapping[str, _Build]] = MappingProxyType(
    {"resnet10": resnet10, "resnet50": resnet50}
)
"""Whose features are 512 and 2048 numbers."""
_STEM: Final = ("conv1", "bn1", "act", "maxpool")
STAGES: Final = ("layer1", "layer2", "layer3", "layer4")

_PREFIX: Final = "module."
_HEADS: Final = ("conv_seg.", "fc.")
"""What published files may hold beyond the network: it is left out."""
_COUNTER: Final = ".num_batches_tracked"
"""What old files lack and features do not need."""
_BOTTLENECK: Final = "layer1.0.conv3.weight"
"""What resnet50 has and resnet10 lacks."""
_DILATION: Final = {"layer3": 2, "layer4": 4}
_VOLUME_AXES: Final = 5
_DIGITS: Final = 12


def build_medicalnet(network: str) -> nn.Module:
    """Return the network without weights worth the name, for evaluation.

    Raises DataError for one that is not in ``NETWORKS``.
    """
    if network not in NETWORKS:
        raise DataError(
            f"there is no MedicalNet {network}", fix=f"choose from {', '.join(NETWORKS)}"
        )
    module = NETWORKS[network](
        spatial_dims=3,
        n_input_channels=1,
        conv1_t_stride=2,
        feed_forward=False,
        shortcut_type="B",
        bias_downsample=False,
    )
    for stage, dilation in _DILATION.items():
        for part in module.get_submodule(stage).modules():
            if isinstance(part, nn.Conv3d):
                part.stride = (1, 1, 1)
                if part.kernel_size[0] > 1:
                    part.dilation = part.padding = (dilation,) * 3
    return module.eval()


class MedicalNet(NamedTuple):
    """A network with weights, frozen, and the name that tells them from all others."""

    name: str
    """``medicalnet-<network>-<12 digits of the file's digest>``."""
    module: nn.Module

    def stages(self, images: torch.Tensor) -> list[torch.Tensor]:
        """Return the four maps of ``[B, 1, D, H, W]``: a quarter of its edges, then an eighth."""
        x, maps = images, []
        for part in (*_STEM, *STAGES):
            x = self.module.get_submodule(part)(x)
            if part in STAGES:
                maps.append(x)
        return maps


def read_medicalnet(
    path: Path, *, network: str | None = None, device: str | torch.device = "cpu"
) -> MedicalNet:
    """Return the network of a safetensors file; None tells it from the names of the tensors.

    They may begin with ``module.``; a segmentation head is left out and counters of batches may be
    missing. Raises WeightsError when the file is missing or no safetensors file, when it holds
    another network, and for the first tensor whose name or shape differs.
    """
    try:
        data = path.read_bytes()
    except OSError as error:
        raise WeightsError(
            "the weights of MedicalNet cannot be read",
            why=error.strerror or type(error).__name__,
            fix="give a local safetensors file, name another extractor, such as random-conv-0, "
            'or set perceptual = "gradients"',
        ) from error
    tensors = _plain(unpack_tensors(data))
    network = network or _network_of(tensors)
    with torch.device("meta"):  # draws nothing: every value comes from the file
        module = build_medicalnet(network)
    module.to_empty(device="cpu")
    load_weights(module, _with_counters(tensors, module_tensors(module)))
    module.to(device).requires_grad_(requires_grad=False)
    digits = digest_bytes(data).removeprefix("sha256:")[:_DIGITS]
    return MedicalNet(f"medicalnet-{network}-{digits}", module)


def medicalnet_extractor(
    path: Path, *, network: str | None = None, device: str | torch.device = "cpu"
) -> Extractor:
    """Return ``medicalnet-<network>-<12 digits of the file's digest>`` for volumes.

    Each volume is standardized to mean 0 and deviation 1, and the last map is averaged over all
    places. Raises WeightsError as ``read_medicalnet``. The extractor raises DataError for planes:
    these weights know volumes alone.
    """
    read = read_medicalnet(path, network=network, device=device)
    return Extractor(read.name, _pooled(read))


def _plain(tensors: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Return the tensors of the network alone, by its own names, halves as float32."""
    plain = {name.removeprefix(_PREFIX): array for name, array in tensors.items()}
    return {
        name: array.astype(np.float32) if array.dtype == np.float16 else array
        for name, array in plain.items()
        if not name.startswith(_HEADS)
    }


def _network_of(tensors: Mapping[str, np.ndarray]) -> str:
    if not any(name.startswith("layer1.0.") for name in tensors):
        raise WeightsError(
            "these are no weights of MedicalNet",
            why="they lack the stage layer1",
            fix="give a safetensors file of resnet_10 or resnet_50",
        )
    return "resnet50" if _BOTTLENECK in tensors else "resnet10"


def _with_counters(
    tensors: Mapping[str, np.ndarray], expected: Mapping[str, np.ndarray]
) -> dict[str, np.ndarray]:
    counters = {name: a for name, a in expected.items() if name.endswith(_COUNTER)}
    return {**tensors, **{name: np.zeros_like(a) for name, a in counters.items()}}


def _pooled(network: MedicalNet) -> Callable[[torch.Tensor], torch.Tensor]:
    def features(images: torch.Tensor) -> torch.Tensor:
        if images.ndim != _VOLUME_AXES:
            raise DataError(
                "MedicalNet has features of volumes alone",
                why=f"the images are {list(images.shape)}",
                fix="give [B, 1, D, H, W], or name another extractor, such as random-conv-0",
            )
        return network.stages(standardize_volumes(images))[-1].flatten(2).mean(2)

    return features
