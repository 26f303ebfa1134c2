"""Three arms over several sites: what each counts and tells, and what follows from all of them.

Every site has an attacker of its own, who knows its own patients alone. It tells how many samples
of each arm were taken for one of them, and how many of the teacher's and of another arm in the same
row; which ones it does not tell. From this follows each paired comparison of one site.

*Over all sites* a sample could be taken for a patient at several, or at one alone, and nobody knows
which. So the bounds of a share are those of the mean over the sites, with samples as trials, and a
ratio is resampled as if the same rows fell at every site: rows where the teacher alone was
recognized come first at each, those where the other arm alone was come last. That gives the
difference its largest spread that these counts allow (Hoeffding 1940), so that no agreement between
sites, which nobody can see, makes a fall out of chance.

Axes: N samples of each arm, S sites.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np

from vitrael.core.digest import Digest
from vitrael.core.errors import DataError
from vitrael.core.metrics.intervals import CONFIDENCE
from vitrael.privacy.audit.arms import (
    ARMS,
    HELD_OUT,
    RATIO,
    REIDENTIFIED,
    Arms,
    Attack,
    Comparison,
    Fall,
    Paired,
    attack_arms,
    attacked,
    conclude,
    fall,
    nothing_to_fall,
    reidentified,
)
from vitrael.privacy.audit.worst import confidence_of_each, corrected
from vitrael.privacy.evidence import Measurement, not_estimable
from vitrael.privacy.leakage import SMALLEST_COUNT

NAMES: Final[Mapping[str, str]] = {
    "arms.teacher.reidentified": "samples of the teacher that an attacker takes for a patient",
    "arms.random.reidentified": "the same of a student of candidates drawn at random",
    "arms.student.reidentified": "the same of the student, unscreened",
    "arms.held_out.reidentified": "patients unknown to everybody that it takes for another",
    "arms.student.ratio": "share of the student over that of the teacher",
    "arms.random.ratio": "share of the random filter's student over that of the teacher",
    "arms.worst_site.ratio": "the student's ratio at the site where its upper bound is largest",
}
"""Every measurement that a comparison of arms adds to the Evidence; no gate asks for them."""
_OTHERS: Final = ("student", "random")
_WORST: Final = "arms.worst_site.ratio"
_POOLED: Final = f"{RATIO}, the same rows at every site"
_ABSENT: Final = "a site is absent, or has too few patients for an attacker of its own"


@dataclass(frozen=True, slots=True)
class ArmCounts:
    """What one site counted, over samples and over held-out patients."""

    samples: int
    """Of each arm."""
    hits: Mapping[str, int]
    """By arm: samples taken for one of the site's training patients."""
    both: Mapping[str, int]
    """By arm but the teacher: rows in which its sample and the teacher's were."""
    held_out: int
    """Patients whom nobody learned from."""
    held_out_hits: int


def count_arms(
    arms: Arms,
    attack: Attack,
    *,
    held_out: np.ndarray,
    attacker: Digest,
    members: Sequence[Digest],
) -> ArmCounts:
    """Return what an attacker counts; raise DataError as ``attack_arms``."""
    hits = attack_arms(arms, attack, attacker=attacker, members=members)
    strangers_B = attacked(attack, held_out)
    return ArmCounts(
        samples=len(arms.teacher),
        hits={arm: int(hits[arm].sum()) for arm in ARMS},
        both={arm: int((hits[arm] & hits["teacher"]).sum()) for arm in _OTHERS},
        held_out=len(strangers_B),
        held_out_hits=int(strangers_B.sum()),
    )


def write_counts(counts: ArmCounts | None, *, reason: str = "") -> dict[str, Any]:
    """Return a site's tally; without counts one that tells nothing but the reason."""
    if counts is None:
        return {"estimable": False, "reason": reason, "metrics": {}, "counts": {}}
    told = {
        "arms.samples": counts.samples,
        **{f"arms.{arm}_hits": counts.hits[arm] for arm in ARMS},
        **{f"arms.teacher_and_{arm}": counts.both[arm] for arm in _OTHERS},
        "arms.held_out": counts.held_out,
        "arms.held_out_hits": counts.held_out_hits,
    }
    return {"estimable": True, "reason": reason, "metrics": {}, "counts": told}


def read_counts(tally: Mapping[str, Any], *, samples: int) -> ArmCounts | None:
    """Return what a site told of ``samples`` of each arm, None where it could not count.

    Raises DataError for counts that no table of these samples has.
    """
    if not tally or not tally["estimable"]:
        return None
    told = tally["counts"]
    counts = ArmCounts(
        samples=told["arms.samples"],
        hits={arm: told[f"arms.{arm}_hits"] for arm in ARMS},
        both={arm: told[f"arms.teacher_and_{arm}"] for arm in _OTHERS},
        held_out=told["arms.held_out"],
        held_out_hits=told["arms.held_out_hits"],
    )
    single = (counts.samples, counts.held_out, counts.held_out_hits)
    if any(type(n) is not int for n in (*single, *counts.hits.values(), *counts.both.values())):
        raise _impossible("a count is no whole number")
    if counts.samples != samples:
        raise _impossible(f"it is of {counts.samples} samples and {samples} were sent")
    if not all(0 <= hits <= samples for hits in counts.hits.values()):
        raise _impossible("more was recognized than was sent")
    teacher = counts.hits["teacher"]
    for arm, both in counts.both.items():
        hits = counts.hits[arm]
        if not max(0, teacher + hits - samples) <= both <= min(teacher, hits):
            raise _impossible(f"the rows of teacher and {arm} fit no table")
    if counts.held_out < SMALLEST_COUNT or not 0 <= counts.held_out_hits <= counts.held_out:
        raise _impossible("the held-out patients are too few, or more of them were recognized")
    return counts


