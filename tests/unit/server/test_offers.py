"""A study is offered, started and stopped by its name, and never without its sites."""

from __future__ import annotations

import json
import os
from datetime import UTC, datetime
from pathlib import Path

import pytest

from tests.factories.enrollment import enroll, enroll_everywhere, found
from tests.factories.federation import SITES, STUDY
from vitrael.core import cli
from vitrael.core.digest import digest_bytes, write_atomically
from vitrael.core.errors import AuthError, ProcessError, StudyError, UsageError
from vitrael.core.study import Study, load_study
from vitrael.privacy.keys import KeyPair
from vitrael.privacy.release.trust import load_trust
from vitrael.server.board import Board
from vitrael.server.config import ServerSettings
from vitrael.server.db.engine import open_database
from vitrael.server.offers import (
    MOST_BYTES,
    demand_enrolled,
    demand_running,
    load_offered,
    offer_study,
    offered,
    start_study,
    stop_study,
    wait_for_order,
)
from vitrael.server.orders import read_order
from vitrael.server.runs import StudyState, StudyStatus
from vitrael.server.settings import utc_now
from vitrael.server.sites.registry import Registry
from vitrael.server.status import read_status, show_status
from vitrael.server.studies.ledger import Ledger, StageKey
from vitrael.server.studies.rosters import find_members, keep_members

NOW = datetime(2031, 5, 1, tzinfo=UTC)


@pytest.fixture
def settings(tmp_path: Path) -> ServerSettings:
    """A coordinator's home with three enrolled sites."""
    return enroll_everywhere(tmp_path / "home", SITES, study=STUDY.encode())


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "study.toml"
    path.write_text(STUDY)
    return path


def pretend_to_run(settings: ServerSettings) -> None:
    """Write what a coordinator writes that is this very process."""
    board = Board(settings.home, "1", settings.document.address, utc_now)
    board.refresh(children=(), online=dict.fromkeys(SITES, True), study=None, trouble="")
    board.write()


def say(settings: ServerSettings, status: StudyStatus, *, code: int = 0) -> StudyState:
    order = read_order(settings.home)
    assert order is not None
    state = StudyState(
        study=order.study,
        protocol=order.protocol,
        order=order.digest,
        status=status,
        runs=1,
        exit_code=code,
    )
    (settings.home / "runs.json").write_text(state.model_dump_json())
    return state


def test_what_was_confirmed_is_what_is_offered(settings: ServerSettings, file: Path) -> None:
    def change(study: Study) -> None:
        assert study.protocol.seed == 178
        file.write_text(STUDY.replace("seed = 177", "seed = 179"))

    file.write_text(STUDY.replace("seed = 177", "seed = 178"))
    offer_study(settings, file, confirm=change)
    assert load_offered(settings, "tiny").protocol.seed == 178
    assert load_study(file).protocol.seed == 179  # the control


def test_study_of_a_site_that_is_not_enrolled_is_not_offered(tmp_path: Path, file: Path) -> None:
    settings = found(tmp_path / "empty")
    enroll(settings, "north", settings.home / "sites" / "north")
    with pytest.raises(AuthError, match="not enrolled: harbour, valley"):
        offer_study(settings, file)
    assert offered(settings) == {}


def test_site_that_was_revoked_is_missed_when_the_study_is_started(
    settings: ServerSettings,
) -> None:
    pretend_to_run(settings)
    with Registry(settings) as registry:
        registry.revoke("harbour", reason="stolen server")
    with pytest.raises(AuthError, match="not enrolled: harbour"):
        start_study(settings, "tiny", now=NOW)
    assert read_order(settings.home) is None


def test_study_that_has_begun_is_started_again_without_a_site_that_left(
    settings: ServerSettings,
) -> None:
    pretend_to_run(settings)
    study = load_offered(settings, "tiny")
    keep_members(settings.home, study, demand_enrolled(settings, study))
    with Registry(settings) as registry:
        registry.revoke("harbour", reason="stolen server")
    assert start_study(settings, "tiny", now=NOW).study == "tiny"


