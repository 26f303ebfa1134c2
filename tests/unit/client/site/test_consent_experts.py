"""What a site consents to in a study of experts, and the ceilings that it holds against it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from tests.factories import site_study
from tests.factories.own_views import experts_study, write_views
from tests.fakes.clock import FakeClock
from vitrael.client.site.ceilings import check_study, check_task
from vitrael.client.site.consent import draft_consent, planned_rounds, privacy_terms
from vitrael.client.site.consent_words import demand_known_words, describe
from vitrael.client.site.settings import Limits
from vitrael.core.data.splits import Split
from vitrael.core.digest import canonical_json, digest_bytes
from vitrael.core.errors import ConsentError
from vitrael.core.messages import STAGES, CohortTerms, Consent, PrivacyTerms, Task
from vitrael.core.study import Study, parse_study
from vitrael.privacy.keys import KeyPair, roster_digest

if TYPE_CHECKING:
    from pathlib import Path

    from vitrael.core.messages import StageName

STUDY = experts_study()
FEATURES = experts_study({"told": "features"})
SYNTHESIS = parse_study(site_study.STUDY.encode(), label="site-test")
KEYS = {name: KeyPair.create().public for name in STUDY.roster.sites}
EXPERTS = STAGES["experts"]


def draft(study: Study, *, site: str = "north") -> Consent:
    return draft_consent(
        study,
        site=site,
        keys=KEYS[site],
        members=KEYS,
        cohort=CohortTerms(
            name="main", version=1, digest=digest_bytes(b"cohort"), patients=40, scans=None
        ),
        now=FakeClock()(),
    )


def task_of(stage: StageName, study: Study) -> Task:
    return Task(
        protocol=study.protocol.digest,
        roster=roster_digest(KEYS),
        site="north",
        stage=stage,
        round=0,
        nonce="0" * 32,
        issued_utc="2031-05-01T12:00:00+00:00",
        deadline_s=60.0,
    )


def say(study: Study, *, site: str = "north") -> dict[str, str]:
    """Return what is read before signing, row by row."""
    consent = draft(study, site=site)
    text = describe(consent, study, coordinator="sha256:0a", answered={"expert": 1})
    rows = (line.split(maxsplit=1) for line in text.splitlines())
    return {name: value for name, value in rows if name not in ("also", "others", "made")} | {
        "all": text
    }


# Ceilings.


def test_stages_of_the_studys_aim_are_what_the_ceiling_is_held_to() -> None:
    for study, own, other in (
        (STUDY, EXPERTS, STAGES["synthesis"]),
        (SYNTHESIS, STAGES["synthesis"], EXPERTS),
    ):
        consent = draft(study)
        check_study(consent, study, Limits(stages=own), left_bytes=0)
        check_study(consent, study, Limits(), left_bytes=0)
        with pytest.raises(ConsentError, match=r"limits\.stages in site\.toml"):
            check_study(consent, study, Limits(stages=other), left_bytes=0)


@pytest.mark.parametrize("stage", ["expert", "outlooks", "comparison"])
def test_stage_that_is_missing_in_the_ceiling_is_named(stage: StageName) -> None:
    given = tuple(each for each in EXPERTS if each != stage)
    with pytest.raises(ConsentError, match=r"limits\.stages") as caught:
        check_study(draft(STUDY), STUDY, Limits(stages=given), left_bytes=0)
    assert caught.value.why == f"the study asks for {stage} as well"


def test_task_of_a_stage_beyond_the_ceiling_is_refused() -> None:
    limits, consent = Limits(stages=("consent", "canary", "expert")), draft(STUDY)
    check_task(task_of("expert", STUDY), STUDY, limits, consent=consent, left_bytes=0)
    with pytest.raises(ConsentError, match="outlooks is not among them"):
        check_task(task_of("outlooks", STUDY), STUDY, limits, consent=consent, left_bytes=0)


@pytest.mark.parametrize(
    ("allows", "refuses"),
    [
        ({"rounds": 3}, {"rounds": 2}),
        ({"smallest_roster": 3}, {"smallest_roster": 4}),
        ({"study_bytes": 101}, {"study_bytes": 100}),
        ({"parcel_bytes": 1}, {"stages": ()}),  # no candidate comes down: nothing to hold
    ],
)
def test_other_ceilings_hold_for_experts_too(
    allows: dict[str, Any], refuses: dict[str, Any]
) -> None:
    check_study(draft(STUDY), STUDY, Limits(**allows), left_bytes=100)
    (name,) = refuses
    with pytest.raises(ConsentError, match=rf"limits\.{name}"):
        check_study(draft(STUDY), STUDY, Limits(**refuses), left_bytes=100)


def test_experts_spend_no_privacy_budget() -> None:
    assert draft(STUDY).privacy.epsilon is None
    check_study(draft(STUDY), STUDY, Limits(epsilon=0), left_bytes=0)


def test_rounds_are_those_of_the_longest_stage() -> None:
    assert planned_rounds(STUDY) == 3  # in turn, a round for each of three sites
    assert planned_rounds(experts_study({"baselines.averaged_rounds": 7})) == 7
    assert planned_rounds(experts_study({"baselines.in_turn": False})) == 2
    assert planned_rounds(experts_study({"baselines": {}})) == 1


# Terms.


def test_terms_of_experts_say_whether_single_pictures_are_told_of() -> None:
    means, features = privacy_terms(STUDY.protocol), privacy_terms(FEATURES.protocol)
    assert (means.features, features.features) == (False, True)
    for terms in (means, features):
        assert (terms.path, terms.policy, terms.epsilon) == ("empirical", None, None)
        assert (terms.screening, terms.false_match_rate, terms.votes) == (False, None, 0)
        assert PrivacyTerms.model_validate(terms.model_dump(mode="json")) == terms
    assert privacy_terms(SYNTHESIS.protocol).features is None  # the control: it asks for none


def test_consent_to_means_is_none_to_features() -> None:
    assert STUDY.protocol.digest != FEATURES.protocol.digest
    assert draft(STUDY).digest != draft(FEATURES).digest


OLDER = {
    "path": "empirical",
    "policy": "rehearsal",
    "screening": True,
    "false_match_rate": 0.05,
    "votes": 8,
    "epsilon": None,
}
"""The terms of a consent that was signed before single pictures could be told of."""


def test_terms_of_an_older_consent_keep_their_form() -> None:
    terms = PrivacyTerms.model_validate(OLDER)
    assert terms.model_dump(mode="json") == OLDER
    assert privacy_terms(SYNTHESIS.protocol).model_dump(mode="json").keys() == OLDER.keys()
    told = PrivacyTerms.model_validate({**OLDER, "features": False})  # the control
    assert told.model_dump(mode="json") == {**OLDER, "features": False}
    assert canonical_json(told.model_dump(mode="json")) != canonical_json(OLDER)


@pytest.mark.parametrize("study", [STUDY, FEATURES, SYNTHESIS], ids=["means", "features", "other"])
def test_signed_bytes_of_a_consent_are_read_as_they_were_written(study: Study) -> None:
    consent = draft(study)
    assert Consent.from_bytes(consent.to_bytes()) == consent
    assert (b'"features"' in consent.to_bytes()) == (study is not SYNTHESIS)


# Words.


def test_words_say_in_capitals_that_single_pictures_are_told_of() -> None:
    loud = "THE NUMBERS THAT EACH EXPERT SEES IN EVERY SINGLE PICTURE"
    assert loud in say(FEATURES)["all"]
    quiet = say(STUDY)["all"]
    assert loud not in quiet
    assert "SINGLE PICTURE" not in quiet.upper()


def test_words_name_the_labels_of_the_site_and_of_no_other() -> None:
    assert say(STUDY)["views"] == "A2C, A4C, PLAX, PSAX (your apical 4 is its A4C)"
    assert say(STUDY, site="harbour")["views"] == "A2C, A4C, PLAX, PSAX"


def test_words_say_what_leaves_of_a_study_of_experts() -> None:
    rows = say(STUDY)
    for words in (
        "the weights of your expert",
        "of a view with fewer than 11 patients nothing",
        "which experts are held against",
        "every site gets every expert",
        "experts are kept after the study",
    ):
        assert words in rows["all"]
    assert rows["privacy"] == "empirical path, no epsilon"
    assert rows["released"].startswith("nothing")
    assert rows["answered"] == "expert 1"
    assert rows["rounds"] == "at most 3 of a stage"
    assert rows["protocol"] == STUDY.protocol.digest


def test_words_of_rivals_stand_only_where_there_are_any() -> None:
    alone = say(experts_study({"baselines": {}}))
    assert "and" not in alone
    assert "held against" in say(STUDY)["and"]


def test_words_of_the_other_aim_are_not_said() -> None:
    experts, synthetic = say(STUDY), say(SYNTHESIS)
    for row in ("votes", "license", "policy"):
        assert row not in experts
        assert row in synthetic
    for row in ("views", "released", "kept"):
        assert row in experts
        assert row not in synthetic


# What the cohort calls its views.


def test_word_that_the_study_does_not_map_is_refused_before_anything_leaves(
    tmp_path: Path,
) -> None:
    data = STUDY.experts.data
    write_views(tmp_path / "known", data, {Split.TRAINING: {"A2C": 1, "apical 4": 1}})
    demand_known_words(tmp_path / "known", STUDY, site="north")  # the control
    write_views(tmp_path / "strange", data, {Split.TRAINING: {"A2C": 1, "long axis": 1}})
    with pytest.raises(ConsentError, match="long axis"):
        demand_known_words(tmp_path / "strange", STUDY, site="north")
    with pytest.raises(ConsentError, match="apical 4"):  # another site's word
        demand_known_words(tmp_path / "known", STUDY, site="south")
    demand_known_words(tmp_path / "strange", SYNTHESIS, site="north")


def test_first_site_reads_that_its_part_stays() -> None:
    assert "STAYS FOR EVER" in say(experts_study({"begin": "first"}))["kept"]
    assert "STAYS" not in say(STUDY)["kept"]
