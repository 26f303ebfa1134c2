"""Named sets of options for systems: what a document gets for ``preset``, and may override.

Plain numbers without code, so that a study that names a preset can be read and digested anywhere.
A preset is filled in when the document is read; the digest covers every option it stands for.

``pinaya2022`` stands for the published networks and loss terms, and not for the training to the
last bit. It differs from the authors' own in these points:

- Adam, where the denoiser's training of 2023 took AdamW;
- the learning rate falls as half a cosine, where theirs stays as it is;
- the perceptual term compares edges over scales, or MedicalNet's features, at the weight that was
  chosen for LPIPS with SqueezeNet;
- the critic has group normalization in the place of batch normalization, and learns from the first
  image on, also while the codec does not hear it yet;
- the divergence is a mean over the latents, its weight so scaled that it weighs what their sum
  does on the published grid; on another grid the two part.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, Final

_PINAYA_IMAGES: Final = 31_740
"""Volumes of the UK Biobank that the published model was trained on."""

_PINAYA_UNET: Final = {
    "channels": (256, 512, 768),
    "attention_levels": (False, True, True),
    "res_blocks": 2,
    "norm_groups": 32,
    "resblock_updown": True,
    "upcast_attention": True,
    "prediction": "noise",
    "timesteps": 1000,
    "beta_start": 0.0015,
    "beta_end": 0.0205,
    "sampler": "ddim",
    "sampling_steps": 50,
    "training": {
        "length_images": 25 * _PINAYA_IMAGES,
        "batch_images": 4,
        "learning_rate": 2.5e-5,
    },
}

_GPU_UNET: Final = {
    "channels": (128, 256, 256),
    "attention_levels": (False, False, True),
    "norm_groups": 32,
    "condition_dropout": 0.1,
    "sampler": "unipc",
    "sampling_steps": 15,
    "training": {
        "length_images": 400_000,
        "batch_images": 64,
        "learning_rate": 5e-4,
        "warmup_images": 4_000,
        "ema_halflife_images": 10_000,
    },
}


def _cpu_unet(*, length_images: int, batch_images: int, learning_rate: float) -> Mapping[str, Any]:
    return {
        "channels": (32, 64),
        "condition_dropout": 0.1,
        "sampler": "unipc",
        "sampling_steps": 12,
        "training": {
            "length_images": length_images,
            "batch_images": batch_images,
            "learning_rate": learning_rate,
            "warmup_images": 1_000,
            "ema_halflife_images": 4_000,
        },
    }


BRAIN_LDM_PRESETS: Final[Mapping[str, Mapping[str, Any]]] = MappingProxyType(
    {
        # The published networks and loss terms of Pinaya et al. 2022: 160 x 224 x 160 voxels of
        # 1 mm, latents 3 x 20 x 28 x 20. What the paper leaves open (lengths, rates, weights) is
        # that of the authors' training of 2023; the module's docstring tells what differs.
        "pinaya2022": {
            "dimensions": 3,
            "codec": {
                "patch_vox": 1,
                "channels": (64, 128, 128, 128),
                "latent_channels": 3,
                "res_blocks": 2,
                "norm_groups": 32,
                "upsampling": "nearest",
                "square_weight": 0.0,
                # The authors take 1e-8 of the divergence summed over channels and space; ours is
                # a mean: 1e-8 * 3 * 20 * 28 * 20, the 33,600 elements of an image's latents.
                "kl_weight": 3.36e-4,
                "perceptual_weight": 0.002,
                "critic": {
                    "weight": 0.005,
                    "start_images": 5 * _PINAYA_IMAGES,
                    "channels": 96,
                    "layers": 3,
                    "learning_rate_factor": 2.0,
                },
                "training": {
                    "length_images": 20 * _PINAYA_IMAGES,
                    "batch_images": 1,
                    "learning_rate": 5e-5,
                },
            },
            "teacher": _PINAYA_UNET,
            "student": _PINAYA_UNET,
        },
        # Slices of 32 x 32 pixels of 6 mm: minutes on a processor.
        "cpu-2d": {
            "dimensions": 2,
            "codec": {
                "channels": (32, 64),
                "training": {
                    "length_images": 20_000,
                    "batch_images": 8,
                    "learning_rate": 2e-3,
                    "warmup_images": 500,
                },
            },
            "teacher": _cpu_unet(length_images=64_000, batch_images=32, learning_rate=2e-3),
            "student": _cpu_unet(length_images=64_000, batch_images=32, learning_rate=2e-3),
        },
        # Volumes of 24 x 24 x 24 voxels of 8 mm: some more minutes on a processor.
        "cpu-3d": {
            "dimensions": 3,
            "codec": {
                "channels": (24, 48),
                "training": {
                    "length_images": 8_000,
                    "batch_images": 4,
                    "learning_rate": 2e-3,
                    "warmup_images": 200,
                },
            },
            "teacher": _cpu_unet(length_images=36_000, batch_images=16, learning_rate=1.5e-3),
            "student": _cpu_unet(length_images=36_000, batch_images=16, learning_rate=1.5e-3),
        },
        # Volumes of 64 x 80 x 64 voxels of 2.5 mm: minutes on one GPU.
        "gpu-3d": {
            "dimensions": 3,
            "codec": {
                "patch_vox": 1,
                "channels": (32, 64, 64, 64),
                "latent_channels": 4,
                "upsampling": "nearest",
                "training": {
                    "length_images": 24_000,
                    "batch_images": 8,
                    "learning_rate": 5e-4,
                    "warmup_images": 500,
                },
            },
            "teacher": _GPU_UNET,
            "student": _GPU_UNET,
        },
    }
)
"""Name to options of a brain LDM."""


def fill_preset(
    given: Mapping[str, Any], presets: Mapping[str, Mapping[str, Any]]
) -> Mapping[str, Any]:
    """Return a document's table with what its ``preset`` adds; tables inside are filled alike.

    What stands in the document is never changed. An unknown preset is left for the caller to
    refuse.
    """
    chosen = given.get("preset")
    if isinstance(chosen, str) and chosen in presets:
        return _merge(presets[chosen], given)
    return given


def _merge(below: Mapping[str, Any], above: Mapping[str, Any]) -> dict[str, Any]:
    both = dict(below)
    for key, value in above.items():
        old = both.get(key)
        if isinstance(old, Mapping) and isinstance(value, Mapping):
            both[key] = _merge(old, value)
        else:
            both[key] = value
    return both
