"""What familiar images score: the scale on which foreignness is measured, and how it is stored.

Every feature is standardized by its mean and standard deviation over images that the model never
saw in training. The scores are made of the standardized features:

``one_sided``  their mean over the errors of all starts, after Graham et al. 2023, with gradients in
               the place of LPIPS unless a perceptual distance is given. It is blind to images that
               come back *too* well: flatter, dimmer, smoother ones.
``folded``     the absolute value of ``one_sided``.
``magnitude``  the root mean square of all features.
``distance``   the Mahalanobis distance of all features from familiar images, relative to their
               number, with the covariance shrunk toward the identity (Ledoit and Wolf 2004,
               J. Multivar. Anal. 88:365, lemmas 3.2 to 3.4).
``two_sided``  the mean of the last three, each in standard deviations of its held-out validation
               scores. The first sees that all errors move together, the second that many features
               move, the third that they move as familiar images never do.

Maps differ from the published ones: those are standardized for each start and then averaged, ours
are averaged over the starts and then standardized by voxel.

Axes: B images, V validation images, F features, P parts of ``two_sided``, then the axes of a map.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np

from vitrael.core.checks import finite
from vitrael.core.errors import DataError, WeightsError
from vitrael.core.weights import Tensors, check_like

SCORES: Final = ("one_sided", "folded", "magnitude", "distance", "two_sided")
_PARTS: Final = ("folded", "magnitude", "distance")
LEAST_IMAGES: Final = 10
"""Validation images below which a standard deviation means little."""
_PUBLISHED: Final = frozenset({"square", "gradient", "perceptual"})
_LEAST_STD_FRAC: Final = 0.01
"""Of the median standard deviation of one metric over its starts: none counts as smaller. Starts
with little noise vary little by right, and find the most."""
_MAP_STD_PERCENTILE: Final = 50.0
"""Of the standard deviations of all voxels that vary; tiny ones in the background would inflate."""
_LEAST_RELATIVE_STD, _LEAST_STD, _LEAST_MAP_STD = 1e-6, 1e-9, 1e-6
"""Of a feature that is the same for all; of a voxel in intensities."""
_VERSION: Final = 1


@dataclass(frozen=True, slots=True, eq=False, repr=False)
class Calibration:
    """What familiar images score under one codec, one denoiser and one plan of starts.

    It holds one sorted number for each validation image and score, and two mean images: keep it
    where numbers about these images may be kept. Everything is finite.
    """

    fitted_with: Mapping[str, Any]
    """``Reconstructor.facts()``: a scorer with other facts is refused."""
    images: int
    mean_F: np.ndarray
    std_F: np.ndarray
    """Never below a hundredth of the median of its metric's."""
    precision_FF: np.ndarray
    """Inverse of the shrunk covariance of the standardized features."""
    part_mean_P: np.ndarray
    part_std_P: np.ndarray
    """Of the parts of ``two_sided`` over held-out validation images."""
    ranked_V: Mapping[str, np.ndarray]
    """Rising scores of the validation images, each as if it had not been in the fit."""
    map_mean: np.ndarray
    map_std: np.ndarray
    """float32, of the error map of every voxel; the latter never below a percentile."""

    @property
    def names(self) -> tuple[str, ...]:
        """Of the features, in order."""
        return tuple(self.fitted_with["names"])

    def demand(self, facts: Mapping[str, Any]) -> None:
        """Raise DataError, which names the first difference, unless these are the fitted facts."""
        for key in sorted(self.fitted_with.keys() | facts.keys()):
            if self.fitted_with.get(key) != facts.get(key):
                raise DataError(
                    f"the calibration was fitted with another {key}",
                    why="its means and spreads say nothing about these scores",
                    fix="calibrate again on validation images with the model and plan in use",
                )

    def standardize(self, feature_BF: np.ndarray) -> np.ndarray:
        """Return the z-score of every feature, float64."""
        finite(features=feature_BF)
        return _standardize(feature_BF, self.mean_F, self.std_F)

    def score(self, feature_BF: np.ndarray) -> dict[str, np.ndarray]:
        """Return every score of ``SCORES``, ``[B]``; higher is more foreign."""
        score = _score(self.standardize(feature_BF), self.precision_FF, self.names)
        return score | {"two_sided": _join(score, self.part_mean_P, self.part_std_P)}

    def p_value(self, name: str, score_B: np.ndarray) -> np.ndarray:
        """Return approximately conformal p-values ``[B]``: how often familiar images score as high.

        ``(1 + familiar scores at or above) / (1 + V)`` (Vovk et al. 2005, section 2.2), over
        scores that were each made by a fit without the image, whereas the image at hand is scored
        by the fit to all: no guarantee for finite V follows. It is never below ``1 / (1 + V)``.
        """
        ranked = self.ranked_V[name]
        below = np.searchsorted(ranked, score_B, side="left")
        return np.asarray((1 + len(ranked) - below) / (1 + len(ranked)))

    def demand_grid(self, grid: tuple[int, ...]) -> None:
        """Raise DataError unless images of this grid were fitted."""
        if tuple(grid) != self.map_mean.shape:
            raise DataError(
                f"the images have the grid {list(grid)}",
                why=f"the calibration was fitted on {list(self.map_mean.shape)}",
                fix="resample them by the study's recipe",
            )

    def standardize_map(self, map_B: np.ndarray) -> np.ndarray:
        """Return error maps in standard deviations of their voxel; raises for another grid."""
        self.demand_grid(map_B.shape[1:])
        return np.asarray((map_B - self.map_mean) / self.map_std, dtype=np.float32)

    def to_tensors(self) -> dict[str, np.ndarray]:
        """Return all arrays by name, for safetensors; the rest is ``facts``."""
        arrays = {name: getattr(self, name) for name in _arrays(0, ())}
        return arrays | {f"ranked.{name}": self.ranked_V[name] for name in SCORES}

    def facts(self) -> dict[str, Any]:
        """Return all that is no array, as JSON; its digest names what the scores belong to."""
        shape = list(self.map_mean.shape)
        fitted = dict(self.fitted_with)
        return {"version": _VERSION, "images": self.images, "grid": shape, "fitted_with": fitted}


