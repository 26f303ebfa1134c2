"""How good the samples of a model are beside real scans: each number with interval, n and method.

For every scan one sample is drawn with the scan's own covariates, so that both sets should be
alike. Distances are those of one half of the scans to the samples of the other; beside them stand
those to the other half itself, which a perfect model would score. Ages are read by a predictor that
was fitted to the scans, beside what it makes of scans that it has not seen. Correlations with what
was asked for stand beside those of shuffled questions; mean errors and distances of volumes stand
alone. Each line names what is beside it.

Axes: B images, C D H W, K covariates, E features.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import torch

from vitrael.core.data.measure import measure_volumes
from vitrael.core.errors import CohortError, DataError
from vitrael.core.metrics.conditioning import audit_condition
from vitrael.core.metrics.distribution import coverage, density, frechet_distance, kernel_distance
from vitrael.core.metrics.diversity import SIMILARITIES, diversity
from vitrael.core.metrics.features import (
    Extractor,
    anatomy_extractor,
    extract_features,
    random_conv_extractor,
)
from vitrael.core.metrics.predictor import FOLDS, audit_predicted
from vitrael.core.metrics.volumes import compare_volumes
from vitrael.core.records import SampleRequest
from vitrael.core.rng import stream, stream_seed
from vitrael.core.workbench.covariates import unscale_values
from vitrael.core.workbench.progress import Tell, silent

if TYPE_CHECKING:
    from vitrael.core.metrics.measured import Measured
    from vitrael.core.workbench.covariates import Covariate
    from vitrael.core.workbench.generation import FrugalGenerator
    from vitrael.core.workbench.intake import Rows

FEWEST: Final = 12
"""Scans: each half must have more than the neighbors that coverage asks for."""
_MEASURER: Final = "core.data.measure"
_AGE: Final = "age_years"
_VOLUMES: Final = ("ventricle_ml", "brain_ml")
_HALVES: Final = "halves of the scans"
_PAIRS: Final = "pairs of scans"
_CEILING: Final = "the predictor's ceiling"
_SHUFFLED: Final = "shuffled"
_SHUFFLED_SCANS: Final = "shuffled scans"

Features = Mapping[str, tuple[np.ndarray, np.ndarray]]
"""Name of an extractor -> features of scans and of samples, ``[B, E]`` each, row by row."""


@dataclass(frozen=True, slots=True)
class Line:
    """One number of a report, and what it is to be held against."""

    measured: Measured
    baseline: Measured | None
    """What stands beside it, so that the number can be judged; None where there is none."""
    target: str
    beside: str = ""
    """What the baseline is: it differs from number to number. Empty where there is none."""

    def describe(self) -> dict[str, Any]:
        """Return the line as JSON; a number that does not exist is None."""
        baseline = None if self.baseline is None else _plain(self.baseline)
        told = {"baseline": baseline, "beside": self.beside, "target": self.target}
        return {**_plain(self.measured), **told}

    def row(self) -> str:
        """Return the line for a terminal: name, value with its bounds, baseline, target, n."""
        found = self.measured
        value = f"{found.value:.4g} ({found.low:.4g} to {found.high:.4g})"
        beside = (
            "" if self.baseline is None else f", beside {self.beside} {self.baseline.value:.4g}"
        )
        by = f" by {found.extractor}" if found.extractor else ""
        return f"{found.name}{by}: {value}{beside}; target {self.target}; n = {found.n}"


def evaluate_samples(
    generator: FrugalGenerator,
    rows: Rows,
    covariates: Sequence[Covariate],
    *,
    seed: int,
    extractors: Sequence[Extractor] = (),
    device: str = "cpu",
    tell: Tell = silent,
) -> list[Line]:
    """Return the report on samples that are asked for with the covariates of some scans.

    ``extractors`` come beside ``random-conv-0`` and ``anatomy-v1``, and all see the images on
    ``device``. Scans and samples are held in memory. Raises CohortError for fewer than twelve
    scans.
    """
    if len(rows) < FEWEST:
        raise CohortError(
            f"{len(rows)} scans are too few to compare with",
            why=f"each half of them is a control and needs {FEWEST // 2}",
            fix="give a folder with more scans; two hundred make steady numbers",
        )
    real_BCDHW = rows.images.batch(range(len(rows)))
    drawn_BCDHW = _draw(generator, rows.condition_BK, seed=seed, tell=tell)
    features = _features_of(
        real_BCDHW,
        drawn_BCDHW,
        [random_conv_extractor(), anatomy_extractor(), *extractors],
        device=device,
    )
    lines = _compare_features(features, seed)
    lines += _compare_ages(features, rows, covariates, seed)
    lines += _compare_pairs(real_BCDHW, drawn_BCDHW, seed)
    lines += _compare_volumes(real_BCDHW, drawn_BCDHW, rows, covariates, seed)
    return lines


def _draw(
    generator: FrugalGenerator, condition_BK: np.ndarray, *, seed: int, tell: Tell
) -> np.ndarray:
    images = []
    done = 0
    while done < len(condition_BK):
        part = condition_BK[done : done + generator.batch_images]
        request = SampleRequest(part, seed=stream_seed(seed, "evaluation"), first=done)
        images.append(generator.sample(request).image_BCDHW)
        done += len(part)
        tell("draw samples", done, len(condition_BK))
    return np.concatenate(images)


def _features_of(
    real_BCDHW: np.ndarray,
    drawn_BCDHW: np.ndarray,
    extractors: Sequence[Extractor],
    *,
    device: str,
) -> Features:
    """Return for each extractor's name the features of scans and samples."""
    real, drawn = torch.from_numpy(real_BCDHW), torch.from_numpy(drawn_BCDHW)
    return {
        extractor.name: (
            extract_features(extractor, real, device=device),
            extract_features(extractor, drawn, device=device),
        )
        for extractor in extractors
    }


