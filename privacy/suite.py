"""The attack suite by name: every kind of planted copy, and how surely a filter must catch it.

What a class demands, and whether a release is refused without it, was set before any filter was
measured; each strength of a disguise is a class of its own. How the plants are made stands in
``privacy.audit.plants``, which needs torch; this page needs nothing.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Final

MOST_GROUPS: Final = 60
"""Patients who are each copied so often: 59 make a bound of 0.95."""
GROUP_IMAGES: Final = 20
"""Near-copies of one patient in a group."""
MEMORIZE_IMAGES: Final = 128_000
"""Images after which an over-trained model has the patients of a suite by heart, if it ever has."""
MOST_LEARNED: Final = 100
"""Patients that a model is made to know by heart at a site, at most."""
LEAST_SOURCES: Final = 59
"""Distinct patients, all of them found, that a lower bound of 0.95 takes."""


@dataclass(frozen=True, slots=True)
class Demand:
    """What is asked of the filter for one class."""

    says: str
    """What the plants are, in one clause for a certificate."""
    least: float | None = None
    """Lower 95 % bound of the share caught; None: reported and no more. For a class of groups, the
    share of groups itself of which at least one image was caught."""
    must: bool = False
    """Whether a release is refused without it, at every tier."""
    group_images: int = 1
    """Plants that stand one after another and are copies of one patient."""


def _must(says: str, least: float) -> Demand:
    return Demand(says, least, must=True)


_ALIKE: Final = {
    "exact": _must("the scan itself", 0.99),
    "dtype_half": _must("stored in half precision", 0.99),
    "bits_12": _must("exported to DICOM in 12 bits", 0.99),
    "bits_8": _must("windowed to 8 bits", 0.99),
    "noise_1": _must("normal noise of 1 % of the range", 0.98),
    "noise_2": _must("normal noise of 2 % of the range", 0.98),
    "noise_5": _must("normal noise of 5 % of the range", 0.98),
    "noise_10": Demand("normal noise of 10 % of the range", 0.95),
    "flip_x": _must("mirrored left to right", 0.98),
    "gamma_07": Demand("gamma 0.7", 0.95),
    "gamma_14": Demand("gamma 1.4", 0.95),
    "contrast_30": Demand("contrast 30 % more or less", 0.95),
    "brightness_30": Demand("gain 30 % more or less", 0.95),
    "histogram_match": Demand("with the histogram of another patient's scan", 0.95),
    "inversion": Demand("the negative", 0.90),
    "blur_2": _must("blurred, 2 voxels wide at half height", 0.95),
    "resample_half": _must("resampled to half as many voxels and back", 0.95),
    "resample_double": _must("resampled to twice as many voxels and back", 0.95),
    "jpeg_30": _must("JPEG of quality 30, picture by picture", 0.95),
    "autoencoder": _must("after the study's own autoencoder", 0.98),
    "sdedit_10": _must("noised 10 % of the way by the generator and denoised", 0.95),
    "sdedit_20": _must("noised 20 % of the way by the generator and denoised", 0.95),
    "sdedit_30": Demand("noised 30 % of the way by the generator and denoised", 0.90),
    "sdedit_50": Demand("noised 50 % of the way by the generator and denoised", 0.75),
    "sdedit_70": Demand("noised 70 % of the way by the generator and denoised"),
    "memorized": _must("samples that an over-trained model has by heart", 0.95),
    "adversarial": Demand("20 steps of at most 2/255 against one embedding", 0.90),
    "blend_90": _must("90 % of the scan, the rest another patient's", 0.98),
    "blend_80": _must("80 % of the scan, the rest another patient's", 0.95),
    "blend_70": _must("70 % of the scan, the rest another patient's", 0.95),
    "blend_60": Demand("60 % of the scan, the rest another patient's", 0.80),
    "blend_50": Demand("50 % of the scan, the rest another patient's"),
    "latent_blend_90": _must("90 % of the scan's latents, the rest another's", 0.98),
    "latent_blend_80": _must("80 % of the scan's latents, the rest another's", 0.95),
    "latent_blend_70": _must("70 % of the scan's latents, the rest another's", 0.95),
    "latent_blend_60": Demand("60 % of the scan's latents, the rest another's", 0.80),
    "latent_blend_50": Demand("50 % of the scan's latents, the rest another's"),
    "other_visit": Demand("another visit of the patient", 0.90),
    "group_20": Demand(
        "20 near-copies of one patient, scattered: at least one is caught",
        1.0,
        must=True,
        group_images=GROUP_IMAGES,
    ),
}
"""What a volume and a clip have alike."""

_VOLUMES: Final = {
    "flip_y": _must("mirrored back to front", 0.98),
    "flip_z": _must("mirrored upside down", 0.98),
    "turn_x": _must("turned by 90 degrees about the axis x", 0.98),
    "turn_y": _must("turned by 90 degrees about the axis y", 0.98),
    "turn_z": _must("turned by 90 degrees about the axis z", 0.98),
    "axes": _must("with its axes exchanged", 0.98),
    "affine_5": _must(
        "turned by up to 5 degrees, stretched by up to 5 %, moved by up to 5 voxels of 128", 0.98
    ),
    "affine_10": Demand(
        "turned by up to 10 degrees, stretched by up to 10 %, moved by up to 5 voxels of 128", 0.95
    ),
    "elastic": Demand("bent smoothly by 2 to 3 voxels of 128", 0.95),
    "bias_field": Demand("under a smooth gain from 0.7 to 1.3", 0.95),
    "rician_5": Demand("Rician noise of 5 % of the range", 0.95),
    "crop_90": Demand("cut to 90 % of every edge and magnified", 0.95),
    "crop_80": Demand("cut to 80 % of every edge and magnified", 0.95),
    "crop_70": Demand("cut to 70 % of every edge and magnified", 0.95),
    "padding": Demand("in a margin, 80 % of every edge", 0.95),
    "masked_face": Demand("without the face", 0.95),
    "masked_skull": Demand("without the outermost shell", 0.95),
    "half": Demand("the left half beside a stranger's right half", 0.95),
    "copy_50": Demand("50 % of the volume in a stranger", 0.95),
    "copy_25": Demand("25 % of the volume in a stranger", 0.85),
    "copy_10": Demand("10 % of the volume in a stranger", 0.60),
    "lesion": Demand("a block of a lesion's size in a stranger"),
    "slices_all": Demand("all slices in a stranger's volume", 0.98),
    "slices_50": Demand("half of the slices among a stranger's", 0.95),
    "slices_10": Demand("a tenth of the slices among a stranger's", 0.85),
    "slice_1": Demand("one slice among a stranger's"),
    "slices_shuffled": Demand("all slices in another order", 0.98),
    "slice_alone": Demand("one slice in the dark"),
    "other_sequence": Demand("the patient in another sequence"),
}

_CLIPS: Final = {
    "speckle": Demand("multiplied by noise of 20 %", 0.95),
    "depth": Demand("at 0.8 or 1.25 of the depth", 0.95),
    "sector": Demand("in a narrower sector", 0.95),
    "crop_90": Demand("every picture cut to 90 % of its edges", 0.95),
    "crop_80": Demand("every picture cut to 80 % of its edges", 0.95),
    "crop_70": Demand("every picture cut to 70 % of its edges", 0.95),
    "h264_30": _must("H.264 at rate factor 30", 0.95),
    "reversed": Demand("all frames, backward", 0.98),
    "phase_shift": Demand("begun at another frame", 0.98),
    "speed_half": Demand("at half the speed", 0.98),
    "speed_double": Demand("at twice the speed", 0.98),
    "every_second": Demand("every second frame", 0.98),
    "loop": Demand("half of it, forward and backward", 0.98),
    "frames_50": Demand("half of the frames among a stranger's", 0.95),
    "frames_10": Demand("a tenth of the frames among a stranger's", 0.85),
    "frame_1": Demand("one frame among a stranger's", 0.85),
    "other_view": Demand("the patient in another view"),
    "animated_still": _must("one frame, animated by a video generator", 0.95),
}

_PICTURES: Final = {
    **{name: demand for name, demand in _ALIKE.items() if name != "flip_x"},
    "flip_rows": _must("mirrored upside down", 0.98),
    "flip_columns": _must("mirrored left to right", 0.98),
    "turn": _must("turned by 90 degrees", 0.98),
    "affine_5": _must("turned by up to 5 degrees, stretched by up to 5 %, moved by 4 %", 0.98),
    "affine_10": Demand("turned by up to 10 degrees, stretched by up to 10 %, moved by 4 %", 0.95),
    "elastic": Demand("bent smoothly by 2 % of the edge", 0.95),
    "crop_90": Demand("cut to 90 % of both edges and magnified", 0.95),
    "crop_80": Demand("cut to 80 % of both edges and magnified", 0.95),
    "crop_70": Demand("cut to 70 % of both edges and magnified", 0.95),
    "padding": Demand("in a margin, 80 % of both edges", 0.95),
    "bias_field": _VOLUMES["bias_field"],
    "rician_5": _VOLUMES["rician_5"],
    "half": _VOLUMES["half"],
    "copy_50": Demand("50 % of the picture in a stranger's", 0.95),
    "copy_25": Demand("25 % of the picture in a stranger's", 0.85),
    "copy_10": Demand("10 % of the picture in a stranger's", 0.60),
    "lesion": Demand("a block of a lesion's size in a stranger's"),
    "other_view": _CLIPS["other_view"],
}

VOLUME_SUITE: Final[Mapping[str, Demand]] = MappingProxyType({**_ALIKE, **_VOLUMES})
"""By name; a class that a study cannot make is not estimable there."""
CLIP_SUITE: Final[Mapping[str, Demand]] = MappingProxyType({**_ALIKE, **_CLIPS})
"""By name."""
PICTURE_SUITE: Final[Mapping[str, Demand]] = MappingProxyType(_PICTURES)
"""By name; for single pictures, which only the audit of two folders knows."""


def must_classes(suite: Mapping[str, Demand]) -> tuple[str, ...]:
    """Return the classes without which a release is refused."""
    return tuple(name for name, demand in suite.items() if demand.must)
