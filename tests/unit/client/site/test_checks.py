"""What the doctor asks of a site: each finding with its remedy, and each with its control."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterator
from contextlib import closing
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from tests.factories.tls import Identity, Response, Server, issue, make_authority, serve_tls
from vitrael.client.site import checks
from vitrael.client.site.backup.restored import Restored, forget_mark, save_mark
from vitrael.client.site.checks import check_clock, check_gpu, check_tls, checks_of
from vitrael.client.site.life import note_of_life
from vitrael.client.site.store import Store
from vitrael.core.doctor import doctor, exit_code, run_checks
from vitrael.core.reach import Answer
from vitrael.privacy.journal import Entry
from vitrael.privacy.keys import KeyPair, save_roster
from vitrael.privacy.node_keys import create_node_key

NOW = datetime(2031, 5, 1, 12, tzinfo=UTC)
COORDINATOR = ("authority", "name", "port", "tls", "clock", "courier")


@pytest.fixture(scope="module")
def authority() -> Identity:
    return make_authority()


@pytest.fixture(scope="module")
def server(authority: Identity) -> Iterator[Server]:
    def answer(_: object) -> Response:
        now = datetime.now(UTC)
        return Response(200, headers={"date": format_datetime(now, usegmt=True)})

    with serve_tls(answer, identity=issue(authority)) as server:
        yield server


@pytest.fixture
def path(home: Any, server: Server, authority: Identity) -> Iterator[Path]:
    """Yield a home that is in order, by the true clock."""
    home.clock.now = datetime.now(UTC)
    home.consent()
    create_node_key(home.path / "keys" / "node")
    (home.path / "authority.pem").write_text(authority.pem)
    (home.path / "site.toml").write_text(f'name = "north"\naddress = "{server.address}"\n')
    (home.path / "standing.json").write_text(
        json.dumps(
            {
                "status": "enrolled",
                "expires_utc": (datetime.now(UTC) + timedelta(days=300)).isoformat(),
                "utc": datetime.now(UTC).isoformat(),
            }
        )
    )
    with note_of_life(home.path / "steward.json", {"pid": os.getpid()}):
        yield home.path


def examine(path: Path, *, now: datetime | None = None) -> dict[str, tuple[str, str]]:
    asked = checks_of(path, now or datetime.now(UTC))
    names = [check.name for check in asked]
    found = zip(names, run_checks(asked), strict=True)
    return {name: (one.level, f"{one.sentence} | {one.remedy}") for name, one in found}


def test_a_home_in_order_has_nothing_to_do_but_start_the_courier(path: Path) -> None:
    found = examine(path)
    assert {name: level for name, (level, _) in found.items() if level != "ok"} == {
        "courier": "warn"
    }
    assert set(COORDINATOR) < set(found)
    assert "the first of 1 consents holds for 89 days" in found["consents"][1]


def test_a_folder_of_another_kind_is_asked_nothing(tmp_path: Path) -> None:
    assert checks_of(tmp_path, NOW) == ()


def test_settings_that_are_wrong_are_the_one_finding(path: Path) -> None:
    (path / "site.toml").write_text('name = "NORTH!"')
    found = examine(path)
    assert list(found) == ["site.toml"]
    assert found["site.toml"][0] == "fail"


@pytest.mark.parametrize(
    ("name", "spoil", "level", "said"),
    [
        ("keys", lambda p: (p / "keys" / "split.key").chmod(0o640), "fail", "chmod 600 keys/split"),
        ("keys", lambda p: (p / "keys" / "node").chmod(0o644), "fail", "chmod 640 keys/node"),
        ("keys", lambda p: (p / "keys" / "sealing.pem").unlink(), "fail", "sealing.pem"),
        ("keys", lambda p: (p / "keys.unused-1").mkdir(), "warn", "lie in keys.unused-1 too"),
        ("keys", lambda p: (p / ".partial-restore").mkdir(), "warn", "lie in .partial-restore too"),
        ("steward", lambda p: (p / "steward.json").unlink(), "warn", "vitrael site run"),
        ("journal", lambda p: (p / "journal.jsonl").unlink(), "fail", "not whole"),
        ("enrollment", lambda p: (p / "standing.json").unlink(), "warn", "vitrael site fetch"),
        ("enrollment", lambda p: (p / "standing.json").write_text("{}"), "fail", "fetch"),
        ("authority", lambda p: (p / "authority.pem").unlink(), "fail", "join with"),
        ("authority", lambda p: (p / "authority.pem").write_text("x"), "fail", "no certificate"),
        (
            "tls",
            lambda p: (p / "authority.pem").write_text(make_authority().pem),
            "fail",
            "inspect",
        ),
    ],
    ids=range(12),
)
def test_what_is_wrong_is_found_with_its_remedy(
    path: Path, name: str, spoil: Any, level: str, said: str
) -> None:
    assert examine(path)[name][0] == "ok"
    spoil(path)
    found = examine(path)[name]
    assert found[0] == level
    assert said in found[1]


def test_a_site_that_answers_nothing_is_told(home: Any, path: Path) -> None:
    assert examine(path)["tasks"] == ("ok", "tasks are taken | ")
    text = (path / "site.toml").read_text()
    (path / "site.toml").write_text(f'{text}[schedule]\nhours = "20:00-06:00"\n')
    assert examine(path)["tasks"][1] == "tasks are taken, 20:00-06:00 alone | "
    with closing(Store(home.settings.store, updates=home.settings.updates)) as store:
        entry, now = Entry(event="held"), home.clock.now
        store.decisions.hold(home.task(), fields="", size=1, now=now, until=now, owed=entry)
        level, told = examine(path)["tasks"]
        assert (level, "1 results are held" in told, "site held" in told) == ("warn", True, True)
        home.control().reject(store.decisions.list_held()[0], reason="too few")
    assert examine(path)["tasks"][0] == "ok"
    home.control().pause()
    level, told = examine(path)["tasks"]
    assert (level, "paused since" in told, "site resume" in told) == ("warn", True, True)
    home.control().resume()
    utc = NOW.isoformat()
    mark = Restored(home="0" * 32, number=3, created_utc=utc, restored_utc=utc, complete=True)
    save_mark(path, mark)
    level, told = examine(path)["tasks"]
    assert (level, "backup 3" in told, "--expect-journal" in told) == ("warn", True, True)
    save_mark(path, mark.model_copy(update={"complete": False}))
    assert examine(path)["tasks"] == (
        "fail",
        "the home is half restored | run the same `vitrael site restore FILE` again",
    )
    forget_mark(path)
    assert examine(path)["tasks"][0] == "ok"
    home.control().leave()
    level, told = examine(path)["tasks"]
    assert (level, "has left" in told, "split.key" in told) == ("warn", True, True)


def test_what_expires_is_told(path: Path) -> None:
    later = datetime.now(UTC) + timedelta(days=85)
    assert examine(path, now=later)["consents"][0] == "warn"
    assert "no consent stands" in examine(path, now=later + timedelta(days=10))["consents"][1]
    assert examine(path, now=later + timedelta(days=220))["enrollment"][0] == "fail"


def test_consents_that_cover_nothing_any_more_are_told(
    home: Any, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert examine(path)["consents"][0] == "ok"
    with monkeypatch.context() as patch:  # the package was upgraded
        patch.setattr("vitrael.client.site.consent.package_version", lambda: "99")
        found = examine(path)["consents"]
    assert found[0] == "warn"
    assert "1 of 1 consents are of earlier keys or for other software" in found[1]
    others = {name: keys.public for name, keys in home.members.items()}
    save_roster({**others, "north": KeyPair.create().public}, path / "roster.json")  # rotated
    found = examine(path)["consents"]
    assert found[0] == "warn"
    assert "vitrael site consent" in found[1]
    del others["north"]
    save_roster(others, path / "roster.json")
    assert examine(path)["consents"][0] == "fail"


def test_a_site_that_was_revoked_is_told(path: Path) -> None:
    document = json.loads((path / "standing.json").read_text())
    (path / "standing.json").write_text(json.dumps({**document, "status": "pending"}))
    level, told = examine(path)["enrollment"][:2]
    assert (level, "not approved the site yet" in told) == ("warn", True)
    (path / "standing.json").write_text(json.dumps({**document, "status": "revoked"}))
    assert examine(path)["enrollment"][1].startswith("the site is revoked")


def test_without_a_network_the_network_alone_is_at_fault(path: Path) -> None:
    (path / "site.toml").write_text('name = "north"\naddress = "127.0.0.1:1"\n')
    findings = run_checks(checks_of(path, datetime.now(UTC)))
    assert exit_code(findings) == 5
    assert sum(one.level == "fail" for one in findings) == 3


def test_a_home_without_an_address_says_what_to_do(path: Path) -> None:
    (path / "site.toml").write_text('name = "north"\n')
    assert "vitrael site join" in examine(path)["address"][1]


@pytest.mark.parametrize(
    ("away_s", "level"), [(0, "ok"), (59, "ok"), (-61, "warn"), (299, "warn"), (600, "fail")]
)
def test_a_clock_that_is_off_is_told_before_flower_refuses_it(away_s: int, level: str) -> None:
    answer = Answer(NOW + timedelta(days=99), 200, NOW)
    finding = check_clock(answer, now=NOW + timedelta(seconds=away_s))
    assert (finding.level, bool(finding.remedy)) == (level, level != "ok")
    assert check_clock(Answer(NOW, 200, None), now=NOW).level == "warn"


def test_a_certificate_that_runs_out_and_a_service_that_is_down_are_told() -> None:
    assert check_tls(Answer(NOW + timedelta(days=99), 200, NOW), now=NOW).level == "ok"
    assert check_tls(Answer(NOW + timedelta(days=9), 200, NOW), now=NOW).level == "warn"
    down = check_tls(Answer(NOW + timedelta(days=99), 502, NOW), now=NOW)
    assert (down.level, down.network) == ("fail", True)


@pytest.mark.parametrize(("count", "level"), [("2", "ok"), ("0", "fail"), ("", "fail")])
def test_a_gpu_is_asked_of_torch(count: str, level: str) -> None:
    ask = (sys.executable, "-c", f"print({count!r})")
    assert check_gpu(ask_torch=ask).level == level


def test_a_gpu_is_asked_for_only_where_the_site_wants_one(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(checks, "check_gpu", lambda: check_gpu(ask_torch=("/no/such",)))
    assert "gpu" not in examine(path)
    with (path / "site.toml").open("a") as file:
        file.write('[performance]\ndevice = "cuda"\n')
    assert examine(path)["gpu"][0] == "fail"


def test_the_command_finds_the_checks_of_the_home(path: Path) -> None:
    said = CliRunner().invoke(doctor, ["--home", str(path), "--json"], standalone_mode=False)
    told = json.loads(said.output)
    names = [one["name"] for one in told["findings"]]
    assert names[:4] == ["python", "version", "disk", "site.toml"]
    assert {*COORDINATOR} < {*names}
    assert (said.return_value, told["exit_code"]) == (0, 0)
