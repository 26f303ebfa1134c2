"""What a site tells for fusion, held against its patients: who they are, and what they look like.

A site tells the means of its classes and one spread (``core.models.fusion_learning``), or, as
published, what the experts see in every image. Known are the patients that it told of; strangers
are others of the same site, whose images also play what an attacker has. Two risks are measured.

*Membership*: how well images that were told of are known from those of strangers, class by class.
Who holds means and no more takes the images nearest to them. Who holds images too asks better:
whether the told mean explains an image better than the mean of other patients does, in the shape of
their cloud (the idea of Homer et al. 2008, as a likelihood ratio of normals), and better still who
knows how much noise was laid over it. Who holds what is seen in every image looks for the same
numbers.

*Inversion*: how much nearer a rebuilt image comes to the true one than the mean image of its class,
for which nothing need be told, and how much it has of what sets the patient off from that mean. The
map from readings to pixels is linear, a ridge regression on the strangers.

A network may rebuild more, and who holds more images may guess better: all numbers are the least
that an attacker has.

Axes: B images, D what all experts see of one, P pixels.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Final, NamedTuple

import numpy as np

from vitrael.core.digest import Digest
from vitrael.core.errors import DataError
from vitrael.core.metrics.intervals import UNIT, Estimate, auc, normal_interval, stratified
from vitrael.core.metrics.measured import Measured
from vitrael.core.metrics.retrieval import average_patients
from vitrael.core.models.fusion_learning import SiteOutlook
from vitrael.core.models.score_fusion import Readings
from vitrael.privacy.audit.expert_attacks import (
    Guesses,
    Seen,
    demand_same_width,
    guess_by_likelihood,
    guess_by_match,
    guess_by_nearness,
    guess_under_noise,
    lay_out,
    told_means,
)
from vitrael.privacy.audit.offsets import (
    at,
    choose_map,
    correlate,
    mean_by,
    shrink,
)
from vitrael.privacy.evidence import Measurement, not_estimable
from vitrael.privacy.leakage import SMALLEST_COUNT

_UNIT: Final = "patients of the smaller side"
_REBUILDING: Final = "ridge regression on strangers; correlation, mean over patients, bootstrap"


class Inversion(NamedTuple):
    """Mean correlation of pixels with the true images, over the patients that were told of."""

    rebuilt: Measurement
    control: Measurement
    """Of the strangers' mean image of the class."""
    gain: Measurement
    """The one less the other, patient by patient."""
    detail: Measurement
    """When that mean image is taken off both: what is the patient's own. The control has 0."""


def areas_by_class(guesses: Guesses, *, known: Seen, strange: Seen) -> dict[str, Estimate]:
    """Return for each class of known images P(a known patient's guess is above a stranger's).

    In a class a patient counts once, by the mean over the images. The errors are DeLong's, and
    approximate for guesses that share a reference. Raises DataError for a class without strangers
    and for a patient on both sides.
    """
    _demand_apart(known, strange)
    areas = {}
    for name in dict.fromkeys(known.labels):
        pairs = zip(guesses, (known, strange), strict=True)
        areas[name] = auc(*(_by_patient(guess_B, side, name) for guess_B, side in pairs))
    return areas


def measure_members(
    told: SiteOutlook | Readings,
    *,
    known: Seen,
    strange: Seen,
    noise_frac: float = 0.0,
    confidence: float = 0.95,
    inputs: tuple[Digest, ...] = (),
) -> tuple[Measurement, ...]:
    """Return how well who holds what was told knows the patients of it: one number an attack.

    For means there are three: without images of strangers, with them, and with the noise known
    that was laid over the means, ``noise_frac`` of ``tell_site``. For what is seen in every image
    there is one. Each is a mean over the classes that were told of, weighted by patients.
    With fewer than eleven patients on a side, or none on a side of such a class, it is not
    estimable. Raises DataError for a patient on both sides and for readings of other experts.
    """
    classes = _classes(told, known)
    known, strange = (side.rows(side.rows_of(classes)) for side in (known, strange))
    _demand_apart(known, strange)
    why = _obstacle(known, strange, classes)
    measured = []
    for attack in _attacks(told, noise_frac):
        method = f"{attack.how}; mean over classes, DeLong errors"
        if why:
            none = not_estimable(attack.name, why, method=method, confidence=confidence)
            measured.append(none)
            continue
        guesses = attack.guess(known=known, strange=strange)
        area = _mean_area(guesses, known, strange)
        low, high = normal_interval(area, confidence=confidence, within=UNIT)
        measured.append(
            Measurement(
                name=attack.name,
                value=area.value,
                low=low,
                high=high,
                n=min(len(set(side.patients)) for side in (known, strange)),
                unit=_UNIT,
                confidence=confidence,
                method=method,
                inputs=inputs,
            )
        )
    return tuple(measured)


