"""What plants are made of: scans of patients of the gallery, and the means of disguising them.

All of it is private and lives inside one process of a site for the length of one audit. Volumes
are ``[P, 1, D, H, W]`` with the axes of NIfTI (left to right, back to front, up); clips of echo
are ``[P, 1, T, H, W]``. Axes: P source patients, B scans, K conditions.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import numpy as np

from vitrael.core.errors import DataError
from vitrael.core.records import PatientImages
from vitrael.privacy.reid.roles import RoundTrip

if TYPE_CHECKING:
    from vitrael.core.interfaces import Embedder

Renoise = Callable[[np.ndarray, float], np.ndarray]
"""From images and a share t/T to what the teacher makes of them once noised that far: SDEdit."""

LatentBlend = Callable[[np.ndarray, np.ndarray, float], np.ndarray]
"""From images, other images and the weight of the first to what is decoded of their mixture."""

Animate = Callable[[np.ndarray], np.ndarray]
"""From still frames ``[P, 1, H, W]`` to clips; waits for the video generator."""

_AXES: Final = 5
_ROUNDING: Final = 1e-6


@dataclass(frozen=True, slots=True, repr=False, eq=False)
class Sources:
    """Private: one scan of each source patient, and what is mixed with it."""

    image_PCDHW: np.ndarray
    """float32 in [0, 1], each of another patient."""
    condition_PK: np.ndarray
    """What the scans show, for means that ask for it."""
    other_PCDHW: np.ndarray | None = None
    """For each source a scan of another patient; None where there is nobody else."""
    others_are_strangers: bool = False
    """Whether the others are outside the gallery. What is copied into a patient of the gallery is
    caught for that patient's sake, and says nothing of the copied part."""
    visit_PCDHW: np.ndarray | None = None
    """Other visits of those source patients who have one, in their order."""
    sequence_PCDHW: np.ndarray | None = None
    """The sources once more, in another contrast or view."""
    visit_row_V: np.ndarray | None = None
    """Rows of the images that ``visit_PCDHW`` shows: the gallery must lack them, or the class of
    other visits shows exact copies."""

    def __repr__(self) -> str:
        """Show nothing of a patient, not even how many there are."""
        return "Sources(private)"

    def __len__(self) -> int:
        """Return the number of source patients."""
        return len(self.image_PCDHW)


@dataclass(frozen=True, slots=True, repr=False, eq=False)
class Means:
    """Private: what some classes need beside scans; a class whose means are missing stays empty."""

    round_trip: RoundTrip | None = None
    renoise: Renoise | None = None
    latent_blend: LatentBlend | None = None
    memorized_BCDHW: np.ndarray | None = None
    """Samples of an over-trained model, at most one for each source patient."""
    embedder: Embedder | None = None
    """The one member of the filter that adversarial steps are taken against."""
    animate: Animate | None = None

    def __repr__(self) -> str:
        """Show no image."""
        return "Means(private)"


