"""A ceiling of site.toml overrides any study: at the consent, at each task, and at the door."""

from __future__ import annotations

import json
from contextlib import closing
from typing import TYPE_CHECKING, Any

import pytest

from vitrael.client.site.ceilings import check_left, check_study, check_task, check_votes
from vitrael.client.site.consent import describe_cohort, draft_consent, other_consents
from vitrael.client.site.settings import Limits
from vitrael.client.site.store import Store, StoredConsent
from vitrael.core.cli import run
from vitrael.core.digest import digest_bytes
from vitrael.core.errors import ConsentError, DataError
from vitrael.core.messages import stages_of
from vitrael.core.study import Study
from vitrael.privacy.envelope import sign_consent
from vitrael.privacy.keys import KeyPair

if TYPE_CHECKING:
    from pathlib import Path

    from tests.unit.client.site.conftest import CountingTask, Home
    from vitrael.core.messages import Consent

CANDIDATES_BYTES = 8 * 32**3 * 4
ALL_BUT_SIGNING = ("consent", "codec", "latents", "calibration", "teacher", "screening", "audit")


def draft(home: Home, *, max_rounds: int | None = None) -> Consent:
    return draft_consent(
        home.study,
        site="north",
        keys=home.keys.public,
        members={name: keys.public for name, keys in home.members.items()},
        cohort=describe_cohort(home.settings.cohorts / "main"),
        now=home.clock(),
        max_rounds=max_rounds,
    )


@pytest.mark.parametrize(
    ("allows", "refuses"),
    [
        ({"rounds": 2}, {"rounds": 1}),
        ({"smallest_roster": 3}, {"smallest_roster": 4}),
        ({"parcel_bytes": CANDIDATES_BYTES}, {"parcel_bytes": CANDIDATES_BYTES - 1}),
        ({"study_bytes": 101}, {"study_bytes": 100}),
        ({"stages": None}, {"stages": ALL_BUT_SIGNING}),
        ({"stages": None}, {"stages": ()}),
    ],
)
def test_study_that_asks_for_more_than_a_ceiling_is_not_consented_to(
    home: Home, allows: dict[str, Any], refuses: dict[str, Any]
) -> None:
    check_study(draft(home), home.study, Limits(**allows), left_bytes=100)
    (name,) = refuses
    with pytest.raises(ConsentError, match=rf"limits\.{name} in site\.toml"):
        check_study(draft(home), home.study, Limits(**refuses), left_bytes=100)


def test_fewer_rounds_than_the_study_has_may_be_consented_to_below_the_ceiling(home: Home) -> None:
    check_study(draft(home, max_rounds=1), home.study, Limits(rounds=1), left_bytes=0)
    with pytest.raises(ConsentError, match=r"limits\.rounds"):  # the control
        check_study(draft(home, max_rounds=2), home.study, Limits(rounds=1), left_bytes=0)


def comparing(study: Study, *, released: int) -> Study:
    document = study.model_dump(mode="json")
    document["protocol"]["distillation"] |= {"compare": True, "released": released}
    return Study.model_validate(document)


def test_arms_are_counted_only_where_the_protocol_compares_them(home: Home) -> None:
    asked = home.task(stage="arms")
    study, without = (
        comparing(home.study, released=1),
        Limits(stages=stages_of(home.study.protocol)),
    )
    check_task(asked, study, Limits(), consent=draft(home), left_bytes=0)
    with pytest.raises(ConsentError, match="no stage arms"):
        check_task(asked, home.study, Limits(), consent=draft(home), left_bytes=0)
    check_study(draft(home), home.study, without, left_bytes=0)
    with pytest.raises(ConsentError, match="asks for arms as well"):
        check_study(draft(home), study, without, left_bytes=0)


def test_three_arms_come_down_in_one_parcel(home: Home) -> None:
    limits = Limits(parcel_bytes=CANDIDATES_BYTES)
    check_study(draft(home), comparing(home.study, released=2), limits, left_bytes=0)
    with pytest.raises(ConsentError, match=r"limits\.parcel_bytes"):
        check_study(draft(home), comparing(home.study, released=3), limits, left_bytes=0)


