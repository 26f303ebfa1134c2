"""The report of a study of experts: ``report.html`` and ``report.json``, which says the same."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Final

from pydantic import AwareDatetime, Field

from vitrael.core.configs import Section
from vitrael.core.digest import Digest, write_atomically
from vitrael.core.protocols import Name
from vitrael.server.report.charts import draw_lines
from vitrael.server.report.data import Curve, Event, SiteRound, StageSummary
from vitrael.server.report.html import page_environment

SCHEMA: Final = "vitrael/experts-report/1"

RISKS: Final = {
    "experts.members_by_nearness": "whose pictures it is of, by what was told alone",
    "experts.members_by_likelihood": "the same, with other pictures of the site at hand",
    "experts.members_under_noise": "the same, by who also knows how much noise was laid over it",
    "experts.members_by_match": "the same, where every single picture is told of",
    "experts.inversion_rebuilt_from_means": "pictures rebuilt from means",
    "experts.inversion_rebuilt_from_features": "pictures rebuilt from their features",
    "experts.inversion_control_from_means": "control: the mean picture of the view",
    "experts.inversion_control_from_features": "control: the mean picture of the view",
    "experts.inversion_gain_from_means": "rebuilt less control, patient by patient",
    "experts.inversion_gain_from_features": "rebuilt less control, patient by patient",
    "experts.inversion_detail_from_means": "of what is the patient's own",
    "experts.inversion_detail_from_features": "of what is the patient's own",
}
"""Name of a measurement -> what it says. Members: area under the curve, 0.5 for nothing. Rebuilt:
correlation with the true picture, mean over patients."""


class ExpertRow(Section):
    """One expert of the panel."""

    site: Name
    labels: tuple[str, ...]
    words: dict[str, str]
    calibrated: bool
    cohort: Digest | None
    weights: Digest
    in_panel: bool = True


class AccuracyRow(Section):
    """How often one way of asking is right."""

    method: str
    accuracy: float = Field(ge=0, le=1)
    low: float
    high: float
    images: int
    sites: dict[str, float]
    by_view: dict[str, float]


class SiteWeights(Section):
    """Whose expert decides at a site."""

    site: Name
    images: int
    heaviest: float
    weights: dict[str, float]


class RiskRow(Section):
    """What could be held against the patients of a site of what it told."""

    site: Name
    experts: tuple[str, ...]
    """Of which it was told what they see; another set is another measurement."""
    name: str
    what: str
    value: float
    low: float | None
    high: float | None
    n: int


class ExpertsReport(Section):
    """The whole report."""

    title: str
    created_utc: AwareDatetime
    purpose: str
    study: Digest
    protocol: Digest
    recipe: str
    edge_px: int
    views: tuple[str, ...]
    told: str
    begin: str
    panel: str
    """Folder of the panel, below the home."""
    experts: tuple[ExpertRow, ...]
    table: tuple[AccuracyRow, ...]
    sites: tuple[SiteWeights, ...]
    risks: tuple[RiskRow, ...]
    not_estimable: dict[str, str]
    """Site -> why no risk could be measured there."""
    curves: tuple[Curve, ...] = ()
    stages: tuple[StageSummary, ...] = ()
    rounds: tuple[SiteRound, ...] = ()
    events: tuple[Event, ...] = ()

    @property
    def missing(self) -> tuple[str, ...]:
        """Sites whose expert was trained and is not in the panel."""
        return tuple(expert.site for expert in self.experts if not expert.in_panel)


def write_experts_report(folder: Path, data: ExpertsReport) -> Path:
    """Write both files and return the path of the page."""
    document = {"schema": SCHEMA, **data.model_dump(mode="json")}
    text = json.dumps(document, indent=2, ensure_ascii=False, allow_nan=False)
    write_atomically(folder / "report.json", text.encode() + b"\n")
    path = folder / "report.html"
    write_atomically(path, render_experts_report(data).encode())
    return path


def render_experts_report(data: ExpertsReport) -> str:
    """Return the page as HTML; it runs no script and fetches nothing."""
    drawn = [picture for curve in data.curves if (picture := draw_lines(curve))]
    longest_s = max((stage.seconds or 0 for stage in data.stages), default=0)
    template = page_environment().get_template("experts.html")
    return template.render(data=data, curves=drawn, longest_s=longest_s)
