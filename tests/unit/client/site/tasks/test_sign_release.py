"""A site signs what it has judged itself and nothing else."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from tests.factories.certificates import make_certificate
from vitrael.client.site.tasks.sign_release import AUDITED
from vitrael.core.digest import canonical_json, digest_bytes
from vitrael.core.messages import Reply, StageName
from vitrael.core.metrics.intervals import Estimate
from vitrael.core.study import Study
from vitrael.privacy.audit.closeness import Closeness
from vitrael.privacy.audit.copies import Copies
from vitrael.privacy.audit.membership import Membership
from vitrael.privacy.audit.parts import write_audit
from vitrael.privacy.audit.power import Tally
from vitrael.privacy.audit.tallies import TALLY_STAGES, pool_tallies
from vitrael.privacy.envelope import sign_reply
from vitrael.privacy.evidence import Evidence, Measurement
from vitrael.privacy.gates import POLICIES, Verdict, decide
from vitrael.privacy.keys import KeyPair, roster_digest
from vitrael.privacy.release.manifest import SIGNED_AS_BYTES, FileEntry, Manifest, parse_manifest
from vitrael.privacy.release.statement import RELEASE_TYPE, open_statement

if TYPE_CHECKING:
    from tests.unit.client.site.conftest import Home

Files = dict[str, bytes]
Replies = dict[tuple[StageName, str], Reply]
OTHER = digest_bytes(b"another")
FROZEN = digest_bytes(b"an operating point")
ONE_ROUND = {"screening": 1, "rescreening": 1}
IMAGE = "sub-syn0001/anat/sub-syn0001_T1w.nii.gz"


def good_tallies(home: Home) -> Replies:
    """Return every site's reply to each stage that is measured, as good as they can be."""
    sure = Estimate(0.5, 1e-4)
    audit_body = write_audit(
        certificate=make_certificate(20, 20),
        plants_absent=400,
        fresh=Tally(2_000, 0),
        copies=Copies(3_000, 0, 0, 1.0, 1_000, 1_000),
        closeness=Closeness(0.5, 1e-4, 2_000),
        membership=Membership(sure, sure, Estimate(0.99, 1e-4), 2_000, 2_000),
    )
    bodies: dict[str, dict[str, Any]] = {
        "calibration": {
            "estimable": True,
            "metrics": {"verification.wins": 999.0},
            "counts": {"verification.patients": 1_000},
        },
        "screening": {"estimable": True, "metrics": {}, "counts": {"candidates": 8}},
        "rescreening": {"estimable": True, "metrics": {}, "counts": {"candidates": 8}},
        "audit": audit_body,
    }
    return {
        (stage, site): make_reply(home, stage, site, {**bodies[stage], "commitment": FROZEN})
        for stage in TALLY_STAGES
        for site in home.members
    }


def make_reply(
    home: Home, stage: StageName, site: str, body: dict[str, Any], *, number: int = 0
) -> Reply:
    task = home.task({}, site=site, stage=stage)
    return Reply(
        protocol=task.protocol,
        roster=task.roster,
        site=site,
        stage=stage,
        round=number,
        nonce=task.nonce,
        status="done",
        body=body,
    )


def good_evidence(home: Home) -> Evidence:
    """Return what opens every gate of the study's policy: of the scans, what the sites told."""
    told = {
        stage: [[r.body for (of, _), r in good_tallies(home).items() if of == stage]]
        for stage in TALLY_STAGES
    }
    measured = pool_tallies(told)
    values: dict[str, float] = {}
    for gate in POLICIES[home.study.protocol.policy].gates:
        at_least = gate.bound.endswith("at_least")
        asked = values.get(gate.measurement, gate.threshold)
        values[gate.measurement] = max(asked, gate.threshold) if at_least else asked
    coordinators = tuple(
        Measurement(name=name, value=v, low=v, high=v, n=10**6, confidence=0.99, method="made up")
        for name, v in values.items()
        if name not in {measurement.name for measurement in measured}
    )
    return Evidence(protocol=home.study.protocol.digest, measurements=(*coordinators, *measured))


