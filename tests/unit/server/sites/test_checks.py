"""What the doctor asks of a coordinator."""

from __future__ import annotations

from datetime import timedelta

import pytest

from tests.factories.tls import Response, issue, make_authority, serve_tls
from tests.fakes.clock import START
from vitrael.core.doctor import exit_code, run_checks
from vitrael.core.reach import Answer
from vitrael.server.checks import check_tls, checks_of
from vitrael.server.config import ServerSettings
from vitrael.server.sites.authority import read_validity
from vitrael.server.sites.registry import Registry
from vitrael.server.support import parts_of


def examine(settings: ServerSettings, **later: float) -> dict[str, tuple[str, str]]:
    asked = checks_of(settings.home, START + timedelta(**later))
    found = zip(asked, run_checks(asked), strict=True)
    return {one.name: (each.level, f"{each.sentence} | {each.remedy}") for one, each in found}


@pytest.fixture(autouse=True)
def nowhere(settings: ServerSettings) -> None:
    """Let the address lead to a port of loopback on which nobody listens."""
    text = (settings.home / "server.toml").read_text()
    (settings.home / "server.toml").write_text(
        text.replace("vitrael.example.org:443", "127.0.0.1:1")
    )


def test_a_new_coordinator_lacks_its_processes_alone(settings: ServerSettings) -> None:
    found = examine(settings)
    assert {name: level for name, (level, _) in found.items() if level != "ok"} == {
        "running": "warn",
        "port": "fail",
        "tls": "fail",
    }
    assert exit_code(run_checks(checks_of(settings.home, START))) == 5


def test_keys_open_to_others_and_a_cut_journal_are_found(settings: ServerSettings) -> None:
    (settings.keys / "signing.pem").chmod(0o644)
    settings.journal.write_bytes(b"not a line\n")
    found = examine(settings)
    assert "chmod 600 keys/signing.pem" in found["keys"][1]
    assert found["journal"][0] == "fail"


def test_journal_that_is_gone_is_found(settings: ServerSettings) -> None:
    with Registry(settings, clock=lambda: START) as registry:
        registry.invite("north")
    assert examine(settings)["journal"] == ("ok", "the journal is whole: 1 lines | ")
    for name in ("journal.jsonl", "journal.head.json"):
        (settings.home / name).unlink()
    level, told = examine(settings)["journal"]
    assert (level, "was removed: 1 lines stood in it" in told) == ("fail", True)


def test_what_runs_out_is_told(settings: ServerSettings) -> None:
    assert examine(settings, days=800)["certificate"][0] == "warn"
    assert examine(settings, days=900)["certificate"][0] == "fail"
    assert examine(settings, days=20_000)["authority"][0] == "fail"


def test_settings_that_are_wrong_are_the_one_finding(settings: ServerSettings) -> None:
    (settings.home / "server.toml").write_text("address = 1")
    assert list(examine(settings)) == ["server.toml"]


def test_a_reverse_proxy_without_a_service_is_told(settings: ServerSettings) -> None:
    ends = read_validity(settings).certificate
    assert check_tls(settings, Answer(ends, 200, START), now=START).level == "ok"
    assert check_tls(settings, Answer(ends, 502, START), now=START).network


def test_what_sites_see_is_what_runs_out_and_not_the_file(settings: ServerSettings) -> None:
    ends = read_validity(settings).certificate
    soon = check_tls(settings, Answer(ends, 200, START), now=ends - timedelta(days=9))
    assert (soon.level, "holds for 9 days" in soon.sentence) == ("warn", True)
    older = Answer(ends - timedelta(days=700), 200, START)  # renewed, and nginx goes on with it
    stale = check_tls(settings, older, now=START)
    assert (stale.level, "restart the reverse proxy" in stale.remedy) == ("warn", True)


def test_remedies_are_a_coordinator_s(
    settings: ServerSettings, monkeypatch: pytest.MonkeyPatch
) -> None:
    def unknown(*_: object, **__: object) -> None:
        raise OSError(-2, "Name or service not known")

    found = examine(settings)
    assert "server.toml" in found["port"][1]
    assert "hospital" not in "".join(told for _, told in found.values())
    monkeypatch.setattr("vitrael.core.reach.socket.getaddrinfo", unknown)
    assert "server.toml" in examine(settings)["name"][1]


def test_what_sites_see_is_asked_as_they_ask(settings: ServerSettings) -> None:
    with serve_tls(lambda _: Response(), identity=issue(make_authority())) as server:
        (settings.home / "server.toml").write_text(f'address = "{server.address}"\n')
        found = examine(settings)
    assert found["port"][0] == "ok"
    assert "no authority" in found["tls"][1]
    assert "restart the reverse proxy" in found["tls"][1]


def test_a_bundle_holds_numbers_and_no_name(settings: ServerSettings) -> None:
    files = parts_of(settings.home)
    assert b'"threads": 1' in files["server.toml.json"]
    assert b"127.0.0.1" not in files["server.toml.json"]
    assert parts_of(settings.home / "keys") == {}