def test_order_to_start_takes_the_keys_of_now(settings: ServerSettings) -> None:
    pretend_to_run(settings)
    study = load_offered(settings, "tiny")
    began = demand_enrolled(settings, study)
    kept = {**began, "north": KeyPair.create().public}  # replaced since it began
    keep_members(settings.home, study, kept)
    write_atomically(settings.home / "study.toml", STUDY.encode())
    assert find_members(settings.home, study) == kept  # the control: a process that comes back
    start_study(settings, "tiny", now=NOW)
    assert find_members(settings.home, study) == began


def test_study_is_started_with_document_and_trust_in_the_home(settings: ServerSettings) -> None:
    with pytest.raises(ProcessError, match="no coordinator runs"):
        start_study(settings, "tiny", now=NOW)
    pretend_to_run(settings)
    order = start_study(settings, "tiny", now=NOW)
    assert (order.wanted, order.study) == ("run", "tiny")
    study = load_study(settings.home / "study.toml")
    assert study.protocol.digest == order.protocol
    trust = load_trust(settings.home / "trust.json")
    assert set(trust.keys) == set(SITES)
    assert trust.recall == KeyPair.load(settings.keys).public.signing
    with pytest.raises(UsageError, match="other is not offered: offered are tiny"):
        start_study(settings, "other", now=NOW)


def test_starting_what_runs_disturbs_nothing(settings: ServerSettings) -> None:
    pretend_to_run(settings)
    order = start_study(settings, "tiny", now=NOW)
    say(settings, "running")
    later = NOW.replace(hour=1)
    assert start_study(settings, "tiny", now=later) == order
    say(settings, "failed", code=1)
    assert start_study(settings, "tiny", now=later) != order  # the control


def test_one_study_runs_at_a_time_and_is_not_changed_under_way(
    settings: ServerSettings, file: Path
) -> None:
    pretend_to_run(settings)
    order = start_study(settings, "tiny", now=NOW)
    say(settings, "running")
    changed = file.with_name("changed.toml")
    changed.write_text(STUDY.replace("seed = 177", "seed = 178"))
    with pytest.raises(UsageError, match="tiny runs and would be changed"):
        offer_study(settings, changed)
    other = file.with_name("other.toml")
    other.write_text(STUDY.replace('name = "tiny"', 'name = "other"'))
    offer_study(settings, other)
    with pytest.raises(UsageError, match="the study tiny runs: a coordinator runs one"):
        start_study(settings, "other", now=NOW)
    assert stop_study(settings, "tiny", now=NOW).protocol == order.protocol
    say(settings, "stopped")
    with pytest.raises(UsageError, match="tiny does not run"):
        stop_study(settings, "tiny", now=NOW)
    assert start_study(settings, "other", now=NOW).study == "other"  # the control
    offer_study(settings, changed)


def test_document_that_sites_could_not_take_is_refused(
    settings: ServerSettings, file: Path
) -> None:
    file.write_text(STUDY + "#" * MOST_BYTES)
    with pytest.raises(StudyError, match=f"at most {MOST_BYTES}"):
        offer_study(settings, file)


def test_offer_under_another_name_is_refused(settings: ServerSettings) -> None:
    path = offered(settings)["tiny"]
    path.write_text(STUDY.replace('name = "tiny"', 'name = "other"'))
    with pytest.raises(StudyError, match="holds the study other"):
        load_offered(settings, "tiny")


def test_coordinator_that_does_not_obey_is_told_of(settings: ServerSettings) -> None:
    pretend_to_run(settings)
    order = start_study(settings, "tiny", now=NOW)
    passed: list[float] = []
    with pytest.raises(ProcessError, match="did not obey within 60 s"):
        wait_for_order(settings, order, clock=lambda: 7.0 * len(passed), sleep=passed.append)
    state = say(settings, "running")
    assert wait_for_order(settings, order) == state


