"""The parts of a site's audit as its tally tells them: written and read here alone.

What is out of range is refused with a DataError that names the part: a count that is none, more
hits than samples, an area beyond 0 and 1. One site's impossible number could otherwise pay for the
copies of another. The caller counts that site as absent.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from vitrael.core.errors import DataError
from vitrael.core.metrics.intervals import Estimate
from vitrael.privacy.audit.closeness import Closeness
from vitrael.privacy.audit.copies import Copies
from vitrael.privacy.audit.membership import Membership
from vitrael.privacy.audit.power import Caught, Certificate, Tally
from vitrael.privacy.evidence import NEGATIVE_KINDS
from vitrael.privacy.reid.calibrate import Verification

SiteTally = Mapping[str, Any]  # a reply's body: JSON; empty for a site that gave none
_MOST: Final = 10_000_000
"""More of anything no site has."""
_ROUNDING: Final = 1e-6
"""Metrics are told with six digits."""


def write_audit(
    *,
    certificate: Certificate,
    fresh: Tally,
    plants_absent: int,
    copies: Copies | None,
    closeness: Closeness | None,
    membership: Membership | None,
) -> dict[str, Any]:
    """Return a site's audit as a tally; a part that is None is left out.

    ``plants_absent`` counts the plants that were compared with the release and are not in it.
    """
    counts, metrics = _write_certificate(certificate)
    counts |= {"fresh.shown": fresh.shown, "fresh.dropped": fresh.dropped}
    counts["plants.absent"] = plants_absent
    if copies is not None:
        counts["copies.samples"] = copies.samples
        counts["copies.hits"] = copies.hits
        counts["copies.control_hits"] = copies.control_hits
        counts["copies.planted"] = copies.planted
        counts["copies.planted_hits"] = copies.planted_hits
        metrics["copies.scale"] = copies.scale
    if closeness is not None:
        counts["closeness.patients"] = closeness.patients
        metrics |= {"closeness.share": closeness.share, "closeness.error": closeness.error}
    if membership is not None:
        counts["membership.members"] = membership.members
        counts["membership.others"] = membership.others
        for name in ("attack", "placebo", "control"):
            estimate: Estimate = getattr(membership, name)
            metrics[f"membership.{name}"] = estimate.value
            metrics[f"membership.{name}_error"] = estimate.error
    missing = [
        name
        for name, part in (("copies", copies), ("closeness", closeness), ("membership", membership))
        if part is None
    ]
    return {
        "estimable": not missing,
        "reason": f"too few patients for {', '.join(missing)}" if missing else "",
        "metrics": {name: round(float(value), 6) for name, value in metrics.items()},
        "counts": counts,
    }


def _write_certificate(certificate: Certificate) -> tuple[dict[str, int], dict[str, float]]:
    shown = {
        **{f"plants.{name}": tally for name, tally in certificate.plants.items()},
        **{
            f"negatives.{name}": certificate.negatives[name]
            for name in NEGATIVE_KINDS
            if name in certificate.negatives
        },
        "mixing": certificate.mixing,
    }
    caught = {
        "must": certificate.must,
        **{f"subgroups.{name}": one for name, one in certificate.subgroups.items()},
    }
    counts: dict[str, int] = {}
    metrics: dict[str, float] = {}
    for part, tally in shown.items():
        counts |= {f"{part}.shown": tally.shown, f"{part}.dropped": tally.dropped}
    for part, one in caught.items():
        counts[f"{part}.patients"] = one.patients
        metrics[f"{part}.caught"] = one.share
    return counts, metrics


def read_caught(tally: SiteTally, part: str) -> Caught:
    """Return how much was caught patient by patient; nothing said is nobody's plant."""
    if f"{part}.patients" not in _numbers(tally, "counts"):
        return Caught(0.0, 0)
    patients = _count(tally, f"{part}.patients")
    share = _metric(tally, f"{part}.caught", most=patients + _ROUNDING)
    return Caught(min(share, float(patients)), patients)


