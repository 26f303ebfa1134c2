"""Who rewrites a journal, all of its files consistently, is found by the other side's."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.factories.journals import Talk
from vitrael.core.cli import run
from vitrael.core.errors import UsageError
from vitrael.privacy.journal import Entry, Line, verify_journal
from vitrael.privacy.journal_cross import COORDINATOR, Comparison, compare_journals, read_account

Change = Callable[[list[Line]], list[Entry]]
ROUNDS = 4


@pytest.fixture
def talk(tmp_path: Path) -> Talk:
    talk = Talk(tmp_path)
    talk.begin("north", "harbour")
    for number in range(ROUNDS):
        for name in ("north", "harbour"):
            talk.round(name, number, lost=(name, number) == ("harbour", 1))
    return talk


def compare(talk: Talk, site: str = "north") -> Comparison:
    account = read_account(talk.coordinator, in_home=True)
    return compare_journals(account, read_account(talk.site(site), in_home=True))


def test_honest_journals_agree(talk: Talk) -> None:
    compared = compare(talk)
    assert (compared.site, compared.replies, compared.faults) == ("north", ROUNDS, ())
    assert compared.heads == 2 * ROUNDS


def test_answer_that_was_lost_on_the_way_is_no_contradiction(talk: Talk) -> None:
    compared = compare(talk, "harbour")
    assert (compared.replies, compared.faults) == (ROUNDS - 1, ())


def less(lines: list[Line]) -> list[Entry]:
    return [line.model_copy(update={"bytes": 1}) for line in lines]


def without_second(lines: list[Line]) -> list[Entry]:
    return [*lines[:1], *lines[2:]]


def in_other_order(lines: list[Line]) -> list[Entry]:
    return [lines[0], lines[2], lines[1], *lines[3:]]


def with_one_more(lines: list[Line]) -> list[Entry]:
    return [Entry(event="paused"), *lines]


def cut(lines: list[Line]) -> list[Entry]:
    return list(lines[:2])


def emptied(_lines: list[Line]) -> list[Entry]:
    return [Entry(event="consent")]


CHANGES = [less, without_second, in_other_order, with_one_more, cut, emptied]


@pytest.mark.parametrize("change", CHANGES)
def test_site_that_rewrites_all_its_files_is_found(talk: Talk, change: Change) -> None:
    talk.rewrite(talk.site("north"), change)
    assert verify_journal(talk.site("north")) == []  # alone it passes for whole
    faults = compare(talk).faults
    assert faults
    assert {side for side, _ in faults} <= {"north", "the site", COORDINATOR}


@pytest.mark.parametrize("change", CHANGES)
def test_coordinator_that_rewrites_all_its_files_is_found(talk: Talk, change: Change) -> None:
    talk.rewrite(talk.coordinator, change)
    assert verify_journal(talk.coordinator) == []
    assert any(side == COORDINATOR for side, _ in compare(talk).faults)


def test_journal_that_goes_on_after_an_older_backup_is_found(talk: Talk) -> None:
    talk.rewrite(talk.site("north"), cut)
    talk.round("north", ROUNDS)
    faults = compare(talk).faults
    assert any("is missing" in fault.what or "not the one" in fault.what for _, fault in faults)


def test_message_that_the_site_did_not_write_down_is_named(talk: Talk) -> None:
    talk.rewrite(talk.site("north"), lambda lines: lines[:-1])
    (side, fault), *_ = compare(talk).faults
    assert side == "north"
    assert "no line says that 1,003 bytes left for round 4 of codec" in fault.what


def test_task_that_the_coordinator_did_not_write_down_is_named(talk: Talk) -> None:
    def hide(lines: list[Line]) -> list[Line]:
        last = max(line.line for line in lines if "north" in {line.to, line.origin})
        return [line for line in lines if line.line not in {last, last - 1}]

    talk.rewrite(talk.coordinator, hide)
    assert any("no line asks for round 4" in fault.what for _, fault in compare(talk).faults)


def test_two_hashes_of_one_line_are_found_without_the_other_file(talk: Talk) -> None:
    talk.round("north", ROUNDS)
    first = read_account(talk.site("north"), in_home=True)
    assert first.faults == ()
    quoted = first.lines[-1].other_lines
    forged = {"other": "sha256:" + "0" * 64, "other_lines": quoted}
    talk.write(talk.site("north"), event="sent", origin="north", **forged)
    (fault,) = read_account(talk.site("north"), in_home=True).faults
    assert f"another hash of line {quoted}" in fault.what


def test_reply_whose_line_was_taken_back_is_found_without_the_other_file(talk: Talk) -> None:
    talk.rewrite(talk.site("north"), lambda lines: lines[:-1])
    talk.round("north", ROUNDS)
    (fault,) = read_account(talk.coordinator, in_home=True).faults
    assert "site north told the same end of its journal as in line" in fault.what


def test_journals_of_the_same_side_are_not_compared(talk: Talk) -> None:
    north, harbour = (read_account(talk.site(n), in_home=True) for n in ("north", "harbour"))
    for one, other in ((north, harbour), (north, north)):
        with pytest.raises(UsageError, match="same side"):
            compare_journals(one, other)


def test_journal_of_a_site_that_the_coordinator_never_asked_is_a_fault(
    talk: Talk, tmp_path: Path
) -> None:
    stranger = Talk(tmp_path / "elsewhere")
    stranger.begin("valley")
    stranger.round("valley", 0)
    account = read_account(talk.coordinator, in_home=True)
    other = read_account(stranger.site("valley"), in_home=True)
    assert any(
        "no line of it is about" in f.what for _, f in compare_journals(account, other).faults
    )


def test_site_that_was_asked_nothing_yet_answers_for_no_other(talk: Talk) -> None:
    talk.begin("valley")
    compared = compare(talk, "valley")
    assert (compared.site, compared.replies, compared.faults) == ("valley", 0, ())
    talk.rewrite(talk.site("valley"), emptied)  # the control: it says no more whose it is
    ((side, fault),) = compare(talk, "valley").faults
    assert (side, fault.what) == ("the site", "no line of it says which site's it is")


def test_what_the_other_side_wrote_commands_no_terminal(
    talk: Talk, capsys: pytest.CaptureFixture[str]
) -> None:
    evil = "\x1b]0;owned\x07" + "x" * 200_000
    talk.round("north", ROUNDS)
    talk.write(talk.site("north"), event="sent", origin="north", stage=evil, nonce="f" * 32)
    talk.write(talk.site("north"), event="refused", fields=(evil,), reason="\x9b2J")
    home = str(talk.site("north").parent)
    assert run(["audit", "show", "--home", home]) == 0
    assert audit(talk, "--against", home) == 1
    out, _ = capsys.readouterr()
    assert "]0;owned" in out  # the control: it is there, as text
    assert all(line.isprintable() and len(line) <= 2000 for line in out.splitlines())


@pytest.mark.skipif(os.geteuid() != 0, reason="another user can be posed by root alone")
def test_journal_of_another_user_is_named(
    talk: Talk, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(talk.coordinator.parent)
    Path().chmod(0o755)
    os.seteuid(65_534)
    try:
        codes = [run(["audit", command, "--home", "."]) for command in ("verify", "show")]
    finally:
        os.seteuid(0)
    assert codes == [1, 1]
    assert capsys.readouterr().err.count("the journal at . cannot be read") == 2


def audit(talk: Talk, *arguments: str) -> int:
    return run(["audit", "verify", "--home", str(talk.coordinator.parent), *arguments])


def test_command_compares_the_coordinator_with_every_site(
    talk: Talk, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    copy = tmp_path / "north.jsonl"
    copy.write_bytes(talk.site("north").read_bytes())
    against = ["--against", str(copy), "--against", str(talk.site("harbour").parent)]
    assert audit(talk, *against) == 0
    told = capsys.readouterr().out
    assert "the coordinator and site north: 4 replies and 8 quoted lines compared" in told
    assert told.count("they agree") == 2

    talk.rewrite(talk.site("harbour"), less)
    assert audit(talk, *against, "--json") == 1
    document = json.loads(capsys.readouterr().out)
    assert document["whole"] is False
    assert [journal["faults"] for journal in document["journals"]] == [[], [], []]
    north, harbour = document["comparisons"]
    assert north["faults"] == []
    assert {fault["side"] for fault in harbour["faults"]} >= {"harbour"}


def test_command_names_the_line_of_a_broken_journal(
    talk: Talk, capsys: pytest.CaptureFixture[str]
) -> None:
    assert audit(talk) == 0
    path = talk.coordinator
    path.write_bytes(path.read_bytes().replace(b'"round":1', b'"round":2', 1))
    capsys.readouterr()
    assert audit(talk) == 1
    out, err = capsys.readouterr()
    assert "line 8: the line was changed" in out
    assert "To do:" in err


def test_command_in_a_home_misses_the_head(talk: Talk, capsys: pytest.CaptureFixture[str]) -> None:
    talk.coordinator.with_suffix(".head.json").unlink()
    assert audit(talk) == 1
    assert "journal.head.json is missing" in capsys.readouterr().out
    assert run(["audit", "verify", "--home", str(talk.coordinator)]) == 0  # a copy has none


def test_command_refuses_a_folder_without_a_journal(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for command in ("verify", "show"):
        assert run(["audit", command, "--home", str(tmp_path)]) == 2
        assert "there is no journal" in capsys.readouterr().err


def test_command_shows_the_lines_about_one_site(
    talk: Talk, capsys: pytest.CaptureFixture[str]
) -> None:
    home = ["--home", str(talk.coordinator.parent)]
    assert run(["audit", "show", *home, "--site", "harbour", "--json"]) == 0
    lines = json.loads(capsys.readouterr().out)["lines"]
    assert len(lines) == 1 + ROUNDS + ROUNDS - 1
    assert all("harbour" in {line["to"], line["origin"]} for line in lines)
    last = [line for line in lines if line["event"] == "received"][-1]
    assert run(["audit", "show", *home, "--site", "harbour", "--since", "2031-05-02"]) == 0
    told = f"harbour told: {last['other_lines']}:{last['other']}\n"  # whatever is shown
    assert capsys.readouterr().err.endswith(told)
    assert run(["audit", "show", *home, "--since", "2031-05-02"]) == 0
    out, err = capsys.readouterr()
    assert (out, err) == ("", "0 lines\n")


def test_command_shows_nothing_of_a_broken_journal(
    talk: Talk, capsys: pytest.CaptureFixture[str]
) -> None:
    path = talk.coordinator
    path.write_bytes(path.read_bytes()[:-5])
    assert run(["audit", "show", "--home", str(path.parent)]) == 1
    out, err = capsys.readouterr()
    assert (out, "not whole" in err) == ("", True)
