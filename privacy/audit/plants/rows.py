"""Ways of making plants that volumes and clips share: grays, blends, and what a model makes."""

from __future__ import annotations

from functools import partial
from typing import Final

import numpy as np

from vitrael.core.errors import DataError
from vitrael.privacy.audit.plants import intensity
from vitrael.privacy.audit.plants.adversarial import lead_away
from vitrael.privacy.audit.plants.classes import (
    Make,
    Way,
    always,
    drawn,
    mixed,
    strangers_of,
)
from vitrael.privacy.audit.plants.mixtures import blend
from vitrael.privacy.audit.plants.sources import Means, Sources, demand_usable

_NOISED: Final = (1, 2, 5, 10)
_RENOISED: Final = (10, 20, 30, 50, 70)
_BLENDED: Final = (90, 80, 70, 60, 50)
_VARIED: Final = 0.3


def copies() -> dict[str, Way]:
    """Return copies that were only stored in another way."""
    return {
        "exact": Way(always(np.copy)),
        "dtype_half": Way(always(intensity.halve_precision)),
        "bits_12": Way(always(intensity.store_as_dicom)),
        "bits_8": Way(always(intensity.window_to_bytes)),
    }


def noises() -> dict[str, Way]:
    """Return normal noise, in percent of the range."""
    return {
        f"noise_{percent}": Way(drawn(partial(intensity.add_gaussian, sigma=percent / 100)))
        for percent in _NOISED
    }


def grays() -> dict[str, Way]:
    """Return other gray values."""
    return {
        "gamma_07": Way(always(partial(intensity.bend_grays, gamma=0.7))),
        "gamma_14": Way(always(partial(intensity.bend_grays, gamma=1.4))),
        "contrast_30": Way(drawn(partial(intensity.change_contrast, share=_VARIED))),
        "brightness_30": Way(drawn(partial(intensity.change_brightness, share=_VARIED))),
        "histogram_match": Way(mixed(intensity.match_grays), needs=("other",)),
        "inversion": Way(always(intensity.invert)),
    }


def losses(*, axes: tuple[int, ...], plane: tuple[int, int]) -> dict[str, Way]:
    """Return losses of sharpness along ``axes``; pictures lie in ``plane``."""
    jpeg = partial(intensity.compress_jpeg, quality=30, plane=plane)
    return {
        "blur_2": Way(always(partial(intensity.blur, fwhm_vox=2.0, axes=axes))),
        "resample_half": Way(always(partial(intensity.resample, factor=0.5, axes=axes))),
        "resample_double": Way(always(partial(intensity.resample, factor=2.0, axes=axes))),
        "jpeg_30": Way(always(jpeg)),
    }


def blends() -> dict[str, Way]:
    """Return two patients in one image, mixed as pixels and as latents, in percent of the first."""
    ways = {}
    for percent in _BLENDED:
        weight = percent / 100
        ways[f"blend_{percent}"] = Way(mixed(partial(blend, weight=weight)), needs=("other",))
        ways[f"latent_blend_{percent}"] = Way(_in_latents(weight), needs=("other", "latent_blend"))
    return ways


def of_models() -> dict[str, Way]:
    """Return what a trained model makes of a scan, or somebody against a filter."""
    return {
        "autoencoder": Way(_round_trip, needs=("round_trip",)),
        **{
            f"sdedit_{percent}": Way(_renoised(percent / 100), needs=("renoise",))
            for percent in _RENOISED
        },
        "memorized": Way(_memorized, needs=("memorized",)),
        "adversarial": Way(_led_away, needs=("embedder",)),
    }


def other_scans(*, sequence: str) -> dict[str, Way]:
    """Return the patient in another scan; ``sequence`` says of which kind the other one is."""
    return {
        "other_visit": Way(_visit, needs=("visit",)),
        f"other_{sequence}": Way(_sequence, needs=("sequence",)),
    }


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
