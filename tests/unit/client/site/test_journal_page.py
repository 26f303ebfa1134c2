"""The page says all that left, shows what a journal holds as text, and asks nobody for anything."""

from __future__ import annotations

import json
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args

import pytest

from vitrael.client.site.journal_page import (
    JournalPage,
    describe_message,
    describe_word,
    render_page,
    tell_size,
)
from vitrael.client.site.rules import RULES
from vitrael.core.cli import run
from vitrael.core.digest import digest_bytes
from vitrael.privacy.enrollment import SiteWord
from vitrael.privacy.journal import Entry, Fault, Journal, Line, read_journal

if TYPE_CHECKING:
    from tests.fakes.clock import FakeClock
    from tests.unit.client.site.conftest import Home

PROTOCOL, ROSTER = digest_bytes(b"protocol"), digest_bytes(b"roster")
SCRIPT = "<script>alert(1)</script>"
TASK = {"protocol": PROTOCOL, "roster": ROSTER, "to": "coordinator abc", "nonce": "0" * 32}


class Page(HTMLParser):
    """Collects the text and the tags of a page."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.feed(html)
        self.text = re.sub(r"\s+", " ", self.text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        self.text += f"{data} "


@pytest.fixture
def lines(tmp_path: Path, clock: FakeClock) -> list[Line]:
    journal = Journal(tmp_path / "journal.jsonl", clock=clock)
    said: list[dict[str, Any]] = [
        {"event": "joined", "to": TASK["to"], "bytes": 1500, "reason": "public keys"},
        {"event": "sent", "to": TASK["to"], "bytes": 900, "reason": f"word: withdraw: {SCRIPT}"},
        {"event": "consent", "protocol": PROTOCOL, "roster": ROSTER, "reason": "8 rounds"},
        {"event": "sent", **TASK, "stage": "codec", "bytes": 2 << 20, "fields": ("num_examples",)},
        {"event": "sent", **TASK, "stage": "codec", "round": 1, "bytes": 1 << 20},
        {"event": "refused", **TASK, "stage": "teacher", "bytes": 700, "reason": SCRIPT},
        {"event": "paused", "reason": SCRIPT},
    ]
    for entry in said:
        clock.advance(hours=9)
        journal.append(Entry.model_validate(entry))
    return list(read_journal(journal.path))


def page_of(lines: list[Line], clock: FakeClock, **changes: Any) -> JournalPage:
    facts: dict[str, Any] = {
        "site": "north",
        "created_utc": clock(),
        "lines": lines,
        "whole": len(lines),
        "last_hash": lines[-1].hash if lines else "",
        "faults": [],
        "consents": [line for line in lines if line.event == "consent"],
        "studies": {PROTOCOL: "brain"},
        **changes,
    }
    return JournalPage(**facts)


def test_page_says_what_left_when_to_whom_how_much_and_why(
    lines: list[Line], clock: FakeClock
) -> None:
    page = Page(render_page(page_of(lines, clock)))
    for words in (
        "What left site north",
        "The journal is whole: none of its 7 lines",
        "coordinator abc",
        "3,148,828 bytes",
        "number of training images",
        "covered by the consent of 2031-05-02 15:00",
        "consent given",
        "paused",
        lines[-1].hash,
    ):
        assert words in page.text


def test_word_and_key_are_no_result_that_somebody_asked_for(
    lines: list[Line], clock: FakeClock
) -> None:
    page = page_of(lines, clock)
    told = [(line.bytes, what, sentence) for line, _, what, sentence in page.words]
    assert told == [
        (900, "word: a consent was taken back", SCRIPT),
        (1500, "public keys, to join", ""),
    ]
    assert len(page.sent) == 2
    assert {one.line.bytes for one in page.departures} == {2 << 20, 1 << 20, 700}
    text = Page(render_page(page)).text
    for false in ("no consent is written down", "nothing signed"):
        assert false not in text
    assert "Asked for What left" in text  # the control: the table of results is there


def test_every_word_that_a_site_says_has_a_name(lines: list[Line]) -> None:
    for kind in get_args(SiteWord.model_fields["kind"].annotation):
        word = lines[1].model_copy(update={"reason": f"word: {kind}"})
        assert f"word: {kind}" not in describe_word(word)
    unknown = lines[1].model_copy(update={"reason": "word: something: more"})
    assert describe_word(unknown) == ("word: something: more", "")  # never left out


def test_everything_that_may_leave_has_a_name_in_words(lines: list[Line]) -> None:
    for rule in RULES.values():
        names = (*rule.body.model_fields, *rule.like_input, *rule.arrays, "num_examples")
        line = lines[3].model_copy(update={"fields": names})
        assert not (set(names) - {"counts"}) & set(describe_message(line))
    unknown = lines[3].model_copy(update={"fields": ("something",)})
    assert describe_message(unknown) == ("something",)  # shown by its name, never left out


def test_totals_are_those_of_study_stage_and_day(lines: list[Line], clock: FakeClock) -> None:
    page = page_of(lines, clock)
    stages = [(total.name, total.messages, total.bytes) for total in page.by_study]
    assert stages == [
        (("no study", "words and keys"), 2, 2400),
        (("brain", "codec"), 2, 3 << 20),
        (("brain", "teacher"), 1, 700),
    ]
    days = [(total.name, total.bytes) for total in page.by_day]
    assert days == [
        (("2031-05-01",), 1500),
        (("2031-05-02",), 900),
        (("2031-05-03",), (3 << 20) + 700),
    ]
    assert page.left_bytes == sum(total.bytes for total in page.by_day)


def test_what_the_coordinator_wrote_is_text_and_no_markup(
    lines: list[Line], clock: FakeClock
) -> None:
    html = render_page(page_of(lines, clock, studies={PROTOCOL: SCRIPT}))
    page = Page(html)
    assert "script" not in {tag for tag, _ in page.tags}
    assert page.text.count("alert(1)") >= 4  # it is there, as text
    assert Page(f"<p>{SCRIPT}</p>").tags[1][0] == "script"  # unescaped it would be found


def test_page_loads_nothing_and_runs_nothing(lines: list[Line], clock: FakeClock) -> None:
    page = Page(render_page(page_of(lines, clock)))
    policy = [a["content"] for tag, a in page.tags if a.get("http-equiv")]
    assert policy[0] is not None
    assert policy[0].startswith("default-src 'none'; style-src 'unsafe-inline'")
    assert not {"script", "img", "link", "iframe", "form"} & {tag for tag, _ in page.tags}
    links = [a[name] for _, a in page.tags for name in ("href", "src") if name in a]
    assert all(link is not None and link.startswith("#") for link in links)
    anchors = {a["id"] for _, a in page.tags if "id" in a}
    assert {str(link)[1:] for link in links} <= anchors


def test_broken_journal_shows_its_fault_and_no_line(lines: list[Line], clock: FakeClock) -> None:
    faults = [Fault(3, "the line was changed")]
    text = Page(render_page(page_of([], clock, faults=faults))).text
    assert "The journal is not whole." in text
    assert "Line 3: the line was changed" in text
    assert "is whole" not in text
    assert lines[3].to not in text


def test_empty_journal_says_so(clock: FakeClock) -> None:
    text = Page(render_page(page_of([], clock))).text
    assert "No journal has begun." in text
    assert "is whole" not in text


def test_studies_that_share_a_name_are_told_apart(lines: list[Line], clock: FakeClock) -> None:
    other = digest_bytes(b"version 2")
    page = page_of(lines, clock, studies={PROTOCOL: "brain", other: "brain"})
    assert page.study_of(lines[3]) == f"brain {PROTOCOL[7:19]}"
    assert page_of(lines, clock).study_of(lines[3]) == "brain"
    assert page_of(lines, clock, studies={}).study_of(lines[3]) == PROTOCOL[7:19]


@pytest.mark.parametrize(
    ("count", "told"), [(0, "0 B"), (1023, "1023 B"), (1024, "1.0 KiB"), (5 << 40, "5.0 TiB")]
)
def test_size_is_told_in_the_largest_unit(count: int, told: str) -> None:
    assert tell_size(count) == told


def test_command_writes_the_page_of_one_study_since_a_day(
    home: Home, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    home.consent()
    for days, protocol in ((0, home.study.protocol.digest), (2, PROTOCOL)):
        home.clock.advance(days=days)
        entry = Entry.model_validate({**TASK, "event": "sent", "protocol": protocol, "bytes": 9})
        Journal(home.settings.journal, clock=home.clock).append(entry)
    file = tmp_path / "page.html"
    command = ["site", "journal", "--home", str(home.path), "--html", str(file)]
    assert run(command) == 0
    assert "18 bytes" in Page(file.read_text()).text
    assert file.stat().st_mode & 0o077 == 0

    assert run([*command, "--study", "site-test"]) == 0
    text = Page(file.read_text()).text
    assert "shows only lines of the study site-test" in text
    assert "9 bytes, as they travel" in text

    capsys.readouterr()
    assert run([*command, "--since", "2031-05-03", "--json"]) == 0
    assert [line["bytes"] for line in json.loads(capsys.readouterr().out)["lines"]] == [9]


def test_command_writes_the_page_of_a_broken_journal_and_exits_with_1(
    home: Home, tmp_path: Path
) -> None:
    home.consent()
    path = home.settings.journal
    path.write_bytes(path.read_bytes().replace(b"consent", b"consort", 1))
    file = tmp_path / "page.html"
    assert run(["site", "journal", "--home", str(home.path), "--html", str(file)]) == 1
    assert "The journal is not whole." in Page(file.read_text()).text