def _compare_features(features: Features, seed: int) -> list[Line]:
    """Return distances of the samples of one half of the scans from the other half.

    Distances depend on how many images there are, so the baseline has as many: those scans.
    """
    lines = []
    for extractor, (real_BE, drawn_BE) in features.items():
        order = stream(seed, "halves").permutation(len(real_BE))
        half = len(order) // 2
        reference, other = order[:half], order[half : 2 * half]
        measures: list[tuple[Callable[[np.ndarray, np.ndarray], Measured], str]] = [
            (_frechet(extractor, seed), "the baseline"),
            (_named(kernel_distance, extractor), "0"),
            (_named(density, extractor), "1 (it sees blur and no lost modes)"),
            (_named(coverage, extractor), "the baseline"),
        ]
        lines += [
            Line(
                measure(real_BE[reference], drawn_BE[other]),
                measure(real_BE[reference], real_BE[other]),
                target,
                _HALVES,
            )
            for measure, target in measures
        ]
    return lines


def _compare_ages(
    features: Features, rows: Rows, covariates: Sequence[Covariate], seed: int
) -> list[Line]:
    """Return how the ages that were asked for and those that a predictor sees go together.

    None for a model that is not asked for an age, and where fewer than twelve scans, fewer
    patients than folds, or a single age are known: nothing can be learned of those.
    """
    names = [covariate.name for covariate in covariates]
    known = [row for row, item in enumerate(rows.items) if _AGE in item.covariates]
    _, patients = np.unique([rows.items[row].subject for row in known], return_inverse=True)
    if _AGE not in names or len(known) < FEWEST or len(set(patients.tolist())) < FOLDS:
        return []
    asked_B = unscale_values(rows.condition_BK[known], covariates)[:, names.index(_AGE)]
    if np.ptp(asked_B) == 0:
        return []
    lines = []
    for extractor, (real_BE, drawn_BE) in features.items():
        found = audit_predicted(
            real_BE[known],
            drawn_BE[known],
            asked_B,
            condition=_AGE,
            extractor=extractor,
            patients=patients.tolist(),
            rng=stream(seed, "age", extractor),
        )
        pairs = [
            (found.drawn.r, found.ceiling.r, "the baseline", _CEILING),
            (
                found.drawn.permuted_r,
                found.ceiling.permuted_r,
                f"below {_AGE}_r: the control",
                _SHUFFLED_SCANS,
            ),
            (found.drawn.mae, found.ceiling.mae, "the baseline", _CEILING),
        ]
        lines += [
            Line(
                replace(one, extractor=extractor),
                replace(other, extractor=extractor),
                target,
                beside,
            )
            for one, other, target, beside in pairs
        ]
    return lines