def verdict_of(evidence: Evidence, study: Study) -> Verdict:
    return decide(evidence, POLICIES[study.protocol.policy])


def release(
    home: Home,
    *,
    evidence: Evidence | None = None,
    verdict: Verdict | None = None,
    study_toml: bytes | None = None,
    **changes: object,
) -> Files:
    evidence = evidence or good_evidence(home)
    verdict = verdict or verdict_of(evidence, home.study)
    if study_toml is None:
        study_toml = (home.path.parent / "study.toml").read_bytes()
    files = {
        "study.toml": study_toml,
        "evidence.json": canonical_json(evidence.model_dump(mode="json")),
        "verdict.json": canonical_json(verdict.model_dump(mode="json")),
    }
    entries = {n: FileEntry(digest=digest_bytes(d), size_bytes=len(d)) for n, d in files.items()}
    other = FileEntry(digest=OTHER, size_bytes=1)
    fields: dict[str, object] = {
        "name": home.study.protocol.name,
        "version": 1,
        "protocol": home.study.protocol.digest,
        "roster": roster_digest({name: keys.public for name, keys in home.members.items()}),
        "policy": home.study.protocol.policy,
        "publishable": verdict.publishable,
        "files": {**entries, IMAGE: other},
        **changes,
    }
    return {"manifest.json": Manifest.model_validate(fields).to_bytes(), **files}


def audit(home: Home, *digests: str, kept: tuple[str, ...], voted: Mapping[str, int]) -> None:
    """Put down what the audit of this study was shown, and what this site voted on and kept."""
    roster = roster_digest({name: keys.public for name, keys in home.members.items()})
    folder = home.settings.records_of(protocol=home.study.protocol.digest, roster=roster)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / AUDITED).write_text(json.dumps(sorted(digests)))
    (folder / "voted").mkdir(exist_ok=True)
    for stage, rounds in voted.items():
        for number in range(rounds):
            (folder / "voted" / f"{stage}-{number}.json").write_text(json.dumps(kept))


def ask(
    home: Home,
    files: Files,
    *,
    audited: tuple[str, ...] = (OTHER,),
    kept: tuple[str, ...] = (OTHER,),
    voted: Mapping[str, int] = ONE_ROUND,
    replies: Replies | None = None,
    more: tuple[Reply, ...] = (),
    signers: dict[str, KeyPair] | None = None,
) -> Reply:
    home.consent()
    audit(home, *audited, kept=kept, voted=voted)
    signers = signers or home.members
    tallies = {
        f"{stage}/0/{site}": sign_reply(reply, signers[site])
        for (stage, site), reply in (good_tallies(home) if replies is None else replies).items()
    }
    for reply in more:
        key = f"{reply.stage}/{reply.round}/{reply.site}"
        tallies[key] = sign_reply(reply, signers[reply.site])
    attachments = {
        "manifest": {name: np.frombuffer(data, np.uint8) for name, data in files.items()},
        "tallies": {name: np.frombuffer(data, np.uint8) for name, data in tallies.items()},
    }
    parcel = home.parcel(home.task(attachments, stage="signing"), attachments)
    return home.open(home.steward().answer(parcel))[0]


def test_passing_release_is_signed_with_the_sites_key(home: Home) -> None:
    files = release(home)
    reply = ask(home, files)
    assert (reply.status, reply.reason) == ("done", "")
    statement = open_statement(
        str(reply.body["signature"]).encode(),
        public=home.keys.public.signing,
        kind=RELEASE_TYPE,
        label="the signature",
    )
    assert statement.digest == digest_bytes(files["manifest.json"])
    assert statement.predicate["site"] == "north"


def refused_by_a_gate(home: Home) -> Files:
    good = good_evidence(home)
    return release(home, evidence=good.model_copy(update={"measurements": good.measurements[1:]}))


