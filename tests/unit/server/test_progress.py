"""The line that a person watches: stage, share, time left; a line a tenth where none watches."""

from __future__ import annotations

import io
from dataclasses import dataclass, field

import pytest

from vitrael.server.progress import STAGES, Progress
from vitrael.server.rehearsal import Event


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@dataclass
class Watch:
    """A progress on a stream and a clock that are the test's own."""

    stream: io.StringIO = field(default_factory=io.StringIO)
    seconds: float = 0.0

    def __post_init__(self) -> None:
        self.progress = Progress(sites=2, stream=self.stream, clock=lambda: self.seconds)

    def coordinator(self, stage: str, event: str, *, number: int = 0, **counts: int) -> None:
        data = {"stage": stage, "round": number, "event": event, **counts}
        self.progress.follow(Event("progress", "coordinator", data=data))

    def site(self, who: str, stage: str, done: int, *, number: int = 0) -> None:
        data = {"stage": stage, "round": number, "done": done, "total": 10}
        self.progress.follow(Event("progress", who, data=data))

    @property
    def lines(self) -> list[str]:
        return self.stream.getvalue().splitlines()


@pytest.fixture
def watch() -> Watch:
    return Watch()


def test_stage_is_told_from_beginning_to_end(watch: Watch) -> None:
    watch.coordinator("codec", "begun")
    watch.seconds = 65
    watch.coordinator("codec", "finished")
    watch.coordinator("teacher", "kept", number=1)
    assert watch.lines == [
        f" 0:00 [ 3/{len(STAGES)}] codec …",
        f" 1:05 [ 3/{len(STAGES)}] codec: done in 65 s",
        f" 1:05 [ 7/{len(STAGES)}] teacher, round 2: finished before, kept",
    ]


def test_absent_site_is_shown_with_its_reason(watch: Watch) -> None:
    data = {"stage": "codec", "round": 1, "event": "absent", "done": 0, "total": 0}
    about = {"site": "valley", "reason": "its disk is full"}
    watch.progress.follow(Event("progress", "coordinator", data={**data, **about}))
    assert watch.lines[-1].endswith("codec, round 2: valley is absent: its disk is full")


def test_what_is_damaged_is_said_to_be_done_again(watch: Watch) -> None:
    watch.coordinator("codec", "damaged", number=1)
    assert watch.lines[-1].endswith("codec, round 2: what was kept is damaged, it is done again")


def test_share_is_the_mean_over_all_sites_and_time_left_follows(watch: Watch) -> None:
    watch.coordinator("codec", "begun")
    watch.seconds = 10
    watch.site("north", "codec", 10)
    assert watch.lines[-1].endswith("codec:  50%, 10 s left")
    watch.site("harbour", "codec", 10)
    assert watch.lines[-1].endswith("codec: 100%, 0 s left")


def test_there_is_a_line_for_each_tenth_and_no_more(watch: Watch) -> None:
    watch.coordinator("codec", "begun")
    watch.seconds = 1
    for done in range(1, 11):
        watch.site("north", "codec", done)
    assert len(watch.lines) == 1 + 5  # half of the sites, half of the tenths


def test_what_the_coordinator_does_alone_counts_alone(watch: Watch) -> None:
    watch.coordinator("student", "begun")
    watch.seconds = 6
    watch.coordinator("student", "progress", done=3, total=4)
    assert watch.lines[-1].endswith("student:  75%, 2 s left")


def test_line_of_another_stage_or_round_is_not_counted(watch: Watch) -> None:
    watch.coordinator("codec", "begun", number=1)
    watch.site("north", "codec", 10)
    watch.site("north", "teacher", 10, number=1)
    watch.coordinator("codec", "answer", number=1, done=1, total=2)
    assert len(watch.lines) == 1


def test_shares_start_anew_with_each_stage(watch: Watch) -> None:
    watch.coordinator("codec", "begun")
    watch.site("north", "codec", 10)
    watch.site("harbour", "codec", 10)
    watch.coordinator("codec", "begun", number=1)
    watch.seconds = 1
    watch.site("north", "codec", 2, number=1)
    assert "codec, round 2:  10%" in watch.lines[-1]


def test_terminal_keeps_one_line_up_to_date() -> None:
    watch = Watch(stream=Terminal())
    watch.coordinator("codec", "begun")
    watch.seconds = 1
    for done in range(1, 10):
        watch.site("north", "codec", done)
    text = watch.stream.getvalue()
    assert text.count("\n") == 1
    assert text.count("\r\x1b[2K") == 1 + 9


def test_processes_are_named(watch: Watch) -> None:
    watch.progress.follow(Event("waiting", "site north: courier", "its key is in use"))
    assert watch.lines == [" 0:00 site north: courier: its key is in use"]


def test_unknown_stage_has_no_place_in_the_order(watch: Watch) -> None:
    watch.coordinator("enrolment", "begun")
    assert watch.lines == [" 0:00 enrolment …"]


def test_time_is_counted_from_where_the_command_began() -> None:
    stream = io.StringIO()
    progress = Progress(sites=2, stream=stream, clock=lambda: 100.0, began=25.0)
    progress.follow(Event("starting", "coordinator", "SuperLink"))
    assert stream.getvalue() == " 1:15 coordinator: SuperLink\n"
