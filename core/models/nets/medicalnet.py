"""MedicalNet's residual networks (Chen et al. 2019) as features, from weights of a local file."""

from __future__ import annotations

import re
from typing import Final

import numpy as np
import torch
from monai.networks.nets.resnet import ResNet
from torch import nn

from vitrael.core.errors import WeightsError
from vitrael.core.weights import Tensors, load_weights

_HEADS: Final = ("fc.", "conv_seg.")
_WIDTHS: Final = [64, 128, 256, 512]
_BLOCK: Final = re.compile(r"layer([1-4])\.(\d+)\.")


class MedicalNet(nn.Module):
    """Maps volumes ``[B, 1, D, H, W]`` to the feature maps of its four stages; frozen."""

    def __init__(self, tensors: Tensors) -> None:
        """Build the network that the tensors are of; their names tell its depth.

        Names may begin with ``module.``; heads for classes or segmentation are left out. Only
        networks whose shortcuts are convolutions are known: 10, 50 and more layers. Raises
        WeightsError, which names the first tensor that does not fit.
        """
        super().__init__()
        named = {name.removeprefix("module."): array for name, array in tensors.items()}
        named = {name: array for name, array in named.items() if not name.startswith(_HEADS)}
        blocks = {found.groups() for name in named if (found := _BLOCK.match(name))}
        depths = [sum(stage == str(number) for stage, _ in blocks) for number in (1, 2, 3, 4)]
        if not all(depths):
            raise WeightsError(
                "these are no weights of MedicalNet",
                why="they lack one of layer1 to layer4",
                fix="give a safetensors file of resnet_10 or resnet_50",
            )
        self.net = ResNet(
            block="bottleneck" if "layer1.0.conv3.weight" in named else "basic",
            layers=depths,
            block_inplanes=_WIDTHS,
            spatial_dims=3,
            n_input_channels=1,
            conv1_t_stride=2,
            bias_downsample="layer2.0.downsample.0.bias" in named,
            feed_forward=False,
        )
        self.depth = 2 + sum(depths) * (3 if "layer1.0.conv3.weight" in named else 2)
        for name in self.net.state_dict():
            if name.endswith("num_batches_tracked"):  # of no use here, and missing in older files
                named.setdefault(name, np.zeros((), dtype=np.int64))
        load_weights(self.net, named)
        self.requires_grad_(requires_grad=False).eval()

    def forward(self, x: torch.Tensor) -> list[torch.Tensor]:
        """Return four maps, the finest first: a quarter, an eighth … of the volume's resolution."""
        net = self.net
        stage = net.maxpool(net.act(net.bn1(net.conv1(x))))
        stages = []
        for layer in (net.layer1, net.layer2, net.layer3, net.layer4):
            stage = layer(stage)
            stages.append(stage)
        return stages
