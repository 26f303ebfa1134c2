"""What an invitation adds to site.toml leaves every word of the operator in its place."""

from __future__ import annotations

import tomllib
from pathlib import Path

import pytest

from vitrael.client.site.enrollment.document import Entries, plan_document
from vitrael.core.errors import ConfigError

ALONE = Entries("north", "c.example:443", None, None)
BEHIND = Entries("north", "c.example:443", "http://proxy:3128", Path("/etc/ssl/hospital.pem"))


def planned(path: Path, entries: Entries = BEHIND) -> str:
    text = plan_document(path, entries)
    assert text is not None
    return text


def test_new_document_holds_all(tmp_path: Path) -> None:
    document = tomllib.loads(planned(tmp_path / "site.toml"))
    assert document == {
        "name": "north",
        "address": "c.example:443",
        "network": {"proxy": "http://proxy:3128", "authority": "/etc/ssl/hospital.pem"},
    }


@pytest.mark.parametrize(
    "text",
    [
        'name = "north" # ours\n[limits]\nrounds = 3 # not more\n',
        '# first\naddress = "c.example:443"\n[network] # the way out\nnode_port = 9999\n',
        '[network]\nproxy = "http://proxy:3128"',
        'name = "north"\n\n[schedule]\nhours = "20:00-06:00"',
    ],
)
def test_words_of_the_operator_stay(tmp_path: Path, text: str) -> None:
    path = tmp_path / "site.toml"
    path.write_text(text)
    new = planned(path)
    lines = new.splitlines()
    assert [line for line in text.splitlines() if line not in lines] == []
    before, after = tomllib.loads(text), tomllib.loads(new)
    assert {key: after[key] for key in before if key != "network"} == {
        key: value for key, value in before.items() if key != "network"
    }
    assert after["network"]["proxy"] == "http://proxy:3128"
    path.write_text(new)
    assert plan_document(path, BEHIND) is None


@pytest.mark.parametrize(
    ("text", "key"),
    [
        ('name = "harbour"', "name"),
        ('address = "d.example:443"', "address"),
        ('[network]\nproxy = "http://other:1"', "network.proxy"),
    ],
)
def test_other_value_is_refused(tmp_path: Path, text: str, key: str) -> None:
    path = tmp_path / "site.toml"
    path.write_text(text)
    with pytest.raises(ConfigError, match=f"says otherwise: {key}"):
        plan_document(path, BEHIND)


def test_proxy_that_is_none_is_refused(tmp_path: Path) -> None:
    wrong = Entries("north", "c.example:443", "https://proxy", None)
    with pytest.raises(ConfigError, match=r"network\.proxy"):
        plan_document(tmp_path / "site.toml", wrong)


@pytest.mark.parametrize(
    ("text", "words"),
    [("name = ", "is not TOML"), ("network = { node_port = 9999 }", "a form of its own")],
)
def test_document_that_cannot_be_added_to_is_refused(tmp_path: Path, text: str, words: str) -> None:
    path = tmp_path / "site.toml"
    path.write_text(text)
    with pytest.raises(ConfigError, match=words):
        plan_document(path, BEHIND)


def test_document_that_cannot_be_read_is_told_with_its_file(tmp_path: Path) -> None:
    path = tmp_path / "site.toml"
    path.write_bytes(b'name = "n\xf6rth"')
    with pytest.raises(ConfigError, match=r"site\.toml is not TOML.*mend the line"):
        plan_document(path, BEHIND)
    path.unlink()
    path.mkdir()
    with pytest.raises(ConfigError, match=r"site\.toml cannot be read: Is a directory"):
        plan_document(path, BEHIND)
