"""Nothing is asked of a site that left, was revoked, or took back its yes."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from sqlalchemy.orm import Session

from tests.factories.federation import SITES, federation, utc_now
from tests.factories.updates import adding, agree
from vitrael.core.digest import Digest, digest_bytes
from vitrael.core.errors import QuorumError
from vitrael.core.study import load_study
from vitrael.privacy.keys import KeyPair, PublicKeys
from vitrael.server.db.engine import open_database
from vitrael.server.db.sites import EnrollmentRow, InvitationRow, WordRow
from vitrael.server.studies.federated import collect_consents, train_codec
from vitrael.server.studies.participation import record_participation, tell_outcome
from vitrael.server.studies.standing import Standings

pytestmark = pytest.mark.xdist_group("tiny study")

NOW = datetime(2030, 1, 1, tzinfo=UTC)
AMOUNTS = {"north": 1.0, "harbour": 2.0, "valley": 3.0}


@pytest.fixture
def standings(tmp_path: Path) -> Standings:
    return Standings(open_database(tmp_path / "server.sqlite"))


def enroll(standings: Standings, site: str, *, status: str, days: int = 30) -> PublicKeys:
    """Write a site's enrollment as ``server sites`` leaves it; return its keys."""
    keys = KeyPair.create().public
    ended = None if status in {"pending", "enrolled"} else NOW
    with Session(standings.engine) as session, session.begin():
        invitation = InvitationRow(
            site=site, token=digest_bytes(site.encode()), created_utc=NOW, expires_utc=NOW
        )
        session.add(invitation)
        session.flush()
        session.add(
            EnrollmentRow(
                site=site,
                invitation_id=invitation.id,
                status=status,
                signing=keys.signing,
                sealing=keys.sealing,
                node=f"node of {site}",
                package_version="0.1.0",
                joined_utc=NOW,
                approved_utc=NOW,
                expires_utc=NOW + timedelta(days=days),
                ended_utc=ended,
                reason="",
            )
        )
    return keys


def withdraw(standings: Standings, site: str, *, protocol: Digest, said: datetime) -> None:
    with Session(standings.engine) as session, session.begin():
        word = WordRow(site=site, nonce="0" * 32, kind="withdraw", protocol=protocol, reason="")
        word.said_utc = word.received_utc = said
        session.add(word)


def test_enrollment_that_does_not_hold_is_told_by_its_reason(standings: Standings) -> None:
    members = {
        "north": enroll(standings, "north", status="enrolled"),
        "harbour": enroll(standings, "harbour", status="revoked"),
        "valley": enroll(standings, "valley", status="left"),
        "bridge": enroll(standings, "bridge", status="enrolled", days=-1),
        "stranger": KeyPair.create().public,  # enrolled elsewhere, as in a rehearsal
    }
    assert standings.find_ended(members, now=NOW) == {
        "harbour": "its enrollment was revoked",
        "valley": "it left the federation",
        "bridge": "its enrollment has expired",
    }


def test_keys_that_were_replaced_do_not_hold_any_more(standings: Standings) -> None:
    old = enroll(standings, "north", status="replaced")
    assert standings.find_ended({"north": old}, now=NOW) == {"north": "its keys were replaced"}
    new = KeyPair.create().public
    assert standings.find_ended({"north": new}, now=NOW) == {}


def test_site_that_withdraws_in_the_middle_is_asked_nothing_more(home: Path) -> None:
    agree(home, SITES)
    protocol = load_study(home / "study.toml").protocol.digest
    with federation(home, tasks=adding(AMOUNTS)) as told:
        run = told.run()
        collect_consents(run)
        withdraw(run.standings, "valley", protocol=digest_bytes(b"another"), said=utc_now())
        told.seen.clear()
        train_codec(run)
        assert {task.site for task in told.seen} == set(SITES)  # the control: another study
    with federation(home, tasks=adding(AMOUNTS)) as told:
        run = told.run()
        later = utc_now() + timedelta(seconds=1)
        with Session(run.standings.engine) as session, session.begin():
            row = session.get_one(WordRow, 1)
            row.protocol, row.said_utc = protocol, later
        run.stage("codec", {"anew": 1}, lambda: _ask(run))
        assert {task.site for task in told.seen} == {"north", "harbour"}
        assert tell_outcome(run).sentence == "partial: 2 of 3 (valley: it withdrew its consent)"
        absent = record_participation(run)["absent"]
    assert absent == {"codec 1": {"valley": "takes no part any more"}}


def _ask(run: object) -> object:
    from vitrael.server.studies.correspondence import ask_sites
    from vitrael.server.studies.run import StageResult, StudyRun

    assert isinstance(run, StudyRun)
    answers = ask_sites(run, "calibration", {}, quorum=1)
    return StageResult({}, answers.details, tuple(answers.by_site))


def test_consent_from_before_the_withdrawal_is_refused_and_a_new_one_counts(home: Path) -> None:
    agree(home, SITES)
    protocol = load_study(home / "study.toml").protocol.digest
    with federation(home, tasks=adding(AMOUNTS)) as told:
        said = utc_now() + timedelta(seconds=2)
        withdraw(told.run().standings, "valley", protocol=protocol, said=said)
        with pytest.raises(QuorumError, match="valley withdrew its consent"):
            collect_consents(told.run())
    with federation(home, tasks=adding(AMOUNTS)) as told:
        run = told.run()
        with Session(run.standings.engine) as session, session.begin():
            session.get_one(WordRow, 1).said_utc = utc_now() - timedelta(days=1)
        assert set(collect_consents(run)["consents"]) == set(SITES)
        train_codec(run)
        assert {task.site for task in told.seen if task.stage == "codec"} == set(SITES)


def test_site_whose_version_may_take_no_part_is_named(
    home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from vitrael.core.version import package_version
    from vitrael.server.studies import federated, run

    own = package_version()
    with monkeypatch.context() as patch:  # a site that does not look itself
        patch.setattr("vitrael.client.site.consent.demand_admitted", lambda *_, **__: None)
        agree(home, SITES, federation=f'software = "!={own}"')
    monkeypatch.setattr(run, "package_version", lambda: "9.9.9")
    with (
        federation(home, tasks=adding(AMOUNTS)) as told,
        pytest.raises(QuorumError, match=f"version {own} of the package at harbour may take no"),
    ):
        federated.collect_consents(told.run())
