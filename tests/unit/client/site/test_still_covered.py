"""What was begun under a consent leaves only while one covers it, with the software that began."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import pytest

from vitrael.client.site import outbox
from vitrael.core.version import lock_digest

if TYPE_CHECKING:
    from pathlib import Path

    from tests.unit.client.site.conftest import CountingTask, Home
    from vitrael.client.site.steward import Steward
    from vitrael.client.site.tasks import SiteContext, TaskResult
    from vitrael.core.messages import Reply, Task
    from vitrael.core.weights import Tensors


def ask(home: Home, steward: Steward, **changes: object) -> Reply:
    reply, _ = home.open(steward.answer(home.parcel(home.task(**changes))))
    return reply


@pytest.mark.parametrize(("hours", "status"), [(1, "refused"), (3, "done")])
def test_what_is_begun_does_not_leave_after_the_consent_has_expired(
    home: Home, counting: CountingTask, hours: float, status: str
) -> None:
    home.consent(days=hours / 24)

    def train(task: Task, inputs: Mapping[str, Tensors], context: SiteContext) -> TaskResult:
        result = counting(task, inputs, context)
        home.clock.advance(hours=2)
        return result

    steward = home.steward({"codec": train})
    reply = ask(home, steward)
    assert (reply.status, "has expired" in reply.reason) == (status, status != "done")
    home.consent()
    assert ask(home, steward).status == "done"  # it is kept, and leaves under a new one
    assert counting.calls == 1


@pytest.mark.parametrize("act", ["stop", "leave", "pause"])
def test_act_while_a_result_is_sealed_comes_before_it(
    home: Home, steward: Steward, monkeypatch: pytest.MonkeyPatch, act: str
) -> None:
    acts = {
        "stop": lambda: home.control().stop(home.study.protocol.digest),
        "leave": lambda: home.control().leave(),
        "pause": lambda: home.control().pause(),  # the control: it ends nothing that has begun
    }
    asked: list[object] = []
    seal = outbox.make_reply_parcel

    def sealed(*args: Any, **options: Any) -> dict[str, bytes]:
        if not asked:
            asked.append(acts[act]())
        return seal(*args, **options)

    monkeypatch.setattr(outbox, "make_reply_parcel", sealed)
    reply = ask(home, steward)
    left = [line.event for line in home.lines() if line.event == "sent"]
    assert (reply.status, left) == (("done", ["sent"]) if act == "pause" else ("refused", []))


@pytest.mark.parametrize("act", ["stop", "leave", "expire"])
def test_what_is_half_learned_is_removed_where_the_consent_is_taken_back_alone(
    home: Home, counting: CountingTask, act: str
) -> None:
    home.consent(days=1)
    learned: list[Path] = []
    acts = {
        "stop": lambda: home.control().stop(home.study.protocol.digest),
        "leave": lambda: home.control().leave(),
        "expire": lambda: home.clock.advance(hours=25),
    }

    def train(task: Task, inputs: Mapping[str, Tensors], context: SiteContext) -> TaskResult:
        learned.append(context.records / "training" / "codec" / "state")
        learned[0].parent.mkdir(parents=True)
        learned[0].write_bytes(b"weights")
        acts[act]()
        return counting(task, inputs, context)

    steward = home.steward({"codec": train})
    assert ask(home, steward).status == "refused"
    steward.close()
    assert learned[0].exists() is (act == "expire")


def install(folder: Path, name: str) -> None:
    metadata = folder / f"{name}-99.0.dist-info" / "METADATA"
    metadata.parent.mkdir()
    metadata.write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 99.0\n")


@pytest.mark.parametrize("name", ["vitrael", "click"])
def test_software_that_is_installed_under_a_steward_ends_its_answers(
    home: Home,
    counting: CountingTask,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    name: str,
) -> None:
    folder = tmp_path / "installed"
    folder.mkdir()
    monkeypatch.syspath_prepend(folder)
    home.consent()
    steward = home.steward({"codec": counting})
    assert ask(home, steward).status == "done"
    before = lock_digest()
    install(folder, name)
    assert lock_digest() != before
    assert ask(home, steward, round=1).status == "refused"
    home.consent()  # to what is installed now, which is not what runs
    reply = ask(home, steward, round=1)
    assert (reply.status, counting.calls) == ("refused", 1)
    assert "was changed since its steward was started" in reply.reason
    steward.close()
    steward = home.steward({"codec": counting})
    assert ask(home, steward, round=1).status == "done"
    steward.close()
