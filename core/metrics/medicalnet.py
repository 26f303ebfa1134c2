"""MedicalNet's 3D residual networks as feature extractors, from weights on this disk.

The network is that of Chen et al. 2019 (*Med3D*), as the 3D Fréchet distance of Pinaya et al. 2022
uses it: MONAI's residual network with the stride of 2 in the stem, and with the last two stages
dilated by 2 and 4 where MONAI's would stride, so that the last map is an eighth of the image. Axes:
B images, D H W, E features.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Final, Protocol

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
STAGES: Final = ("layer1", "layer2", "layer3", "layer4")

_PREFIX: Final = "module."
_HEADS: Final = ("conv_seg.", "fc.")
"""What published files may hold beyond the network: it is left out."""
_COUNTER: Final = ".num_batches_tracked"
"""What old files lack and features do not need."""
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


def medicalnet_extractor(
    path: Path, *, network: str = "resnet50", device: str | torch.device = "cpu"
) -> Extractor:
    """Return ``medicalnet-<network>-<12 digits of the file's digest>`` for volumes.

    Each volume is standardized to mean 0 and deviation 1, and the last map is averaged over all
    places. The safetensors file may name its tensors with or without ``module.``; a segmentation
    head is left out and counters of batches may be missing. Raises WeightsError when the file is
    missing or no safetensors file, and for the first tensor whose name or shape differs. The
    extractor raises DataError for planes: these weights know volumes alone.
    """
    try:
        data = path.read_bytes()
    except OSError as error:
        raise WeightsError(
            "the weights of MedicalNet cannot be read",
            why=error.strerror or type(error).__name__,
            fix="give a local safetensors file, or name another extractor, such as random-conv-0",
        ) from error
    tensors = unpack_tensors(data)
    with torch.device("meta"):  # draws nothing: every value comes from the file
        module = build_medicalnet(network)
    module.to_empty(device="cpu")
    load_weights(module, _named(tensors, module_tensors(module)))
    module.to(device)
    name = f"medicalnet-{network}-{digest_bytes(data).removeprefix('sha256:')[:_DIGITS]}"
    return Extractor(name, _pooled(module))


def _named(
    tensors: Mapping[str, np.ndarray], expected: Mapping[str, np.ndarray]
) -> dict[str, np.ndarray]:
    plain = {name.removeprefix(_PREFIX): array for name, array in tensors.items()}
    found = {
        name: array.astype(np.float32) if array.dtype == np.float16 else array
        for name, array in plain.items()
        if not name.startswith(_HEADS)
    }
    counters = {name: a for name, a in expected.items() if name.endswith(_COUNTER)}
    return {**found, **{name: np.zeros_like(a) for name, a in counters.items()}}


def _pooled(module: nn.Module) -> Callable[[torch.Tensor], torch.Tensor]:
    def features(images: torch.Tensor) -> torch.Tensor:
        if images.ndim != _VOLUME_AXES:
            raise DataError(
                "MedicalNet has features of volumes alone",
                why=f"the images are {list(images.shape)}",
                fix="give [B, 1, D, H, W], or name another extractor, such as random-conv-0",
            )
        x = standardize_volumes(images)
        for stage in ("conv1", "bn1", "act", "maxpool", *STAGES):
            x = module.get_submodule(stage)(x)
        return torch.as_tensor(x).flatten(2).mean(2)

    return features
