"""Classes of plants that a volume and a clip have alike: grays, blends, and what a model makes.

What a class demands and whether it must be met was set before any filter was measured; each
strength is a class of its own.
"""

from __future__ import annotations

from functools import partial
from typing import Final

import numpy as np

from vitrael.core.errors import DataError
from vitrael.privacy.audit.plants import intensity
from vitrael.privacy.audit.plants.adversarial import lead_away
from vitrael.privacy.audit.plants.classes import (
    Make,
    PlantClass,
    always,
    drawn,
    mixed,
    strangers_of,
)
from vitrael.privacy.audit.plants.mixtures import blend
from vitrael.privacy.audit.plants.sources import Means, Sources, demand_usable

_RENOISED: Final = ((0.1, 0.95, True), (0.2, 0.95, True), (0.3, 0.90, False), (0.5, 0.75, False))
_BLENDED: Final = ((0.9, 0.98, True), (0.8, 0.95, True), (0.7, 0.95, True), (0.6, 0.80, False))
_VARIED: Final = 0.3


def copies() -> list[PlantClass]:
    """Return the classes of copies that were only stored in another way."""
    return [
        PlantClass("exact", "the scan itself", 0.99, always(np.copy), must=True),
        PlantClass(
            "dtype_half", "stored in half precision", 0.99, always(intensity.halve_precision),
            must=True,
        ),
        PlantClass(
            "bits_12", "exported to DICOM in 12 bits", 0.99, always(intensity.store_as_dicom),
            must=True,
        ),
        PlantClass(
            "bits_8", "windowed to 8 bits", 0.99, always(intensity.window_to_bytes), must=True
        ),
    ]  # fmt: skip


def noises() -> list[PlantClass]:
    """Return the classes of normal noise; only up to 5 % is a must."""
    return [
        PlantClass(
            f"noise_{percent}",
            f"normal noise of {percent} % of the range",
            0.98 if must else 0.95,
            drawn(partial(intensity.add_gaussian, sigma=percent / 100)),
            must=must,
        )
        for percent, must in ((1, True), (2, True), (5, True), (10, False))
    ]


def grays() -> list[PlantClass]:
    """Return the classes of other gray values."""
    return [
        *(
            PlantClass(
                f"gamma_{round(10 * gamma):02d}",
                f"gamma {gamma}",
                0.95,
                always(partial(intensity.bend_grays, gamma=gamma)),
            )
            for gamma in (0.7, 1.4)
        ),
        PlantClass(
            "contrast_30", "contrast 30 % more or less", 0.95,
            drawn(partial(intensity.change_contrast, share=_VARIED)),
        ),
        PlantClass(
            "brightness_30", "gain 30 % more or less", 0.95,
            drawn(partial(intensity.change_brightness, share=_VARIED)),
        ),
        PlantClass(
            "histogram_match", "with the histogram of another patient's scan", 0.95,
            mixed(intensity.match_grays), needs=("other",),
        ),
        PlantClass("inversion", "the negative", 0.90, always(intensity.invert)),
    ]  # fmt: skip


def losses(*, axes: tuple[int, ...], plane: tuple[int, int]) -> list[PlantClass]:
    """Return the classes that lose sharpness along ``axes``; pictures lie in ``plane``."""
    jpeg = partial(intensity.compress_jpeg, quality=30, plane=plane)
    return [
        PlantClass(
            "blur_2", "blurred, 2 voxels wide at half height", 0.95,
            always(partial(intensity.blur, fwhm_vox=2.0, axes=axes)), must=True,
        ),
        PlantClass(
            "resample_half", "resampled to half as many voxels and back", 0.95,
            always(partial(intensity.resample, factor=0.5, axes=axes)), must=True,
        ),
        PlantClass(
            "resample_double", "resampled to twice as many voxels and back", 0.95,
            always(partial(intensity.resample, factor=2.0, axes=axes)), must=True,
        ),
        PlantClass(
            "jpeg_30", "JPEG of quality 30, picture by picture", 0.95, always(jpeg), must=True
        ),
    ]  # fmt: skip


