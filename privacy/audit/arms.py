"""What the filter took away, and what that brought: acceptance, and three arms compared.

*Acceptance.* A filter that drops more of the old, the rare or the small sites than of the others
shifts what the student learns. The share that was kept is told by site and by subgroup, and that
of each subgroup beside that of all.

*Arms.* An attacker who is no member of the filter counts whom it re-identifies among samples of the
teacher, of a student of as many candidates drawn at random, and of the student of those that the
filter kept. The random filter must show no fall: if it does, retraining made it and not the filter.
Scans of held-out patients tell how often the attacker takes a stranger for a patient.

Axes: N samples of each arm, K candidates, G divisions into subgroups.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final, Literal, NamedTuple

import numpy as np

from vitrael.core.configs import Section
from vitrael.core.digest import Digest
from vitrael.core.errors import DataError
from vitrael.core.metrics.bootstrap import paired_ratio
from vitrael.core.metrics.intervals import CONFIDENCE, Interval, clopper_pearson
from vitrael.privacy.audit.power import Tally
from vitrael.privacy.evidence import Measurement, measure_share, not_estimable
from vitrael.privacy.leakage import SMALLEST_COUNT

RATIO_BAND: Final = (0.8, 1.25)
"""Where the whole interval of each subgroup's acceptance, as a ratio to that of all, should lie."""
LARGEST_RATIO: Final = 0.7
"""Of the student's share to the teacher's, for a fall: card 4's acceptance."""

Attack = Callable[[np.ndarray], np.ndarray]
"""From images to ``[B]`` bool: whether each is taken for a patient of the training scans."""
Outcome = Literal["falls", "does not fall", "not estimable"]
ARMS: Final = ("teacher", "random", "student")
"""Unfiltered, as many at random, as many as the filter kept."""
HELD_OUT: Final = "held_out"

_SHARE = "Clopper-Pearson"
_ACCEPTED = f"kept by all sites, each of which also drops a few by chance; {_SHARE}"
RATIO: Final = "paired bootstrap of samples with equal conditions and seeds"
REIDENTIFIED: Final = f"re-identified by an attacker outside the filter; {_SHARE}"


def measure_acceptance(
    phase: str,
    passed_K: np.ndarray,
    subgroup_KG: np.ndarray,
    *,
    votes: Mapping[str, Tally],
    confidence: float = CONFIDENCE,
) -> tuple[Measurement, ...]:
    """Return shares that were kept: of all, by each site's votes, and of each subgroup.

    A subgroup's share is told with its ratio to that of all. One of fewer than ``SMALLEST_COUNT``
    images is not estimable.
    """
    name = f"distill.{phase}.acceptance"
    found = [_share(name, int(passed_K.sum()), len(passed_K), _ACCEPTED, confidence)]
    for site, tally in votes.items():
        kept, method = tally.shown - tally.dropped, f"kept by the votes of one site; {_SHARE}"
        found.append(_share(f"{name}.site.{site}", kept, tally.shown, method, confidence))
    for column in subgroup_KG.T:
        for group in np.unique(column):
            inside = column == group
            part, rest = (
                (int(passed_K[rows].sum()), int(rows.sum())) for rows in (inside, ~inside)
            )
            one = f"{name}.subgroup.{group}"
            found.append(_share(one, *part, _ACCEPTED, confidence))
            found.append(_ratio_to_all(f"{one}.ratio", part, rest, confidence=confidence))
    return tuple(found)


def shifted(measurements: Sequence[Measurement]) -> tuple[str, ...]:
    """Return the names of the ratios whose interval is not within ``RATIO_BAND``, or unknown."""
    least, most = RATIO_BAND
    return tuple(
        one.name
        for one in measurements
        if one.name.endswith(".ratio")
        and not (
            one.low is not None and one.high is not None and least <= one.low and one.high <= most
        )
    )


def random_subset(count: int, kept: int, *, rng: np.random.Generator) -> np.ndarray:
    """Return the rising indices of ``kept`` among ``count`` candidates: a filter that is blind."""
    if not 0 < kept <= count:
        raise DataError(f"{kept} of {count} candidates cannot be drawn")
    return np.sort(rng.choice(count, kept, replace=False))


class Fall(Section):
    """Whether one arm is re-identified less often than the teacher."""

    verdict: Outcome
    ratio: Measurement
    p: float
    """Of "it is not", by paired bootstrap."""


class Comparison(Section):
    """How often each arm is re-identified, and whether that falls by the filter."""

    verdict: Outcome
    reason: str
    """Why nothing is estimable."""
    student: Fall
    random_filter: Fall
    """The control: it must not fall."""
    measurements: tuple[Measurement, ...]


class Paired(NamedTuple):
    """Hits of one arm beside those of the teacher, and what is resampled together."""

    arm_N: np.ndarray
    teacher_N: np.ndarray
    cluster_N: np.ndarray