def verdict_made_up(home: Home) -> Files:
    good = good_evidence(home)
    bad = good.model_copy(update={"measurements": good.measurements[1:]})
    return release(home, evidence=bad, verdict=verdict_of(good, home.study))


def called_publishable(home: Home) -> Files:
    return release(home, publishable=True)


def evidence_exchanged(home: Home) -> Files:
    good = good_evidence(home)
    other = good.model_copy(update={"measurements": good.measurements[::-1]})
    return {**release(home), "evidence.json": release(home, evidence=other)["evidence.json"]}


def evidence_of_another_protocol(home: Home) -> Files:
    return release(home, evidence=good_evidence(home).model_copy(update={"protocol": OTHER}))


def other_protocol(home: Home) -> Files:
    return release(home, protocol=OTHER)


def other_roster(home: Home) -> Files:
    return release(home, roster=OTHER)


def other_policy(home: Home) -> Files:
    return release(home, policy="public")


def other_name(home: Home) -> Files:
    return release(home, name="brain-other")


def other_version(home: Home) -> Files:
    return release(home, version=2)


def study_of_another_protocol(home: Home) -> Files:
    text = (home.path.parent / "study.toml").read_text()
    assert "released = 1" in text
    return release(home, study_toml=text.replace("released = 1", "released = 2").encode())


def study_that_is_none(home: Home) -> Files:
    return release(home, study_toml=b"[protocol]")


def no_manifest(home: Home) -> Files:
    return {**release(home), "manifest.json": b"{}"}


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (refused_by_a_gate, "refused release is not signed"),
        (verdict_made_up, "not what the gates say"),
        (called_publishable, "not what the gates say"),
        (evidence_exchanged, r"evidence\.json is not the file"),
        (evidence_of_another_protocol, "evidence is of another protocol"),
        (other_protocol, "another protocol than"),
        (other_roster, "another roster than"),
        (other_policy, "another policy than"),
        (other_name, "another release than"),
        (other_version, "another release than"),
        (study_of_another_protocol, r"study\.toml says another protocol"),
        (study_that_is_none, r"study\.toml is no study"),
        (no_manifest, "not well formed"),
    ],
)
def test_anything_else_is_refused_unsigned(
    home: Home, make: Callable[[Home], Files], said: str
) -> None:
    reply = ask(home, make(home))
    assert (reply.status, reply.body) == ("refused", {})
    assert re.search(said, reply.reason)


@pytest.mark.parametrize("audited", [(), (digest_bytes(b"other images"),), (OTHER, OTHER)])
def test_images_that_this_site_has_not_audited_are_not_signed(
    home: Home, audited: tuple[str, ...]
) -> None:
    reply = ask(home, release(home), audited=audited)
    assert (reply.status, reply.body) == ("refused", {})
    assert "has not audited" in reply.reason


@pytest.mark.parametrize("kept", [(), (digest_bytes(b"other images"),)])
def test_images_that_this_site_has_not_kept_are_not_signed(
    home: Home, kept: tuple[str, ...]
) -> None:
    reply = ask(home, release(home), kept=kept)
    assert (reply.status, reply.body) == ("refused", {})
    assert "has not kept: 1 of 1" in reply.reason


@pytest.mark.parametrize(
    "path",
    [
        "sub-syn0001/anat/sub-syn0001_REAL.NII.GZ",
        "sub-syn0001/anat/real.nii.gz",
        "more/real.nii",
        "notes.txt",
    ],
)
def test_file_that_no_release_holds_is_not_signed(home: Home, path: str) -> None:
    entry = FileEntry(digest=OTHER, size_bytes=1)
    manifest = parse_manifest(release(home)["manifest.json"])
    reply = ask(home, release(home, files={**manifest.files, path: entry}))
    assert (reply.status, reply.body) == ("refused", {})
    assert "a file that no release holds" in reply.reason


def test_task_without_the_files_fails(home: Home) -> None:
    files = release(home)
    del files["verdict.json"]
    reply = ask(home, files)
    assert reply.status == "failed"
    assert ", ".join(SIGNED_AS_BYTES) in reply.reason
