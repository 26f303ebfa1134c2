"""Evidence: measured numbers with interval, n, method and the digests of what they are about.

A number that could not be measured is evidence too: its value is None and its reason says why.
``NAMES`` lists every measurement that a study of the ``empirical`` path produces; those of a
comparison of arms, where its protocol asks for one, stand in ``audit.arm_counts``.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, Final, Self

from pydantic import Field, model_validator

from vitrael.core.configs import Section
from vitrael.core.digest import Digest, digest_json
from vitrael.core.metrics.intervals import CONFIDENCE, clopper_pearson
from vitrael.privacy.suite import VOLUME_SUITE

SUBGROUPS: Final = ("female", "male", "younger", "older")
"""Of whose planted copies the filter's power is told apart."""
NEGATIVE_KINDS: Final = ("matched", "template", "look_alike")
"""Images that are no copies and hard to tell from them, which a study can make."""

NAMES: Final[Mapping[str, str]] = {
    "participation.complete": "share of the sites in the model that judged what came of it",
    "screening.done": "share of candidates and samples that every site judged by its own scans",
    "filter.verification_auc": "how well the encoder tells a patient's other visit from strangers",
    **{
        f"filter.power.{name}": f"share of planted copies caught: {demand.says}"
        for name, demand in VOLUME_SUITE.items()
    },
    "filter.worst_site_power": "copies that must be caught, at the site that catches the fewest",
    **{
        f"filter.subgroup_power.{name}": f"copies that must be caught, of {name} patients"
        for name in SUBGROUPS
    },
    "filter.votes_changed": "images whose vote changes with the share of plants beside them",
    "filter.plants_absent": "share of the sites that proved no plant to be in the release",
    "filter.false_positive_rate": "share of fresh patients' scans that the filter would drop",
    **{
        f"filter.negatives.{name}": f"share of what is no copy that the filter would drop: {says}"
        for name, says in (
            ("matched", "patients like those of the gallery"),
            ("template", "means of many patients"),
            ("look_alike", "patients whose pixels are nearest to one of the gallery"),
        )
    },
    "copies.excess_share": "released samples that copy a training scan, beyond the control",
    "copies.control_power": "disguised training scans that the same search finds",
    "copies.worst_site": "the same at the site that is nearest to being proven copied",
    "closeness.training_share": "released samples nearer to training than to held-out patients",
    "closeness.worst_site": "the same at the site that is nearest to being proven unequal",
    "membership.auc": "attack that tells training from held-out patients by the released samples",
    "membership.worst_site": "the same at the site where it is nearest to being proven to succeed",
    "membership.placebo_gap": (
        "the same attack between random halves, distance of its AUC from 0.5: "
        "checks the machinery, not the release"
    ),
    "membership.control_auc": "the same attack when copies are planted among the released samples",
    "conditioning.ventricle_r": "correlation of asked and measured ventricle volume",
    "conditioning.permuted_r": (
        "the same correlation, absolute, after shuffling what was asked: "
        "checks the machinery, not the release"
    ),
}
"""Every name of a measurement, and what it says."""


class Measurement(Section):
    """One measured number. ``value`` None means "not estimable", and ``reason`` says why."""

    name: str = Field(min_length=1)
    value: float | None
    low: float | None = None
    """Lower confidence bound; None where none was made."""
    high: float | None = None
    """Upper confidence bound; None where none was made."""
    n: int = Field(ge=0)
    unit: str = ""
    """What ``n`` counts: patients, samples, plants, sites."""
    confidence: float = Field(gt=0, le=1)
    """Of each bound taken alone; 1 for a number that is counted and not estimated."""
    method: str = Field(min_length=1)
    inputs: tuple[Digest, ...] = ()
    reason: str = ""

    @model_validator(mode="before")
    @classmethod
    def _not_finite_is_not_estimable(cls, document: Any) -> Any:  # noqa: ANN401 - before validation
        if not isinstance(document, dict):
            return document
        numbers = [document.get(key) for key in ("value", "low", "high")]
        if all(math.isfinite(x) for x in numbers if isinstance(x, int | float)):
            return document
        why = "the number came out as NaN or infinite"
        return {**document, "value": None, "low": None, "high": None, "reason": why}

    @model_validator(mode="after")
    def _coherent(self) -> Self:
        if self.value is None:
            if not self.reason:
                msg = f"{self.name} has neither a value nor a reason"
                raise ValueError(msg)
            if self.low is not None or self.high is not None:
                msg = f"{self.name} has bounds but no value"
                raise ValueError(msg)
            return self
        if self.low is not None and self.low > self.value:
            msg = f"the lower bound of {self.name} is above its value"
            raise ValueError(msg)
        if self.high is not None and self.high < self.value:
            msg = f"the upper bound of {self.name} is below its value"
            raise ValueError(msg)
        return self

    @property
    def estimable(self) -> bool:
        """Whether there is a number at all."""
        return self.value is not None


def not_estimable(
    name: str, reason: str, *, method: str, n: int = 0, unit: str = "", confidence: float = 0.95
) -> Measurement:
    """Return a measurement without a value; every gate on it refuses."""
    return Measurement(
        name=name, value=None, n=n, unit=unit, confidence=confidence, method=method, reason=reason
    )


def measure_share(
    name: str,
    hits: float,
    trials: int,
    *,
    unit: str,
    method: str,
    confidence: float = CONFIDENCE,
    inputs: tuple[Digest, ...] = (),
) -> Measurement:
    """Return a share of one trial or more with the bounds of Clopper and Pearson.

    ``hits`` may be a sum of shares. Raises what ``clopper_pearson`` raises.
    """
    low, high = clopper_pearson(hits, trials, confidence=confidence)
    return Measurement(
        name=name,
        value=hits / trials,
        low=low,
        high=high,
        n=trials,
        unit=unit,
        confidence=confidence,
        method=method,
        inputs=inputs,
    )


def counted(
    name: str, *, part: int, whole: int, unit: str, method: str, inputs: tuple[Digest, ...] = ()
) -> Measurement:
    """Return a share that is counted and not estimated: its bounds are its value.

    An empty whole is not estimable.
    """
    if whole < 1:
        return not_estimable(name, f"there are no {unit} to count", method=method, unit=unit)
    share = part / whole
    return Measurement(
        name=name,
        value=share,
        low=share,
        high=share,
        n=whole,
        unit=unit,
        confidence=1.0,
        method=method,
        inputs=inputs,
    )


class Evidence(Section):
    """All measurements of one study, each name once."""

    protocol: Digest
    measurements: tuple[Measurement, ...]

    @model_validator(mode="after")
    def _each_name_once(self) -> Self:
        names = [measurement.name for measurement in self.measurements]
        if twice := sorted({name for name in names if names.count(name) > 1}):
            msg = f"{twice[0]} was measured twice"
            raise ValueError(msg)
        return self

    def find(self, name: str) -> Measurement | None:
        """Return the measurement of that name, or None."""
        return next((m for m in self.measurements if m.name == name), None)

    @property
    def digest(self) -> Digest:
        """Name of the evidence by its content."""
        return digest_json(self.model_dump(mode="json"))
