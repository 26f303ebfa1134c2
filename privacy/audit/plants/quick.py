"""The six classes of a quick certificate, drawn from one stream.

Plants come from training patients, since a copy of anybody else is nobody's copy. The filter's
encoder never saw these patients; their scans are the gallery, and the operating point was taken
with each of them left out in turn. Each source patient is used once a class. Plants exist only at
the site, for the length of one audit, and are never written.

Three classes, exact, flip and autoencoder, are in the gallery but for a view that the encoder does
not tell apart: they show that the filter as configured works at all. What it is worth against a
disguise is told by the others.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Final

import numpy as np

from vitrael.core.records import PatientImages
from vitrael.privacy.audit.plants.geometry import bend_affinely
from vitrael.privacy.evidence import PLANT_CLASSES
from vitrael.privacy.reid.roles import RoundTrip

NOISE_FRAC: Final = 0.02
"""Standard deviation, of the intensity range."""
BLEND_SHARE: Final = 0.8
"""Weight of the copied patient; the rest is another one."""


def draw_plants(
    images: PatientImages,
    count: int,
    *,
    rng: np.random.Generator,
    round_trip: RoundTrip | None = None,
    kinds: Sequence[str] = PLANT_CLASSES,
) -> dict[str, np.ndarray]:
    """Return up to ``count`` plants of each class, ``[P, 1, D, H, W]``, distinct source patients.

    A cohort of fewer patients gives fewer plants. A class that cannot be made (a blend of one
    patient, a round trip without autoencoder) is empty.
    """
    return {kind: _plant(kind, images, count, rng=rng, round_trip=round_trip) for kind in kinds}


def _plant(
    kind: str,
    images: PatientImages,
    count: int,
    *,
    rng: np.random.Generator,
    round_trip: RoundTrip | None,
) -> np.ndarray:
    source, other = _sources(images, count, rng=rng)
    make: Mapping[str, Callable[[], np.ndarray]] = {
        "exact": source.copy,
        "noise": lambda: np.clip(source + rng.normal(0, NOISE_FRAC, source.shape), 0, 1),
        "flip": lambda: source[:, :, ::-1],
        "affine": lambda: np.array([[bend_affinely(x[0], rng=rng)] for x in source]),
        "blend": lambda: BLEND_SHARE * source[: len(other)] + (1 - BLEND_SHARE) * other,
        "autoencoder": lambda: source[:0] if round_trip is None else round_trip(source),
    }
    plants = make[kind]() if len(source) else source
    return np.ascontiguousarray(plants.reshape(-1, *source.shape[1:]), dtype=np.float32)


def _sources(
    images: PatientImages, count: int, *, rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    """Return one scan of each chosen patient, and one of another patient for each of them."""
    patients = rng.permutation(np.unique(images.patient_B))[:count]
    rows = [rng.choice(np.flatnonzero(images.patient_B == patient)) for patient in patients]
    source = images.image_BCDHW[np.array(rows, dtype=np.int64)]
    strangers = [
        rng.choice(others)
        for patient in patients
        if len(others := np.flatnonzero(images.patient_B != patient))
    ]
    return source, images.image_BCDHW[np.array(strangers, dtype=np.int64)]
