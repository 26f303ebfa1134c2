"""The steward obeys the coordinator within a consent, once, and tells nothing of a patient."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import TYPE_CHECKING

import numpy as np
import pytest

from vitrael.client.site.steward import open_cohort
from vitrael.client.site.tasks import TaskResult
from vitrael.core.digest import digest_bytes
from vitrael.core.errors import CohortError, EnvelopeError, StorageError
from vitrael.core.messages import ENVELOPE, Parcel
from vitrael.privacy.journal import verify_journal
from vitrael.privacy.keys import KeyPair

if TYPE_CHECKING:
    from tests.unit.client.site.conftest import CountingTask, Home
    from vitrael.client.site.steward import Steward

SECRET = "patient p-17"


def test_task_is_done_and_answered(home: Home, steward: Steward, counting: CountingTask) -> None:
    task = home.task()
    reply, outputs = home.open(steward.answer(home.parcel(task)))
    reply.check_answers(task)
    assert (reply.status, reply.num_examples, counting.calls) == ("done", 50, 1)
    np.testing.assert_array_equal(outputs["codec"]["w"].ravel(), np.arange(6) + 1)
    assert [line.event for line in home.lines()] == ["consent", "sent"]


def foreign_key(home: Home) -> Parcel:
    return home.parcel(home.task(), signer=KeyPair.create())


def own_key(home: Home) -> Parcel:
    return home.parcel(home.task(), signer=home.keys)


def changed_byte(home: Home) -> Parcel:
    parcel = home.parcel(home.task())
    data = bytearray(parcel[ENVELOPE])
    data[data.index(b'"payload":"') + 40] ^= 1
    return {**parcel, ENVELOPE: bytes(data)}


def no_envelope(home: Home) -> Parcel:
    return {"codec": home.parcel(home.task())["codec"]}


def for_another_site(home: Home) -> Parcel:
    return home.parcel(home.task(site="harbour"))


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (foreign_key, "signature does not hold"),
        (own_key, "signature does not hold"),
        (changed_byte, "signature does not hold"),
        (no_envelope, "not DSSE"),
        (for_another_site, "for site harbour"),
    ],
)
def test_parcel_that_is_not_for_us_gets_no_reply(
    home: Home,
    steward: Steward,
    counting: CountingTask,
    make: Callable[[Home], Parcel],
    said: str,
) -> None:
    with pytest.raises(EnvelopeError, match=said):
        steward.answer(make(home))
    assert counting.calls == 0
    assert [line.event for line in home.lines()] == ["consent"]  # who tells its bearer notes it


def replayed_nonce(home: Home, steward: Steward) -> Parcel:
    steward.answer(home.parcel(home.task(nonce="a" * 32)))
    return home.parcel(home.task(nonce="a" * 32, round=1))


def wrong_protocol(home: Home, steward: Steward) -> Parcel:
    return home.parcel(home.task(protocol=digest_bytes(b"changed")))


def expired(home: Home, steward: Steward) -> Parcel:
    home.clock.advance(days=365)
    return home.parcel(home.task())


def too_many_rounds(home: Home, steward: Steward) -> Parcel:
    return home.parcel(home.task(round=99))


@pytest.mark.parametrize(
    ("make", "said", "calls"),
    [
        (replayed_nonce, "nonce was used before", 1),
        (wrong_protocol, "no consent to this protocol", 0),
        (expired, "has expired", 0),
        (too_many_rounds, "round 100 of codec is more", 0),
    ],
)
def test_task_outside_its_right_is_refused_before_it_starts(
    home: Home,
    steward: Steward,
    counting: CountingTask,
    make: Callable[[Home, Steward], Parcel],
    said: str,
    calls: int,
) -> None:
    reply, outputs = home.open(steward.answer(make(home, steward)))
    assert (reply.status, outputs, counting.calls) == ("refused", {}, calls)
    assert said in reply.reason
    line = home.lines()[-1]
    assert (line.event, line.reason) == ("refused", reply.reason)


def test_no_consent_no_task(home: Home, counting: CountingTask) -> None:
    steward = home.steward({"codec": counting, "consent": counting})
    for stage in ("codec", "consent"):
        reply, _ = home.open(steward.answer(home.parcel(home.task(stage=stage))))
        assert reply.status == "refused"
        assert "vitrael site consent" in reply.reason
    assert counting.calls == 0


def test_counted_refusals_stand_before_the_next_task(home: Home, steward: Steward) -> None:
    for _ in range(3):
        steward.note_refusal("not DSSE.", 10)
    steward.answer(home.parcel(home.task()))
    assert [line.event for line in home.lines()] == ["consent", "refused", "refused", "sent"]
    assert sum(line.bytes for line in home.lines()[1:3]) == 30


def test_removed_journal_lets_nothing_leave(home: Home, steward: Steward) -> None:
    steward.answer(home.parcel(home.task()))
    home.settings.journal.unlink()
    home.settings.journal.with_suffix(".head.json").unlink()
    with pytest.raises(StorageError, match="not whole"):
        steward.answer(home.parcel(home.task(round=1)))


def test_task_sent_twice_is_answered_twice(
    home: Home, steward: Steward, counting: CountingTask
) -> None:
    parcel = home.parcel(home.task())
    first, again = (home.open(steward.answer(parcel))[0] for _ in range(2))
    assert (again.outputs, counting.calls) == (first.outputs, 1)
    assert again.model_copy(update={"journal": first.journal}) == first


def test_interrupted_task_runs_again(home: Home, steward: Steward, counting: CountingTask) -> None:
    counting.error = SystemExit(0)
    with pytest.raises(SystemExit):
        steward.answer(home.parcel(home.task()))
    counting.error = None
    reply, _ = home.open(steward.answer(home.parcel(home.task())))
    assert (reply.status, counting.calls) == ("done", 2)


@pytest.mark.parametrize("step", ["_outbox.check", "_store.finish", "_outbox.send"])
def test_kill_between_two_steps_loses_nothing(
    home: Home,
    steward: Steward,
    counting: CountingTask,
    monkeypatch: pytest.MonkeyPatch,
    step: str,
) -> None:
    def killed(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    part, name = step.split(".")
    with monkeypatch.context() as patch:
        patch.setattr(type(getattr(steward, part)), name, killed)
        with pytest.raises(KeyboardInterrupt):
            steward.answer(home.parcel(home.task()))
    steward.close()
    reply, outputs = home.open(home.steward({"codec": counting}).answer(home.parcel(home.task())))
    assert reply.status == "done"
    assert outputs["codec"]["w"][0, 0] == 1
    assert counting.calls == (1 if step == "_outbox.send" else 2)
    assert verify_journal(home.settings.journal) == []


def test_known_error_is_told_in_its_sentence(
    home: Home, steward: Steward, counting: CountingTask
) -> None:
    counting.error = CohortError("no patient of this site falls into the training split")
    reply, _ = home.open(steward.answer(home.parcel(home.task())))
    assert (reply.status, reply.reason) == ("failed", counting.error.sentence())


def test_unexpected_error_is_told_by_its_type_alone(
    home: Home, steward: Steward, counting: CountingTask, caplog: pytest.LogCaptureFixture
) -> None:
    counting.error = ValueError(SECRET)
    reply, _ = home.open(steward.answer(home.parcel(home.task())))
    assert reply.status == "failed"
    assert "ValueError" in reply.reason
    assert "ValueError" in caplog.text
    for text in (reply.reason, caplog.text, home.settings.journal.read_text()):
        assert SECRET not in text


def test_full_disk_in_a_task_is_told_as_such(
    home: Home, steward: Steward, counting: CountingTask
) -> None:
    counting.error = OSError(28, "No space left on device")
    reply, _ = home.open(steward.answer(home.parcel(home.task())))
    assert reply.status == "failed"
    assert "no disk space left" in reply.reason


def test_full_disk_at_the_end_keeps_nothing_half_written(
    home: Home, steward: Steward, counting: CountingTask, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr("vitrael.client.site.store.write_atomically", full)
        reply, _ = home.open(steward.answer(home.parcel(home.task())))
    assert (reply.status, "no disk space left" in reply.reason) == ("failed", True)
    reply, _ = home.open(steward.answer(home.parcel(home.task())))
    assert (reply.status, counting.calls) == ("done", 2)


def test_nothing_leaves_without_its_line(
    home: Home, steward: Steward, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("vitrael.privacy.journal.os.fsync", full)
    with pytest.raises(StorageError, match="journal"):
        steward.answer(home.parcel(home.task()))


def test_result_that_the_outbox_refuses_is_not_kept(home: Home) -> None:
    home.consent()
    steward = home.steward({"codec": lambda *_: TaskResult(body={"patient": SECRET})})
    for _ in range(2):
        reply, _ = home.open(steward.answer(home.parcel(home.task())))
        assert (reply.status, reply.body) == ("failed", {})
        assert "outbox refuses" in reply.reason
        assert SECRET not in reply.reason


def test_changed_attachment_is_refused(home: Home, steward: Steward) -> None:
    parcel = home.parcel(home.task())
    parcel["codec"] = parcel["codec"][:-1] + b"?"
    reply, _ = home.open(steward.answer(parcel))
    assert reply.status == "refused"
    assert "cannot be unsealed" in reply.reason


def test_consent_task_returns_the_newest_consent(home: Home) -> None:
    envelopes = set()
    steward = home.steward()
    for _ in range(2):
        home.consent()
        home.clock.advance(days=1)
        task = home.task({}, stage="consent")
        reply, _ = home.open(steward.answer(home.parcel(task, {})))
        assert reply.status == "done"
        envelopes.add(reply.body["consent"])
    assert len(envelopes) == 2


def test_progress_holds_counts_alone(home: Home, steward: Steward) -> None:
    steward.answer(home.parcel(home.task()))
    (line,) = map(json.loads, home.settings.progress.read_text().splitlines())
    assert line == {
        "stage": "codec",
        "round": 0,
        "done": 1,
        "total": 10,
        "utc": "2031-05-01T12:00:00.000+00:00",
    }


def test_context_stays_warm_and_shows_nothing(home: Home) -> None:
    home.consent()
    seen = []
    steward = home.steward({"codec": lambda _task, _inputs, context: seen.append(context)})
    for number in range(2):
        steward.answer(home.parcel(home.task(round=number)))
    assert seen[0] is seen[1]
    assert repr(seen[0]) == "SiteContext(north)"
    assert (seen[0].device, seen[0].threads, seen[0].study) == ("cpu", 1, home.study)


def test_memory_is_given_back_after_every_task_that_held_tensors(
    home: Home, steward: Steward, monkeypatch: pytest.MonkeyPatch
) -> None:
    given: list[int] = []
    monkeypatch.setattr("vitrael.client.site.steward.give_back_memory", lambda: given.append(1))
    steward.rest()
    assert given == []
    for times, round_index in enumerate((0, 0, 99)):  # computed, given again, refused
        steward.answer(home.parcel(home.task(round=round_index)))
        steward.rest()
        assert len(given) == min(times + 1, 2)


def test_withdrawn_patient_whom_a_cohort_still_holds_is_not_served(home: Home) -> None:
    """A killed withdrawal has left the manifest, or a backup has brought it back."""
    assert "p-3" in open_cohort(home.settings, home.study).subjects
    (home.path / "withdrawn.json").write_text('{"subjects": ["p-99"]}')
    open_cohort(home.settings, home.study)  # the control: somebody else
    (home.path / "withdrawn.json").write_text('{"subjects": ["p-3", "p-99"]}')
    with pytest.raises(CohortError, match="take its folder in again") as caught:
        open_cohort(home.settings, home.study)
    for word in ("p-3", "withdr", "patient"):  # a site may send the sentence
        assert word not in caught.value.sentence()
    (home.path / "withdrawn.json").write_text("{")
    with pytest.raises(CohortError, match="cannot be read"):
        open_cohort(home.settings, home.study)
