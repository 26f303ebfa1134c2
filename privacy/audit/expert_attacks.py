"""Attackers who guess whose images a site told of for the fusion of experts.

They differ in what they hold beside what was told: nothing, images of strangers, these and how much
noise was laid over it, or what the experts see in every image. The higher a guess, the more likely
the image was told of.

Axes: B images, D what all experts see of one, R directions in which there are images.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final, NamedTuple

import numpy as np
import torch

from vitrael.core.checks import finite
from vitrael.core.errors import DataError
from vitrael.core.models.fusion_learning import SiteOutlook
from vitrael.core.models.score_fusion import Readings
from vitrael.privacy.audit.offsets import FOLDS, Cloud, at, class_means, patient_folds

_FLAT: Final = 1e-6
"""Added to squared spreads: a number that is always 0 decides nothing."""
_ROUND: Final = 0.1
"""Share of a covariance of few images that is made round."""


@dataclass(frozen=True, slots=True, eq=False, repr=False)
class Seen:
    """What all experts see in images, each of a class and of a patient, by any number."""

    readings: Readings
    labels: Sequence[str]
    patients: Sequence[int]

    def __post_init__(self) -> None:
        """Raise DataError unless there are as many labels and patients as images."""
        parts = (*self.readings.features.values(), *self.readings.discrepancy.values())
        if any(len(part) != len(self.labels) for part in (*parts, self.patients)):
            raise DataError("readings, labels and patients are not of the same images")

    def rows_of(self, classes: Sequence[str]) -> np.ndarray:
        """Return which images are of some classes."""
        return np.flatnonzero([label in classes for label in self.labels])

    def rows(self, row_B: np.ndarray) -> Seen:
        """Return some of the images."""
        readings = self.readings.rows(torch.from_numpy(row_B))
        return Seen(
            readings, [self.labels[row] for row in row_B], [self.patients[row] for row in row_B]
        )


class Guesses(NamedTuple):
    """One number an image, higher for those that more likely were told of."""

    known_B: np.ndarray
    strange_B: np.ndarray


def lay_out(readings: Readings, experts: Sequence[str]) -> np.ndarray:
    """Return ``[B, D]``: features, then discrepancies, of one expert after the other.

    Raises DataError for no expert, for one that is missing and for numbers that are not finite.
    """
    if not experts or not set(experts) <= set(readings.features):
        raise DataError("readings of an expert are missing", fix="let every expert run once")
    parts = [part[name] for name in experts for part in (readings.features, readings.discrepancy)]
    row_BD: np.ndarray = torch.cat([part.double() for part in parts], dim=1).cpu().numpy()
    finite(readings=row_BD)
    return row_BD


def guess_by_nearness(told: SiteOutlook, *, known: Seen, strange: Seen) -> Guesses:
    """Return minus the squared distance of images from the told mean of their class, in its spread.

    Raises DataError for images of a class that was not told of, and for other experts.
    """
    sides, means = _in_spreads(told, known, strange)
    offsets = (
        row_BD - at(means, side.labels)
        for row_BD, side in zip(sides, (known, strange), strict=True)
    )
    return Guesses(*(-np.square(offset_BD).sum(axis=1) for offset_BD in offsets))


def guess_by_likelihood(told: SiteOutlook, *, known: Seen, strange: Seen) -> Guesses:
    """Return how much better the told mean explains images than the mean of strangers does.

    Strangers are the reference in five parts by patient, always without the part of the image that
    is asked about; images that were told of meet references of the same size. Where a reference
    does not have the class, the number is 0. Raises DataError as ``guess_by_nearness``.
    """
    sides, means = _in_spreads(told, known, strange)
    folds, label_B = (
        [patient_folds(known.patients), patient_folds(strange.patients)],
        np.array(strange.labels),
    )
    guesses = Guesses(np.zeros(len(known.labels)), np.zeros(len(strange.labels)))
    for fold in range(FOLDS):
        reference_BD, its_label_B = sides[1][folds[1] != fold], label_B[folds[1] != fold]
        others = {**means, **class_means(reference_BD, its_label_B)}
        cloud = Cloud.around(reference_BD - at(others, its_label_B))
        for place, side in enumerate((known, strange)):
            asked = np.flatnonzero(folds[place] == fold)
            labels = np.array(side.labels)[asked]
            far_B, near_B = (
                cloud.distance(sides[place][asked] - at(centers, labels))
                for centers in (others, means)
            )
            guesses[place][asked] = far_B - near_B
    return guesses


def guess_by_match(told: Readings, *, known: Seen, strange: Seen) -> Guesses:
    """Return 1 for images of which every number was told, and 0 for others.

    Raises DataError for other experts.
    """
    experts = list(told.features)
    numbers = {row.tobytes() for row in lay_out(told, experts) + 0.0}  # so that -0 is 0
    hits = (
        [row.tobytes() in numbers for row in lay_out(side.readings, experts) + 0.0]
        for side in (known, strange)
    )
    return Guesses(*(np.array(hit_B, dtype=float) for hit_B in hits))


def guess_under_noise(
    told: SiteOutlook, *, known: Seen, strange: Seen, noise_frac: float
) -> Guesses:
    """Return the log likelihood ratio of the told mean: with an image in it, and without.

    With image x among its n, the mean of a class is expected at m + (x - m) / n, else at m, the
    mean of r strangers. Around either it varies by V = S (1/n + 1/r) + noise, with S the covariance
    of strangers: the ratio is (x - m)' inv(V) (told - m) / n less half of (x - m)' inv(V) (x - m) /
    n^2. Where noise is wider than S, it decides less. Strangers are the reference in five parts.
    """
    sides, experts = (known, strange), list(told.experts)
    std_D = np.concatenate([told.experts[name].std for name in experts]).astype(float)
    spread_D = np.sqrt(np.square(std_D) + _FLAT)
    rows = [lay_out(side.readings, experts) / spread_D for side in sides]
    labels = [np.array(side.labels) for side in sides]
    folds = [patient_folds(side.patients) for side in sides]
    noise = noise_frac**2 / (1 + noise_frac**2)  # the spread told is that under noise
    guesses = Guesses(np.zeros(len(known.labels)), np.zeros(len(strange.labels)))
    for fold in range(FOLDS):
        held = folds[1] != fold
        centers = class_means(rows[1][held], labels[1][held])
        around_BD = rows[1][held] - at(centers, labels[1][held])
        _, size_R, axis_RD = np.linalg.svd(around_BD, full_matrices=False)
        variance_R = np.square(size_R) / len(around_BD)
        rest = _ROUND * float(variance_R.sum()) / around_BD.shape[1]
        for name, count in told.images.items():
            if name not in centers:
                continue  # no stranger of it is left to compare with: the guess stays 0
            parts = [one.mean[name] for one in told.experts.values()]
            shift_D = np.concatenate(parts) / spread_D - centers[name]
            few = 1 / count + 1 / int((labels[1][held] == name).sum())
            flat = few * rest + noise
            along_R = 1 / (few * (1 - _ROUND) * variance_R + flat) - 1 / flat
            for place in range(2):
                asked = np.flatnonzero((folds[place] == fold) & (labels[place] == name))
                offset_BD = rows[place][asked] - centers[name]
                weighed_BD = offset_BD / flat + (offset_BD @ axis_RD.T * along_R) @ axis_RD
                guesses[place][asked] = weighed_BD @ shift_D / count - (weighed_BD * offset_BD).sum(
                    axis=1
                ) / (2 * count**2)
    return guesses


def _in_spreads(told: SiteOutlook, *sides: Seen) -> tuple[list[np.ndarray], dict[str, np.ndarray]]:
    """Return ``[B, D]`` of each side and the told means, all in spreads of the site."""
    experts, means = list(told.experts), told_means(told)
    std_D = np.concatenate([told.experts[name].std for name in experts]).astype(float)
    spread_D = np.sqrt(np.square(std_D) + _FLAT)
    rows = [lay_out(side.readings, experts) for side in sides]
    demand_same_width(*rows, spread_D[None], *(mean_D[None] for mean_D in means.values()))
    return (
        [row_BD / spread_D for row_BD in rows],
        {name: mean_D / spread_D for name, mean_D in means.items()},
    )


def told_means(told: SiteOutlook) -> dict[str, np.ndarray]:
    """Return ``[D]`` of each class: its means, of one expert after the other."""
    parts = {name: [one.mean[name] for one in told.experts.values()] for name in told.images}
    return {name: np.concatenate(part).astype(float) for name, part in parts.items()}


def demand_same_width(*rows: np.ndarray) -> None:
    """Raise DataError unless all have as many numbers for an image."""
    if len({row_BD.shape[1] for row_BD in rows}) > 1:
        raise DataError("what was told is not of these experts", fix="let every expert run once")
