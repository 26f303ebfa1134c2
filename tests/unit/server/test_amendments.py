"""A site joins a study of experts or leaves it: the roster changes, and nothing else."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

import pytest

from tests.factories.enrollment import enroll, enroll_everywhere
from tests.factories.experts_study import LABELS, write_study
from tests.factories.federation import SITES, STUDY
from tests.fakes.federation import HandlerExchange
from vitrael.core import cli
from vitrael.core.digest import Digest, digest_bytes, write_atomically
from vitrael.core.errors import AuthError, StudyError, UsageError
from vitrael.core.study import Study, load_study, parse_study
from vitrael.privacy.keys import roster_digest, save_roster
from vitrael.server.amendments import add_expert, drop_expert
from vitrael.server.config import ServerSettings
from vitrael.server.db.engine import open_database
from vitrael.server.federation.layout import site_home
from vitrael.server.offers import (
    demand_enrolled,
    load_offered,
    offer_document,
    offered,
)
from vitrael.server.sites.registry import Registry
from vitrael.server.studies.ledger import Ledger, StageKey
from vitrael.server.studies.run import open_run

NAME = "tiny-views"


@pytest.fixture
def settings(tmp_path: Path) -> ServerSettings:
    """A coordinator with three sites and a study of experts that is offered and never began."""
    return enroll_everywhere(tmp_path / "home", SITES, study=write_study().encode())


def join(settings: ServerSettings, site: str) -> None:
    enroll(settings, site, site_home(settings.home, site))


def roster_of(settings: ServerSettings, study: Study) -> Digest:
    return roster_digest(demand_enrolled(settings, study), labels=study.roster.labels)


def begin(settings: ServerSettings, *stages: str) -> Digest:
    """Let the offered study begin with its roster and finish some stages; return the roster."""
    study = load_offered(settings, NAME)
    members = demand_enrolled(settings, study)
    write_atomically(settings.home / "study.toml", offered(settings)[NAME].read_bytes())
    save_roster(members, settings.home / "roster.json")
    engine, roster = open_database(settings.database), roster_of(settings, study)
    ledger = Ledger(engine)
    for stage in ("consent", *stages):
        key = StageKey(study.protocol.digest, stage, 0, digest_bytes(f"{stage} {roster}".encode()))
        record = ledger.begin(key, details={"roster": roster})
        ledger.finish(record, digest_bytes(f"what {stage} left".encode()))
    engine.dispose()
    return roster


def offer(settings: ServerSettings, document: bytes) -> Study:
    return offer_document(settings, document, label=NAME)


def read(document: bytes) -> Study:
    return parse_study(document, label="amended")


def add(settings: ServerSettings, site: str, labels: Mapping[str, str] | None = None) -> Study:
    return read(add_expert(settings, NAME, site, labels=labels or {}))


def drop(settings: ServerSettings, site: str) -> Study:
    return read(drop_expert(settings, NAME, site))


def amend(settings: ServerSettings, command: str, *words: str) -> int:
    return cli.run(["study", f"{command}-expert", NAME, *words, "--home", str(settings.home)])


def documents(settings: ServerSettings) -> dict[str, bytes]:
    """Return every file of the home that is offered or run, by name."""
    found = [*settings.studies.rglob("*"), settings.home / "study.toml"]
    return {str(path): path.read_bytes() for path in found if path.is_file()}


def test_site_that_joins_stands_last_and_all_else_is_as_it_was(settings: ServerSettings) -> None:
    before, after = load_offered(settings, NAME), add(settings, "coast")
    assert after.roster.sites == (*SITES, "coast")
    assert after.protocol == before.protocol
    assert after.protocol.digest == before.protocol.digest
    assert after.performance == before.performance
    assert after.roster.labels == before.roster.labels
    assert after.digest != before.digest  # the control: it is another roster


def test_words_of_who_joins_are_written_beside_those_of_others(settings: ServerSettings) -> None:
    words = {"four chambers": "A4C", "short axis": "PSAX"}
    assert add(settings, "coast", words).roster.labels == {**LABELS, "coast": words}
    bare = enroll_everywhere(settings.home, SITES, study=write_study(labels={}).encode())
    assert add(bare, "coast", words).roster.labels == {"coast": words}
    assert add(bare, "coast").roster.labels == {}


def test_site_that_leaves_goes_with_its_words(settings: ServerSettings) -> None:
    left = drop(settings, "harbour")
    assert left.roster.sites == ("north", "valley")
    assert left.roster.labels == {}
    assert drop(settings, "north").roster.labels == LABELS  # the control: another's words stay
    assert left.protocol == load_offered(settings, NAME).protocol


@pytest.mark.parametrize("begun", [False, True])
def test_predecessor_is_named_where_the_study_has_begun_alone(
    begun: object, settings: ServerSettings
) -> None:
    began = begin(settings, "expert") if begun else None
    assert add(settings, "coast").roster.predecessor == began
    assert drop(settings, "valley").roster.predecessor == began


def test_roster_that_was_offered_and_never_began_is_no_predecessor(
    settings: ServerSettings,
) -> None:
    began = begin(settings, "expert")
    join(settings, "coast")
    join(settings, "island")
    offered_only = offer(settings, add_expert(settings, NAME, "coast", labels={}))
    assert roster_of(settings, offered_only) != began
    both = offer(settings, add_expert(settings, NAME, "island", labels={}))
    assert both.roster.sites == (*SITES, "coast", "island")
    assert both.roster.predecessor == began
    later = begin(settings, "expert")  # the control: once it has begun, it is amended itself
    assert drop(settings, "north").roster.predecessor == later != began


def test_experts_of_before_are_kept_where_who_joined_brought_none(
    settings: ServerSettings,
) -> None:
    trained = begin(settings, "canary", "expert")
    join(settings, "coast")
    offer(settings, add_expert(settings, NAME, "coast", labels={}))
    begin(settings, "canary")  # and no further: nobody has an expert with this roster
    assert drop(settings, "valley").roster.predecessor == trained


def test_roster_that_comes_back_goes_on_with_itself(settings: ServerSettings) -> None:
    first = load_offered(settings, NAME)
    began = begin(settings, "expert")
    join(settings, "coast")
    offer(settings, add_expert(settings, NAME, "coast", labels={}))
    back = drop_expert(settings, NAME, "coast")
    assert read(back).digest == first.digest
    write_atomically(settings.home / "study.toml", back)
    assert open_run(settings.home, HandlerExchange({})).roster == began
    amending = write_study(predecessor=began)  # the control: none amends itself
    (settings.home / "study.toml").write_text(amending)
    with pytest.raises(StudyError, match="with which this study was never run here"):
        open_run(settings.home, HandlerExchange({}))


def test_amended_study_can_be_opened_by_who_ran_the_one_before(settings: ServerSettings) -> None:
    began = begin(settings, "expert")
    left = drop_expert(settings, NAME, "valley")
    write_atomically(settings.home / "study.toml", left)
    run = open_run(settings.home, HandlerExchange({}))
    assert run.study.roster.predecessor == began != run.roster
    assert list(run.members) == ["north", "harbour"]


def test_site_whose_enrollment_ended_can_be_left_out(settings: ServerSettings) -> None:
    began = begin(settings, "expert")
    join(settings, "coast")
    offer(settings, add_expert(settings, NAME, "coast", labels={}))
    with Registry(settings) as registry:
        registry.revoke("coast", reason="it changed its mind")
    with pytest.raises(AuthError, match="not enrolled: coast"):
        demand_enrolled(settings, load_offered(settings, NAME))
    assert offer(settings, drop_expert(settings, NAME, "coast")).roster.sites == SITES
    assert drop(settings, "valley").roster.predecessor == began


def test_site_that_is_on_the_roster_does_not_join_again(settings: ServerSettings) -> None:
    with pytest.raises(UsageError, match="harbour is on the roster of tiny-views"):
        add(settings, "harbour")


def test_site_that_is_not_on_the_roster_cannot_leave(settings: ServerSettings) -> None:
    with pytest.raises(UsageError, match="it is not on the roster") as caught:
        drop(settings, "coast")
    assert "north, harbour, valley" in caught.value.fix


@pytest.mark.parametrize(
    ("quorum", "sites", "why"),
    [
        (1, SITES[:1], "nobody would be left"),
        (2, SITES[:2], "1 sites would be left, and its quorum is 2"),
        (3, SITES, "2 sites would be left, and its quorum is 3"),
    ],
)
def test_study_does_not_go_on_without_its_last_site_or_below_its_quorum(
    quorum: int, sites: Sequence[str], why: str, settings: ServerSettings
) -> None:
    study = write_study(sites, quorum=quorum)
    enroll_everywhere(settings.home, sites, study=study.encode())
    with pytest.raises(UsageError, match=why):
        drop(settings, "north")
    enough = write_study(quorum=len(SITES) - 1)  # the control
    enroll_everywhere(settings.home, SITES, study=enough.encode())
    assert drop(settings, "north").roster.sites == SITES[1:]


def test_study_of_a_synthetic_set_has_no_experts_to_add_or_drop(settings: ServerSettings) -> None:
    enroll_everywhere(settings.home, SITES, study=STUDY.encode())
    with pytest.raises(StudyError, match="tiny trains no experts"):
        add_expert(settings, "tiny", "coast", labels={})
    with pytest.raises(StudyError, match="tiny trains no experts"):
        drop_expert(settings, "tiny", "north")


def test_study_that_is_not_offered_is_not_amended(settings: ServerSettings) -> None:
    for amended in (
        lambda: add_expert(settings, "other", "coast", labels={}),
        lambda: drop_expert(settings, "other", "north"),
    ):
        with pytest.raises(UsageError, match="other is not offered: offered are tiny-views"):
            amended()


@pytest.mark.parametrize(
    ("words", "code", "why"),
    [
        (("coast", "--label", "long axis", "PLAXX"), 3, "PLAXX is no view"),
        (("coast",), 4, "not enrolled: coast"),
        (("harbour",), 2, "on the roster"),
    ],
)
def test_command_refuses_with_a_reason_and_offers_nothing(
    words: tuple[str, ...],
    code: int,
    why: str,
    settings: ServerSettings,
    capsys: pytest.CaptureFixture[str],
) -> None:
    if code == 3:
        join(settings, "coast")
    before = documents(settings)
    assert amend(settings, "add", *words, "--yes") == code
    assert why in capsys.readouterr().err
    assert documents(settings) == before


def test_command_offers_and_a_dry_run_writes_nothing(
    settings: ServerSettings, capsys: pytest.CaptureFixture[str]
) -> None:
    join(settings, "coast")
    before = documents(settings)
    words = ("coast", "--label", "apical four", "A4C")
    assert amend(settings, "add", *words, "--dry-run") == 0
    assert "would be offered to north, harbour, valley, coast" in capsys.readouterr().out
    assert amend(settings, "drop", "north", "--dry-run", "--json") == 0
    assert json.loads(capsys.readouterr().out)["offered"] is False
    assert documents(settings) == before
    assert amend(settings, "add", *words, "--yes") == 0
    said = capsys.readouterr()
    assert "is offered to north, harbour, valley, coast" in said.out
    assert "Once all have: vitrael study start tiny-views" in said.err
    assert documents(settings) != before  # the control
    assert load_offered(settings, NAME).roster.labels["coast"] == {"apical four": "A4C"}


def test_command_says_in_json_what_it_offers(
    settings: ServerSettings, capsys: pytest.CaptureFixture[str]
) -> None:
    began = begin(settings, "expert")
    protocol = load_study(settings.home / "study.toml").protocol.digest
    assert amend(settings, "drop", "valley", "--yes", "--json") == 0
    assert json.loads(capsys.readouterr().out) == {
        "study": NAME,
        "protocol": protocol,
        "sites": ["north", "harbour"],
        "predecessor": began,
        "offered": True,
    }
    assert load_offered(settings, NAME).roster.sites == ("north", "harbour")