@pytest.mark.parametrize(
    ("epsilon", "spent", "limit", "refused"),
    [
        (1.0, 0.0, None, False),
        (1.0, 0.0, 1.0, False),
        (1.0, 0.5, 1.0, True),
        (1.0, 0.0, 0.0, True),
        (None, 0.0, 8.0, True),
        (1.0, None, 8.0, True),
        (1.0, None, None, False),
    ],
)
def test_privacy_budget_counts_over_all_studies(
    home: Home, epsilon: float | None, spent: float | None, limit: float | None, *, refused: bool
) -> None:
    consent, others, limits = costing(home, epsilon), [costing(home, spent)], Limits(epsilon=limit)
    task = home.task()

    def hold() -> None:
        check_study(consent, home.study, limits, left_bytes=0, others=others)

    def hold_once_more() -> None:
        check_task(task, home.study, limits, consent=consent, left_bytes=0, others=others)

    for check in (hold, hold_once_more):
        if refused:
            with pytest.raises(ConsentError, match=r"limits\.epsilon"):
                check()
        else:
            check()


def test_rounds_of_a_screening_are_held_to_votes_and_not_to_rounds(home: Home) -> None:
    limits, consent = Limits(rounds=1), draft(home, max_rounds=1)
    late = home.task(stage="screening", round=5)
    check_task(late, home.study, limits, consent=consent, left_bytes=0)
    with pytest.raises(ConsentError, match=r"limits\.rounds"):  # the control
        check_task(home.task(round=5), home.study, limits, consent=consent, left_bytes=0)
    for asked, given in ((8, 0), (8, 24), (1, 31)):
        check_votes(late, home.study, asked=asked, given=given)
    for asked, given in ((33, 0), (8, 25), (1, 32), (0, 0)):
        with pytest.raises(DataError, match="more votes than the study has"):
            check_votes(late, home.study, asked=asked, given=given)
    check_votes(home.task(), home.study, asked=None, given=10**6)


def costing(home: Home, budget: float | None) -> Consent:
    given = draft(home)
    terms = given.privacy.model_copy(update={"path": "dp", "epsilon": budget})
    return given.model_copy(update={"privacy": terms})


def test_budget_that_was_given_under_earlier_keys_is_given(home: Home) -> None:
    terms = draft(home).privacy.model_copy(update={"path": "dp", "epsilon": 3.0})
    asked = draft(home).model_copy(update={"privacy": terms})
    earlier = asked.model_copy(update={"protocol": digest_bytes(b"another study")})
    envelope = sign_consent(earlier, KeyPair.create())  # the keys were rotated since
    with closing(Store(home.settings.store, updates=home.settings.updates)) as store:
        store.save_consent(
            StoredConsent(envelope, {}, {}),
            protocol=earlier.protocol,
            roster=earlier.roster,
            given_utc=earlier.given_utc,
        )
        assert other_consents(store, asked) == [earlier]
        assert other_consents(store, draft(home)) == []  # the control: this one costs nothing


def test_empirical_study_spends_no_privacy_budget(home: Home) -> None:
    assert draft(home).privacy.epsilon is None
    check_study(draft(home), home.study, Limits(epsilon=0), left_bytes=0)


@pytest.mark.parametrize(
    ("ceiling", "remedy"),
    [
        ({"smallest_roster": 4}, "To do: lower limits.smallest_roster"),
        ({"stages": ALL_BUT_SIGNING}, "To do: add them to limits.stages"),
        ({"study_bytes": 100}, "To do: raise limits.study_bytes"),
    ],
)
def test_remedy_moves_the_ceiling_the_right_way(
    home: Home, ceiling: dict[str, Any], remedy: str
) -> None:
    with pytest.raises(ConsentError, match=remedy):
        check_study(draft(home), home.study, Limits(**ceiling), left_bytes=100)


