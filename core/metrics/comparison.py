"""Which way of asking several experts is right how often, pooled over sites that count for it.

Axes: M methods, V views.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

import numpy as np

from vitrael.core.errors import DataError
from vitrael.core.metrics.intervals import Interval, clopper_pearson

METHODS: Final = (
    "own expert",
    "largest logit",
    "largest probability",
    "nearest expert",
    "fusion, unweighted",
    "fusion",
    "federated averaging",
    "one network in turn",
)
"""The rows of what a site counts; a method that was not tried has a row of -1."""


@dataclass(frozen=True, slots=True, eq=False)
class ViewCounts:
    """What one site counted on pictures that nobody has learned from."""

    images_V: np.ndarray
    """int64; 0 for a view of too few patients."""
    right_MV: np.ndarray
    """int64: of these, how many each of ``METHODS`` names rightly; -1 where it was not tried."""
    heaviest_V: np.ndarray
    """int64: in how many the site's own expert weighs most."""

    def __post_init__(self) -> None:
        """Raise DataError for counts that cannot be of pictures."""
        images, right, heaviest = self.images_V, self.right_MV, self.heaviest_V
        views = len(images)
        whole = right.shape == (len(METHODS), views) and heaviest.shape == images.shape == (views,)
        tried_M = (right >= 0).all(axis=1) if whole else np.zeros(0, dtype=bool)
        if not (
            whole
            and (images >= 0).all()
            and images.sum() > 0
            and ((right[tried_M] <= images).all() and (right[~tried_M] == -1).all())
            and ((heaviest >= 0) & (heaviest <= images)).all()
        ):
            raise DataError(
                "a site counted what cannot be counted",
                why="of no view more pictures can be right than there are",
                fix="run the same package version everywhere",
            )


@dataclass(frozen=True, slots=True)
class MethodRow:
    """How often one method is right, over all sites that tried it."""

    method: str
    accuracy: float
    interval: Interval
    """Of 95 %, over pictures; each is as a rule of another patient."""
    images: int
    sites: Mapping[str, float]
    """Accuracy at each site."""
    by_view: Mapping[str, float]
    """Accuracy on each view that was tried."""


def compare_methods(
    counts: Mapping[str, ViewCounts], *, views: tuple[str, ...]
) -> tuple[MethodRow, ...]:
    """Return a row for each method that every site tried, in the order of ``METHODS``.

    A method that a site could not try would be held to other pictures than the others.
    """
    rows = []
    for number, method in enumerate(METHODS):
        if not counts or any((one.right_MV[number] < 0).any() for one in counts.values()):
            continue
        right_V = sum(one.right_MV[number] for one in counts.values())
        images_V = sum(one.images_V for one in counts.values())
        right, images = int(np.sum(right_V)), int(np.sum(images_V))
        each = zip(views, np.atleast_1d(right_V), np.atleast_1d(images_V), strict=True)
        rows.append(
            MethodRow(
                method,
                right / images,
                clopper_pearson(right, images),
                images,
                {
                    site: float(one.right_MV[number].sum() / one.images_V.sum())
                    for site, one in counts.items()
                },
                {view: float(hits / shown) for view, hits, shown in each if shown},
            )
        )
    return tuple(rows)