@dataclass(frozen=True, slots=True, repr=False)
class Arms:
    """Images of the three arms, row for row with equal conditions and seeds."""

    teacher: np.ndarray
    """G0: unfiltered."""
    random_filter: np.ndarray
    """Of a student that learned from as many candidates as were kept, drawn at random."""
    student: np.ndarray
    cluster_N: np.ndarray | None = None
    """int64: samples that are resampled together; None where each is asked for something else."""

    def __repr__(self) -> str:
        """Show no image."""
        return f"Arms({len(self.teacher)} samples each)"


def compare_arms(
    arms: Arms,
    attack: Attack,
    *,
    held_out: np.ndarray,
    attacker: Digest,
    members: Sequence[Digest],
    rng: np.random.Generator,
    confidence: float = CONFIDENCE,
) -> Comparison:
    """Return the re-identified share of each arm, both ratios to the teacher's, and a verdict.

    When it falls, and when nothing is estimable, ``conclude`` says; ``held_out`` holds one image of
    each held-out patient. Raises DataError as ``attack_arms``.
    """
    hits = attack_arms(arms, attack, attacker=attacker, members=members)
    count = len(arms.teacher)
    cluster_N = np.arange(count) if arms.cluster_N is None else arms.cluster_N
    strangers_B = attacked(attack, held_out)
    found = {
        name: reidentified(
            name, int(hit_N.sum()), len(hit_N), inputs=(attacker,), confidence=confidence
        )
        for name, hit_N in (*hits.items(), (HELD_OUT, strangers_B))
    }
    paired = {
        name: Paired(hits[name], hits["teacher"], cluster_N) for name in ("student", "random")
    }
    return conclude(found, paired, rng=rng, confidence=confidence)


def attack_arms(
    arms: Arms, attack: Attack, *, attacker: Digest, members: Sequence[Digest]
) -> dict[str, np.ndarray]:
    """Return for each of ``ARMS`` ``[N]`` bool: which of its images are taken for a patient.

    Raises DataError for arms of unequal size, for an attack whose digest ``attacker`` is among
    ``members`` of the filter, which found by construction nothing that the filter left, and for
    one that answers with anything but a bool for each image.
    """
    if attacker in members:
        raise DataError(
            "the attacker is a member of the filter",
            why="what the filter let pass, its own member finds nothing in",
            fix="attack with a network of another kind, that was trained apart",
        )
    images = dict(zip(ARMS, (arms.teacher, arms.random_filter, arms.student), strict=True))
    sizes = {len(one) for one in images.values()}
    if arms.cluster_N is not None:
        sizes.add(len(arms.cluster_N))
    if len(sizes) != 1:
        raise DataError("the arms are not paired", why="each needs a sample for every condition")
    return {name: attacked(attack, one) for name, one in images.items()}


def attacked(attack: Attack, images: np.ndarray) -> np.ndarray:
    """Return ``[B]`` bool: the attack's answer; raise DataError for anything else."""
    hit_B = np.asarray(attack(images))
    if hit_B.shape != (len(images),) or hit_B.dtype != np.bool_:
        raise DataError("the attack's answer is refused", why="it gives one bool for each image")
    return hit_B


def conclude(
    found: Mapping[str, Measurement],
    paired: Mapping[str, Paired],
    *,
    rng: np.random.Generator,
    confidence: float = CONFIDENCE,
    method: str = RATIO,
    why: str = "",
) -> Comparison:
    """Return what the shares of ``ARMS`` and of the held-out patients say, and the paired hits.

    It falls when the student's share is at most ``LARGEST_RATIO`` of the teacher's, and below it at
    ``confidence``, while the random filter's does not fall, and the bounds of both lie apart. It is
    not estimable where the random filter's falls too, or is not proven to be the larger: then
    retraining may have made the fall. Nor is it where the teacher is not proven to be re-identified
    more often than the held-out, since nothing could fall then, and for a reason ``why``.
    """
    why = why or nothing_to_fall(found["teacher"], found[HELD_OUT])
    falls = {
        name: fall(
            f"arms.{name}.ratio", hits, why=why, rng=rng, confidence=confidence, method=method
        )
        for name, hits in paired.items()
    }
    verdict = falls["student"].verdict
    if verdict == falls["random"].verdict == "falls":
        verdict, why = "not estimable", "a random filter falls too: the fall is not the filter's"
    elif verdict == "falls" and not _below(found["student"], found["random"]):
        verdict = "not estimable"
        why = "the student is not proven to be re-identified less often than a random filter's"
    told = (*found.values(), *(one.ratio for one in falls.values()))
    return Comparison(
        verdict=verdict,
        reason=why,
        student=falls["student"],
        random_filter=falls["random"],
        measurements=told,
    )


def reidentified(
    arm: str,
    hits: float,
    trials: int,
    *,
    inputs: tuple[Digest, ...] = (),
    confidence: float = CONFIDENCE,
) -> Measurement:
    """Return the share of an arm's samples, or of ``HELD_OUT`` patients, that was re-identified.

    ``hits`` need not be whole: of several sites it is their mean.
    """
    unit = "held-out patients" if arm == HELD_OUT else "samples"
    name = f"arms.{arm}.reidentified"
    return _share(name, hits, trials, REIDENTIFIED, confidence, unit=unit, inputs=inputs)


