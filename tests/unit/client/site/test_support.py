"""A bundle for support holds no name: names are planted everywhere in a home and searched for."""

from __future__ import annotations

import json
import logging
import os
import tarfile
from contextlib import closing
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from vitrael.client.site.store import Store
from vitrael.core.errors import UsageError
from vitrael.core.logs import configure_logging
from vitrael.core.support import (
    REMOVED,
    collect,
    journal_part,
    log_part,
    redact,
    sizes_of,
    support_bundle,
)

PLANTS = ("DOE^JANE", "jane-doe", "Jane_Doe", "19570203", "MRN-0042")
"""A patient's name in several spellings, a day of birth, a number in a hospital."""
NOW = datetime(2031, 5, 1, 12, tzinfo=UTC)


@pytest.fixture
def path(home: Any) -> Path:
    """Return a home in which names stand wherever somebody could write one."""
    home.consent()
    level = logging.getLogger("vitrael").level
    with configure_logging(home.settings.log):
        logger = logging.getLogger("vitrael.client.site.listener")
        for plant in PLANTS:
            logger.warning("request refused: %s", plant, extra={"reason": plant, "stage": plant})
            logger.warning("the courier hung up before its answer", extra={"child": plant})
    logging.getLogger("vitrael").setLevel(level)
    root: Path = home.path
    text = " ".join(PLANTS)
    (root / "site.toml").write_text(
        f'name = "jane-doe"\naddress = "jane-doe.test:443"\ncohort = "jane-doe"\n'
        f'release = "{PLANTS[0]}"\n[limits]\nrounds = 7\nstages = ["codec", "jane-doe"]\n'
        f'[network]\nproxy = "http://jane-doe.test:1"\nnode_port = 9095\n'
        f'[jane-doe]\nx = 1\n[schedule]\nhours = "20:00-06:00"\n'
    )
    for name in (
        *("notes.txt", "roster.json", "withdrawn.json", "progress.jsonl", "metrics.prom"),
        *("cohorts/MRN-0042/manifest.json", "records/jane-doe/x.json", "keys/jane-doe.pem"),
        *("spool/in/jane-doe/envelope", "updates/19570203.safetensors", "studies/jane-doe.toml"),
        *("flower/node/authorities.pem", "flower/executor/courier.log"),
    ):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)
    with (root / "journal.jsonl").open("a") as journal:
        journal.write(json.dumps({"event": "DOE^JANE", "bytes": 3, "reason": text}) + "\n")
    with (root / "steward.log").open("a") as log:
        log.write(text + "\n")
        log.write(json.dumps({"event": text, "level": "info"}) + "\n")
    return root


def found_in(files: dict[str, bytes]) -> list[str]:
    text = "\n".join(f"{name} {data.decode()}" for name, data in files.items()).lower()
    return [plant for plant in PLANTS if plant.lower() in text]


def test_planted_names_are_nowhere_in_the_bundle(path: Path) -> None:
    files = collect(path, now=NOW)
    assert found_in(files) == []
    everything = {str(one): one.read_bytes() for one in path.rglob("*.jsonl")}
    everything |= {"log": (path / "steward.log").read_bytes()}
    assert found_in(everything) == list(PLANTS)  # the control: they are in what was read


def test_what_support_needs_is_there(path: Path) -> None:
    files = collect(path, now=NOW)
    assert sorted(files) == [
        *("doctor.json", "journal.json", "logs/executor.dropped.json", "logs/executor.jsonl"),
        *("logs/steward.dropped.json", "logs/steward.jsonl", "packages.txt", "site.toml.json"),
        *("sizes.json", "store-rows.json", "versions.json"),
    ]
    assert json.loads(files["site.toml.json"]) == {
        "address": REMOVED,
        "limits.rounds": 7,
        "limits.stages": ["codec", REMOVED],
        "network.node_port": 9095,
        "network.proxy": REMOVED,
        "release": REMOVED,
        "schedule.hours": "20:00-06:00",
    }
    assert json.loads(files["store-rows.json"])["consents"] == 1
    journal = json.loads(files["journal.json"])
    assert journal["consent"]["lines"] == 1
    assert journal["unreadable"]["lines"] == 1
    lines = [json.loads(line) for line in files["logs/steward.jsonl"].splitlines()]
    assert {line["event"] for line in lines} == {
        "request refused: …",
        "the courier hung up before its answer",
    }
    assert json.loads(files["logs/steward.dropped.json"]) == 2
    assert json.loads(files["sizes.json"])["cohorts"]["files"] >= 1
    assert b"pydantic==" in files["packages.txt"]


