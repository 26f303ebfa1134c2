"""A site signs what it has judged itself and nothing else."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from typing import TYPE_CHECKING

import numpy as np
import pytest

from vitrael.client.site.tasks.sign_release import AUDITED, FILES
from vitrael.core.digest import canonical_json, digest_bytes
from vitrael.core.study import Study
from vitrael.privacy.evidence import Evidence, Measurement
from vitrael.privacy.gates import POLICIES, Verdict, decide
from vitrael.privacy.keys import roster_digest
from vitrael.privacy.release.manifest import FileEntry, Manifest
from vitrael.privacy.release.statement import RELEASE_TYPE, open_statement

if TYPE_CHECKING:
    from tests.unit.client.site.conftest import Home
    from vitrael.core.messages import Reply

Files = dict[str, bytes]
OTHER = digest_bytes(b"another")
IMAGE = "sub-syn0001/anat/sub-syn0001_T1w.nii.gz"


def good_evidence(study: Study) -> Evidence:
    """Return what opens every gate of the study's policy."""
    values: dict[str, float] = {}
    for gate in POLICIES[study.protocol.policy].gates:
        at_least = gate.bound.endswith("at_least")
        asked = values.get(gate.measurement, gate.threshold)
        values[gate.measurement] = max(asked, gate.threshold) if at_least else asked
    measurements = tuple(
        Measurement(name=name, value=v, low=v, high=v, n=10**6, confidence=0.99, method="made up")
        for name, v in values.items()
    )
    return Evidence(protocol=study.protocol.digest, measurements=measurements)


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
    evidence = evidence or good_evidence(home.study)
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


def audit(home: Home, *digests: str) -> None:
    """Put down what the audit of this study was shown."""
    folder = home.settings.cache / home.study.protocol.digest.removeprefix("sha256:")[:16]
    folder.mkdir(parents=True, exist_ok=True)
    (folder / AUDITED).write_text(json.dumps(sorted(digests)))


def ask(home: Home, files: Files, *, audited: tuple[str, ...] = (OTHER,)) -> Reply:
    home.consent()
    audit(home, *audited)
    arrays = {name: np.frombuffer(data, np.uint8) for name, data in files.items()}
    attachments = {"manifest": arrays}
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
    good = good_evidence(home.study)
    return release(home, evidence=good.model_copy(update={"measurements": good.measurements[1:]}))


def verdict_made_up(home: Home) -> Files:
    good = good_evidence(home.study)
    bad = good.model_copy(update={"measurements": good.measurements[1:]})
    return release(home, evidence=bad, verdict=verdict_of(good, home.study))


def called_publishable(home: Home) -> Files:
    return release(home, publishable=True)


def evidence_exchanged(home: Home) -> Files:
    good = good_evidence(home.study)
    other = good.model_copy(update={"measurements": good.measurements[::-1]})
    return {**release(home), "evidence.json": release(home, evidence=other)["evidence.json"]}


def evidence_of_another_protocol(home: Home) -> Files:
    return release(home, evidence=good_evidence(home.study).model_copy(update={"protocol": OTHER}))


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


def test_task_without_the_files_fails(home: Home) -> None:
    files = release(home)
    del files["verdict.json"]
    reply = ask(home, files)
    assert reply.status == "failed"
    assert ", ".join(FILES) in reply.reason