def read_calibration(tensors: Tensors, facts: Mapping[str, Any]) -> Calibration:
    """Return the calibration that ``to_tensors`` and ``facts`` told of.

    Raises WeightsError unless version, names, shapes and types agree and every value is finite.
    """
    try:
        version, images = int(facts["version"]), int(facts["images"])
        grid, fitted = tuple(int(edge) for edge in facts["grid"]), dict(facts["fitted_with"])
        features = len(fitted["names"])
    except (KeyError, TypeError, ValueError) as error:
        raise WeightsError("the facts of the calibration are not whole") from error
    if version != _VERSION:
        raise WeightsError(
            f"the calibration has version {version}", why=f"this software reads {_VERSION}"
        )
    expected = _arrays(features, grid)
    check_like(tensors, expected | {f"ranked.{name}": np.zeros(images) for name in SCORES})
    if any((tensors[name] <= 0).any() for name in ("std_F", "part_std_P", "map_std")):
        raise WeightsError("a standard deviation of the calibration is not positive")
    return Calibration(
        fitted_with=fitted,
        images=images,
        ranked_V={name: tensors[f"ranked.{name}"] for name in SCORES},
        **{name: tensors[name] for name in expected},
    )


def fit_calibration(
    feature_VF: np.ndarray,
    fitted_with: Mapping[str, Any],
    *,
    map_mean: np.ndarray,
    map_std: np.ndarray,
) -> Calibration:
    """Return the calibration of validation images by their features.

    ``map_std`` is the plain standard deviation; it is kept from below here. Raises DataError for
    fewer than ``LEAST_IMAGES`` images and for values that are not finite.
    """
    names = tuple(fitted_with["names"])
    if len(feature_VF) < LEAST_IMAGES:
        raise DataError(
            f"{len(feature_VF)} validation images are too few to calibrate with",
            fix=f"give at least {LEAST_IMAGES}; a hundred make a steady score",
        )
    if feature_VF.shape[1:] != (len(names),):
        raise DataError("the features to calibrate with are not those that were named")
    finite(features=feature_VF, map_mean=map_mean, map_std=map_std)
    feature = feature_VF.astype(np.float64)
    mean_F, std_F, precision_FF = _fit(feature, names)
    rows = [_held_out(feature, row, names) for row in range(len(feature))]
    held_out = {name: np.concatenate([row[name] for row in rows]) for name in rows[0]}
    part_VP = np.stack([held_out[name] for name in _PARTS], axis=1)
    part_mean_P = part_VP.mean(axis=0)
    part_std_P = np.maximum(part_VP.std(axis=0, ddof=1), _LEAST_STD)
    held_out["two_sided"] = _join(held_out, part_mean_P, part_std_P)
    varying = map_std[map_std > _LEAST_MAP_STD]
    floor = np.percentile(varying, _MAP_STD_PERCENTILE) if varying.size else _LEAST_MAP_STD
    return Calibration(
        fitted_with=dict(fitted_with),
        images=len(feature),
        mean_F=mean_F,
        std_F=std_F,
        precision_FF=precision_FF,
        part_mean_P=part_mean_P,
        part_std_P=part_std_P,
        ranked_V={name: np.sort(held_out[name]) for name in SCORES},
        map_mean=map_mean.astype(np.float32),
        map_std=np.maximum(map_std, floor).astype(np.float32),
    )