def test_coordinator_that_is_gone_does_not_run(settings: ServerSettings) -> None:
    pretend_to_run(settings)
    assert demand_running(settings).pid == os.getpid()
    path = settings.home / "state.json"
    path.write_text(path.read_text().replace(f'"pid": {os.getpid()}', '"pid": 4194303'))
    with pytest.raises(ProcessError, match="no coordinator runs"):
        demand_running(settings)


def test_commands_offer_start_and_stop(
    settings: ServerSettings, file: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    home = ["--home", str(settings.home), "--json"]
    assert cli.run(["study", "offer", str(file), *home, "--dry-run"]) == 0
    assert json.loads(capsys.readouterr().out)["offered"] is False
    assert cli.run(["study", "offer", str(file), *home, "--yes"]) == 0
    assert json.loads(capsys.readouterr().out)["sites"] == list(SITES)
    assert cli.run(["study", "start", "tiny", *home, "--dry-run"]) == 0
    assert "the enrollment of site north ends on" in capsys.readouterr().err  # the first of all
    assert cli.run(["study", "start", "other", *home, "--yes"]) == 2
    assert cli.run(["study", "start", "tiny", *home, "--yes"]) == 1  # no coordinator runs
    assert cli.run(["study", "stop", "tiny", *home, "--yes"]) == 2


def test_status_tells_of_sites_and_study_whether_it_runs_or_not(
    settings: ServerSettings, capsys: pytest.CaptureFixture[str]
) -> None:
    home = ["--home", str(settings.home)]
    assert cli.run(["server", "status", *home]) == 0
    assert "does NOT run" in capsys.readouterr().out
    pretend_to_run(settings)
    start_study(settings, "tiny", now=NOW)
    say(settings, "running")
    assert cli.run(["server", "status", *home, "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert document["running"] is True
    assert [(one["site"], one["online"]) for one in document["sites"]] == [
        (site, True) for site in sorted(SITES)
    ]
    assert all(one["days"] > 300 for one in document["sites"])
    assert document["certificate"]["days"] > 800
    assert document["study"]["status"] == "running"
    text = show_status(read_status(settings, now=utc_now()))
    assert f"coordinator {settings.document.address}: runs, pid {os.getpid()}" in text
    assert "study tiny: running" in text
    assert "with the roster" not in text
    engine, order = open_database(settings.database), read_order(settings.home)
    assert order is not None
    roster, key = digest_bytes(b"a roster"), StageKey(order.protocol, "codec", 0, digest_bytes(b""))
    ledger = Ledger(engine)
    record = ledger.begin(key, details={"roster": roster})
    said = read_status(settings, now=utc_now())  # also of a run that was stopped or killed
    assert said["study"]["roster"] == roster
    assert f"with the roster {roster}" in show_status(said)
    ledger.finish(record, digest_bytes(b"a codec"))
    asked = StageKey(order.protocol, "consent", 0, digest_bytes(b"of others"))
    ledger.begin(asked, details={"roster": digest_bytes(b"another roster")})
    assert read_status(settings, now=utc_now())["study"]["roster"] == roster  # it has the rounds
    engine.dispose()


@pytest.mark.parametrize(("status", "code"), [("finished", 6), ("failed", 1), ("partial", 7)])
def test_following_ends_with_the_study_and_its_exit_code(
    settings: ServerSettings,
    status: StudyStatus,
    code: int,
    capsys: pytest.CaptureFixture[str],
) -> None:
    pretend_to_run(settings)
    start_study(settings, "tiny", now=NOW)
    say(settings, "running")
    home = ["--home", str(settings.home)]
    for seconds in ("0.01", "nan"):
        assert cli.run(["server", "status", *home, "--follow", "--timeout", seconds]) == 1
        assert "has not ended within" in capsys.readouterr().err
    assert cli.run(["server", "status", *home, "--follow", "--timeout", "inf"]) == 2
    say(settings, status, code=code)
    assert cli.run(["server", "status", *home, "--follow"]) == code
