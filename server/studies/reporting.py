"""From the ledger and the documents of the stages to the report that people read."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any, Final

import numpy as np

from vitrael.core.data.phantoms.cohorts import draw_scan
from vitrael.core.digest import Digest
from vitrael.core.metrics.intervals import (
    Estimate,
    Interval,
    normal_interval,
    pearson_interval,
)
from vitrael.core.protocols import COVARIATES
from vitrael.privacy.audit.arm_counts import read_comparison
from vitrael.privacy.audit.arms import shifted
from vitrael.privacy.audit.parts import read_shown
from vitrael.privacy.distill import Phase
from vitrael.privacy.evidence import Evidence, Measurement
from vitrael.privacy.gates import Verdict
from vitrael.privacy.leakage import SMALLEST_COUNT
from vitrael.privacy.suite import VOLUME_SUITE
from vitrael.server.report.data import (
    Conditioning,
    ReportData,
    Screening,
    SitePlants,
    SiteSummary,
    SiteVote,
    summarize_site,
    summarize_study,
)
from vitrael.server.report.html import ReportImages, render_report, write_report
from vitrael.server.studies.ledger import StageRecord
from vitrael.server.studies.past import (
    gather_curves,
    gather_events,
    gather_rounds,
    say_absence,
    sum_up_stage,
)
from vitrael.server.studies.run import StudyRun
from vitrael.server.studies.screening import JUDGED_IN, measure_kept, tally_votes

_VENTRICLE = COVARIATES.index("ventricle_ml")
_REFERENCES = 5
_SUBGROUP: Final = re.compile(r"\.subgroup\.[^.]+$")
"""The name of the share that was kept of a subgroup."""
_REFERENCE_SITE = "report references"
"""No site can have this name, so that no phantom of the report was anybody's patient."""


def render_bundle_report(
    run: StudyRun, *, samples: Mapping[str, Any], decision: Mapping[str, Any]
) -> bytes:
    """Return the page that goes into the bundle, as things stand before it is signed.

    It names attempts that failed and sites that were absent, and no reason: those are sentences
    of sites and machines, nobody's to sign.
    """
    data = build_report(run, samples=samples, decision=decision, reasons=False)
    return render_report(data, images=_pictures(run, samples), twin=False).encode()


def write_study_report(
    run: StudyRun, *, samples: Mapping[str, Any], decision: Mapping[str, Any]
) -> Path:
    """Write the whole report, HTML and JSON, into the coordinator's home; return the page."""
    data = build_report(run, samples=samples, decision=decision)
    return write_report(run.home / "report", data, images=_pictures(run, samples))


def build_report(
    run: StudyRun,
    *,
    samples: Mapping[str, Any],
    decision: Mapping[str, Any],
    reasons: bool = True,
) -> ReportData:
    """Return everything that the report says; without ``reasons`` no why of a failure in it."""
    protocol = run.study.synthesis
    history = run.history()
    tensors = run.objects.get_tensors(Digest(samples["samples"]))
    evidence = Evidence.model_validate(decision["evidence"])
    voted = [one for stage in JUDGED_IN.values() for one in run.documents(stage)]
    unscreened = any(one["unscreened"] for one in voted)
    return ReportData(
        title=f"Synthetic brain scans: {protocol.name}",
        created_utc=run.clock(),
        release=f"{protocol.name}@{protocol.version}",
        volumes=int(samples["count"]),
        unscreened=unscreened,
        unscreened_reason=_why_unscreened(run, voted) if unscreened else "",
        screening=_screening(run, "candidates"),
        rescreening=_screening(run, "samples"),
        study=summarize_study(run.study),
        sites=_sites(run, history, reasons=reasons),
        verdict=Verdict.model_validate(decision["verdict"]),
        evidence=evidence,
        arms=read_comparison(_document(run, history, "arms")),
        plants=_site_plants(_document(run, history, "audit").get("sites", {})) if reasons else (),
        conditioning=_conditioning(run, history, tensors, evidence),
        curves=gather_curves(history),
        stages=tuple(sum_up_stage(record, reasons=reasons) for record in history),
        rounds=gather_rounds(run),
        events=gather_events(history, reasons=reasons),
    )


def _pictures(run: StudyRun, samples: Mapping[str, Any]) -> ReportImages:
    data, seed = run.study.synthesis.data, run.study.protocol.seed
    drawn = [
        draw_scan(
            seed, _REFERENCE_SITE, number, 0, grid_vox=data.grid_vox, spacing_mm=data.spacing_mm
        )[0].image_CDHW
        for number in range(_REFERENCES)
    ]
    image = run.objects.get_tensors(Digest(samples["samples"]))["image"]
    return ReportImages(samples=image, references=np.clip(np.stack(drawn), 0, 1))


def _document(run: StudyRun, history: Sequence[StageRecord], stage: str) -> dict[str, Any]:
    """Return the document of a stage's last finished record, empty when there is none."""
    outputs = [r.output for r in history if r.key.stage == stage and r.status == "finished"]
    return dict(run.objects.get_json(outputs[-1])) if outputs and outputs[-1] else {}


def _why_unscreened(run: StudyRun, rounds: Sequence[Mapping[str, Any]]) -> str:
    """Return in words of ours why not every site could judge all that was screened."""
    if not run.study.synthesis.screening.enabled:
        return "screening is off in the study"
    silent = [site for site in run.members if not all(site in one["sites"] for one in rounds)]
    blind = [
        site
        for site in run.members
        if not all(one["sites"][site].get("estimable") for one in rounds if site in one["sites"])
    ]
    parts = [f"no votes came from {', '.join(silent)}"] if silent else []
    if blind:
        parts.append(f"{', '.join(blind)} had no filter to judge with")
    return "; ".join(parts)