def read_absent(tally: SiteTally) -> int:
    """Return how many plants were proven to be in no release; nothing said is none."""
    if "plants.absent" not in _numbers(tally, "counts"):
        return 0
    return _count(tally, "plants.absent")


def read_shown(tally: SiteTally, part: str) -> Tally:
    """Return what was shown to the filter and what it dropped; nothing said is nothing shown."""
    if f"{part}.shown" not in _numbers(tally, "counts"):
        return Tally(0, 0)
    shown = _count(tally, f"{part}.shown")
    return Tally(shown, _count(tally, f"{part}.dropped", most=shown))


def read_copies(tally: SiteTally) -> Copies | None:
    """Return the counts of copies, or None when the site told none."""
    if "copies.samples" not in _numbers(tally, "counts"):
        return None
    samples, planted = _count(tally, "copies.samples"), _count(tally, "copies.planted")
    return Copies(
        samples=samples,
        hits=_count(tally, "copies.hits", most=samples),
        control_hits=_count(tally, "copies.control_hits", most=samples),
        scale=_metric(tally, "copies.scale"),
        planted=planted,
        planted_hits=_count(tally, "copies.planted_hits", most=planted),
    )


def read_closeness(tally: SiteTally) -> Closeness | None:
    """Return the share of nearer samples, or None when the site told none."""
    if "closeness.patients" not in _numbers(tally, "counts"):
        return None
    return Closeness(
        share=_metric(tally, "closeness.share", most=1),
        error=_metric(tally, "closeness.error"),
        patients=_count(tally, "closeness.patients", least=1),
    )


def read_membership(tally: SiteTally) -> Membership | None:
    """Return the areas of the attack, or None when the site told none."""
    if "membership.members" not in _numbers(tally, "counts"):
        return None
    attack, placebo, control = (
        Estimate(
            _metric(tally, f"membership.{name}", most=1), _metric(tally, f"membership.{name}_error")
        )
        for name in ("attack", "placebo", "control")
    )
    return Membership(
        attack=attack,
        placebo=placebo,
        control=control,
        members=_count(tally, "membership.members", least=1),
        others=_count(tally, "membership.others", least=1),
    )


def read_verification(tally: SiteTally) -> Verification:
    """Return how well the encoder knew patients again; nothing said is no trial."""
    if "verification.patients" not in _numbers(tally, "counts"):
        return Verification(0.0, 0)
    patients = _count(tally, "verification.patients")
    wins = _metric(tally, "verification.wins", most=patients + _ROUNDING)
    return Verification(min(wins, float(patients)), patients)


def read_votes(tally: SiteTally) -> tuple[int, bool]:
    """Return on how many candidates the site voted, and whether by a calibrated filter."""
    candidates = _count(tally, "candidates", least=1)
    if not isinstance(tally.get("estimable"), bool):
        raise _out_of_range("estimable")
    return candidates, tally["estimable"]


def _numbers(tally: SiteTally, section: str) -> Mapping[str, Any]:
    numbers = tally.get(section) if tally else {}
    if not isinstance(numbers, Mapping):
        raise _out_of_range(section)
    return numbers


def _count(tally: SiteTally, label: str, *, least: int = 0, most: int = _MOST) -> int:
    count = _numbers(tally, "counts").get(label)
    if type(count) is not int or not least <= count <= most:
        raise _out_of_range(label)
    return count


def _metric(tally: SiteTally, label: str, *, most: float = _MOST) -> float:
    number = _numbers(tally, "metrics").get(label)
    if isinstance(number, bool) or not isinstance(number, int | float) or not 0 <= number <= most:
        raise _out_of_range(label)
    return float(number)


def _out_of_range(label: str) -> DataError:
    return DataError(
        f"a site's tally is out of range: {label}",
        why="the number is missing, or nothing that can be counted or measured",
        fix="run the same package version everywhere",
    )
