"""A site pools the signed replies of all sites, round by round, before it signs."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import TYPE_CHECKING

import pytest

from tests.unit.client.site.tasks.test_sign_release import (
    ONE_ROUND,
    OTHER,
    Replies,
    ask,
    good_evidence,
    good_tallies,
    make_reply,
    release,
)
from vitrael.core.messages import Reply, StageName
from vitrael.privacy.audit.tallies import TALLY_STAGES, pool_tallies
from vitrael.privacy.evidence import Evidence, counted
from vitrael.privacy.keys import KeyPair, save_roster

if TYPE_CHECKING:
    from tests.unit.client.site.conftest import Home


@pytest.mark.parametrize("stage", TALLY_STAGES)
@pytest.mark.parametrize("site", ["north", "harbour"])
def test_evidence_that_nobody_measured_is_not_signed(
    home: Home, stage: StageName, site: str
) -> None:
    replies = good_tallies(home)
    body = json.loads(json.dumps(replies[stage, site].body))
    if stage == "calibration":
        body["metrics"]["verification.wins"] = 900.0
    elif stage in {"screening", "rescreening"}:
        body["estimable"] = False
    else:
        body["counts"]["copies.hits"] = 90
    replies[stage, site] = make_reply(home, stage, site, body)
    reply = ask(home, release(home), replies=replies)
    assert (reply.status, reply.body) == ("refused", {})
    assert "not what the sites measured" in reply.reason


def test_evidence_about_other_tallies_is_not_signed(home: Home) -> None:
    """The numbers hold, and what they claim to be computed from is not what the sites told."""
    evidence = good_evidence(home)
    measured = evidence.find("copies.excess_share")
    assert measured is not None
    strange = measured.model_copy(update={"inputs": (OTHER,)})
    told = tuple(strange if m is measured else m for m in evidence.measurements)
    reply = ask(home, release(home, evidence=evidence.model_copy(update={"measurements": told})))
    assert (reply.status, reply.body) == ("refused", {})
    assert "not what the sites measured: copies.excess_share" in reply.reason


def test_member_that_has_left_since_the_consent_is_known_by_its_keys(home: Home) -> None:
    """What the coordinator says now of who is enrolled neither adds nor takes a key."""
    stays = {"north": home.members["north"].public}
    save_roster(stays, home.settings.roster)
    assert ask(home, release(home)).status == "done"


def without_one(replies: Replies, home: Home) -> Replies:
    return {key: reply for key, reply in replies.items() if key != ("audit", "valley")}


def of_another_study(replies: Replies, home: Home) -> Replies:
    other = replies["audit", "valley"].model_copy(update={"protocol": OTHER})
    return {**replies, ("audit", "valley"): other}


def of_another_stage(replies: Replies, home: Home) -> Replies:
    return {**replies, ("audit", "valley"): make_reply(home, "latents", "valley", {})}


def of_another_site(replies: Replies, home: Home) -> Replies:
    other = replies["audit", "valley"].model_copy(update={"site": "harbour"})
    return {**replies, ("audit", "valley"): other}


def by_another_filter(stage: StageName) -> Callable[[Replies, Home], Replies]:
    def change(replies: Replies, home: Home) -> Replies:
        body = {**replies[stage, "valley"].body, "commitment": OTHER}
        return {**replies, (stage, "valley"): make_reply(home, stage, "valley", body)}

    return change


@pytest.mark.parametrize(
    ("change", "said"),
    [
        pytest.param(
            by_another_filter("calibration"),
            "the votes of valley",
            id="calibration of another filter",
        ),
        pytest.param(
            by_another_filter("screening"), "the votes of valley", id="screening of another filter"
        ),
        pytest.param(
            by_another_filter("audit"), "the audit of valley", id="audit of another filter"
        ),
        (without_one, "not every site's tallies"),
        (of_another_study, "of something else"),
        (of_another_stage, "of something else"),
        (of_another_site, "of something else"),
    ],
)
def test_tallies_of_something_else_are_not_pooled(
    home: Home, change: Callable[[Replies, Home], Replies], said: str
) -> None:
    reply = ask(home, release(home), replies=change(good_tallies(home), home))
    assert (reply.status, reply.body) == ("refused", {})
    assert said in reply.reason


def test_tally_that_the_site_did_not_sign_is_refused(home: Home) -> None:
    reply = ask(home, release(home), signers={**home.members, "valley": KeyPair.create()})
    assert (reply.status, reply.body) == ("refused", {})
    assert "not what it signed" in reply.reason


def second_round(home: Home, *, number: int = 1, **changes: object) -> tuple[Reply, ...]:
    """Return every site's reply to one more round of screening, as good as the first."""
    good = good_tallies(home)["screening", "north"].body
    body = {**good, **changes}
    return tuple(make_reply(home, "screening", site, body, number=number) for site in home.members)


def evidence_of_two_rounds(home: Home) -> Evidence:
    tallies = good_tallies(home)
    told = {
        stage: [[r.body for (of, _), r in tallies.items() if of == stage]] for stage in TALLY_STAGES
    }
    told["screening"].append([reply.body for reply in second_round(home)])
    measured = {m.name: m for m in pool_tallies(told)}
    good = good_evidence(home)
    kept = tuple(measured.get(m.name, m) for m in good.measurements)
    return good.model_copy(update={"measurements": kept})


def test_arms_that_the_study_does_not_compare_are_not_signed(home: Home) -> None:
    good = good_evidence(home)
    arms = counted(
        "arms.student.ratio", part=1, whole=2, unit="conditions", method="told by nobody"
    )
    told = good.model_copy(update={"measurements": (*good.measurements, arms)})
    reply = ask(home, release(home, evidence=told))
    assert (reply.status, reply.body) == ("refused", {})
    assert "three arms" in reply.reason
    assert ask(home, release(home, evidence=good)).status == "done"  # the control


def test_every_round_of_a_screening_is_pooled(home: Home) -> None:
    evidence = evidence_of_two_rounds(home)
    done = evidence.find("screening.done")
    assert done is not None
    assert done.n == 24
    files = release(home, evidence=evidence)
    twice = {**ONE_ROUND, "screening": 2}
    assert ask(home, files, more=second_round(home), voted=twice).status == "done"


@pytest.mark.parametrize("way", ["left out", "not answered here", "another number", "of one site"])
def test_rounds_are_complete_and_in_order(home: Home, way: str) -> None:
    files = release(home, evidence=evidence_of_two_rounds(home))
    more, twice = second_round(home), {**ONE_ROUND, "screening": 2}
    if way == "left out":
        more, files = (), release(home)
    elif way == "not answered here":
        twice = ONE_ROUND
    elif way == "another number":
        more = second_round(home, number=2)
    else:
        more = more[:1]
    reply = ask(home, files, more=more, voted=twice)
    assert (reply.status, reply.body) == ("refused", {})
    assert "not every site's tallies" in reply.reason


def test_round_that_another_filter_judged_is_not_pooled(home: Home) -> None:
    files = release(home, evidence=evidence_of_two_rounds(home))
    more, twice = second_round(home, commitment=OTHER), {**ONE_ROUND, "screening": 2}
    reply = ask(home, files, more=more, voted=twice)
    assert (reply.status, reply.body) == ("refused", {})
    assert "the votes of north" in reply.reason
