"""The names, shapes and dtypes of the weights that a study trains, known from the study alone."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

import numpy as np
import torch
from torch import nn

from vitrael.core.models import SYSTEMS
from vitrael.core.models.view_expert import build_view_net, expert_layout
from vitrael.core.protocols import ExpertsProtocol
from vitrael.core.study import Study
from vitrael.core.weights import Tensors

_PARTS: Final[Mapping[str, str]] = {"codec": "codec", "denoiser": "teacher"}
"""Attachment -> part of the generator whose weights it holds."""
_ENCODER: Final = "encoder"
"""Attachment, and part of the filter's networks: the one that the sites train together."""


def study_layouts(study: Study) -> dict[str, Tensors]:
    """Return arrays like the weights of each attachment; they have no memory of their own.

    The networks are built without storage, so that it takes no time to speak of.
    """
    if isinstance(study.protocol, ExpertsProtocol):
        return _expert_layouts(study.protocol)
    system, reid = study.synthesis.generator, study.synthesis.reid
    with torch.device("meta"):
        parts = SYSTEMS[system.kind].build(system, study.protocol.seed)
        encoder = SYSTEMS[reid.kind].build(reid, study.protocol.seed)[_ENCODER]
    described = {name: _describe(parts[part]) for name, part in _PARTS.items()}
    return {**described, _ENCODER: _describe(encoder)}


def _expert_layouts(protocol: ExpertsProtocol) -> dict[str, Tensors]:
    """Return the layouts of the common network, and of an expert that would know every view."""
    with torch.device("meta"):
        net = build_view_net(protocol.expert, len(protocol.data.views), seed=protocol.seed)
    return {"common": _describe(net), "expert": expert_layout(_describe(net), net.layers)}


def _describe(module: nn.Module) -> dict[str, np.ndarray]:
    described = {}
    for name, tensor in module.state_dict().items():
        dtype = torch.empty((), dtype=tensor.dtype).numpy().dtype
        described[name] = np.broadcast_to(np.zeros((), dtype), tuple(tensor.shape))
    return described
