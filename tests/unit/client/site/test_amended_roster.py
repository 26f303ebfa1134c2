"""A round that was finished stays finished when the roster is amended."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pytest
from click.testing import CliRunner

from tests.unit.client.site.conftest import weights
from vitrael.client.site.cli import site
from vitrael.core.digest import digest_bytes
from vitrael.core.study import Study
from vitrael.privacy.keys import KeyPair

if TYPE_CHECKING:
    from pathlib import Path

    from tests.unit.client.site.conftest import CountingTask, Home
    from vitrael.core.digest import Digest
    from vitrael.core.messages import Reply
    from vitrael.core.weights import Tensors

OTHER = {"codec": {"w": np.ones((2, 3), np.float32)}}


def ask(home: Home, counting: CountingTask, inputs: dict[str, Tensors], number: int) -> Reply:
    steward = home.steward({"codec": counting})
    reply, _ = home.open(steward.answer(home.parcel(home.task(inputs, round=number), inputs)))
    steward.close()
    return reply


def amend(home: Home, name: str, predecessor: Digest | None) -> Digest:
    """Let a site join and everybody consent again; return the digest of the new roster."""
    home.members[name] = KeyPair.create()
    roster = {"sites": list(home.members), "predecessor": predecessor}
    home.study = Study.model_validate({**home.study.model_dump(mode="json"), "roster": roster})
    return home.consent().roster


@pytest.fixture
def first(home: Home, counting: CountingTask) -> Digest:
    """The roster with which round 1 was finished."""
    roster = home.consent().roster
    assert ask(home, counting, weights(), 0).status == "done"
    return roster


def test_round_finished_before_is_not_answered_for_other_inputs(
    home: Home, counting: CountingTask, first: Digest
) -> None:
    amend(home, "island", first)
    reply = ask(home, counting, OTHER, 0)
    assert reply.status == "refused"
    assert "round 1 of codec was answered already for other inputs" in reply.reason
    assert ask(home, counting, OTHER, 1).status == "done", "which was never answered"


def test_round_that_was_cut_off_is_answered_for_the_same_inputs(
    home: Home, counting: CountingTask, first: Digest
) -> None:
    amend(home, "island", first)
    assert ask(home, counting, weights(), 0).status == "done"
    assert ask(home, counting, OTHER, 0).status == "refused"


def test_second_amendment_keeps_what_the_first_one_kept(
    home: Home, counting: CountingTask, first: Digest
) -> None:
    amend(home, "fjord", amend(home, "island", first))
    assert ask(home, counting, OTHER, 0).status == "refused"


def test_roster_in_between_that_was_not_consented_to_opens_no_round_again(
    home: Home, counting: CountingTask, first: Digest
) -> None:
    amend(home, "island", first)
    missed = digest_bytes(b"a roster of the time when this site was away")
    amend(home, "fjord", missed)
    assert ask(home, counting, OTHER, 0).status == "refused"
    assert ask(home, counting, OTHER, 1).status == "done", "which was never answered"


def test_roster_that_amends_none_begins_anew(
    home: Home, counting: CountingTask, first: Digest
) -> None:
    assert first
    amend(home, "island", None)
    assert ask(home, counting, OTHER, 0).status == "done"


def test_who_consents_reads_what_a_roster_amends_and_what_was_answered(
    home: Home, study_file: Path, first: Digest
) -> None:
    command = ["consent", str(study_file), "--home", str(home.path), "--dry-run"]

    def read() -> dict[str, str]:
        done = CliRunner().invoke(site, command, catch_exceptions=False)
        return {line[:12].strip(): line[13:] for line in done.stdout.splitlines()}

    words = read()
    assert (words["amends"], words["answered"]) == ("no earlier roster", "codec 1")
    home.settings.store.unlink()
    text = study_file.read_text()
    study_file.write_text(text.replace("[roster]", f'[roster]\npredecessor = "{first}"'))
    words = read()
    assert (words["amends"], words["answered"]) == (first, "nothing so far")
    assert not home.settings.store.exists()
