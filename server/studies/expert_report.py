"""From the stages of a study of experts to the report that people read."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from vitrael.server.report.experts import (
    AccuracyRow,
    ExpertRow,
    ExpertsReport,
    SiteWeights,
    write_experts_report,
)
from vitrael.server.studies.expert_risks import find_unmeasured, lay_out_risks
from vitrael.server.studies.experts import ExpertRecord
from vitrael.server.studies.past import (
    gather_curves,
    gather_events,
    gather_rounds,
    sum_up_stage,
)
from vitrael.server.studies.run import StudyRun


def write_report_of_experts(
    run: StudyRun,
    experts: tuple[ExpertRecord, ...],
    *,
    comparison: Mapping[str, Any],
    panel: Mapping[str, Any],
) -> Path:
    """Write HTML and JSON into the coordinator's home; return the page."""
    protocol, history = run.study.experts, run.history()
    there = {record.site for record in experts}
    trained = (run.document("expert") or {}).get("experts", {})
    risks = (run.document("outlooks") or {}).get("risks", {})
    data = ExpertsReport(
        title=f"Experts of views: {protocol.name}",
        created_utc=run.clock(),
        purpose=protocol.purpose,
        study=run.study.digest,
        protocol=protocol.digest,
        recipe=protocol.data.recipe,
        edge_px=protocol.data.edge_px,
        views=protocol.data.views,
        told=protocol.told,
        begin=protocol.begin,
        panel=f"panels/{panel['folder']}",
        experts=tuple(
            ExpertRow(site=site, in_panel=site in there, **trained[site])
            for site in run.members
            if site in trained
        ),
        table=tuple(_accuracy(row) for row in comparison["table"]),
        sites=tuple(
            _weights(site, comparison["sites"][site], run)
            for site in run.members
            if site in comparison["sites"]
        ),
        risks=tuple(
            row for site in run.members for row in lay_out_risks(site, risks.get(site, ()))
        ),
        not_estimable={
            site: why for site in run.members if (why := find_unmeasured(risks.get(site, ())))
        },
        curves=gather_curves(history),
        stages=tuple(sum_up_stage(record, reasons=True) for record in history),
        rounds=gather_rounds(run),
        events=gather_events(history, reasons=True),
    )
    return write_experts_report(run.home / "report", data)


def _accuracy(row: Mapping[str, Any]) -> AccuracyRow:
    low, high = row["interval"]
    own = {key: row[key] for key in ("method", "accuracy", "images", "sites", "by_view")}
    return AccuracyRow(low=low, high=high, **own)


def _weights(site: str, told: Mapping[str, Any], run: StudyRun) -> SiteWeights:
    ordered = {name: told["weights"][name] for name in run.members if name in told["weights"]}
    return SiteWeights(site=site, images=told["images"], heaviest=told["heaviest"], weights=ordered)
