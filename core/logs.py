"""Logs of the long-running commands: one JSON document a line, and nothing that names anybody.

A line holds ``time level logger event`` and fields of ``FIELDS``, each checked for its form; any
other extra is dropped. ``event`` is the text that stands in the code: of its arguments only numbers
are written into it. Of an exception the type is told and the place where it was raised, in our
code, and never its text, which may quote a file name or a value. An error of ours is written for
the people of the site, so that its sentence stands as ``reason``.
"""

from __future__ import annotations

import ast
import contextlib
import functools
import json
import logging
import logging.handlers
import re
import traceback
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Self

from vitrael.core.errors import VitraelError

LOG_BYTES: Final = 4 << 20
"""Of a log and of the one older log beside it: what is refused must not fill the disk."""

_WORD = re.compile(r"[a-z0-9][a-z0-9._-]{0,63}")
_TYPE = re.compile(r"[A-Z][A-Za-z]{0,63}")
_CALL = r"[a-z_<][a-zA-Z0-9_<>]{0,63}:[0-9]{1,6}"
_PLACE = re.compile(rf"{_CALL}(?: < {_CALL})*")
_SENTENCE: Final = 500
_LARGEST: Final = 1 << 63
_DEEPEST: Final = 12
"""Of the functions that an exception came through, so many are told."""


def _word(value: object) -> object:
    return value if isinstance(value, str) and _WORD.fullmatch(value) else None


def _number(value: object) -> object:
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    return value if abs(value) < _LARGEST else None  # neither is NaN, which JSON does not know


def _sentence(value: object) -> object:
    if isinstance(value, VitraelError):
        value = value.sentence()
    return value[:_SENTENCE] if isinstance(value, str) else None


def _matching(pattern: re.Pattern[str]) -> Callable[[object], object]:
    return lambda value: value if isinstance(value, str) and pattern.fullmatch(value) else None


FIELDS: Final[Mapping[str, Callable[[object], object]]] = {
    "stage": _word,
    "round": _number,
    "attempt": _number,
    "item": _number,
    "count": _number,
    "bytes": _number,
    "seconds": _number,
    "port": _number,
    "pid": _number,
    "exit_code": _number,
    "site": _word,
    "study": _word,
    "child": _word,
    "error": _matching(_TYPE),
    "place": _matching(_PLACE),
    "reason": _sentence,
    "text": _sentence,
}
"""What a line may hold beside its event; a function that returns None drops the value.

``reason`` is a sentence of an error of ours, ``text`` a line of Flower's own log: its processes
hold no scan, no key to one and no opened parcel.
"""

SHARED: Final = frozenset(FIELDS) - {"reason", "text", "site", "study"}
"""The fields that may leave the machine in a bundle for support: numbers and words of ours."""


class JsonFormatter(logging.Formatter):
    """Writes a record as one line of JSON."""

    def format(self, record: logging.LogRecord) -> str:
        """Return the line; it never raises for what the record holds."""
        line: dict[str, object] = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "logger": record.name,
            "event": _event(record),
        }
        told = _told_of(record)
        for name, check in FIELDS.items():
            given = vars(record).get(name)
            value = told.get(name) if given is None else check(given)
            if value is not None:
                line[name] = value
        return json.dumps(line)


class LogSink:
    """Where the lines of this process go; as a context manager it takes itself away again."""

    def __init__(self, *handlers: logging.Handler) -> None:
        """Take the handlers, which are at work already."""
        self.handlers = handlers

    def __enter__(self) -> Self:
        """Return itself."""
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        place: TracebackType | None,
    ) -> None:
        """Close."""
        self.close()

    def close(self) -> None:
        """Write no more."""
        for handler in self.handlers:
            logging.getLogger("vitrael").removeHandler(handler)
            with contextlib.suppress(OSError):  # a full disk does not take the last lines
                handler.close()


def configure_logging(path: Path | None = None, *, level: int = logging.INFO) -> LogSink:
    """Send the lines of all ``vitrael`` loggers to a file, or to standard error without one.

    The file has one older file beside it, ``LOG_BYTES`` each at most. Warnings and what is graver
    go to standard error too: a service's journal tells them, also when the disk is full. A line
    that cannot be written is lost: logging's own words for that hold the arguments as they are.
    """
    logging.raiseExceptions = False
    handlers: list[logging.Handler] = [logging.StreamHandler()]
    if path is not None:
        path.parent.mkdir(parents=True, exist_ok=True)
        handlers[0].setLevel(logging.WARNING)
        handlers.append(
            logging.handlers.RotatingFileHandler(
                path, maxBytes=LOG_BYTES, backupCount=1, encoding="utf-8"
            )
        )
    ours = logging.getLogger("vitrael")
    for handler in handlers:
        handler.setFormatter(JsonFormatter())
        ours.addHandler(handler)
    ours.setLevel(level)
    return LogSink(*handlers)