def _impossible(why: str) -> DataError:
    return DataError(
        "a site's comparison of arms is refused",
        why=why,
        fix="run the same package version everywhere",
    )


def pool_arms(
    counts: Sequence[ArmCounts | None],
    *,
    rng: np.random.Generator,
    confidence: float = CONFIDENCE,
    inputs: tuple[Digest, ...] = (),
) -> Comparison:
    """Return the comparison over all sites, with that of the worst site among its measurements.

    ``counts`` has one for each site of the roster, of equally many samples. None, of a site that
    could not count, makes everything not estimable: its patients would go unseen. So does it if at
    no site alone the teacher is recognized more often than that site's own strangers.
    """
    told = [one for one in counts if one is not None]
    if not told or len(told) < len(counts):
        return _nothing(_ABSENT, confidence=confidence)
    found = _pool_shares(told, inputs=inputs, confidence=confidence)
    paired = {arm: _same_rows([_rows(one, arm) for one in told]) for arm in _OTHERS}
    worst = _worst_site(told, rng=rng, confidence=confidence)
    pooled = conclude(
        found,
        paired,
        rng=rng,
        confidence=confidence,
        method=_POOLED,
        why="" if worst.estimable else worst.reason,
    )
    return pooled.model_copy(
        update={
            "measurements": tuple(
                one.model_copy(update={"inputs": inputs}) for one in (*pooled.measurements, worst)
            )
        }
    )


def _pool_shares(
    told: Sequence[ArmCounts], *, inputs: tuple[Digest, ...], confidence: float
) -> dict[str, Measurement]:
    """Return the mean share of each arm over the sites, and that of all held-out patients."""
    shares: dict[str, tuple[float, int]] = {
        arm: (sum(one.hits[arm] for one in told) / len(told), told[0].samples) for arm in ARMS
    }
    strangers = sum(one.held_out_hits for one in told), sum(one.held_out for one in told)
    return {
        name: reidentified(name, hits, trials, inputs=inputs, confidence=confidence)
        for name, (hits, trials) in {**shares, HELD_OUT: strangers}.items()
    }


def _rows(counts: ArmCounts, arm: str) -> Paired:
    """Return the rows of one site that its counts stand for, in the order that is said above."""
    both = counts.both[arm]
    teacher, other = counts.hits["teacher"] - both, counts.hits[arm] - both
    sizes = [teacher, counts.samples - teacher - other - both, both, other]
    return Paired(
        np.repeat([False, False, True, True], sizes),
        np.repeat([True, False, True, False], sizes),
        np.arange(counts.samples),
    )


def _same_rows(sites: Sequence[Paired]) -> Paired:
    """Return the rows of all sites, those of one number resampled together."""
    return Paired(*(np.concatenate(part) for part in zip(*sites, strict=True)))


def _worst_site(
    told: Sequence[ArmCounts], *, rng: np.random.Generator, confidence: float
) -> Measurement:
    """Return the student's ratio at the site where its upper bound is largest.

    A site at which there is nothing that could fall is none of them.
    """
    each = confidence_of_each(len(told), confidence=confidence)
    method = corrected(RATIO, len(told))
    ratios = []
    for one in told:
        shares = [
            reidentified("teacher", one.hits["teacher"], one.samples, confidence=each),
            reidentified(HELD_OUT, one.held_out_hits, one.held_out, confidence=each),
        ]
        if not nothing_to_fall(*shares):
            hits = _rows(one, "student")
            found = fall(_WORST, hits, why="", rng=rng, confidence=each, method=method)
            ratios.append(found.ratio.model_copy(update={"confidence": confidence}))
    if not ratios:
        why = "at no site is the teacher proven to be re-identified more often than strangers"
        return not_estimable(_WORST, why, method=method, unit="conditions", confidence=confidence)
    return max(ratios, key=lambda ratio: (ratio.high or 0.0, ratio.value or 0.0))


def read_comparison(document: Mapping[str, Any] | None) -> Comparison | None:
    """Return what a coordinator's stage ``arms`` left, None where there was none."""
    return Comparison.model_validate(document["comparison"]) if document else None


def _nothing(why: str, *, confidence: float) -> Comparison:
    def blank(name: str) -> Measurement:
        unit = "held-out patients" if HELD_OUT in name else "samples"
        method = RATIO if name.endswith(".ratio") else REIDENTIFIED
        return not_estimable(name, why, method=method, unit=unit, confidence=confidence)

    told = {name: blank(name) for name in NAMES}
    falls = {
        arm: Fall(verdict="not estimable", ratio=told[f"arms.{arm}.ratio"], p=1.0)
        for arm in _OTHERS
    }
    return Comparison(
        verdict="not estimable",
        reason=why,
        student=falls["student"],
        random_filter=falls["random"],
        measurements=tuple(told.values()),
    )
