"""From the student's samples to a release, or to a refusal: audit, gates, signatures, catalogue."""

from __future__ import annotations

import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from vitrael.core.data.synthetic import SyntheticSet, synthetic_set
from vitrael.core.digest import Digest, digest_bytes
from vitrael.core.errors import DataError, StorageError, VerificationError
from vitrael.core.geometry import centered_affine
from vitrael.core.protocols import COVARIATES
from vitrael.core.records import Samples
from vitrael.core.rng import stream
from vitrael.core.study import Study
from vitrael.core.version import package_version
from vitrael.privacy.audit.arm_counts import read_comparison
from vitrael.privacy.audit.pooling import conditioning_measurements, participation_measurement
from vitrael.privacy.audit.tallies import (
    TALLY_STAGES,
    check_certificate,
    check_planted,
    pool_tallies,
    tally_key,
)
from vitrael.privacy.evidence import Evidence
from vitrael.privacy.gates import POLICIES, Verdict, decide
from vitrael.privacy.leakage import split_plants
from vitrael.privacy.release import states
from vitrael.privacy.release.bundle import Contents, image_files, write_bundle
from vitrael.privacy.release.catalogue import publish
from vitrael.privacy.release.manifest import MANIFEST, SIGNED_AS_BYTES, Reference, parse_manifest
from vitrael.privacy.release.sign import add_signature
from vitrael.privacy.release.trust import Trust, save_trust, trust_roster
from vitrael.privacy.release.verify import check_signature, verify_release
from vitrael.server.studies.absences import find_barred, find_contributors
from vitrael.server.studies.correspondence import Answer, ask_sites, usable_tally
from vitrael.server.studies.participation import (
    find_judges,
    record_participation,
)
from vitrael.server.studies.reporting import render_bundle_report
from vitrael.server.studies.run import StageResult, StudyRun

_VENTRICLE = COVARIATES.index("ventricle_ml")


def audit_samples(
    run: StudyRun,
    *,
    codec: Digest,
    teacher: Digest,
    student: Digest,
    samples: Mapping[str, Any],
    screenings: Sequence[Mapping[str, Any]],
) -> dict[str, Any]:
    """Stage ``audit``: each site tallies the samples, and its own filter, on sealed patients.

    Codec and teacher go down once more: some planted copies are what they make of a scan.
    What the sites judge are the image files of the release themselves; they sign no others. The
    filter that they test is the one that voted in all rounds of ``screenings``.
    """
    asked = run.study.synthesis.audit
    planned = split_plants(asked.plants_per_class, len(run.study.roster.sites))

    def check(answer: Answer) -> None:
        usable_tally(answer)
        check_planted(answer.reply.body, planned=planned)
        counts: Mapping[str, Any] = answer.reply.body["counts"]  # type: ignore[assignment]
        if counts.get("copies.samples", samples["count"]) != samples["count"]:
            raise DataError(
                "the audit is of another number of samples than was sent",
                why=f"{samples['count']} were sent",
                fix="run the same package version everywhere",
            )
        site = answer.reply.site
        for screening in screenings:
            check_certificate(site, answer.reply.body, screening["sites"].get(site, {}))

    def work() -> StageResult:
        files = image_files(read_samples(run, student=student, samples=samples))
        attachments = {
            "released": {path: np.frombuffer(data, np.uint8) for path, data in files.items()},
            "codec": run.objects.get_tensors(codec),
            "denoiser": run.objects.get_tensors(teacher),
        }
        answers = ask_sites(run, "audit", attachments, check=check)
        document = {"sites": answers.bodies, "envelopes": answers.envelopes}
        return StageResult(document, answers.details, tuple(answers.by_site))

    weights = {"codec": codec, "teacher": teacher}
    inputs = {**weights, "samples": samples, "screenings": list(screenings)}
    return run.stage("audit", inputs, work)