def read_shared(path: Path, *, words: frozenset[str]) -> tuple[list[dict[str, object]], int]:
    """Return the lines of a log with the fields of ``SHARED`` alone, and how many were no lines.

    Everything is checked again, for anybody may have written into the file: an event must stand in
    the code of the module that its line names, a word must be among ``words``.
    """
    lines: list[dict[str, object]] = []
    dropped = 0
    with path.open(encoding="utf-8", errors="replace") as file:
        for text in file:
            line = _checked(text, words=words)
            if line is None:
                dropped += 1
            else:
                lines.append(line)
    return lines, dropped


_TIME = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}\+00:00")
_LOGGER = re.compile(r"vitrael(\.[a-z][a-z_]*){1,6}")
_KINDS = re.compile(r"[A-Za-z]+(Error|Exception|Stopped|Interrupt|Exit)")
_LEVELS = frozenset({"debug", "info", "warning", "error", "critical"})


def _checked(text: str, *, words: frozenset[str]) -> dict[str, object] | None:
    try:
        line: dict[str, Any] = json.loads(text)
        head = {name: str(line[name]) for name in ("time", "level", "logger", "event")}
    except (ValueError, KeyError, TypeError, RecursionError):
        return None
    good = _TIME.fullmatch(head["time"]) and _LOGGER.fullmatch(head["logger"])
    if not good or head["level"] not in _LEVELS:
        return None
    if not any(one.fullmatch(head["event"]) for one in _events_of(head["logger"])):
        return None
    fields = {name: FIELDS[name](line.get(name)) for name in sorted(SHARED)}
    kept = {name: value for name, value in fields.items() if value is not None}
    return {
        **head,
        **{
            name: value
            for name, value in kept.items()
            if FIELDS[name] is not _word or value in words
            if name != "error" or _KINDS.fullmatch(str(value))
        },
    }


@functools.cache
def _events_of(logger: str) -> tuple[re.Pattern[str], ...]:
    """Return what a module can have said: its texts, with numbers where arguments stand."""
    house = Path(__file__).parents[1]
    source = house.joinpath(*logger.split(".")[1:]).with_suffix(".py")
    try:
        tree = ast.parse(source.read_bytes())
    except OSError:
        return ()
    said: set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Call) and node.args:
            parts = ast.walk(node.args[0])
            said |= {str(part.value) for part in parts if isinstance(part, ast.Constant)}
    argument = re.compile(r"%[-0-9.]*[sdfg]")
    shown = r"(?:…|%[-0-9.]*[sdfg]|-?[0-9][0-9.e+-]*)"
    return tuple(re.compile(shown.join(map(re.escape, argument.split(one)))) for one in said)


def _event(record: logging.LogRecord) -> str:
    """Return the text in the code with the numbers among its arguments."""
    text = record.msg if isinstance(record.msg, str) else type(record.msg).__name__
    arguments = record.args if isinstance(record.args, tuple) else ()
    if not arguments:
        return text
    shown = tuple(one if _number(one) is not None else "…" for one in arguments)
    try:
        return text % shown
    except (TypeError, ValueError):
        return text


def _told_of(record: logging.LogRecord) -> dict[str, object]:
    """Return what may be said of the exception that a record carries."""
    arguments = record.args if isinstance(record.args, tuple) else ()
    errors = [one for one in arguments if isinstance(one, BaseException)]
    if record.exc_info and record.exc_info[1] is not None:
        errors.insert(0, record.exc_info[1])
    if not errors:
        return {}
    error = errors[0]
    told: dict[str, object] = {"error": type(error).__name__}
    if isinstance(error, VitraelError):
        told["reason"] = error.sentence()[:_SENTENCE]
    if error.__traceback__ is not None and not isinstance(error, VitraelError):
        told["place"] = place_of(error)
    return told


def place_of(error: BaseException) -> str:
    """Return the functions and lines through which an exception came, the innermost first."""
    frames = traceback.extract_tb(error.__traceback__)[-_DEEPEST:]
    return " < ".join(f"{frame.name}:{frame.lineno}" for frame in reversed(frames))
