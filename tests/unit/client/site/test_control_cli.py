"""``vitrael site pause|resume|stop|leave|consents|held|release|reject``: the operator's say."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from click.testing import CliRunner

from vitrael.client.site.cli import site
from vitrael.client.site.enrollment import words
from vitrael.client.site.steward import Steward
from vitrael.core.cli import run
from vitrael.core.errors import EnvelopeError, NetworkError, UsageError

if TYPE_CHECKING:
    from click.testing import Result

    from tests.unit.client.site.conftest import CountingTask, Home


@pytest.fixture(autouse=True)
def said(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, dict[str, Any]]]:
    """What the coordinator hears."""
    heard: list[tuple[str, dict[str, Any]]] = []

    def send_word(_settings: object, kind: str, **fields: Any) -> None:
        fields.pop("tell")
        heard.append((kind, fields))

    monkeypatch.setattr(words, "send_word", send_word)
    return heard


@pytest.fixture
def given(home: Home) -> Home:
    home.clock.now = datetime.now(UTC)  # the commands read the true clock
    home.consent()
    return home


def call(home: Home, *arguments: str, answer: str = "") -> Result:
    command = [*arguments, "--home", str(home.path)]
    return CliRunner().invoke(site, command, input=answer, catch_exceptions=False)


def told(home: Home, *arguments: str) -> Any:
    done = call(home, *arguments, "--json")
    assert done.exit_code == 0
    return json.loads(done.stdout)


def status(home: Home, **changes: object) -> str:
    steward = home.steward()
    reply, _ = home.open(steward.answer(home.parcel(home.task({}, stage="consent", **changes), {})))
    steward.close()
    return reply.status


ACTS = ("pause", "stop", "leave", "reject")


def refusal(home: Home) -> str:
    """Return why a round that is finished is not answered."""
    steward = home.steward()
    reply, _ = home.open(steward.answer(home.parcel(home.task())))
    steward.close()
    assert reply.status == "refused"
    return reply.reason


def test_pause_and_resume(given: Home) -> None:
    assert status(given) == "done"
    assert told(given, "pause", "--reason", "maintenance") == {"paused": True, "changed": True}
    assert told(given, "pause") == {"paused": True, "changed": False}
    assert status(given) == "refused"
    assert given.lines()[-2].reason == "maintenance"
    assert told(given, "resume") == {"paused": False, "changed": True}
    assert status(given) == "done"


def test_reason_of_a_pause_stays_in_the_journal_and_that_of_a_rejection_is_told(
    given: Home, counting: CountingTask
) -> None:
    hold(given, counting, 0, 1)
    first, _ = told(given, "held")
    told(given, "reject", str(first["id"]), "--yes", "--reason", "too few")
    told(given, "pause", "--reason", "maintenance")
    assert given.lines()[-1].reason == "maintenance"
    assert "is paused" in refusal(given)
    assert "maintenance" not in refusal(given)
    told(given, "resume")
    assert "too few" in refusal(given)  # the control
    shown = {word: " ".join(call(given, word, "--help").stdout.split()) for word in ACTS}
    assert "the coordinator does not hear it" in shown.pop("pause")
    assert all("for journal and coordinator" in text for text in shown.values())


@pytest.mark.parametrize("name", ["site-test", "site-test@1", "digest", "file"])
def test_stop_takes_a_consent_back_and_tells_the_coordinator(
    given: Home, study_file: Path, said: list[tuple[str, dict[str, Any]]], name: str
) -> None:
    protocol = given.study.protocol.digest
    study = {"digest": protocol, "file": str(study_file)}.get(name, name)
    dry = told(given, "stop", study, "--dry-run")
    assert dry == {"protocol": protocol, "stopped": False, "coordinator_told": False}
    assert (status(given), said) == ("done", [])
    assert call(given, "stop", study, answer="n\n").exit_code == 1
    assert (status(given), said) == ("done", [])
    done = told(given, "stop", study, "--yes", "--reason", "the committee asks for it")
    assert done == {"protocol": protocol, "stopped": True, "coordinator_told": True}
    assert status(given) == "refused"
    reason = "the committee asks for it"
    assert said == [("withdraw", {"protocol": protocol, "reason": reason})]


def test_stop_holds_without_a_network(
    given: Home, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def cut(*_: object, **__: object) -> None:
        raise NetworkError("the coordinator cannot be reached", fix="try again")

    monkeypatch.setattr(words, "send_word", cut)
    command = ["site", "stop", "site-test", "--yes", "--json", "--home", str(given.path)]
    assert run(command) == 0
    out, err = capsys.readouterr()
    assert (json.loads(out)["stopped"], json.loads(out)["coordinator_told"]) == (True, False)
    assert "the coordinator was not told: the coordinator cannot be reached" in err
    assert status(given) == "refused"


def test_unknown_study_is_a_wrong_call(given: Home) -> None:
    with pytest.raises(UsageError, match="consented to no study elsewhere"):
        call(given, "stop", "elsewhere", "--yes")
    other = given.study.protocol.model_copy(update={"version": 2})
    given.consent(given.study.model_copy(update={"protocol": other}))
    with pytest.raises(UsageError, match="2 studies of that name"):
        call(given, "stop", "site-test", "--yes")
    assert told(given, "stop", "site-test@2", "--yes")["protocol"] == other.digest
    assert status(given) == "done"


def test_leave_is_for_good(given: Home, said: list[tuple[str, dict[str, Any]]]) -> None:
    dry = call(given, "leave", "--dry-run")
    assert "1 consents are taken back, for good" in dry.stderr
    assert "copy keys/split.key, withdrawn.json" in dry.stderr
    assert "copy keys/split.key" in call(given, "leave", answer="n\n").stderr
    assert (status(given), said) == ("done", [])
    assert told(given, "leave", "--yes") == {"left": True, "coordinator_told": True}
    assert [kind for kind, _ in said] == ["leave"]
    assert status(given) == "refused"
    assert "has left" in call(given, "consents").stdout


def test_nothing_is_consented_to_after_leaving(given: Home, study_file: Path) -> None:
    told(given, "leave", "--yes")
    done = CliRunner().invoke(
        site, ["consent", str(study_file), "--home", str(given.path), "--yes"]
    )
    assert "has left the federation" in str(done.exception)
    assert status(given) == "refused"


def test_consents_are_listed_with_what_was_used(given: Home, counting: CountingTask) -> None:
    (given.path / "site.toml").write_text('name = "north"\n[limits]\nstudy_bytes = 1000000\n')
    steward = given.steward({"codec": counting})
    for number in range(2):
        steward.answer(given.parcel(given.task(round=number)))
    steward.close()
    sent = sum(line.bytes for line in given.lines())
    document = told(given, "consents")
    (facts,) = document["consents"]
    assert document["study_bytes"] == 1_000_000
    assert (facts["state"], facts["why"], facts["rounds_answered"]) == ("given", "", {"codec": 2})
    assert (facts["sent_bytes"], facts["max_rounds"]) == (sent, 2)
    assert 89.9 < facts["days_left"] <= 90
    text = call(given, "consents").stdout
    assert f"{sent} bytes have left of 1000000 allowed" in text
    assert "site-test@1  given" in text


def test_consents_say_why_one_does_not_stand(given: Home, monkeypatch: pytest.MonkeyPatch) -> None:
    def state() -> str:
        return str(told(given, "consents")["consents"][0]["state"])

    assert state() == "given"
    with monkeypatch.context() as patch:
        patch.setattr("vitrael.client.site.consent.package_version", lambda: "999")
        assert state() == "other software"
    main = given.settings.cohorts / "main"
    main.rename(main.with_name("renamed"))
    assert state() == "other cohort"
    main.with_name("renamed").rename(main)
    told(given, "stop", "site-test", "--yes")
    assert state() == "withdrawn"
    given.consent(days=1e-6)
    assert state() == "expired"


def test_consent_of_an_earlier_version_of_the_package_is_counted_and_not_shown(
    given: Home, monkeypatch: pytest.MonkeyPatch
) -> None:
    def unreadable(*_: object) -> None:
        raise EnvelopeError("the signed document cannot be used")

    assert (told(given, "consents")["unusable"], status(given)) == (0, "done")
    monkeypatch.setattr("vitrael.client.site.consent.open_consent", unreadable)
    document = told(given, "consents")
    assert (document["unusable"], document["consents"]) == (1, [])
    assert "1 more, of an earlier key or version" in call(given, "consents").stdout
    assert status(given) == "refused"


def test_site_without_consents_says_so(home: Home) -> None:
    assert "no consent was given" in call(home, "consents").stdout


def hold(home: Home, counting: CountingTask, *rounds: int) -> None:
    (home.path / "site.toml").write_text('name = "north"\nrelease = "manual"\n')
    steward = Steward(
        home.settings,
        clock=home.clock,
        tasks={"codec": counting},
        layouts=None,
        sleep=lambda seconds: home.clock.advance(seconds=seconds),
    )
    for number in rounds:
        reply, _ = home.open(steward.answer(home.parcel(home.task(round=number))))
        assert reply.status == "failed"
    steward.close()


def test_held_results_are_listed_and_released(given: Home, counting: CountingTask) -> None:
    hold(given, counting, 0, 1)
    first, second = told(given, "held")
    assert (first["stage"], first["round"], first["state"]) == ("codec", 0, "held")
    text = call(given, "held").stdout
    assert "codec 1" in text
    assert "curve_loss, codec" in text
    number = str(first["id"])
    assert told(given, "release", number, "--dry-run") == {"released": []}
    assert call(given, "release", number, answer="n\n").exit_code == 1
    assert len(told(given, "held")) == 2
    assert told(given, "release", number, "--yes") == {"released": [first["id"]]}
    assert [each["id"] for each in told(given, "held")] == [second["id"]]
    assert told(given, "release", "--all", "--yes") == {"released": [second["id"]]}
    assert told(given, "release", "--all") == {"released": []}


def test_held_result_is_rejected_with_a_reason(given: Home, counting: CountingTask) -> None:
    hold(given, counting, 0)
    (waiting,) = told(given, "held")
    assert call(given, "reject", str(waiting["id"]), "--yes").exit_code == 2  # no reason
    rejected = told(given, "reject", str(waiting["id"]), "--yes", "--reason", "too few")
    assert rejected == {"rejected": [waiting["id"]]}
    assert (told(given, "held"), given.lines()[-1].reason) == ([], "too few")


def test_what_a_stop_rejected_is_found_and_released_under_a_new_consent(
    given: Home, counting: CountingTask
) -> None:
    hold(given, counting, 0)
    (waiting,) = told(given, "held")
    told(given, "stop", "site-test", "--yes")
    given.consent()
    assert told(given, "held") == []
    (found,) = told(given, "held", "--all")
    assert (found["id"], found["state"]) == (waiting["id"], "rejected")
    assert "rejected: the consent was taken back" in call(given, "held", "--all").stdout
    told(given, "release", str(found["id"]), "--yes")
    assert [each["state"] for each in told(given, "held", "--all")] == ["released"]


@pytest.mark.parametrize("arguments", [(), ("1", "--all"), ("77",)])
def test_release_of_nothing_is_a_wrong_call(given: Home, arguments: tuple[str, ...]) -> None:
    assert call(given, "release", *arguments, "--yes").exit_code == 2


def test_command_that_was_killed_is_told_of_by_the_next(
    given: Home, monkeypatch: pytest.MonkeyPatch
) -> None:
    def kill(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("vitrael.client.site.store.Store.save_consent", kill)
        with pytest.raises(KeyboardInterrupt):
            given.consent()
    said = call(given, "resume").stderr
    assert "written down after the fact: repaired: a consent begun at" in said
    assert "was not finished: none was given" in said
    assert call(given, "resume").stderr == ""


def test_fetched_study_is_consented_to_by_its_name(home: Home, study_file: Path) -> None:
    folder = home.path / "studies"
    folder.mkdir()
    study_file.rename(folder / "site-test.toml")
    document = told(home, "consent", "site-test", "--yes")
    assert document["protocol"] == home.study.protocol.digest
    assert document["cohort"]["name"] == "main"


def test_study_that_was_not_fetched_is_a_wrong_call_with_the_remedy(
    home: Home, study_file: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["site", "consent", "unheard-of", "--yes", "--home", str(home.path)]
    assert run(command) == 2
    told_of = capsys.readouterr().err
    assert "study unheard-of was not fetched: fetched are: none" in told_of
    assert "run `vitrael site fetch`" in told_of
    (home.path / "studies").mkdir()
    study_file.rename(home.path / "studies" / "site-test.toml")
    assert run(command) == 2
    assert "fetched are: site-test" in capsys.readouterr().err
    command[2] = str(study_file)  # the control: a path that is none stays a wrong document
    assert run(command) == 3
