"""Nothing is asked of a site that left, was revoked, or took back its yes."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from sqlalchemy.orm import Session

from tests.factories.enrolling import JoiningSite
from tests.factories.federation import SITES, Interruption, copy_homes, federation, utc_now
from tests.factories.updates import adding, agree
from tests.fakes.clock import FakeClock
from vitrael.core.digest import Digest, digest_bytes
from vitrael.core.errors import ConfigError, QuorumError, StudyError
from vitrael.core.study import load_study
from vitrael.privacy.keys import KeyPair, PublicKeys, load_roster
from vitrael.server.config import load_server
from vitrael.server.db.engine import open_database
from vitrael.server.db.sites import EnrollmentRow, InvitationRow, WordRow
from vitrael.server.sites.desk import Desk
from vitrael.server.sites.registry import Registry
from vitrael.server.studies.absences import find_renewal
from vitrael.server.studies.canary import try_sites
from vitrael.server.studies.federated import calibrate_filters, collect_consents, train_codec
from vitrael.server.studies.participation import record_participation, tell_outcome
from vitrael.server.studies.standing import EXPIRED, REPLACED, Standings

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


def test_site_that_withdraws_before_the_rounds_is_asked_nothing_more(home: Path) -> None:
    agree(home, SITES)
    with federation(home, tasks=adding(AMOUNTS)) as told:
        run = told.run()
        collect_consents(run)
        withdraw(run.standings, "valley", protocol=digest_bytes(b"another"), said=utc_now())
        told.seen.clear()
        try_sites(run)
        assert {task.site for task in told.seen} == set(SITES)  # the control: another study
    with federation(home, tasks=adding(AMOUNTS)) as told:
        run = told.run()
        withdraw_now(run.standings, load_study(home / "study.toml").protocol.digest)
        train_codec(run)
        assert {task.site for task in told.seen} == {"north", "harbour"}
        assert tell_outcome(run).sentence == "partial: 2 of 3 (valley: it withdrew its consent)"
        absent = record_participation(run)["absent"]
    rounds = [f"codec {number}" for number in (1, 2, 3)]
    assert absent == {name: {"valley": "takes no part any more"} for name in rounds}


def withdraw_now(standings: Standings, protocol: Digest) -> None:
    """Let the word that was said of another study be one of this study, said later."""
    with Session(standings.engine) as session, session.begin():
        row = session.get_one(WordRow, 1)
        row.protocol, row.said_utc = protocol, utc_now() + timedelta(seconds=1)


@pytest.fixture
def tried(home: Path) -> Path:
    """Homes of a study whose sites have consented and told their speed."""
    agree(home, SITES)
    with federation(home, tasks=adding(AMOUNTS)) as told:
        collect_consents(told.run())
        try_sites(told.run())
    return home


def revoke(home: Path, site: str) -> None:
    with Registry(load_server(home)) as registry:
        registry.revoke(site, reason="stolen server")
    assert site not in load_roster(home / "roster.json")


def test_study_that_is_opened_again_without_a_member_goes_on_to_the_same(tried: Path) -> None:
    again = copy_homes(tried, tried.parent / "again")
    ends = []
    for home, reopened in ((tried, False), (again, True)):
        with federation(home, tasks=adding(AMOUNTS)) as told:
            run = told.run()
            revoke(home, "valley")
            run = told.run() if reopened else run
            ends.append((run.roster, train_codec(run), tell_outcome(run)))
            assert {task.site for task in told.seen} == {"north", "harbour"}
    assert ends[0] == ends[1]
    assert ends[0][2].sentence == "partial: 2 of 3 (valley: its enrollment was revoked)"


def rotate(home: Path, name: str) -> None:
    """Have new keys of a site approved, as `server sites rotate` and `approve` do."""
    settings = load_server(home)
    site = JoiningSite(name, FakeClock(utc_now()), settings)
    with Registry(settings) as registry, Desk(settings) as desk:
        desk.join(site.join(registry.rotate(name).token))
        registry.approve(name, fingerprint=site.fingerprint)
    assert load_roster(home / "roster.json")[name] == site.keys.public


def test_study_that_is_opened_again_after_new_keys_ends_as_one_that_went_on(tried: Path) -> None:
    with federation(tried, tasks=adding(AMOUNTS)) as told:
        told.interrupt = ("codec", 1, "north")
        with pytest.raises(Interruption):
            train_codec(told.run())
    again = copy_homes(tried, tried.parent / "again")
    ends = []
    for home, reopened in ((tried, False), (again, True)):
        with federation(home, tasks=adding(AMOUNTS)) as told:
            run = told.run()
            began = run.roster
            rotate(home, "valley")
            run = told.run() if reopened else run
            with pytest.raises(StudyError, match="site valley takes no part any more") as caught:
                train_codec(run)
            ends.append((run.roster, str(caught.value)))
            assert run.roster == began
            assert "its keys were replaced" in caught.value.why
            assert caught.value.fix.startswith(f"offer and start it with {began} as roster.pred")
    assert ends[0] == ends[1]


def test_study_that_never_began_with_a_site_does_not_begin_without_it(home: Path) -> None:
    agree(home, SITES)
    revoke(home, "valley")
    with (
        federation(home, tasks=adding(AMOUNTS)) as told,
        pytest.raises(ConfigError, match="valley"),
    ):
        told.run()


def test_site_in_the_model_that_leaves_ends_the_study_before_the_next_round(tried: Path) -> None:
    with federation(tried, tasks=adding(AMOUNTS)) as told:
        told.interrupt = ("codec", 1, "north")
        with pytest.raises(Interruption):
            train_codec(told.run())
        revoke(tried, "valley")
        told.interrupt = None
        told.seen.clear()
        with pytest.raises(StudyError, match="site valley takes no part any more") as caught:
            train_codec(told.run())
        assert told.seen == []
    assert "its enrollment was revoked" in caught.value.why
    assert "name no roster.predecessor" in caught.value.fix


def test_member_outside_the_model_that_cannot_judge_is_told_before_the_judging(
    tried: Path,
) -> None:
    with federation(tried, tasks=adding(AMOUNTS)) as told:
        revoke(tried, "valley")
        run = told.run()
        codec = train_codec(run)  # the control: rounds go on without it
        with pytest.raises(StudyError, match="valley is on the roster and takes no part") as caught:
            calibrate_filters(run, codec, codec)  # asked of nobody: no encoder is needed
    assert f"write {run.roster} as roster.predecessor" in caught.value.fix


def test_site_that_only_needs_new_keys_is_told_how_the_rounds_are_kept() -> None:
    run: Any = SimpleNamespace(roster=digest_bytes(b"a roster"))
    kept = f"offer and start it with {run.roster} as roster.predecessor: what is finished is kept"
    assert find_renewal(run, "valley", REPLACED) == kept
    expired = find_renewal(run, "valley", EXPIRED)
    assert expired.startswith("run `vitrael server sites rotate valley`")
    assert expired.endswith(kept)
    assert find_renewal(run, "valley", "it left the federation") == ""  # the control


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