def nothing_to_fall(teacher: Measurement, held_out: Measurement) -> str:
    """Return why no fall could be seen, or nothing."""
    if teacher.low is None or held_out.high is None:
        return f"the samples or the held-out patients are fewer than {SMALLEST_COUNT}"
    if teacher.value is not None and teacher.low <= held_out.high:
        return "the teacher's samples are not proven to be re-identified more often than strangers"
    return ""


def _below(one: Measurement, other: Measurement) -> bool:
    """Return whether the bounds lie apart; shares of paired rows are apart sooner than that."""
    return one.high is not None and other.low is not None and one.high < other.low


def fall(
    name: str,
    hits: Paired,
    *,
    why: str,
    rng: np.random.Generator,
    confidence: float,
    method: str = RATIO,
) -> Fall:
    """Return how one arm stands to the teacher's, or not estimable for the reason ``why``.

    No resample of an arm without a hit has one, so the upper bound is then that of its share.
    """
    unit = "conditions"
    if why:
        ratio = not_estimable(name, why, method=method, unit=unit, confidence=confidence)
        return Fall(verdict="not estimable", ratio=ratio, p=1.0)
    compared = paired_ratio(*hits, rng=rng, confidence=confidence)
    low, high = compared.interval
    if not hits.arm_N.any():
        most = clopper_pearson(0, compared.clusters, confidence=confidence).high
        high = max(high, most / float(hits.teacher_N.mean()))
    ratio = Measurement(
        name=name,
        value=compared.value,
        low=low,
        high=high,
        n=compared.clusters,
        unit=unit,
        confidence=confidence,
        method=method,
    )
    fell = compared.value <= LARGEST_RATIO and compared.p < 1 - confidence
    return Fall(verdict="falls" if fell else "does not fall", ratio=ratio, p=compared.p)


def _share(
    name: str,
    hits: float,
    trials: int,
    method: str,
    confidence: float,
    *,
    unit: str = "images",
    inputs: tuple[Digest, ...] = (),
) -> Measurement:
    """Return a share with exact bounds; one of fewer than ``SMALLEST_COUNT`` is not estimable."""
    if trials < SMALLEST_COUNT:
        why = f"there are fewer than {SMALLEST_COUNT} {unit}"
        return not_estimable(name, why, method=method, unit=unit, confidence=confidence)
    return measure_share(
        name, hits, trials, unit=unit, method=method, confidence=confidence, inputs=inputs
    )


def _ratio_to_all(
    name: str, part: tuple[int, int], rest: tuple[int, int], *, confidence: float
) -> Measurement:
    """Return a subgroup's acceptance over that of all, with bounds.

    With w the subgroup's share of the images and q the acceptance of the rest over its own, the
    ratio is 1 / (w + (1 - w) q): it falls with q, and of q the two counts are independent.
    """
    method = "ratio to the acceptance of all; variance estimates recovered from Clopper-Pearson"
    (hits, trials), (other_hits, others) = part, rest
    if trials < SMALLEST_COUNT or 0 < others < SMALLEST_COUNT or hits + other_hits == 0:
        why = f"nothing was kept, or the subgroup or the rest has fewer than {SMALLEST_COUNT}"
        return not_estimable(name, why, method=method, unit="images", confidence=confidence)
    weight = trials / (trials + others)
    quotient = (other_hits / others) / (hits / trials) if hits and others else math.inf
    bounds = _quotient_bounds(rest, part, confidence=confidence) if others else None
    values = [quotient, *bounds] if bounds else [1.0, 1.0, 1.0]
    value, high, low = (1 / (weight + (1 - weight) * q) for q in values)
    return Measurement(
        name=name,
        value=value,
        low=min(low, value),
        high=max(high, value),
        n=trials,
        unit="images",
        confidence=confidence,
        method=method,
    )


def _quotient_bounds(
    upper: tuple[int, int], lower: tuple[int, int], *, confidence: float
) -> Interval:
    """Return the bounds of one share over another, of independent counts.

    Zou and Donner (2008, equation 2) on logarithms; where a count is zero they have none, and the
    bounds of both shares are used together, each at half the risk.
    """
    zero = not (upper[0] and lower[0])
    level = 1 - (1 - confidence) / 2 if zero else confidence
    (a_low, a_high), (b_low, b_high) = (
        clopper_pearson(*one, confidence=level) for one in (upper, lower)
    )
    if zero:
        return Interval(a_low / b_high, a_high / b_low if b_low > 0 else math.inf)
    a, b = upper[0] / upper[1], lower[0] / lower[1]
    down = math.hypot(math.log(a / a_low), math.log(b_high / b))
    up = math.hypot(math.log(a_high / a), math.log(b / b_low))
    return Interval(a / b * math.exp(-down), a / b * math.exp(up))