def _held_out(feature_VF: np.ndarray, row: int, names: Sequence[str]) -> dict[str, np.ndarray]:
    """Return the scores of one validation image under a fit to the others, each ``[1]``."""
    mean_F, std_F, precision_FF = _fit(np.delete(feature_VF, row, axis=0), names)
    return _score(_standardize(feature_VF[row : row + 1], mean_F, std_F), precision_FF, names)


def _fit(feature_VF: np.ndarray, names: Sequence[str]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return mean, standard deviation kept from below, and the inverse of the covariance."""
    mean_F, plain_F = feature_VF.mean(axis=0), feature_VF.std(axis=0, ddof=1)
    metrics = np.array([_metric(name) for name in names])
    std_F = np.maximum(plain_F, np.maximum(_LEAST_RELATIVE_STD * np.abs(mean_F), _LEAST_STD))
    for metric in np.unique(metrics):
        of_metric = metrics == metric
        floor = _LEAST_STD_FRAC * np.median(plain_F[of_metric])
        std_F[of_metric] = np.maximum(std_F[of_metric], floor)
    return mean_F, std_F, np.linalg.inv(_shrink(_standardize(feature_VF, mean_F, std_F)))


def _shrink(z_VF: np.ndarray) -> np.ndarray:
    """Return the covariance of centered rows, drawn toward the identity as far as is best."""
    images, features = z_VF.shape
    covariance = z_VF.T @ z_VF / images
    scale = max(float(np.trace(covariance)) / features, _LEAST_STD)
    target = scale * np.eye(features)
    distance = float(np.square(covariance - target).sum())
    fourth = float(np.square(np.square(z_VF).sum(axis=1)).sum())
    noise = (fourth / images - float(np.square(covariance).sum())) / images
    share = min(1.0, max(noise, _LEAST_RELATIVE_STD * distance) / distance) if distance else 1.0
    return np.asarray(share * target + (1 - share) * covariance)


def _standardize(feature_BF: np.ndarray, mean_F: np.ndarray, std_F: np.ndarray) -> np.ndarray:
    return np.asarray((feature_BF.astype(np.float64) - mean_F) / std_F)


def _score(
    z_BF: np.ndarray, precision_FF: np.ndarray, names: Sequence[str]
) -> dict[str, np.ndarray]:
    """Return every score but ``two_sided``."""
    published = [_metric(name) in _PUBLISHED for name in names]
    one_sided_B = z_BF[:, published].mean(axis=1)
    square_B = np.einsum("bi,ij,bj->b", z_BF, precision_FF, z_BF) / len(names)
    return {
        "one_sided": one_sided_B,
        "folded": np.abs(one_sided_B),
        "magnitude": np.sqrt(np.square(z_BF).mean(axis=1)),
        "distance": np.sqrt(square_B),
    }


def _join(
    score_B: Mapping[str, np.ndarray], part_mean_P: np.ndarray, part_std_P: np.ndarray
) -> np.ndarray:
    part_BP = np.stack([score_B[name] for name in _PARTS], axis=1)
    return np.asarray(((part_BP - part_mean_P) / part_std_P).mean(axis=1))


def _metric(name: str) -> str:
    return name.partition("/")[0]


def _arrays(features: int, grid: tuple[int, ...]) -> dict[str, np.ndarray]:
    """Return zeros like the arrays of a calibration, by the names of its fields."""
    return {
        "mean_F": np.zeros(features),
        "std_F": np.zeros(features),
        "precision_FF": np.zeros((features, features)),
        "part_mean_P": np.zeros(len(_PARTS)),
        "part_std_P": np.zeros(len(_PARTS)),
        "map_mean": np.zeros(grid, np.float32),
        "map_std": np.zeros(grid, np.float32),
    }