def _frechet(extractor: str, seed: int) -> Callable[[np.ndarray, np.ndarray], Measured]:
    def measure(real_NE: np.ndarray, other_ME: np.ndarray) -> Measured:
        rng = stream(seed, "frechet")
        return frechet_distance(real_NE, other_ME, extractor=extractor, rng=rng)

    return measure


def _named(
    measure: Callable[..., Measured],  # of the three functions that take an extractor's name
    extractor: str,
) -> Callable[[np.ndarray, np.ndarray], Measured]:
    return lambda real_NE, other_ME: measure(real_NE, other_ME, extractor=extractor)


def _compare_pairs(real_BCDHW: np.ndarray, drawn_BCDHW: np.ndarray, seed: int) -> list[Line]:
    lines = []
    for name in SIMILARITIES:
        try:
            found = diversity(
                torch.from_numpy(drawn_BCDHW),
                torch.from_numpy(real_BCDHW),
                measure=name,
                rng=stream(seed, "pairs", name),
            )
        except DataError:  # a grid too small for any scale of the measure
            continue
        lines.append(Line(found.synthetic, found.real, "the baseline", _PAIRS))
    return lines


def _compare_volumes(
    real_BCDHW: np.ndarray,
    drawn_BCDHW: np.ndarray,
    rows: Rows,
    covariates: Sequence[Covariate],
    seed: int,
) -> list[Line]:
    affine = np.array(rows.items[0].affine)  # only its spacing counts, and all have that
    real, drawn = measure_volumes(real_BCDHW, affine), measure_volumes(drawn_BCDHW, affine)
    asked_BK = unscale_values(rows.condition_BK, covariates)
    names = [covariate.name for covariate in covariates]
    lines = []
    for place, name in enumerate(_VOLUMES):
        asked_B = asked_BK[:, names.index(name)]
        for measure in (_audit, _distance):
            try:
                lines += measure(name, asked_B, real[place], drawn[place], seed)
            except DataError:  # of what does not vary there is no correlation
                continue
    return lines


def _audit(
    name: str, asked_B: np.ndarray, real_B: np.ndarray, drawn_B: np.ndarray, seed: int
) -> list[Line]:
    del real_B  # what was asked are the volumes of the real scans
    audit = audit_condition(
        asked_B, drawn_B, condition=name, measurer=_MEASURER, rng=stream(seed, "audit", name)
    )
    return [Line(audit.r, audit.permuted_r, "1", _SHUFFLED), Line(audit.mae, None, "0")]


def _distance(
    name: str, asked_B: np.ndarray, real_B: np.ndarray, drawn_B: np.ndarray, seed: int
) -> list[Line]:
    del asked_B
    found = compare_volumes(
        real_B, drawn_B, structure=name, measurer=_MEASURER, rng=stream(seed, "volumes", name)
    )
    return [
        Line(found.kolmogorov_smirnov, None, "0"),
        Line(found.wasserstein, None, "0"),
    ]


def _plain(measured: Measured) -> dict[str, Any]:
    return {
        key: None if isinstance(value, float) and not math.isfinite(value) else value
        for key, value in asdict(measured).items()
    }
