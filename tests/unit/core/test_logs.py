"""What a log may say: an event of ours, numbers, places; a patient's name gets out nowhere."""

from __future__ import annotations

import io
import json
import logging
import math
from collections.abc import Iterator
from logging.handlers import RotatingFileHandler
from pathlib import Path
from typing import Any

import pytest

from vitrael.core import logs
from vitrael.core.errors import ScanError
from vitrael.core.logs import JsonFormatter, configure_logging, read_shared

PATIENT = "DOE^JANE"
logger = logging.getLogger("vitrael.client.site.listener")


@pytest.fixture
def path(tmp_path: Path) -> Iterator[Path]:
    before = logging.getLogger("vitrael").level
    with configure_logging(tmp_path / "logs" / "steward.log"):
        yield tmp_path / "logs" / "steward.log"
    logging.getLogger("vitrael").setLevel(before)


def lines_of(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_a_line_says_when_how_grave_where_and_what(path: Path) -> None:
    logger.warning("the courier hung up before its answer", extra={"stage": "codec", "round": 3})
    (line,) = lines_of(path)
    assert line.pop("time").endswith("+00:00")
    assert line == {
        "level": "warning",
        "logger": "vitrael.client.site.listener",
        "event": "the courier hung up before its answer",
        "stage": "codec",
        "round": 3,
    }


def fail() -> None:
    raise ValueError(f"{PATIENT} has no spacing")


def test_a_planted_name_gets_out_by_no_way(path: Path) -> None:
    logger.warning("item refused", extra={"patient": PATIENT, "item": PATIENT, "stage": PATIENT})
    logger.warning("request refused: %s", PATIENT)
    logger.warning("%(patient)s refused", {"patient": PATIENT})
    try:
        fail()
    except ValueError as error:
        logger.exception("broken")
        logger.error("broken: %s", error)  # noqa: TRY400
    assert PATIENT not in path.read_text()
    assert "DOE" not in path.read_text()
    told = lines_of(path)
    assert [line["event"] for line in told] == [
        "item refused",
        "request refused: …",
        "%(patient)s refused",
        "broken",
        "broken: …",
    ]
    assert {line["error"] for line in told[3:]} == {"ValueError"}
    assert told[3]["place"].startswith("fail:")


def test_the_control_a_plain_formatter_tells_the_name(caplog: pytest.LogCaptureFixture) -> None:
    logger.warning("request refused: %s", PATIENT)
    assert PATIENT in caplog.text


def test_an_error_of_ours_stands_as_its_sentence(path: Path) -> None:
    logger.error("no answer: %s", ScanError("a scan has no spacing", fix="take it in again"))
    (line,) = lines_of(path)
    assert line["error"] == "ScanError"
    assert line["reason"] == "a scan has no spacing. To do: take it in again."


def test_numbers_stand_in_the_event(path: Path) -> None:
    logger.info("waited %.1f s for %d sites", 2.25, 3)
    assert lines_of(path)[0]["event"] == "waited 2.2 s for 3 sites"


def test_what_cannot_be_formatted_is_still_a_line() -> None:
    for text, arguments, event in (
        ("%d sites", ("many",), "%d sites"),
        (ValueError(PATIENT), (), "ValueError"),
    ):
        record = logging.LogRecord("vitrael.x", logging.INFO, "", 0, text, arguments, None)
        assert json.loads(JsonFormatter().format(record))["event"] == event


def test_a_log_is_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(logs, "LOG_BYTES", 2000)
    with configure_logging(tmp_path / "steward.log"):
        for _ in range(200):
            logger.warning("request refused: %s", "x" * 100)
    written = list(tmp_path.glob("steward.log*"))
    assert len(written) == 2
    assert sum(log.stat().st_size for log in written) <= 4000


def test_without_a_file_the_lines_go_to_standard_error(capsys: pytest.CaptureFixture[str]) -> None:
    with configure_logging():
        logger.warning("up")
    assert json.loads(capsys.readouterr().err)["event"] == "up"
    logger.warning("after the end")
    assert capsys.readouterr().err == ""


def test_with_a_file_standard_error_has_what_somebody_must_see(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    path = tmp_path / "steward.log"
    with configure_logging(path):
        logger.info("all is well")
        logger.warning("the courier hung up before its answer")
    (line,) = capsys.readouterr().err.splitlines()
    assert json.loads(line)["event"] == "the courier hung up before its answer"
    assert len(lines_of(path)) == 2


def test_full_disk_tells_nobody_s_name(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    class Full(io.TextIOWrapper):
        def write(self, _text: str) -> int:
            raise OSError(28, "No space left on device")

    with configure_logging(tmp_path / "steward.log") as sink:
        (on_disk,) = (one for one in sink.handlers if isinstance(one, RotatingFileHandler))
        before = on_disk.setStream(Full(io.BytesIO()))
        assert before is not None
        before.close()
        logger.warning("request refused: %s", ValueError(PATIENT), extra={"stage": PATIENT})
        told = capsys.readouterr().err
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(logging, "raiseExceptions", True)
            logger.warning("request refused: %s", ValueError(PATIENT))
        assert PATIENT in capsys.readouterr().err  # the control: what logging says by itself
    assert json.loads(told)["event"] == "request refused: …"
    assert PATIENT not in told


@pytest.mark.parametrize("number", [math.nan, math.inf, 10**5000], ids=["nan", "inf", "large"])
def test_what_json_does_not_know_is_left_out(path: Path, number: float) -> None:
    logger.warning("waited %.1f s", number, extra={"seconds": number, "reason": "a\udce9b"})
    (line,) = lines_of(path)
    assert "seconds" not in line
    assert line["reason"] == "a\udce9b"


def test_either_of_two_events_stands_in_our_code(tmp_path: Path) -> None:
    path = tmp_path / "courier.log"
    with configure_logging(path):
        supervisor = logging.getLogger("vitrael.client.site.courier.supervisor")
        supervisor.info("the connection is up")
        supervisor.info("the connection is down")
        supervisor.info("flower", extra={"text": PATIENT, "child": "node"})
    lines, dropped = read_shared(path, words=frozenset({"node"}))
    assert (len(lines), dropped) == (3, 0)
    assert (lines[2]["event"], lines[2]["child"]) == ("flower", "node")
    assert "text" not in lines[2]


def test_what_is_shared_stands_in_our_code(path: Path) -> None:
    logger.warning("the courier hung up before its answer", extra={"stage": "codec", "pid": 7})
    logger.warning("request refused: %s", "x", extra={"reason": f"{PATIENT} is not known"})
    with path.open("a") as file:
        good = lines_of(path)[0]
        file.write(f"{PATIENT}\n")
        file.write(json.dumps({**good, "event": PATIENT}) + "\n")
        file.write(json.dumps({**good, "logger": f"vitrael.{PATIENT}"}) + "\n")
        file.write(json.dumps({**good, "logger": "vitrael.core.digest"}) + "\n")
        file.write(json.dumps({**good, "time": PATIENT}) + "\n")
        file.write(
            json.dumps(
                {**good, "stage": "doe-jane", "place": "Doe J", "error": "Doe", "x": PATIENT}
            )
            + "\n"
        )
    lines, dropped = read_shared(path, words=frozenset({"codec"}))
    assert dropped == 5
    assert [sorted(set(line) - {"time", "level", "logger"}) for line in lines] == [
        ["event", "pid", "stage"],
        ["event"],
        ["event", "pid"],
    ]
    assert "DOE" not in json.dumps(lines)
    assert "doe" not in json.dumps(lines)
