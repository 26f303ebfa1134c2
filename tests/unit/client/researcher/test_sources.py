from __future__ import annotations

import socket
from pathlib import Path
from typing import Any

import pytest

from vitrael.client.researcher.sources import FolderSource, HttpSource, open_source
from vitrael.core.errors import AuthError, NetworkError, UsageError, VerificationError

Web = Any  # WebServer of conftest.py


def test_busy_server_is_asked_again_after_the_pause_it_names(web: Web) -> None:
    web.answers += [503, 429]
    pauses: list[float] = []
    with HttpSource(web.url, pause=pauses.append) as source:
        assert source.read("catalogue.json", limit_bytes=1 << 20) is not None
    assert pauses == [7.0, 7.0]


def test_patience_with_a_busy_server_ends(web: Web) -> None:
    web.answers += [503] * 9
    pauses: list[float] = []
    with (
        HttpSource(web.url, attempts=3, pause=pauses.append) as source,
        pytest.raises(NetworkError, match="answers 503, after 3 attempts") as refusal,
    ):
        source.read("catalogue.json", limit_bytes=1 << 20)
    assert refusal.value.exit_code == 5
    assert len(pauses) == 2


def test_server_that_hangs_up_is_asked_again(web: Web, catalogue: Path, tmp_path: Path) -> None:
    card = catalogue / "brain-demo" / "1" / "card.md"
    web.cut.append("card.md")
    with HttpSource(web.url, pause=lambda _: None) as source:
        source.fetch("brain-demo/1/card.md", tmp_path / "card", size_bytes=card.stat().st_size)
    assert (tmp_path / "card").read_bytes() == card.read_bytes()
    assert len(web.asked) == 2


def test_file_of_another_length_is_refused_after_all_attempts(web: Web, tmp_path: Path) -> None:
    with (
        HttpSource(web.url, attempts=2, pause=lambda _: None) as source,
        pytest.raises(NetworkError, match="it should have 5 bytes, after 2 attempts"),
    ):
        source.fetch("brain-demo/1/card.md", tmp_path / "card", size_bytes=5)
    assert (tmp_path / "card").stat().st_size <= 5


def test_absent_file_is_none_and_closed_door_is_an_auth_error(web: Web, tmp_path: Path) -> None:
    with HttpSource(web.url, pause=lambda _: None) as source:
        assert source.read("none.json", limit_bytes=10) is None
        with pytest.raises(NetworkError, match="does not have it"):
            source.fetch("none", tmp_path / "none", size_bytes=1)
        web.answers.append(403)
        with pytest.raises(AuthError, match="answers 403") as refusal:
            source.read("catalogue.json", limit_bytes=10)
        assert refusal.value.exit_code == 4


def test_nobody_listening_is_a_network_error() -> None:
    with socket.socket() as taken:  # bound and not listening: nobody else can have the port
        taken.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{taken.getsockname()[1]}"
        with (
            HttpSource(url, attempts=2, pause=lambda _: None) as source,
            pytest.raises(NetworkError, match="ConnectError, after 2 attempts"),
        ):
            source.read("catalogue.json", limit_bytes=10)


def test_host_that_can_have_no_name_is_a_network_error() -> None:
    with (
        HttpSource(f"http://{'a' * 70}.example") as source,
        pytest.raises(NetworkError, match="UnicodeError"),
    ):
        source.read("catalogue.json", limit_bytes=10)


def test_silent_server_is_given_up() -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        url = f"http://127.0.0.1:{silent.getsockname()[1]}"
        with (
            HttpSource(url, attempts=1, silence_timeout_s=0.05) as source,
            pytest.raises(NetworkError, match="does not answer in time"),
        ):
            source.read("catalogue.json", limit_bytes=10)


def test_endless_small_file_is_refused(web: Web, catalogue: Path) -> None:
    (catalogue / "big").write_bytes(bytes(5000))
    with HttpSource(web.url) as source, pytest.raises(VerificationError, match="larger"):
        source.read("big", limit_bytes=100)
    with pytest.raises(VerificationError, match="larger"):
        FolderSource(catalogue).read("big", limit_bytes=100)


def test_folder_source_refuses_another_length_and_a_missing_file(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"abc")
    source = FolderSource(tmp_path)
    source.fetch("file", tmp_path / "copy", size_bytes=3)
    assert (tmp_path / "copy").read_bytes() == b"abc"
    with pytest.raises(NetworkError, match="did not arrive whole"):
        source.fetch("file", tmp_path / "copy", size_bytes=2)
    with pytest.raises(NetworkError, match="not there"):
        source.fetch("none", tmp_path / "copy", size_bytes=2)


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("ftp://x/y", "not supported"),
        ("/no/such/folder", "no catalogue at"),
        ("http://[bad", "is no URL: Invalid IPv6 URL"),
    ],
)
def test_source_of_no_known_kind_is_refused(text: str, why: str) -> None:
    with pytest.raises(UsageError, match=why), open_source(text):
        pass


def test_source_is_chosen_by_its_form(tmp_path: Path) -> None:
    with open_source(str(tmp_path)) as folder:
        assert isinstance(folder, FolderSource)
    with open_source("https://example.org/catalogue") as web:
        assert isinstance(web, HttpSource)
