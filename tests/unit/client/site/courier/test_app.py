from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from flwr.app import ConfigRecord, Context, Message, RecordDict
from flwr.common.constant import ErrorCode
from flwr.supercore.task_identity import TaskIdentity

from vitrael.client.site.courier import app as courier
from vitrael.core.errors import ProcessError
from vitrael.core.rounds import LONGEST_DEADLINE_S

PARCEL = {"envelope": b"{}", "weights": b"\x00\x01"}


@pytest.fixture(autouse=True)
def _identity(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("_task_id", "_run_id", "_node_id"):
        monkeypatch.setattr(TaskIdentity, name, 1)


def message(deadline_s: float) -> Message:
    content = RecordDict(
        {"parcel": courier.pack(PARCEL), "terms": ConfigRecord({"deadline_s": deadline_s})}
    )
    made = Message(content, dst_node_id=1, message_type="query")
    made.metadata.__dict__["_message_id"] = "1"
    return made


def context(home: Path) -> Context:
    return Context(
        run_id=1, node_id=1, node_config={"home": str(home)}, state=RecordDict(), run_config={}
    )


def test_the_parcel_is_carried_and_the_deadline_with_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[object] = []

    def call(home: Path, parcel: dict[str, bytes], *, wait_s: float) -> dict[str, bytes]:
        seen.extend((home, parcel, wait_s))
        return {"envelope": b"answer"}

    monkeypatch.setattr(courier, "call_steward", call)
    reply = courier.app(message(12.5), context(tmp_path))
    assert seen == [tmp_path, PARCEL, 12.5]
    assert courier.unpack(reply.content.array_records["parcel"]) == {"envelope": b"answer"}


def test_no_message_makes_the_courier_wait_for_ever(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    waits: list[float] = []

    def call(_: Path, __: dict[str, bytes], *, wait_s: float) -> dict[str, bytes]:
        waits.append(wait_s)
        return {}

    monkeypatch.setattr(courier, "call_steward", call)
    courier.app(message(1e12), context(tmp_path))
    assert waits == [LONGEST_DEADLINE_S]


def test_a_steward_that_is_away_is_told_in_a_sentence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def call(*_: object, wait_s: float) -> dict[str, bytes]:
        raise ProcessError("the steward does not listen", why=f"waited {wait_s:g} s")

    monkeypatch.setattr(courier, "call_steward", call)
    reply = courier.app(message(3), context(tmp_path))
    said = reply.content.config_records["terms"]["error"]
    assert said == "the steward does not listen: waited 3 s."
    assert not reply.content.array_records


def test_a_full_disk_is_told_in_a_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(_file: int, _mode: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fchmod", full)
    reply = courier.app(message(3), context(tmp_path))
    said = str(reply.content.config_records["terms"]["error"])
    assert "no disk space left" in said
    assert list((tmp_path / "spool" / "in").iterdir()) == []


def test_the_courier_imports_neither_torch_nor_anything_of_the_site() -> None:
    code = (
        "import sys, vitrael.client.site.courier.app;"
        "print(*(n for n in sys.modules if n.split('.')[0] in ('torch', 'monai', 'nibabel')"
        " or n.startswith('vitrael.client.site.') and 'courier' not in n))"
    )
    said = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert said.stdout.strip() == ""


def test_a_courier_that_is_told_to_end_has_its_parcel_sent_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = signal.getsignal(signal.SIGTERM)

    def call(*_: object, wait_s: float) -> dict[str, bytes]:
        os.kill(os.getpid(), signal.SIGTERM)
        raise ProcessError("nobody told it")

    monkeypatch.setattr(courier, "call_steward", call)
    reply = courier.app(message(3), context(tmp_path))
    assert reply.has_error()
    assert reply.error.code == ErrorCode.CLIENT_APP_CRASHED
    assert signal.getsignal(signal.SIGTERM) is before
