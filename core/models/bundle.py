"""The public weights of Pinaya et al. 2022, from a local copy of the MONAI model-zoo bundle.

The bundle ``brain_image_synthesis_latent_diffusion_model`` holds ``models/autoencoder.pt`` and
``models/model.pt``, the older copy of the GenerativeModels library ``models/autoencoder.pth`` and
``models/diffusion_model.pth``; tensors have the names of that library. What they are called here is
a table; nothing of the bundle is executed. A file may also be safetensors, with the same names.
"""

from __future__ import annotations

import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Final

import numpy as np
import torch
from torch import nn

from vitrael.core.configs import BrainLDMConfig
from vitrael.core.errors import WeightsError
from vitrael.core.models.nets.autoencoder import KLCodec
from vitrael.core.models.nets.unet import HybridUNet
from vitrael.core.protocols import COVARIATES
from vitrael.core.weights import Tensors, check_finite, unpack_tensors

CODEC_FILES: Final = (
    "models/autoencoder.pt",
    "models/autoencoder.safetensors",
    "models/autoencoder.pth",
)
DENOISER_FILES: Final = (
    "models/model.pt",
    "models/model.safetensors",
    "models/diffusion_model.pth",
)
"""Where they may lie; the first that is there is read."""

RENAMED: Final[Sequence[tuple[str, str]]] = (
    ("module.", ""),  # of a model that was trained on several GPUs
    (".to_out.0.", ".out_proj."),
    (".conv.conv.", ".postconv.conv."),
)
"""Fragments of the bundle's names and what they became in MONAI; each where it is not known yet."""

BUNDLE_ORDER: Final = ("sex", "age_years", "ventricle_ml", "brain_ml")
"""Of the condition vector that the bundle's weights expect."""

ORIENTATION: Final = "LAS"
"""Where the index axes of what the bundle's weights have seen point to; ours are RAS.

The authors' own saver writes their samples with the affine diagonal (-1, 1, 1).
"""

_LATENT_BUFFERS: Final = ("latent_mean", "latent_std")


def read_bundle(folder: Path, config: BrainLDMConfig) -> tuple[Tensors, Tensors]:
    """Return the tensors of codec and denoiser under our names, in our order of covariates.

    The bundle's latents are used as they are: mean 0 and deviation 1 stand in the codec. Raises
    WeightsError that names the file, or the first tensor that is missing or of another shape:
    weights of another preset.
    """
    with torch.device("meta"):
        codec = KLCodec(config.codec, dimensions=config.dimensions)
        denoiser = HybridUNet(
            config.teacher,
            latent_channels=config.codec.latent_channels,
            conditions=len(COVARIATES),
            dimensions=config.dimensions,
        )
    codec_tensors = rename_tensors(_read_first(folder, CODEC_FILES), codec.net)
    channels = config.codec.latent_channels
    scale = {
        name: np.full(channels, value, np.float32)
        for name, value in zip(_LATENT_BUFFERS, (0.0, 1.0), strict=True)
    }
    tensors = rename_tensors(_read_first(folder, DENOISER_FILES), denoiser.net)
    ordered = {
        name: reorder_conditions(name, array, latent_channels=channels)
        for name, array in tensors.items()
    }
    return {**_inside(codec_tensors), **scale}, _inside(ordered)


def rename_tensors(tensors: Tensors, network: nn.Module) -> dict[str, np.ndarray]:
    """Return tensors under the names of a network; raise WeightsError for the first that differs.

    A name that the network knows stays; another one goes through ``RENAMED``.
    """
    shapes = {name: tuple(tensor.shape) for name, tensor in network.state_dict().items()}
    renamed: dict[str, np.ndarray] = {}
    for name, array in tensors.items():
        known = _known_name(name, shapes)
        if known is None:
            raise WeightsError(
                f"tensor {name} is not part of the preset",
                why="these are weights of another network",
                fix="give the weights of the preset, or another preset",
            )
        renamed[known] = np.asarray(array, np.float32)
    for name, shape in shapes.items():
        found = renamed[name].shape if name in renamed else None
        if found != shape:
            told = "is missing" if found is None else f"has the shape {list(found)}"
            raise WeightsError(
                f"tensor {name} {told}",
                why=f"the preset has {list(shape)} there: these are weights of another one",
                fix="give the weights of the preset, or another preset",
            )
    check_finite(renamed)
    return renamed


def reorder_conditions(name: str, array: np.ndarray, *, latent_channels: int) -> np.ndarray:
    """Return a tensor whose columns follow ``COVARIATES`` instead of ``BUNDLE_ORDER``.

    Covariates enter as channels behind the latent's, and as the features of the one token of every
    cross-attention; every other tensor is returned as it is.
    """
    order = [BUNDLE_ORDER.index(covariate) for covariate in COVARIATES]
    if name == "conv_in.conv.weight":
        kept = list(range(latent_channels))
        return np.ascontiguousarray(array[:, kept + [latent_channels + i for i in order]])
    if name.endswith((".attn2.to_k.weight", ".attn2.to_v.weight")):
        return np.ascontiguousarray(array[:, order])
    return array


def _known_name(name: str, shapes: Mapping[str, object]) -> str | None:
    for old, new in RENAMED:
        if name not in shapes:
            name = name.replace(old, new)
    return name if name in shapes else None


def _inside(tensors: Tensors) -> dict[str, np.ndarray]:
    """Return tensors named as those of our module, which holds MONAI's as ``net``."""
    return {f"net.{name}": array for name, array in tensors.items()}


def _read_first(folder: Path, names: Sequence[str]) -> dict[str, np.ndarray]:
    for name in names:
        path = folder / name
        if path.is_file():
            return _read(path)
    raise WeightsError(
        f"the bundle has no {names[0]}",
        why=f"{folder} is not a copy of the bundle, or its large files were not fetched",
        fix="download the bundle with its weights and give the folder that holds models/",
    )


def _read(path: Path) -> dict[str, np.ndarray]:
    if path.suffix == ".safetensors":
        return unpack_tensors(path.read_bytes())
    mapped = zipfile.is_zipfile(path)  # files of torch before 1.6 are not, and cannot be mapped
    try:
        # Tensors alone: the restricted reader runs nothing of the file (ADR 0032).
        state = torch.load(path, map_location="cpu", weights_only=True, mmap=mapped)  # noqa: TID251
    except Exception as error:
        raise WeightsError(
            f"{path.name} cannot be read",
            why="it is no file of tensors alone, or it was cut",
            fix="download it again",
        ) from error
    if not isinstance(state, Mapping) or not all(
        isinstance(t, torch.Tensor) for t in state.values()
    ):
        raise WeightsError(f"{path.name} is no table of tensors", fix="give the bundle's own file")
    return {name: tensor.float().numpy() for name, tensor in state.items()}
