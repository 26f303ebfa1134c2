"""The natural way, stage after stage; every one is persisted and found again on resume."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vitrael.core.digest import Digest, write_atomically
from vitrael.core.errors import EXIT_OK, EXIT_PARTIAL, EXIT_REFUSED, VitraelError
from vitrael.core.protocols import ExpertsProtocol
from vitrael.privacy.audit.tallies import TALLY_STAGES
from vitrael.privacy.gates import LEAKS, Verdict
from vitrael.server.objects import DamagedError
from vitrael.server.studies.arms import compare_arms_of
from vitrael.server.studies.canary import try_sites
from vitrael.server.studies.distillation import distill_study, synthesize
from vitrael.server.studies.expert_report import write_report_of_experts
from vitrael.server.studies.experts import collect_outlooks, train_experts
from vitrael.server.studies.federated import (
    calibrate_filters,
    collect_consents,
    scale_latents,
    train_codec,
    train_patient_encoder,
    train_teacher,
)
from vitrael.server.studies.fusing import assemble, compare, train_fusions, train_rivals
from vitrael.server.studies.participation import RunOutcome, tell_outcome
from vitrael.server.studies.releasing import (
    assemble_bundle,
    audit_samples,
    is_rehearsal,
    judge_release,
    publish_release,
    sign_release,
)
from vitrael.server.studies.reporting import write_study_report
from vitrael.server.studies.run import StudyRun, open_run
from vitrael.server.studies.screening import JUDGED_IN, count_unscreened

if TYPE_CHECKING:
    from vitrael.server.federation.exchange import Exchange


def run_study(home: Path, exchange: Exchange) -> int:
    """Run what is left of a home's study and return the exit code.

    0: released, or a rehearsal in which every site answered, one had too few patients to calibrate
    a filter, and no leak was measured; such a rehearsal is refused as well, and nothing of it can
    be published. 7: the same, but a site was absent from a round. 6: refused. ``outcome.json`` and
    the report say which and why. What was finished before is not done again, unless it is damaged:
    then its stage is done again from the one before, and no site computes twice.
    """
    run = open_run(home, exchange)
    try:
        return _mend_and_run(run)
    except VitraelError as error:
        failure = {"status": "failed", "sentence": error.sentence(), "roster": run.roster}
        _keep_outcome(run, failure)
        raise


def _mend_and_run(run: StudyRun) -> int:
    """Run what is left; what turns out damaged is made again, once, and so is what that needs."""
    mended: set[Digest] = set()
    while True:
        try:
            return _run_stages(run)
        except DamagedError as error:
            if error.digest in mended or not run.discard(error.digest):
                raise
            mended.add(error.digest)


def _run_stages(run: StudyRun) -> int:
    if isinstance(run.study.protocol, ExpertsProtocol):
        return _run_experts(run)
    return _run_synthesis(run)


def _run_experts(run: StudyRun) -> int:
    """Run what is left of a study of experts; nothing of it is released, so no gate is asked."""
    collect_consents(run)
    try_sites(run)
    experts = train_experts(run)
    outlooks = collect_outlooks(run, experts)
    fusion = train_fusions(run, experts, outlooks)
    panel = assemble(run, experts, fusion)
    rivals = train_rivals(run)
    comparison = compare(run, experts, fusion, rivals)
    page = write_report_of_experts(run, experts, comparison=comparison, panel=panel)
    outcome = tell_outcome(run)
    document = {
        "status": outcome.status,
        "sentence": outcome.sentence,
        "roster": run.roster,
        "experts": [record.site for record in experts],
        "report": str(page),
        "panel": str(run.home / "panels" / panel["folder"]),
        "table": comparison["table"],
    }
    _keep_outcome(run, document)
    return EXIT_PARTIAL if outcome.status == "partial" else EXIT_OK


def _run_synthesis(run: StudyRun) -> int:
    collect_consents(run)
    try_sites(run)
    codec = train_codec(run)
    scale = scale_latents(run, codec)
    codec = Digest(scale["codec"])
    encoder = train_patient_encoder(run, codec)
    calibration = calibrate_filters(run, codec, encoder)
    teacher = train_teacher(run, codec)
    distilled = distill_study(
        run, codec=codec, teacher=teacher, condition=scale["condition"], calibration=calibration
    )
    student = distilled.student
    samples = synthesize(run, student=student, rounds=distilled.samples)
    screenings = [one for stage in JUDGED_IN.values() for one in run.documents(stage)]
    audit_samples(
        run, codec=codec, teacher=teacher, student=student, samples=samples, screenings=screenings
    )
    tallies: dict[str, list[dict[str, Any]]] = {
        stage: run.documents(stage) for stage in TALLY_STAGES
    }
    arms = compare_arms_of(
        run, codec=codec, teacher=teacher, condition=scale["condition"], distilled=distilled
    )
    decision = judge_release(run, samples=samples, tallies=tallies, arms=arms)
    verdict = Verdict.model_validate(decision["verdict"])
    if verdict.passed:
        bundle = assemble_bundle(run, student=student, samples=samples, decision=decision)
        signing = sign_release(run, bundle=bundle, tallies=tallies)
        publish_release(run, decision=decision, signing=signing)
    page = write_study_report(run, samples=samples, decision=decision)
    outcome = tell_outcome(run)
    _write_outcome(run, verdict, page=page, outcome=outcome)
    too_few = _too_few_patients(run, calibration=calibration, screenings=screenings)
    return _exit_code(run, verdict, too_few=too_few, partial=outcome.status == "partial")


def _too_few_patients(
    run: StudyRun, *, calibration: dict[str, Any], screenings: list[dict[str, Any]]
) -> bool:
    """Return whether every site answered, and one could calibrate no filter that was asked for."""
    answered = (set(document["sites"]) for document in (calibration, *screenings))
    blind = not all(tally["estimable"] for tally in calibration["sites"].values())
    enabled = run.study.synthesis.screening.enabled
    return enabled and blind and all(sites == set(run.members) for sites in answered)


def _exit_code(run: StudyRun, verdict: Verdict, *, too_few: bool, partial: bool) -> int:
    leak = any(f.outcome == "refused" and f.gate.measurement in LEAKS for f in verdict.findings)
    if verdict.passed or (is_rehearsal(run.study) and too_few and not leak):
        return EXIT_PARTIAL if partial else EXIT_OK
    return EXIT_REFUSED


def _write_outcome(
    run: StudyRun,
    verdict: Verdict,
    *,
    page: Path,
    outcome: RunOutcome,
) -> None:
    document = {
        "status": outcome.status,
        "sentence": outcome.sentence,
        "roster": run.roster,
        "outcome": verdict.outcome,
        "reason": verdict.reason,
        "policy": verdict.policy,
        "publishable": verdict.publishable,
        "findings": [[f.outcome, f.sentence] for f in verdict.findings],
        "unscreened": count_unscreened(run),
        "release": f"{run.study.protocol.name}@{run.study.protocol.version}",
        "report": str(page),
    }
    _keep_outcome(run, document)


def _keep_outcome(run: StudyRun, document: Mapping[str, Any]) -> None:
    write_atomically(run.home / "outcome.json", json.dumps(document, indent=1).encode() + b"\n")