@pytest.mark.parametrize(
    ("allows", "refuses"),
    [
        ({"rounds": 2}, {"rounds": 1}),
        ({"smallest_roster": 3}, {"smallest_roster": 4}),
        ({"stages": ("codec",)}, {"stages": ("teacher",)}),
        ({"stages": None}, {"stages": ()}),
        ({"parcel_bytes": CANDIDATES_BYTES}, {"parcel_bytes": CANDIDATES_BYTES - 1}),
        ({"study_bytes": 101}, {"study_bytes": 100}),
    ],
)
def test_task_beyond_a_ceiling_is_refused(
    home: Home, allows: dict[str, Any], refuses: dict[str, Any]
) -> None:
    task = home.task(round=1)
    check_task(task, home.study, Limits(**allows), consent=draft(home), left_bytes=100)
    (name,) = refuses
    with pytest.raises(ConsentError, match=rf"limits\.{name} in site\.toml"):
        check_task(task, home.study, Limits(**refuses), consent=draft(home), left_bytes=100)


def limit(home: Home, line: str) -> None:
    (home.path / "site.toml").write_text(f'name = "north"\n[limits]\n{line}\n')


@pytest.mark.parametrize(
    "line", ["rounds = 1", 'stages = ["teacher"]', "stages = []", "smallest_roster = 4"]
)
def test_ceiling_that_was_set_after_the_consent_is_held(
    home: Home, counting: CountingTask, line: str
) -> None:
    home.consent()
    limit(home, line)
    reply, _ = home.open(home.steward({"codec": counting}).answer(home.parcel(home.task(round=1))))
    assert (reply.status, counting.calls) == ("refused", 0)
    assert f"limits.{line.split(maxsplit=1)[0]} in site.toml" in reply.reason
    assert home.lines()[-1].reason == reply.reason


def test_no_byte_more_leaves_for_a_study_than_its_ceiling(
    home: Home, counting: CountingTask
) -> None:
    home.consent()
    steward = home.steward({"codec": counting})
    steward.answer(home.parcel(home.task()))
    sent = home.lines()[-1].bytes
    steward.close()
    limit(home, f"study_bytes = {2 * sent - 100}")
    steward = home.steward({"codec": counting})
    reply, outputs = home.open(steward.answer(home.parcel(home.task(round=1))))
    assert (reply.status, outputs, counting.calls) == ("refused", {}, 2)  # computed, and kept
    assert "limits.study_bytes in site.toml" in reply.reason
    steward.close()
    limit(home, f"study_bytes = {4 * sent}")
    steward = home.steward({"codec": counting})
    reply, _ = home.open(steward.answer(home.parcel(home.task(round=1))))
    assert (reply.status, counting.calls) == ("done", 2)


def test_nothing_is_computed_once_all_bytes_have_left(home: Home, counting: CountingTask) -> None:
    home.consent()
    home.steward({"codec": counting}).answer(home.parcel(home.task()))
    limit(home, f"study_bytes = {home.lines()[-1].bytes}")
    reply, _ = home.open(home.steward({"codec": counting}).answer(home.parcel(home.task(round=1))))
    assert (reply.status, counting.calls) == ("refused", 1)


def test_last_byte_may_leave_and_none_after_it() -> None:
    check_left(Limits(study_bytes=10), left_bytes=9, more_bytes=1)
    check_left(Limits(), left_bytes=1 << 60, more_bytes=1)
    with pytest.raises(ConsentError, match="9 bytes have left for it, 2 more would, and 10 may"):
        check_left(Limits(study_bytes=10), left_bytes=9, more_bytes=2)


def test_consent_command_names_the_ceiling(
    home: Home, study_file: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["site", "consent", str(study_file), "--home", str(home.path), "--yes", "--json"]
    limit(home, "rounds = 1")
    assert run(command) == 4
    error = json.loads(capsys.readouterr().out)["error"]
    assert "limits.rounds in site.toml" in error["what"]
    assert "--rounds 1" in error["fix"]
    assert home.lines() == []
    assert run([*command, "--rounds", "1"]) == 0
    assert [line.event for line in home.lines()] == ["consent"]
