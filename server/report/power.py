"""The power certificate for people: what was planted, what of it was caught, and where."""

from __future__ import annotations

from typing import Final, Literal

from vitrael.core.configs import Section
from vitrael.core.metrics.intervals import clopper_pearson
from vitrael.privacy.evidence import NEGATIVE_KINDS, SUBGROUPS, Measurement
from vitrael.privacy.suite import VOLUME_SUITE
from vitrael.server.report.data import ReportData, SitePlants

_BESIDE: Final = (
    "filter.worst_site_power",
    *(f"filter.subgroup_power.{name}" for name in SUBGROUPS),
    "filter.votes_changed",
    "filter.plants_absent",
    "filter.false_positive_rate",
    *(f"filter.negatives.{kind}" for kind in NEGATIVE_KINDS),
)


class PlantPower(Section):
    """What the filter caught of one class of planted copies."""

    kind: str
    what: str
    must: bool
    planted: int
    caught: int | None
    low: float | None
    """Lower confidence bound of the share that is caught."""
    confidence: float
    demanded: float | None
    """Threshold of the policy for that bound; None when no gate asks for this class."""
    outcome: Literal["passed", "refused", "not estimable", "not asked"]
    reason: str


class SiteCell(Section):
    """The same at one site; nothing where it planted none."""

    planted: int
    caught: int
    low: float | None


class PowerReading(Section):
    """The whole certificate."""

    classes: tuple[PlantPower, ...]
    """Those that were planted, and those that a gate asks for."""
    not_planted: tuple[str, ...]
    """What the others are."""
    sites: tuple[str, ...]
    cells: dict[str, tuple[SiteCell, ...]]
    """By class, one for each site."""
    beside: tuple[Measurement, ...]
    """What else the certificate measures."""


def read_power(data: ReportData) -> PowerReading:
    """Return the certificate of a report."""
    rows = [_row(data, name) for name in VOLUME_SUITE]
    shown = tuple(row for row in rows if row.planted or row.outcome != "not asked")
    return PowerReading(
        classes=shown,
        not_planted=tuple(row.what for row in rows if row not in shown),
        sites=tuple(plants.site for plants in data.plants),
        cells={
            row.kind: tuple(_cell(plants, row.kind) for plants in data.plants)
            for row in shown
            if row.planted
        },
        beside=tuple(m for name in _BESIDE if (m := data.evidence.find(name)) is not None),
    )


def _row(data: ReportData, kind: str) -> PlantPower:
    name, demand = f"filter.power.{kind}", VOLUME_SUITE[kind]
    measured = data.evidence.find(name)
    finding = next((f for f in data.verdict.findings if f.gate.measurement == name), None)
    value = measured.value if measured else None
    return PlantPower(
        kind=kind,
        what=demand.says,
        must=demand.must,
        planted=measured.n if measured else 0,
        caught=None if measured is None or value is None else round(value * measured.n),
        low=measured.low if measured else None,
        confidence=measured.confidence if measured else 0.95,
        demanded=finding.gate.threshold if finding else None,
        outcome=finding.outcome if finding else "not asked",
        reason=measured.reason if measured else "it was not measured",
    )


def _cell(plants: SitePlants, kind: str) -> SiteCell:
    planted, caught = plants.planted.get(kind, 0), plants.caught.get(kind, 0)
    low = clopper_pearson(caught, planted).low if planted else None
    return SiteCell(planted=planted, caught=caught, low=low)
