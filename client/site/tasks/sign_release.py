"""The last stage: a site signs a release whose verdict it has recomputed itself.

The attachment ``manifest`` holds the bytes of four files of the release, each a uint8 array under
its file name: ``manifest.json``, ``study.toml``, ``evidence.json`` and ``verdict.json``. The
attachment ``tallies`` holds every site's signed reply to calibration, each round of both
screenings, and audit, each under ``STAGE/ROUND/SITE``.
"""

from __future__ import annotations

import json
from collections.abc import Mapping

from pydantic import ValidationError

from vitrael.client.site.tasks import SiteContext, TaskResult
from vitrael.client.site.tasks.screen import read_kept, rounds_voted
from vitrael.core.digest import digest_bytes
from vitrael.core.errors import DataError, StudyError, VerificationError
from vitrael.core.messages import Task
from vitrael.core.protocols import SynthesisProtocol
from vitrael.core.study import parse_study
from vitrael.core.weights import Tensors
from vitrael.privacy.audit.arm_counts import NAMES as ARM_MEASUREMENTS
from vitrael.privacy.audit.tallies import (
    check_evidence,
    check_planted,
    open_tallies,
    pool_tallies,
)
from vitrael.privacy.evidence import Evidence
from vitrael.privacy.gates import POLICIES, Verdict, decide
from vitrael.privacy.leakage import split_plants
from vitrael.privacy.release.manifest import (
    DOCUMENTS,
    MANIFEST,
    REQUIRED,
    SIGNED_AS_BYTES,
    Manifest,
    Reference,
    is_image_path,
    parse_manifest,
)
from vitrael.privacy.release.sign import sign_manifest

ATTACHMENT = "manifest"
TALLIES = "tallies"

AUDITED = "audited.json"
"""Where ``tasks.audit`` keeps the digests of what it judged."""
_FIX = "ask the coordinator which release this is; nothing was signed"


def run(task: Task, inputs: Mapping[str, Tensors], context: SiteContext) -> TaskResult:
    """Return this site's signature on the manifest.

    Raises VerificationError, and signs nothing, when the manifest is of another release, protocol,
    roster or policy than the study's, names image files that this site has not audited or has not
    voted to keep, or files that no release holds, when study, evidence or verdict are not the files
    that it names, when the study's document says another protocol, when the evidence is not what
    the sites' signed tallies give, when the verdict is not what the study's gates say of the
    evidence, or when it refuses.
    """
    files = _read_files(inputs.get(ATTACHMENT, {}))
    if set(files) != set(SIGNED_AS_BYTES):
        raise DataError(
            "the task does not bring what is to be signed",
            why=f"its attachment must hold the bytes of {', '.join(SIGNED_AS_BYTES)}",
        )
    manifest = parse_manifest(files[MANIFEST])
    _check_belongs(manifest, task, context.study.synthesis)
    _check_audited(manifest, context)
    for name in REQUIRED:
        if digest_bytes(files[name]) != manifest.files[name].digest:
            raise VerificationError(
                f"{name} is not the file that the manifest names", why="digests differ", fix=_FIX
            )
    _check_study(files["study.toml"], manifest)
    evidence = _check_verdict(files, manifest, task)
    _check_measured(evidence, _read_files(inputs.get(TALLIES, {})), context)
    signature = sign_manifest(files[MANIFEST], context.keys.signing, site=context.name)
    return TaskResult(body={"signature": signature.decode()})


def _read_files(arrays: Tensors) -> dict[str, bytes]:
    """Return the bytes of each array; those that are not uint8 are none."""
    return {name: a.tobytes() for name, a in arrays.items() if str(a.dtype) == "uint8"}


def _check_belongs(manifest: Manifest, task: Task, agreed_to: SynthesisProtocol) -> None:
    own = Reference(agreed_to.name, agreed_to.version)
    pairs = (
        ("release", str(manifest.reference), str(own)),
        ("protocol", manifest.protocol, task.protocol),
        ("roster", manifest.roster, task.roster),
        ("policy", manifest.policy, agreed_to.policy),
    )
    for name, said, agreed in pairs:
        if said != agreed:
            raise VerificationError(
                f"the manifest names another {name} than this site consented to",
                why=f"{said} instead of {agreed}",
                fix=_FIX,
            )


def _check_audited(manifest: Manifest, context: SiteContext) -> None:
    strange = sorted(n for n in manifest.files if n not in DOCUMENTS and not is_image_path(n))
    if strange:
        raise VerificationError(
            "the manifest names a file that no release holds",
            why=f"{ascii(strange[0])[1:80]} is neither an image nor one of the documents",
            fix=_FIX,
        )
    named = sorted(e.digest for name, e in manifest.files.items() if is_image_path(name))
    try:
        audited = json.loads((context.records / AUDITED).read_bytes())
    except (OSError, ValueError):
        audited = []
    if not named or named != audited:
        raise VerificationError(
            "the manifest names images that this site has not audited",
            why="their files differ from those of the audit",
            fix=_FIX,
        )
    if dropped := set(named) - read_kept(context):
        raise VerificationError(
            "the manifest names images that this site has not kept",
            why=f"{len(dropped)} of {len(named)} were not screened here, or were dropped",
            fix=_FIX,
        )


def _check_study(data: bytes, manifest: Manifest) -> None:
    try:
        study = parse_study(data, label="study.toml")
    except StudyError as error:
        raise VerificationError(
            "the release's study.toml is no study", why="it cannot be read", fix=_FIX
        ) from error
    if study.protocol.digest != manifest.protocol:
        raise VerificationError(
            "the release's study.toml says another protocol than its manifest",
            why=f"{study.protocol.digest} instead of {manifest.protocol}",
            fix=_FIX,
        )


def _check_verdict(files: Mapping[str, bytes], manifest: Manifest, task: Task) -> Evidence:
    try:
        evidence = Evidence.model_validate_json(files["evidence.json"])
        claimed = Verdict.model_validate_json(files["verdict.json"])
    except ValidationError as error:
        raise VerificationError(
            "evidence or verdict are not well formed", why="fields are wrong", fix=_FIX
        ) from error
    if evidence.protocol != task.protocol:
        raise VerificationError("the evidence is of another protocol", fix=_FIX)
    verdict = decide(evidence, POLICIES[manifest.policy])
    if claimed != verdict or manifest.publishable != verdict.publishable:
        raise VerificationError(
            "the verdict is not what the gates say of the evidence",
            why="this site judged the evidence itself",
            fix=_FIX,
        )
    if not verdict.passed:
        raise VerificationError(
            "a refused release is not signed", why=verdict.reason, fix="publish nothing"
        )
    return evidence


def _check_measured(evidence: Evidence, replies: Mapping[str, bytes], context: SiteContext) -> None:
    """Raise VerificationError unless the signed tallies of all sites give this evidence.

    The members' keys are those of the consent: roster.json may lack who has left since.
    Its own replies are among them: a site gives one answer a round, so what bears its signature is
    what it told.
    """
    protocol = context.study.synthesis
    voted = rounds_voted(context)
    tallies = open_tallies(replies, context.members, protocol=protocol.digest, voted=voted)
    planned = split_plants(protocol.audit.plants_per_class, len(context.study.roster.sites))
    for audit in tallies["audit"][0]:
        check_planted(audit, planned=planned)
    check_evidence(evidence, pool_tallies(tallies, confidence=protocol.audit.confidence))
    if not protocol.distillation.compare and any(evidence.find(name) for name in ARM_MEASUREMENTS):
        raise VerificationError(
            "the evidence tells of three arms", why="this study compares none", fix=_FIX
        )