def test_a_home_that_is_broken_still_gives_a_bundle(path: Path) -> None:
    (path / "site.toml").write_text("= jane-doe")
    (path / "store.sqlite").write_bytes(b"jane-doe" * 1000)
    files = collect(path, now=NOW)
    assert found_in(files) == []
    assert json.loads(files["site.toml.json"]) == {"unreadable": "TOMLDecodeError"}
    assert json.loads(files["store-rows.json"]) == {"unreadable": "DatabaseError"}


@pytest.mark.skipif(os.geteuid() != 0, reason="another user can be posed by root alone")
def test_what_another_user_of_the_site_keeps_is_told_as_that(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(path)  # the folders above are closed to the other user
    for name, mode in ((".", 0o755), ("flower/node", 0o700), ("journal.jsonl", 0o600)):
        Path(name).chmod(mode)
    log = Path("flower/node/courier.log")
    os.seteuid(65_534)
    try:
        with pytest.raises(PermissionError):  # the control
            log.is_file()
        files = {
            **log_part(log, name="node"),
            **journal_part(Path("journal.jsonl"), ["consent"]),
        }
        sizes = sizes_of(Path())
    finally:
        os.seteuid(0)
    told = {name: json.loads(data) for name, data in files.items()}
    assert told == {
        "logs/node.json": {"unreadable": "PermissionError"},
        "journal.json": {"unreadable": "PermissionError"},
    }
    assert sizes["flower"]["files"] == 1  # the executor's alone: the fixture's are open


def test_a_file_that_vanishes_while_it_is_counted_is_left_out(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before, walk = sizes_of(path)["spool"], os.walk

    def late(folder: Path) -> Any:
        for place, folders, names in walk(folder):
            yield place, folders, [*names, "gone"]

    monkeypatch.setattr("vitrael.core.support.os.walk", late)
    assert sizes_of(path)["spool"] == before
    assert before["files"] == 1


def test_the_command_lists_first_and_writes_for_its_user_alone(path: Path, tmp_path: Path) -> None:
    out = tmp_path / "north.tar.gz"
    words = ["--home", str(path), "--out", str(out), "--json"]
    listed = CliRunner().invoke(support_bundle, [*words, "--dry-run"], standalone_mode=False)
    assert not out.exists()
    written = CliRunner().invoke(support_bundle, words, standalone_mode=False)
    contents = json.loads(written.output)["contents"]
    assert set(contents) == set(json.loads(listed.output)["contents"])
    assert out.stat().st_mode & 0o777 == 0o600
    with tarfile.open(out) as archive:
        names = {name.removeprefix("vitrael-support/") for name in archive.getnames()}
    assert names == set(contents)
    with pytest.raises(UsageError, match="exists already"):
        CliRunner().invoke(support_bundle, words, standalone_mode=False, catch_exceptions=False)


def test_a_document_goes_by_the_list_alone() -> None:
    document = {"a": {"b": True, "c": "x"}, "d": [1, "y", {"name": "z"}], "secret": "s"}
    assert redact(document, {"a.b": "", "a.c": "x|y", "d": "y", "e.f": ""}) == {
        "a.b": True,
        "a.c": "x",
        "d": [1, "y", REMOVED],
    }


def test_the_store_is_only_read(path: Path) -> None:
    before = (path / "store.sqlite").read_bytes()
    collect(path, now=NOW)
    assert (path / "store.sqlite").read_bytes() == before
    with closing(Store(path / "store.sqlite", updates=path / "updates")) as store:
        assert len(store.list_consents()) == 1
