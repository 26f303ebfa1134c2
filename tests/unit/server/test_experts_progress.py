"""The stages of a study of experts are counted by themselves, in the order in which they run."""

from __future__ import annotations

import io

import pytest

from vitrael.core.messages import STAGES as TASKS
from vitrael.server.progress import EXPERT_STAGES, STAGES, Progress
from vitrael.server.rehearsal import Event


def say(stage: str, event: str, *, experts: bool, number: int = 0, **counts: int) -> str:
    """Return what is written of one event, without the time."""
    stream = io.StringIO()
    progress = Progress(sites=2, stream=stream, clock=lambda: 0.0, experts=experts)
    data = {"stage": stage, "round": number, "event": event, **counts}
    progress.follow(Event("progress", "coordinator", data=data))
    return stream.getvalue()[6:].rstrip("\n")


def test_every_stage_of_experts_has_one_place() -> None:
    assert set(TASKS["experts"]) <= set(EXPERT_STAGES)
    assert set(EXPERT_STAGES) - set(TASKS["experts"]) == {"fusion", "panel"}  # of nobody's site
    assert len(EXPERT_STAGES) == len(set(EXPERT_STAGES))


@pytest.mark.parametrize("stage", EXPERT_STAGES)
def test_stage_of_experts_is_counted_among_its_own(stage: str) -> None:
    place = EXPERT_STAGES.index(stage) + 1
    told = f"[{place:2}/{len(EXPERT_STAGES)}] {stage} …"
    assert say(stage, "begun", experts=True) == told
    assert say(stage, "begun", experts=False) != told  # the control


def test_rounds_of_a_rival_are_told() -> None:
    assert say("averaged", "kept", experts=True, number=2) == (
        "[ 7/9] averaged, round 3: finished before, kept"
    )
    assert say("relay", "begun", experts=True, number=1) == "[ 8/9] relay, round 2 …"


def test_stage_of_a_synthetic_set_has_no_place_among_experts() -> None:
    assert say("teacher", "begun", experts=True) == "teacher …"
    place = STAGES.index("teacher") + 1
    assert say("teacher", "begun", experts=False) == f"[{place:2}/{len(STAGES)}] teacher …"


def test_fusion_that_the_coordinator_learns_alone_counts_alone() -> None:
    stream = io.StringIO()
    times = iter([0.0, 0.0, 0.0, 4.0, 4.0, 4.0])
    progress = Progress(sites=6, stream=stream, clock=lambda: next(times), experts=True)
    for event, counts in (("begun", {}), ("progress", {"done": 1, "total": 2})):
        data = {"stage": "fusion", "round": 0, "event": event, **counts}
        progress.follow(Event("progress", "coordinator", data=data))
    assert stream.getvalue().splitlines()[-1].endswith("[ 5/9] fusion:  50%, 4 s left")
