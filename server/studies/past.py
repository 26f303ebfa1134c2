"""What a study did, for any report of it: curves, attempts at stages, answers, absences."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from vitrael.server.report.data import Curve, Event, SiteRound, StageSummary
from vitrael.server.studies.ledger import StageRecord
from vitrael.server.studies.participation import (
    absence_words,
    outlier_words,
    record_participation,
)
from vitrael.server.studies.run import StudyRun

_TRAINED: Final = {"reid": "patient encoder"}
"""Networks that are not called as their stage is."""


def gather_curves(history: Sequence[StageRecord]) -> tuple[Curve, ...]:
    """Return one diagram for each trained network; a line for each site, rounds joined."""
    lines: dict[str, dict[str, list[tuple[float, float]]]] = {}
    for record in history:
        if record.status != "finished":
            continue
        for who, curve in record.details.get("curves", {}).items():
            points = list(zip(curve["images"], curve["loss"], strict=True))
            lines.setdefault(record.key.stage, {}).setdefault(who, []).extend(points)
    return tuple(
        Curve(
            title=f"Training of the {_TRAINED.get(stage, stage)}",
            x_label="images",
            y_label="loss",
            series={who: tuple(sorted(points)) for who, points in series.items()},
        )
        for stage, series in lines.items()
    )


def sum_up_stage(record: StageRecord, *, reasons: bool) -> StageSummary:
    """Return one attempt at a stage; without ``reasons`` no why of a failure."""
    return StageSummary(
        stage=record.key.stage,
        round=record.key.round + 1,
        status=record.status,
        started_utc=record.started_utc,
        seconds=record.seconds,
        participants=record.participants,
        output=record.output,
        reason=record.reason if reasons else "",
    )


def say_absence(record: StageRecord, site: str, *, reasons: bool) -> str:
    """Return that a site was absent, and why: in its own words, or in ours alone."""
    where = f"absent from {record.key.stage}, round {record.key.round + 1}"
    if record.status == "failed":
        where += ", in an attempt that does not count"
    if reasons:
        return f"{where}: {record.details['absent'][site]}"
    return f"{where}: {absence_words(record, site)}"


def gather_rounds(run: StudyRun) -> tuple[SiteRound, ...]:
    """Return every answer that was asked for, as the participation record tells it."""
    return tuple(
        SiteRound(
            stage=title,
            site=site,
            answered=site in told["seconds"],
            examples=told.get("examples", {}).get(site, ""),
            weight=told.get("weights", {}).get(site),
            seconds=told["seconds"].get(site),
            size_bytes=told["bytes"].get(site),
        )
        for title, told in record_participation(run)["rounds"].items()
        for site in told["invited"]
    )


def gather_events(history: Sequence[StageRecord], *, reasons: bool) -> tuple[Event, ...]:
    """Return who was absent and whose update was far from the others, in the order of time."""
    events: list[Event] = []
    for record in history:
        moment, absent = record.finished_utc or record.started_utc, record.details.get("absent", {})
        told = [(site, say_absence(record, site, reasons=reasons)) for site in absent]
        where = f"{record.key.stage}, round {record.key.round + 1}"
        for site, words in outlier_words(record).items():
            if site not in absent or reasons:
                told.append((site, f"its update to {where}, was {words}"))
        events += [Event(utc=moment, site=site, event=event) for site, event in told]
    return tuple(events)