def measure_inversion(
    told: SiteOutlook | Readings,
    *,
    known: Seen,
    strange: Seen,
    images: tuple[np.ndarray, np.ndarray],
    rng: np.random.Generator,
    inputs: tuple[Digest, ...] = (),
) -> Inversion:
    """Return how well images are rebuilt from what was told, beside the mean image of their class.

    They are shrunk to 64 x 64 pixels at most. ``images`` are those behind ``known`` and
    ``strange``, ``[B, C, H, W]``; readings told of each image are in the order of ``known``. From
    means every image of a class is rebuilt the same. The bounds resample the patients told of; the
    attacker's images stay. An image of one gray, which correlates with nothing, counts as 0. Not
    estimable as ``measure_members``; raises DataError for images that are not those of the
    readings.
    """
    way = "means" if isinstance(told, SiteOutlook) else "features"
    names = [f"experts.inversion_{field}_from_{way}" for field in Inversion._fields]
    classes, sides = _classes(told, known), (known, strange)
    _demand_apart(known, strange)
    rows = [side.rows_of(classes) for side in sides]
    if any(len(part) != len(side.labels) for part, side in zip(images, sides, strict=True)):
        raise DataError("the images are not those of the readings", fix="give one for each reading")
    pixels = [shrink(part)[row_B] for part, row_B in zip(images, rows, strict=True)]
    if pixels[0].shape[1] != pixels[1].shape[1]:
        raise DataError("images of the two sides are of other sizes", fix="bring them to one")
    known, strange = (side.rows(row_B) for side, row_B in zip(sides, rows, strict=True))
    if why := _obstacle(known, strange, classes):
        return Inversion(*(not_estimable(name, why, method=_REBUILDING) for name in names))
    told_BD, experts = _held_of_each(told, known)
    strange_BD = lay_out(strange.readings, experts)
    demand_same_width(told_BD, strange_BD)
    mapped = choose_map(
        strange_BD, pixels[1], label_B=np.array(strange.labels), patients=strange.patients
    )
    rebuilt_BP, control_BP = mapped.rebuild(told_BD, known.labels), at(mapped.pixels, known.labels)
    rebuilt_B, control_B = correlate(rebuilt_BP, pixels[0]), correlate(control_BP, pixels[0])
    detail_B = correlate(rebuilt_BP - control_BP, pixels[0] - control_BP)
    values = (rebuilt_B, control_B, rebuilt_B - control_B, detail_B)
    measured = (
        average_patients(name, mean_by(value_B, known.patients), rng=rng)
        for name, value_B in zip(names, values, strict=True)
    )
    return Inversion(*(_from_core(one, inputs) for one in measured))


def _from_core(found: Measured, inputs: tuple[Digest, ...]) -> Measurement:
    return Measurement(
        name=found.name,
        value=found.value,
        low=found.low,
        high=found.high,
        n=found.n,
        unit=found.unit,
        confidence=found.confidence,
        method=_REBUILDING,
        inputs=inputs,
    )


class _Attack(NamedTuple):
    name: str
    how: str
    guess: Callable[..., Guesses]


def _attacks(told: SiteOutlook | Readings, noise_frac: float) -> list[_Attack]:
    if isinstance(told, Readings):
        how = "exact match with what is told of every image"
        return [_Attack("experts.members_by_match", how, partial(guess_by_match, told))]
    near = partial(guess_by_nearness, told)
    likely = partial(guess_by_likelihood, told)
    return [
        _Attack("experts.members_by_nearness", "nearness to the told mean of the class", near),
        _Attack(
            "experts.members_by_likelihood", "likelihood of the told mean over strangers'", likely
        ),
        _Attack(
            "experts.members_under_noise",
            "likelihood ratio of the told mean, with the noise known",
            partial(guess_under_noise, told, noise_frac=noise_frac),
        ),
    ]


def _classes(told: SiteOutlook | Readings, known: Seen) -> list[str]:
    return list(told.images if isinstance(told, SiteOutlook) else dict.fromkeys(known.labels))


def _obstacle(known: Seen, strange: Seen, classes: Sequence[str]) -> str:
    """Return why nothing can be measured, or nothing."""
    if min(len(set(side.patients)) for side in (known, strange)) < SMALLEST_COUNT:
        return f"there are under {SMALLEST_COUNT} patients told of, or strange to them"
    if any(set(side.labels) != set(classes) for side in (known, strange)):
        return "of a class that was told of there is nobody on one side"
    return ""


def _mean_area(guesses: Guesses, known: Seen, strange: Seen) -> Estimate:
    """Return the mean of the areas; errors of classes that share patients may all go one way."""
    areas = areas_by_class(guesses, known=known, strange=strange)
    pairs = [set(zip(side.labels, side.patients, strict=True)) for side in (known, strange)]
    many = [[sum(label == name for label, _ in of) for of in pairs] for name in areas]
    weights = [m * n / (m + n) for m, n in many]
    pooled = stratified(list(areas.values()), weights)
    alone = all(
        len(of) == len(set(side.patients)) for of, side in zip(pairs, (known, strange), strict=True)
    )
    if alone:
        return pooled
    errors = [weight * area.error for weight, area in zip(weights, areas.values(), strict=True)]
    return Estimate(pooled.value, sum(errors) / sum(weights))


def _demand_apart(known: Seen, strange: Seen) -> None:
    if not set(known.patients).isdisjoint(strange.patients):
        raise DataError(
            "a stranger was told of", why="a patient stands on both sides", fix="split by patient"
        )


def _held_of_each(told: SiteOutlook | Readings, known: Seen) -> tuple[np.ndarray, list[str]]:
    """Return ``[B, D]``, what an attacker holds of each known image, and the experts in order."""
    if isinstance(told, SiteOutlook):
        return at(told_means(told), known.labels), list(told.experts)
    experts = list(told.features)
    held_BD = lay_out(told, experts)
    if len(held_BD) != len(known.labels):
        raise DataError("what was told of each image is not of the known images")
    return held_BD, experts


def _by_patient(value_B: np.ndarray, side: Seen, name: str) -> np.ndarray:
    own = np.array(side.labels) == name
    return mean_by(value_B[own], np.array(side.patients)[own])
