"""A release is what every site signed and a researcher can verify; anything else is none."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.factories.federation import SITES, Interruption, federation
from tests.unit.server.studies.conftest import Ended, lenient
from tests.unit.server.studies.test_federated import answer_with
from vitrael.core.digest import Digest, digest_bytes, digest_file
from vitrael.core.errors import EXIT_PARTIAL, QuorumError, StorageError, VerificationError
from vitrael.core.messages import Parcel, Task
from vitrael.privacy.audit.tallies import TALLY_STAGES
from vitrael.privacy.release.trust import load_trust
from vitrael.privacy.release.verify import verify_release
from vitrael.server.config import load_server
from vitrael.server.sites.registry import Registry
from vitrael.server.studies.pipeline import run_study
from vitrael.server.studies.releasing import (
    assemble_bundle,
    audit_samples,
    is_rehearsal,
    judge_release,
    publish_release,
    read_samples,
    release_trust,
    sign_release,
)

pytestmark = [
    pytest.mark.federation,  # whole studies
]

Documents = Callable[[Path], dict[str, Any]]


def tallies(found: dict[str, Any]) -> dict[str, list[Any]]:
    """Return the documents whose signed replies the sites pool again, round by round."""
    return {
        stage: [document for name, document in found.items() if name.split()[0] == stage]
        for stage in TALLY_STAGES
    }


def screenings(found: dict[str, Any]) -> list[Any]:
    told = tallies(found)
    return [*told["screening"], *told["rescreening"]]


PUBLISHED = Path("catalogue") / "tiny" / "1"


def test_published_release_verifies_with_the_trust_of_the_enrolment(finished_home: Path) -> None:
    trust = load_trust(finished_home / "trust.json")
    assert load_trust(finished_home / "trust" / "tiny-1.json") == trust  # which no later study ends
    assert trust.threshold == len(SITES)
    verified = verify_release(finished_home / PUBLISHED, trust)
    assert (verified.name, verified.version) == ("tiny", 1)
    evidence = finished_home / PUBLISHED / "evidence.json"
    evidence.chmod(0o644)
    evidence.write_bytes(evidence.read_bytes() + b" ")
    with pytest.raises(VerificationError):  # the control
        verify_release(finished_home / PUBLISHED, trust)


def test_every_site_of_the_roster_has_to_sign(finished: Ended, documents: Documents) -> None:
    found = documents(finished.home)
    assert found["signing 1"]["signed_by"] == list(SITES)
    names = {path.name for path in (finished.home / PUBLISHED / "signatures").iterdir()}
    assert names == {f"{site}.dsse.json" for site in SITES}
    manifest = finished.home / PUBLISHED / "manifest.json"
    assert digest_file(manifest) == found["signing 1"]["manifest"]
    assert found["publication 1"]["manifest"] == found["signing 1"]["manifest"]


def test_study_killed_while_it_signs_goes_on_with_the_same_release(
    unsigned_home: Path, documents: Documents
) -> None:
    bundle = documents(unsigned_home)["bundle 1"]
    with lenient(), federation(unsigned_home) as told:
        assert run_study(unsigned_home, told.exchange) == 0
        assert {task.stage for task in told.seen} == {"signing"}
    found = documents(unsigned_home)
    assert found["bundle 1"] == bundle
    assert found["publication 1"]["manifest"] == bundle["manifest"]


def test_site_signs_one_release_of_a_protocol(unsigned_home: Path, documents: Documents) -> None:
    found = documents(unsigned_home)
    with lenient(), federation(unsigned_home) as told:
        run = told.run()
        shutil.rmtree(unsigned_home / "bundles")
        other = assemble_bundle(
            run,
            student=Digest(found["student 1"]["denoiser"]),
            samples={**found["synthesis 1"], "again": True},
            decision=found["gates 1"],
        )
        assert other["manifest"] != found["bundle 1"]["manifest"]  # its report tells other times
        told.spoil["harbour"] = lambda *_: "the line is cut"
        told.spoil["valley"] = lambda *_: "the line is cut"
        with pytest.raises(QuorumError, match="answered already for other inputs"):
            sign_release(run, bundle=other, tallies=tallies(found))


def test_release_that_a_site_did_not_sign_waits_for_it(
    unsigned_home: Path, documents: Documents
) -> None:
    with lenient(), federation(unsigned_home) as told:
        told.spoil["valley"] = lambda *_: "the line is cut"
        with pytest.raises(QuorumError, match="valley: the line is cut"):
            run_study(unsigned_home, told.exchange)
        assert not (unsigned_home / "catalogue").exists()
        del told.spoil["valley"]
        assert run_study(unsigned_home, told.exchange) == 0
    assert documents(unsigned_home)["signing 1"]["signed_by"] == list(SITES)


@pytest.mark.parametrize("body", [{}, {"signature": "{}"}])
def test_signature_that_does_not_hold_is_not_kept(
    body: dict[str, Any], unsigned_home: Path
) -> None:
    with lenient(), federation(unsigned_home) as told:
        answer_with(told, "valley", {}, body=body)
        with pytest.raises(QuorumError, match="valley"):
            run_study(unsigned_home, told.exchange)
        del told.spoil["valley"]
        assert run_study(unsigned_home, told.exchange) == 0


def test_release_with_a_signature_too_few_is_not_published(
    finished_home: Path, documents: Documents
) -> None:
    found = documents(finished_home)
    signature = finished_home / "bundles" / "tiny" / "1" / "signatures" / "valley.dsse.json"
    signature.unlink()
    signing = {**found["signing 1"], "signed_by": ["north", "harbour"]}
    with (
        lenient(),
        federation(finished_home) as told,
        pytest.raises(VerificationError, match="valley is missing"),
    ):
        publish_release(told.run(), decision=found["gates 1"], signing=signing)


def test_member_outside_the_model_that_left_blocks_no_release(home: Path) -> None:
    with lenient(), federation(home) as told:

        def miss_rounds(task: Task, parcel: Parcel) -> Parcel | str:
            return "the line is cut" if task.stage in {"codec", "latents", "teacher"} else parcel

        told.spoil["valley"] = miss_rounds
        told.interrupt = ("signing", 0, "north")
        with pytest.raises(Interruption):
            run_study(home, told.exchange)
        told.interrupt = None
        with Registry(load_server(home)) as registry:
            registry.revoke("valley", reason="stolen server")
        assert run_study(home, told.exchange) == EXIT_PARTIAL
        trust = load_trust(home / "trust.json")
        assert (set(trust.keys), trust.threshold) == ({"north", "harbour"}, 2)
        assert verify_release(home / PUBLISHED, trust).signed_by == ("harbour", "north")
        with pytest.raises(VerificationError, match="signature of harbour is missing"):
            release_trust(told.run(), ["north", "valley"])  # the control: harbour is in the model


@pytest.mark.parametrize("change", ["gone", "changed"])
def test_changed_bundle_is_not_shown_to_the_sites(
    change: str, unsigned_home: Path, documents: Documents
) -> None:
    found = documents(unsigned_home)
    folder = unsigned_home / "bundles" / "tiny" / "1"
    if change == "gone":
        shutil.rmtree(folder)
    else:
        manifest = folder / "manifest.json"
        manifest.write_bytes(manifest.read_bytes() + b" ")
    with (
        lenient(),
        federation(unsigned_home) as told,
        pytest.raises(StorageError, match="not the one that was written"),
    ):
        sign_release(told.run(), bundle=found["bundle 1"], tallies=tallies(found))
    assert told.seen == []


def test_sites_refuse_to_sign_what_their_own_gates_refuse(
    unsigned_home: Path, documents: Documents
) -> None:
    found = documents(unsigned_home)
    with federation(unsigned_home) as told:  # under the real policy
        told.spoil["north"] = lambda *_: "the line is cut"  # it has signed before the kill
        with pytest.raises(QuorumError, match="not what the gates say") as caught:
            sign_release(told.run(), bundle=found["bundle 1"], tallies=tallies(found))
    assert all(f"{site}: refused" in caught.value.why for site in SITES[1:])


@pytest.mark.parametrize("commitment", [None, "", digest_bytes(b"another filter")])
def test_audit_of_another_filter_than_voted_is_left_out_by_name(
    commitment: str | None, finished_home: Path, documents: Documents
) -> None:
    found = documents(finished_home)
    body = dict(found["audit 1"]["sites"]["valley"])
    if commitment is not None:
        assert body["commitment"] != commitment
        body["commitment"] = commitment
    with federation(finished_home) as told:
        answer_with(told, "valley", {}, body=body)
        run = told.run()
        audited = audit_samples(
            run,
            codec=Digest(found["latents 1"]["codec"]),
            student=Digest(found["student 1"]["denoiser"]),
            samples=found["synthesis 1"],
            teacher=Digest(found["teacher 2"]["denoiser"]),
            screenings=[{**one, "again": True} for one in screenings(found)],
        )
    left_out = [site for site in SITES if site not in audited["sites"]]
    assert left_out == ([] if commitment is None else ["valley"])


def test_evidence_does_not_depend_on_the_order_of_the_sites(
    finished_home: Path, documents: Documents
) -> None:
    found = documents(finished_home)

    def turned(document: dict[str, Any]) -> dict[str, Any]:
        return {**document, "sites": dict(reversed(document["sites"].items())), "again": True}

    with lenient(), federation(finished_home) as told:
        judged = judge_release(
            told.run(),
            samples=found["synthesis 1"],
            tallies={s: [turned(one) for one in told] for s, told in tallies(found).items()},
        )
    assert judged["evidence"] == found["gates 1"]["evidence"]


@pytest.mark.parametrize(
    "stage", ["calibration 1", "screening 1", "screening 2", "rescreening 1", "audit 1"]
)
def test_what_an_absent_site_could_not_look_at_nobody_has_looked_at(
    stage: str, finished_home: Path, documents: Documents
) -> None:
    found = documents(finished_home)
    present = {site: told for site, told in found[stage]["sites"].items() if site != "valley"}
    found[stage] = {**found[stage], "sites": present}
    with lenient(), federation(finished_home) as told:
        judged = judge_release(
            told.run(),
            samples=found["synthesis 1"],
            tallies=tallies(found),
        )
    values = {m["name"]: m["value"] for m in judged["evidence"]["measurements"]}
    beginnings = {
        "calibration 1": ("filter.verification_auc",),
        "screening 1": (),
        "screening 2": (),
        "rescreening 1": (),
        "audit 1": ("filter.power", "filter.false", "copies", "closeness", "membership"),
    }[stage]
    theirs = [name for name in values if beginnings and name.startswith(beginnings)]
    assert [values[name] for name in theirs] == [None] * len(theirs)
    shown = {"screening 1": 16, "screening 2": 3, "rescreening 1": 8}.get(stage, 0)
    assert values["screening.done"] == pytest.approx(1 - shown / 30)  # of 19 and 11


def test_other_manifest_than_the_signed_one_is_not_published(
    finished_home: Path, documents: Documents
) -> None:
    found = documents(finished_home)
    signing = {"manifest": digest_bytes(b"another"), "signed_by": list(SITES)}
    with (
        lenient(),
        federation(finished_home) as told,
        pytest.raises(VerificationError, match="not the release that was signed"),
    ):
        publish_release(told.run(), decision=found["gates 1"], signing=signing)


def test_evidence_counts_every_site_in_the_model(finished: Ended, documents: Documents) -> None:
    told = documents(finished.home)["gates 1"]["evidence"]["measurements"]
    by_name = {measurement["name"]: measurement for measurement in told}
    assert by_name["participation.complete"]["n"] == len(SITES)
    assert by_name["participation.complete"]["value"] == 1
    assert by_name["screening.done"]["n"] == 30  # 19 candidates and 11 samples


def test_released_samples_carry_their_provenance(finished: Ended, documents: Documents) -> None:
    found = documents(finished.home)
    student = Digest(found["student 1"]["denoiser"])
    with federation(finished.home) as told:
        run = told.run()
        samples = read_samples(run, student=student, samples=found["synthesis 1"])
        assert release_trust(run) == load_trust(finished.home / "trust.json")
        assert is_rehearsal(run.study)
    assert len(samples.image_BCDHW) == run.study.protocol.distillation.released
    card = json.dumps(found["synthesis 1"])
    assert str(finished.home) not in card