def blends() -> list[PlantClass]:
    """Return the classes of two patients in one image, mixed as pixels and as latents."""
    rows = []
    for weight, demanded, must in (*_BLENDED, (0.5, None, False)):
        percent = round(100 * weight)
        rows += [
            PlantClass(
                f"blend_{percent}", f"{percent} % of the scan, the rest another patient's",
                demanded, mixed(partial(blend, weight=weight)), must=must, needs=("other",),
            ),
            PlantClass(
                f"latent_blend_{percent}", f"{percent} % of the scan's latents, the rest another's",
                demanded, _in_latents(weight), must=must, needs=("other", "latent_blend"),
            ),
        ]  # fmt: skip
    return rows


def of_models() -> list[PlantClass]:
    """Return the classes that a trained model makes of a scan, or against a filter."""
    renoised = [
        PlantClass(
            f"sdedit_{round(100 * share)}",
            f"noised {share:.0%} of the way by the generator and denoised",
            demanded,
            _renoised(share),
            must=must,
            needs=("renoise",),
        )
        for share, demanded, must in (*_RENOISED, (0.7, None, False))
    ]
    return [
        PlantClass(
            "autoencoder", "after the study's own autoencoder", 0.98, _round_trip, must=True,
            needs=("round_trip",),
        ),
        *renoised,
        PlantClass(
            "memorized", "samples that an over-trained model has by heart", 0.95, _memorized,
            must=True, needs=("memorized",),
        ),
        PlantClass(
            "adversarial", "20 steps of at most 2/255 against one embedding", 0.90, _led_away,
            needs=("embedder",),
        ),
    ]  # fmt: skip


def other_scans(*, sequence: str) -> list[PlantClass]:
    """Return the classes that show the patient in another scan; ``sequence`` says which kind."""
    return [
        PlantClass(
            "other_visit", "another visit of the patient", 0.90, _visit, needs=("visit",)
        ),
        PlantClass(f"other_{sequence}", f"the patient in another {sequence}", None, _sequence,
                   needs=("sequence",)),
    ]  # fmt: skip


def _in_latents(weight: float) -> Make:
    def make(sources: Sources, means: Means, rng: np.random.Generator) -> np.ndarray:
        del rng
        mix = means.latent_blend
        return _given(None if mix is None else
                      mix(sources.image_PCDHW, strangers_of(sources), weight))  # fmt: skip

    return make


def _renoised(share: float) -> Make:
    def make(sources: Sources, means: Means, rng: np.random.Generator) -> np.ndarray:
        del rng
        renoise = means.renoise
        return _given(None if renoise is None else renoise(sources.image_PCDHW, share))

    return make


def _round_trip(sources: Sources, means: Means, rng: np.random.Generator) -> np.ndarray:
    del rng
    return _given(None if means.round_trip is None else means.round_trip(sources.image_PCDHW))


def _memorized(sources: Sources, means: Means, rng: np.random.Generator) -> np.ndarray:
    del sources, rng
    samples = _given(means.memorized_BCDHW)
    demand_usable(samples, what="a memorized sample")
    return samples


def _led_away(sources: Sources, means: Means, rng: np.random.Generator) -> np.ndarray:
    embedder = means.embedder
    return _given(None if embedder is None else lead_away(sources.image_PCDHW, embedder, rng=rng))


def _visit(sources: Sources, means: Means, rng: np.random.Generator) -> np.ndarray:
    del means, rng
    return _given(sources.visit_PCDHW)


def _sequence(sources: Sources, means: Means, rng: np.random.Generator) -> np.ndarray:
    del means, rng
    return _given(sources.sequence_PCDHW)


def _given(made: np.ndarray | None) -> np.ndarray:
    if made is None:
        raise DataError(
            "a class of plants lacks what it is made of",
            fix="ask why_empty before a class is made alone, or use make_plants",
        )
    return made