def _screening(run: StudyRun, phase: Phase) -> Screening | None:
    """Return how many images each site kept, and all of them together, over all rounds."""
    rounds = run.documents(JUDGED_IN[phase])
    if not rounds:
        return None
    measured = measure_kept(run, phase)
    return sum_up_votes(
        rounds,
        subgroups=[m for m in measured if _SUBGROUP.search(m.name)],
        apart=[name.split(".")[-2] for name in shifted(measured)],
    )


def sum_up_votes(
    rounds: Sequence[Mapping[str, Any]],
    *,
    subgroups: Sequence[Measurement] = (),
    apart: Sequence[str] = (),
) -> Screening:
    """Return what came of all rounds of a screening."""
    asked = sum(int(one["count"]) for one in rounds)
    kept = sum(len(one["keep"]) for one in rounds)
    votes = tuple(
        SiteVote(
            site=site,
            asked=tally.shown,
            kept=tally.shown - tally.dropped if tally.shown >= SMALLEST_COUNT else None,
            judged=all(one["sites"].get(site, {}).get("estimable") for one in rounds),
        )
        for site, tally in tally_votes(rounds).items()
    )
    return Screening(
        asked=asked,
        kept=kept,
        share=kept / asked if asked else 0.0,
        rounds=len(rounds),
        votes=votes,
        subgroups=tuple(subgroups),
        shifted=tuple(apart),
    )


def _site_plants(audits: Mapping[str, Any]) -> tuple[SitePlants, ...]:
    """Return what each site told of its planted copies."""
    found = {
        site: {name: read_shown(audit, f"plants.{name}") for name in VOLUME_SUITE}
        for site, audit in audits.items()
    }
    return tuple(
        SitePlants(
            site=site,
            planted={name: tally.shown for name, tally in tallies.items()},
            caught={name: tally.dropped for name, tally in tallies.items()},
        )
        for site, tallies in found.items()
    )


def _sites(
    run: StudyRun, history: Sequence[StageRecord], *, reasons: bool
) -> tuple[SiteSummary, ...]:
    consents = _document(run, history, "consent").get("consents", {})
    calibration = _document(run, history, "calibration").get("sites", {})
    summaries = []
    for site in run.members:
        consent = consents.get(site)
        absences = [
            say_absence(record, site, reasons=reasons)
            for record in history
            if record.status == "finished" and site in record.details.get("absent", {})
        ]
        counts = calibration.get(site, {}).get("counts", {})
        summaries.append(
            summarize_site(
                site,
                training_patients=int(counts.get("patients.training", 0)),
                status="; ".join(absences) or "took part to the end",
                consented_utc=(
                    datetime.fromisoformat(consent["given_utc"]) if consent is not None else None
                ),
            )
        )
    return tuple(summaries)


def _conditioning(
    run: StudyRun,
    history: Sequence[StageRecord],
    tensors: Mapping[str, np.ndarray],
    evidence: Evidence,
) -> Conditioning | None:
    asked = evidence.find("conditioning.ventricle_r")
    permuted = evidence.find("conditioning.permuted_r")
    ceiling = _document(run, history, "latents").get("ceiling", {"r": None, "n": 0})
    if asked is None or permuted is None:
        return None
    confidence = run.study.synthesis.audit.confidence
    asked_ml, measured_ml = tensors["covariate"][:, _VENTRICLE], tensors["ventricle_ml"]
    return Conditioning(
        ceiling=_ceiling(ceiling["r"], ceiling["n"], confidence=confidence),
        asked_measured=asked,
        permuted=permuted,
        difference=_difference(asked_ml, measured_ml, confidence=confidence),
        asked_ml=tuple(map(float, asked_ml)),
        measured_ml=tuple(map(float, measured_ml)),
    )


def _difference(asked_ml: np.ndarray, measured_ml: np.ndarray, *, confidence: float) -> Measurement:
    """Return the mean of measured minus asked, in milliliters, with normal bounds."""
    both = np.asarray(measured_ml, dtype=float) - np.asarray(asked_ml, dtype=float)
    n, mean, bounds = len(both), None, None
    if n > 1 and np.isfinite(both).all():
        mean = float(both.mean())
        error = float(both.std(ddof=1)) / math.sqrt(n)
        bounds = normal_interval(Estimate(mean, error), confidence=confidence)
    return _measured(
        "conditioning.ventricle_difference_ml",
        mean,
        bounds,
        n=n,
        unit="samples",
        confidence=confidence,
        method="mean of measured minus asked ventricle volume in ml, normal bounds",
        missing="fewer than two samples, or one without both volumes",
    )


def _ceiling(r: float | None, n: int, *, confidence: float) -> Measurement:
    """Return what the codec keeps of the ventricle volume, r of ``n`` first visits."""
    return _measured(
        "codec.ventricle_r",
        r,
        None if r is None else pearson_interval(r, n, confidence=confidence),
        n=n,
        unit="patients the codec has not learned from",
        confidence=confidence,
        method="Pearson of ventricle volume before and after the codec, pooled sums, Fisher's z",
        missing="no site had enough patients to tell",
    )


def _measured(
    name: str,
    value: float | None,
    bounds: Interval | None,
    *,
    n: int,
    unit: str,
    confidence: float,
    method: str,
    missing: str,
) -> Measurement:
    """Return a number with its bounds, or without a value and why it is ``missing``."""
    return Measurement(
        name=name,
        value=value,
        low=bounds.low if bounds else None,
        high=bounds.high if bounds else None,
        n=n,
        unit=unit,
        confidence=confidence,
        method=method,
        reason="" if value is not None else missing,
    )