def judge_release(
    run: StudyRun,
    *,
    samples: Mapping[str, Any],
    tallies: Mapping[str, Sequence[Mapping[str, Any]]],
    arms: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """Stage ``gates``: pool the tallies into Evidence and let the policy decide.

    ``tallies`` holds the documents of every round of ``TALLY_STAGES``, ``arms`` that of the
    comparison, whose measurements are told beside the others; no gate asks for them.

    A site of the roster that was absent from one of the stages counts as one that measured nothing,
    and whoever is in the model has to have judged what came of it.
    """
    protocol = run.study.synthesis
    contributors = sorted(find_contributors(run))
    judges = sorted(find_judges(run))

    def work() -> StageResult:
        tensors = run.objects.get_tensors(Digest(samples["samples"]))
        confidence = protocol.audit.confidence
        measured = {  # in the order of the roster, as the sites pool them again
            stage: [[one["sites"].get(site, {}) for site in run.members] for one in documents]
            for stage, documents in tallies.items()
        }
        drawn = Digest(samples["samples"])
        measurements = (
            participation_measurement(contributed=contributors, judged=judges),
            *pool_tallies(measured, confidence=confidence, samples=(drawn,)),
            *conditioning_measurements(
                tensors["covariate"][:, _VENTRICLE],
                tensors["ventricle_ml"],
                rng=stream(protocol.seed, "permuted conditions"),
                confidence=confidence,
                inputs=(drawn,),
            ),
            *(compared.measurements if (compared := read_comparison(arms)) else ()),
        )
        evidence = Evidence(protocol=protocol.digest, measurements=measurements)
        verdict = decide(evidence, POLICIES[protocol.policy])
        document = {
            "evidence": evidence.model_dump(mode="json"),
            "verdict": verdict.model_dump(mode="json"),
        }
        return StageResult(document, {"outcome": verdict.outcome, "reason": verdict.reason})

    inputs = {
        "tallies": {stage: list(documents) for stage, documents in tallies.items()},
        "samples": samples,
        "contributors": contributors,
        "judges": judges,
        "policy": POLICIES[protocol.policy].model_dump(mode="json"),
        **({"arms": dict(arms)} if arms else {}),
    }
    return run.stage("gates", inputs, work)


def assemble_bundle(
    run: StudyRun, *, student: Digest, samples: Mapping[str, Any], decision: Mapping[str, Any]
) -> dict[str, Any]:
    """Stage ``bundle``: write the release's folder, once; the sites are asked to sign it as it is.

    The report in it tells times, so that a second writing would be another release.
    """
    reference = _reference(run)

    def work() -> StageResult:
        folder = bundle_folder(run.home, reference)
        shutil.rmtree(folder, ignore_errors=True)  # of an attempt that did not finish
        manifest = write_bundle(_contents(run, reference, student, samples, decision), folder)
        return StageResult({"release": str(reference), "manifest": manifest.digest})

    return run.stage("bundle", {"samples": samples, "decision": decision}, work)


def sign_release(
    run: StudyRun,
    *,
    bundle: Mapping[str, Any],
    tallies: Mapping[str, Sequence[Mapping[str, Any]]],
) -> dict[str, Any]:
    """Stage ``signing``: have the sites sign the bundle's manifest; the document says who did.

    ``tallies`` holds the documents of every round of ``TALLY_STAGES``: each site pools the signed
    replies in them again. Raises StorageError when the bundle is no longer the one that was
    written, and QuorumError unless all sign that still take part; those who have are not asked to
    judge again. No other than a site that is not in the model can have left by now.
    """

    def work() -> StageResult:
        folder = bundle_folder(run.home, _reference(run))
        files = _read_signed_files(folder, manifest=bundle["manifest"])
        replies = {
            tally_key(stage, number, site): np.frombuffer(envelope.encode(), np.uint8)
            for stage in TALLY_STAGES
            for number, document in enumerate(tallies[stage])
            for site, envelope in document["envelopes"].items()
        }
        attachments = {"manifest": files, "tallies": replies}
        manifest = parse_manifest(files[MANIFEST].tobytes())

        def check(answer: Answer) -> None:
            signature = str(answer.reply.body["signature"]).encode()
            check_signature(signature, manifest, site=answer.reply.site, trust=release_trust(run))

        needed = len(run.members.keys() - find_barred(run, "signing").keys())
        answers = ask_sites(run, "signing", attachments, check=check, quorum=needed)
        for site, answer in answers.by_site.items():
            add_signature(folder, str(answer.reply.body["signature"]).encode(), site=site)
        document = {"manifest": bundle["manifest"], "signed_by": list(answers.by_site)}
        return StageResult(document, answers.details, tuple(answers.by_site))

    return run.stage("signing", {"bundle": bundle}, work)  # which follows from the tallies


def _read_signed_files(folder: Path, *, manifest: str) -> dict[str, np.ndarray]:
    try:
        files = {name: (folder / name).read_bytes() for name in SIGNED_AS_BYTES}
    except OSError:
        files = {}
    if not files or digest_bytes(files[MANIFEST]) != manifest:
        raise StorageError(
            "the release's bundle is not the one that was written",
            why="its folder below bundles/ is gone or was changed",
            fix="put it back as it was, or run the study in a fresh home",
        )
    return {name: np.frombuffer(data, np.uint8) for name, data in files.items()}


def publish_release(
    run: StudyRun, *, decision: Mapping[str, Any], signing: Mapping[str, Any]
) -> dict[str, Any]:
    """Stage ``publication``: verify as a researcher would, then put the bundle in the catalogue.

    The trust file says then who signed; the study's start wrote it for the whole roster. The next
    study's start replaces it: a copy stays for this release.
    """
    reference = _reference(run)

    def work() -> StageResult:
        folder = bundle_folder(run.home, reference)
        trust = release_trust(run, signing["signed_by"])
        verify_release(folder, trust)
        states.publish(_signed(run, reference, decision, signing))
        verified = publish(folder, run.home / "catalogue", trust=trust)
        if verified.manifest != signing["manifest"]:
            raise VerificationError(
                f"{reference} is not the release that was signed",
                why="its manifest differs",
                fix="resume the study in a fresh home",
            )
        return StageResult({"release": str(reference), "manifest": verified.manifest})

    published = run.stage("publication", {"signing": signing}, work)
    trust = release_trust(run, signing["signed_by"])
    for name in ("trust.json", f"trust/{reference.name}-{reference.version}.json"):
        save_trust(trust, run.home / name)
    return published


def _signed(
    run: StudyRun, reference: Reference, decision: Mapping[str, Any], signing: Mapping[str, Any]
) -> states.Release:
    """Return the release after its steps so far; raise when one of them was not its due."""
    manifest = Digest(signing["manifest"])
    release = states.propose(reference, POLICIES[run.study.synthesis.policy])
    verdict = Verdict.model_validate(decision["verdict"])
    release = states.gate(release, verdict, manifest=manifest)
    threshold = release_trust(run, signing["signed_by"]).threshold
    for site in signing["signed_by"]:
        release = states.sign(release, site=site, manifest=manifest, threshold=threshold)
    return release


def release_trust(run: StudyRun, signed_by: Sequence[str] | None = None) -> Trust:
    """Return whom a researcher must trust: all who signed, or else the whole roster.

    Raises VerificationError when a site whose patients are in the model is not among them.
    """
    signers = run.members if signed_by is None else {s: run.members[s] for s in signed_by}
    if missing := sorted(find_contributors(run) - signers.keys()):
        raise VerificationError(
            f"the signature of {missing[0]} is missing",
            why="its patients are in the model",
            fix="have it sign: start the study again",
        )
    return trust_roster(signers, coordinator=run.keys.public, threshold=len(signers))


def _reference(run: StudyRun) -> Reference:
    """Return the one release that a protocol can have."""
    return Reference(name=run.study.protocol.name, version=run.study.protocol.version)


def bundle_folder(home: Path, reference: Reference) -> Path:
    """Return where the coordinator keeps a bundle before it is published."""
    return home / "bundles" / reference.name / str(reference.version)


def read_samples(run: StudyRun, *, student: Digest, samples: Mapping[str, Any]) -> SyntheticSet:
    """Return the synthetic set of the ``synthesis`` stage with its provenance."""
    tensors = run.objects.get_tensors(Digest(samples["samples"]))
    data = run.study.synthesis.data
    affine = centered_affine(data.grid_vox, spacing=data.spacing_mm)
    return synthetic_set(
        Samples(tensors["image"], tensors["condition"], affine),
        seed=int(samples["seed"]),
        generator=student,
        data=data,
        measured={name: tensors[name] for name in ("ventricle_ml", "brain_ml")},
        index_B=tensors["index"],
    )


def _contents(
    run: StudyRun,
    reference: Reference,
    student: Digest,
    samples: Mapping[str, Any],
    decision: Mapping[str, Any],
) -> Contents:
    return Contents(
        reference=reference,
        samples=read_samples(run, student=student, samples=samples),
        study=run.study,
        study_toml=(run.home / "study.toml").read_bytes(),
        roster=run.roster,
        evidence=Evidence.model_validate(decision["evidence"]),
        verdict=Verdict.model_validate(decision["verdict"]),
        participation=record_participation(run),
        code_version=package_version(),
        released=run.clock().date(),
        report_html=render_bundle_report(run, samples=samples, decision=decision),
    )


def is_rehearsal(study: Study) -> bool:
    """Return whether nothing of this study may be published, whatever its gates say."""
    return not POLICIES[study.synthesis.policy].publishable