def draw_sources(
    images: PatientImages,
    count: int,
    *,
    rng: np.random.Generator,
    strangers: PatientImages | None = None,
    sequence_BCDHW: np.ndarray | None = None,
) -> Sources:
    """Return one scan of each of up to ``count`` patients, and what their plants are mixed with.

    ``strangers`` are patients whom neither the gallery nor the operating point knows, such as the
    sealed ones; each is used once before any is used again. Without them scans are mixed with
    those of other patients of the gallery, and classes that copy a part into a stranger stay
    empty. ``sequence_BCDHW`` holds the scans of ``images`` in another contrast, row by row. A
    cohort of fewer patients gives fewer sources. Raises DataError for no patient at all, images on
    two grids, and what ``demand_usable`` refuses.
    """
    if count < 1 or not len(images):
        raise DataError(
            "no copy can be planted",
            why="there is no patient to copy" if count > 0 else "none was asked for",
            fix="give at least one patient and ask for at least one plant",
        )
    demand_usable(images.image_BCDHW, what="a scan")
    patients = rng.permutation(np.unique(images.patient_B))[:count]
    rows = np.array([rng.choice(np.flatnonzero(images.patient_B == one)) for one in patients])
    other = _draw_strangers(strangers, len(rows), images.image_BCDHW.shape[1:], rng=rng)
    if other is None:
        others = [np.flatnonzero(images.patient_B != one) for one in patients]
        if len(others[0]):
            other = images.image_BCDHW[[rng.choice(rows_B) for rows_B in others]]
    visits = [
        rng.choice(again)
        for row in rows
        if len(again := np.flatnonzero(_other_visits(images, int(row))))
    ]
    sequence = None
    if sequence_BCDHW is not None:
        demand_usable(sequence_BCDHW, what="a scan of the other contrast")
        if sequence_BCDHW.shape != images.image_BCDHW.shape:
            raise DataError(
                "the scans of the other contrast do not go with the first",
                why="there are more or fewer of them, or their grid differs",
                fix="give one for each scan, in the same order and on the same grid",
            )
        sequence = _floats(sequence_BCDHW[rows])
    visit_V = np.array(visits, dtype=np.int64)
    return Sources(
        image_PCDHW=_floats(images.image_BCDHW[rows]),
        condition_PK=images.condition_BK[rows],
        other_PCDHW=None if other is None else _floats(other),
        others_are_strangers=strangers is not None and len(strangers) > 0,
        visit_PCDHW=_floats(images.image_BCDHW[visit_V]) if visits else None,
        sequence_PCDHW=sequence,
        visit_row_V=visit_V if visits else None,
    )


def demand_usable(image_BCDHW: np.ndarray, *, what: str = "an image") -> None:
    """Raise DataError unless images have five axes, are finite, in [0, 1], and none is constant."""
    if image_BCDHW.ndim != _AXES:
        raise DataError(
            f"{what} cannot be used: the batch has {image_BCDHW.ndim} axes",
            why="five are expected: images, channel and three of space, or time and two",
            fix="bring the images into that form",
        )
    if not len(image_BCDHW):
        return
    if not np.isfinite(image_BCDHW).all():
        raise DataError(f"{what} holds values that are not finite", fix="leave such images out")
    flat = image_BCDHW.reshape(len(image_BCDHW), -1)
    low, high = flat.min(1), flat.max(1)
    if (low == high).any():
        raise DataError(
            f"{what} is constant",
            why="nobody can be known again by it, whatever a filter says",
            fix="leave blank images out",
        )
    if low.min() < -_ROUNDING or high.max() > 1 + _ROUNDING:
        raise DataError(f"{what} leaves the range from 0 to 1", fix="scale the intensities first")


def _draw_strangers(
    strangers: PatientImages | None,
    count: int,
    grid: tuple[int, ...],
    *,
    rng: np.random.Generator,
) -> np.ndarray | None:
    """Return a scan of a stranger for each of so many sources, or None without any stranger."""
    if strangers is None or not len(strangers):
        return None
    demand_usable(strangers.image_BCDHW, what="a stranger's scan")
    if strangers.image_BCDHW.shape[1:] != grid:
        raise DataError(
            "strangers and patients lie on two grids", fix="bring both onto the study's grid"
        )
    patients = np.resize(rng.permutation(np.unique(strangers.patient_B)), count)
    rows = [rng.choice(np.flatnonzero(strangers.patient_B == one)) for one in patients]
    return np.asarray(strangers.image_BCDHW[rows])


def _other_visits(images: PatientImages, row: int) -> np.ndarray:
    """Return ``[B]`` bool: scans of the same patient at another visit."""
    same = images.patient_B == images.patient_B[row]
    return np.asarray(same & (images.visit_B != images.visit_B[row]))


def _floats(image_BCDHW: np.ndarray) -> np.ndarray:
    return np.ascontiguousarray(image_BCDHW, dtype=np.float32)
