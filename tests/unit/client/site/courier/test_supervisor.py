"""The courier's processes: started, started again, given up, ended in order."""

from __future__ import annotations

import os
import socket
from collections.abc import Callable
from pathlib import Path

import pytest
from cryptography import x509

from tests.factories.tls import make_authority
from tests.fakes.courier import Stage
from vitrael.client.site.courier import supervisor
from vitrael.client.site.courier.supervisor import port_is_free
from vitrael.client.site.life import is_alive, note_of_life
from vitrael.core.errors import AuthError, ConfigError, NetworkError, ProcessError, UsageError
from vitrael.privacy.node_keys import create_node_key

REFUSED = ["ERROR : Exit Code: 305", "[code: 2004] Failed to activate SuperNode."]


@pytest.fixture
def home(tmp_path: Path) -> Path:
    home = tmp_path / "north"
    create_node_key(home / "keys" / "node")
    (home / "authority.pem").write_text(make_authority().pem)
    (home / "site.toml").write_text(
        'name = "north"\naddress = "coordinator.test:443"\n'
        '[network]\nproxy = "http://proxy.test:3128"\n'
    )
    return home


@pytest.fixture(autouse=True)
def free(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(supervisor, "port_is_free", lambda *_, **__: True)


def test_both_start_and_the_executor_ends_first(home: Path) -> None:
    stage = Stage(home)
    stage.run(lambda: None)
    assert [child.name for child in stage.children] == ["SuperNode", "SuperExec"]
    assert stage.log == ["ended SuperExec", "ended SuperNode"]
    node, executor = (" ".join(child.command) for child in stage.children)
    assert "--superlink coordinator.test:443" in node
    assert "--isolation process" in node
    assert f'home="{home}" site="north"' in node
    assert "keys/node" not in executor
    assert "authorities.pem" not in executor
    assert f"--parent-pid {os.getpid()}" in executor


def test_nothing_of_the_operator_s_reaches_code_that_comes_by_flower(home: Path) -> None:
    stage = Stage(home)
    told = {"LANG": "C.UTF-8", "LC_ALL": "C", "TZ": "UTC", "HOME": "/h", "TMPDIR": "/t"}
    secrets = {
        "VITRAEL_PASSPHRASE_FILE": "/run/p",
        "AWS_SECRET_ACCESS_KEY": "x",
        "SSH_AUTH_SOCK": "/s",
        "LD_PRELOAD": "/x.so",
        "PYTHONPATH": "/x",
        "FLWR_RUNTIME_VERSION": "x",
        "no_proxy": "coordinator.test",
        "SSL_CERT_FILE": "/x",
    }
    stage.courier.base_environment = told | secrets
    stage.run()
    for child in stage.children:
        assert child.environment.keys().isdisjoint(secrets.keys() - {"no_proxy"})
        assert child.environment.get("no_proxy") != "coordinator.test"
        assert child.environment.items() >= told.items()


def test_only_the_node_is_told_of_the_proxy_and_only_of_the_site_s_own(home: Path) -> None:
    stage = Stage(home)
    stage.run()
    node, executor = (child.environment for child in stage.children)
    assert node["HTTPS_PROXY"] == "http://proxy.test:3128"
    assert "NO_PROXY" not in node
    assert "HTTPS_PROXY" not in executor
    assert executor["NO_PROXY"] == "127.0.0.1,localhost"
    assert {one["FLWR_TELEMETRY_ENABLED"] for one in (node, executor)} == {"0"}
    assert node["FLWR_HOME"] != executor["FLWR_HOME"]


def test_a_child_that_dies_starts_again_after_pauses_that_double(home: Path) -> None:
    stage = Stage(home, roles=("executor",))
    (home / "flower" / "tls").mkdir(parents=True)
    (home / "flower" / "superexec.secret").write_text("x")
    (home / "flower" / "tls" / "ca.crt").write_text("x")
    starts: list[float] = []

    def die() -> None:
        stage.children[-1].code = 1
        starts.append(stage.children[-1].began)

    def tick() -> None:
        stage.now_s += 1

    stage.run(die, *[tick] * 3, die, *[tick] * 4, die)
    assert [child.began for child in stage.children] == [0.0, 1.0, 5.0]
    assert stage.courier.watches["executor"].failures == 3


def test_who_has_run_long_is_started_again_at_once(home: Path) -> None:
    stage = Stage(home)

    def pass_time() -> None:
        stage.now_s += 100

    def die() -> None:
        stage.children[1].code = 1

    def tick() -> None:
        stage.now_s += 1

    stage.courier.watches = {}
    stage.run(pass_time, die, tick, tick)
    assert [child.name for child in stage.children[2:]] == ["SuperExec"]


def test_a_refused_key_is_tried_for_ninety_seconds_and_then_told(home: Path) -> None:
    stage = Stage(home)

    def refuse() -> None:
        stage.now_s += 10
        node = stage.named("SuperNode")[-1]
        if node.code is None:
            node.say(*REFUSED)
            node.code = 1

    with pytest.raises(AuthError, match="refuses this site's node key") as caught:
        stage.run(*[refuse] * 40)
    assert caught.value.exit_code == 4
    assert 4 <= len(stage.named("SuperNode")) <= 6
    assert stage.log == ["ended SuperExec"]


def test_a_key_that_is_let_go_connects_and_the_count_begins_anew(home: Path) -> None:
    stage = Stage(home)

    def refuse() -> None:
        stage.named("SuperNode")[-1].say(*REFUSED)
        stage.named("SuperNode")[-1].code = 1

    def tick() -> None:
        stage.now_s += 3

    def connect() -> None:
        stage.named("SuperNode")[-1].say("INFO : SuperNode ID: 42")

    stage.run(refuse, tick, tick, connect)
    assert stage.courier.refused_since is None
    assert (home / "flower" / "node" / "node.id").read_text() == "42"
    again = Stage(home)
    again.run()
    words = list(again.children[0].command)
    assert words[words.index("--sign-off") + 1] == "42"


def test_a_foreign_certificate_ends_the_courier_at_once(home: Path) -> None:
    stage = Stage(home)

    def distrust() -> None:
        stage.children[0].say("CERTIFICATE_VERIFY_FAILED: certificate verify failed: self-signed")
        stage.children[0].code = 1

    with pytest.raises(AuthError, match=r"\[network\].authority"):
        stage.run(distrust, lambda: None)
    assert len(stage.children) == 2
    assert stage.log == ["ended SuperExec"]


def test_a_foreign_certificate_after_a_good_one_is_waited_out(home: Path) -> None:
    stage = Stage(home)

    def tick() -> None:
        stage.now_s += 1

    def connect() -> None:
        stage.named("SuperNode")[-1].say("INFO : SuperNode ID: 1")

    def distrust() -> None:
        node = stage.named("SuperNode")[-1]
        node.say("ERROR : Exit Code: 305", "certificate verify failed: self-signed certificate")
        node.code = 1

    stage.run(connect, distrust, tick, tick, distrust, *[tick] * 4, connect)
    assert len(stage.named("SuperNode")) == 3
    assert stage.log == ["ended SuperExec", "ended SuperNode"]


def test_a_full_disk_hides_no_connection(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stage = Stage(home)
    seen = []

    def connect() -> None:
        def full(_path: Path, _data: bytes) -> None:
            raise OSError(28, "No space left on device")

        monkeypatch.setattr(supervisor, "write_atomically", full)
        stage.children[0].say("INFO : SuperNode ID: 1")
        seen.append(stage.courier.is_connected)

    stage.run(connect)
    assert seen == [True]


def test_a_note_tells_whether_a_process_runs(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stage = Stage(home)
    life = stage.courier.layout.life("executor")
    seen = []

    def look() -> None:
        seen.append(is_alive(life))

    def die() -> None:
        stage.named("SuperExec")[-1].code = 1

    def tick() -> None:
        stage.now_s += 1

    def fill() -> None:
        def full(_path: Path, _note: object) -> None:
            raise OSError(28, "No space left on device")

        monkeypatch.setattr(supervisor, "note_of_life", full)
        die()

    def empty() -> None:
        monkeypatch.setattr(supervisor, "note_of_life", note_of_life)

    stage.run(tick, look, die, look, tick, tick, look, fill, tick, tick, tick, look, empty, look)
    assert seen == [True, False, True, False, True]
    assert not is_alive(life)  # it ended


def test_the_connection_is_known(home: Path) -> None:
    stage = Stage(home)
    seen = []

    def hear(line: str) -> Callable[[], None]:
        def say() -> None:
            stage.children[0].say(line)
            seen.append((stage.courier.is_connected, stage.courier.is_up("node")))

        return say

    stage.run(
        hear("INFO : Starting Flower SuperNode"),
        hear("INFO : SuperNode ID: 1"),
        hear("WARNING : Connection attempt failed, retrying in 1.52 seconds"),
        hear("INFO : Connection successful after 3.96 seconds and 4 tries."),
    )
    assert seen == [(False, True), (True, True), (False, True), (True, True)]
    assert not stage.courier.is_connected


def test_the_executor_alone_waits_for_its_secret_and_needs_no_key(home: Path) -> None:
    (home / "keys" / "node").unlink()
    (home / "authority.pem").unlink()
    stage = Stage(home, roles=("executor",))

    def tick() -> None:
        stage.now_s += 30

    with pytest.raises(ProcessError, match="has no secret"):
        stage.run(*[tick] * 5)
    assert stage.children == []


def test_a_port_that_is_in_use_is_named(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(supervisor, "port_is_free", lambda *_, **__: False)
    stage = Stage(home)

    def tick() -> None:
        stage.now_s += 20

    with pytest.raises(NetworkError, match="port 9094"):
        stage.run(*[tick] * 5)


@pytest.mark.parametrize(
    ("spoil", "error"),
    [
        (lambda home: (home / "keys" / "node").unlink(), AuthError),
        (lambda home: (home / "keys" / "node").chmod(0o644), AuthError),
        (lambda home: (home / "authority.pem").unlink(), AuthError),
        (lambda home: (home / "authority.pem").write_text("none"), AuthError),
        (lambda home: (home / "site.toml").write_text('name = "north"'), ConfigError),
        (lambda home: (home / "site.toml").unlink(), UsageError),
    ],
    ids=["no-key", "open-key", "no-authority", "bad-authority", "no-address", "no-home"],
)
def test_a_home_that_is_not_whole_starts_nothing(
    home: Path, spoil: Callable[[Path], object], error: type[Exception]
) -> None:
    spoil(home)
    with pytest.raises(error):
        Stage(home).run()


def test_files_are_open_to_the_group_where_both_sides_need_them(home: Path) -> None:
    before = os.umask(0o077)
    try:
        Stage(home).run()
    finally:
        os.umask(before)
    modes = {
        name: (home / "flower" / name).stat().st_mode & 0o777
        for name in ("", "superexec.secret", "tls", "tls/ca.crt", "tls/server.key", "node")
    }
    assert modes == {
        "": 0o750,
        "superexec.secret": 0o640,
        "tls": 0o750,
        "tls/ca.crt": 0o640,
        "tls/server.key": 0o600,
        "node": 0o700,
    }


def test_code_that_comes_by_flower_may_have_a_network_without_the_node_s_own(home: Path) -> None:
    with (home / "site.toml").open("a") as document:
        document.write('node_host = "supernode"\n')
    stage = Stage(home)
    stage.run(lambda: None)
    node, executor = (" ".join(child.command) for child in stage.children)
    assert "--host supernode --port 9094" in node
    assert "--runtime-api-address supernode:9094" in executor
    certificate = x509.load_pem_x509_certificate((home / "flower/tls/server.pem").read_bytes())
    names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    assert "supernode" in names.get_values_for_type(x509.DNSName)


def test_a_port_is_free_until_somebody_listens() -> None:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        one.listen()
        assert not port_is_free(one.getsockname()[1])
        port = one.getsockname()[1]
    assert port_is_free(port)
