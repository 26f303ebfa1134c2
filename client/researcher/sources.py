"""Where releases come from: a catalogue in a folder, or behind http(s).

A source is not trusted: what it gives is bounded in size, and verified afterwards.
"""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Final, Protocol, Self
from urllib.parse import quote, urlsplit

from vitrael.core.errors import AuthError, NetworkError, UsageError, VerificationError

if TYPE_CHECKING:
    import httpx

ATTEMPTS: Final = 4
CONNECT_TIMEOUT_S: Final = 10.0
SILENCE_TIMEOUT_S: Final = 30.0
"""A connection that brings no byte for so long is given up and tried again."""
LONGEST_PAUSE_S: Final = 60.0

_BUSY = frozenset({408, 425, 429, 500, 502, 503, 504})
_ABSENT = frozenset({404, 410})
_CLOSED = frozenset({401, 403, 407})


class Source(Protocol):
    """A catalogue that can be read."""

    def read(self, path: str, *, limit_bytes: int) -> bytes | None:
        """Return a small file, or None when it is not there."""

    def fetch(self, path: str, target: Path, *, size_bytes: int) -> None:
        """Write a file of known size to ``target``; raise NetworkError when it cannot be had."""


class FolderSource:
    """A catalogue in a folder of this machine."""

    def __init__(self, root: Path) -> None:
        """Take the folder that holds ``catalogue.json``."""
        self._root = root

    def read(self, path: str, *, limit_bytes: int) -> bytes | None:
        """Return a file's bytes; raise VerificationError when there are more than the limit."""
        try:
            with (self._root / path).open("rb") as file:
                data = file.read(limit_bytes + 1)
        except (FileNotFoundError, NotADirectoryError):
            return None
        except OSError as error:
            raise _unreadable(path, error.strerror or "") from error
        return _bounded(data, path=path, limit_bytes=limit_bytes)

    def fetch(self, path: str, target: Path, *, size_bytes: int) -> None:
        """Copy a file; at most one byte more than its size is taken."""
        try:
            with (self._root / path).open("rb") as file:
                if file.seek(0, 2) != size_bytes:
                    raise _cut(path, size_bytes)
                file.seek(0)
                with target.open("wb") as copy:
                    shutil.copyfileobj(file, copy, 1 << 20)
        except FileNotFoundError as error:
            raise _unreadable(path, "it is not there") from error


class HttpSource:
    """A catalogue behind http(s), asked with bounded patience; close it when done."""

    def __init__(
        self,
        url: str,
        *,
        attempts: int = ATTEMPTS,
        silence_timeout_s: float = SILENCE_TIMEOUT_S,
        pause: Callable[[float], None] = time.sleep,
    ) -> None:
        """Connect to nothing yet. ``pause`` waits between attempts, in seconds."""
        import httpx  # noqa: PLC0415 - only a source behind http needs it

        self._url = url.rstrip("/")
        self._attempts = attempts
        self._pause = pause
        timeout = httpx.Timeout(silence_timeout_s, connect=CONNECT_TIMEOUT_S)
        # identity: a .nii.gz must come as the bytes that were signed, not unpacked on the way.
        headers = {"User-Agent": "vitrael-pull", "Accept-Encoding": "identity"}
        self._client = httpx.Client(timeout=timeout, headers=headers, follow_redirects=True)

    def __enter__(self) -> Self:
        """Return itself."""
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Close the connections."""
        self._client.close()

    def read(self, path: str, *, limit_bytes: int) -> bytes | None:
        """Return a file's bytes; raise VerificationError when there are more than the limit."""

        def collect(response: httpx.Response) -> bytes:
            data = bytearray()
            for block in response.iter_raw():
                data += block
                if len(data) > limit_bytes:
                    break
            return bytes(data)

        data = self._ask(path, collect)
        return None if data is None else _bounded(data, path=path, limit_bytes=limit_bytes)

    def fetch(self, path: str, target: Path, *, size_bytes: int) -> None:
        """Download a file; one that is longer or shorter than its size is tried again."""

        def save(response: httpx.Response) -> bytes:
            count = 0
            with target.open("wb") as file:
                for block in response.iter_raw(1 << 20):
                    count += len(block)
                    if count > size_bytes:
                        break
                    file.write(block)
            if count != size_bytes:
                raise _cut(path, size_bytes)
            return b""

        if self._ask(path, save) is None:
            raise _unreadable(path, "the server does not have it")

    def _ask(self, path: str, take: Callable[[httpx.Response], bytes]) -> bytes | None:
        """Return what ``take`` makes of the answer, None when the file is absent."""
        import httpx  # noqa: PLC0415 - as above

        url, why, wait_s = f"{self._url}/{quote(path)}", "", 0.0
        for attempt in range(self._attempts):
            if attempt:
                self._pause(min(max(wait_s, 2.0 ** (attempt - 1)), LONGEST_PAUSE_S))
            wait_s = 0.0
            try:
                with self._client.stream("GET", url) as response:
                    if response.status_code in _ABSENT:
                        return None
                    if response.is_success:
                        return take(response)
                    _demand_open(response.status_code, path)
                    why, wait_s = f"it answers {response.status_code}", _asked_pause_s(response)
                    if response.status_code not in _BUSY:
                        break
            except _CutError as error:
                why = error.why
            except httpx.TimeoutException:
                why = "it does not answer in time"
            except httpx.TransportError as error:
                why = type(error).__name__
            except (httpx.InvalidURL, httpx.TooManyRedirects, UnicodeError) as error:
                raise _unreadable(path, type(error).__name__) from error
        raise _unreadable(path, f"{why}, after {attempt + 1} attempts")


@contextmanager
def open_source(text: str) -> Iterator[Source]:
    """Yield the source that a URL or a folder's path names; raise UsageError for neither."""
    try:
        scheme = urlsplit(text).scheme.lower()
    except ValueError as error:  # such as a bracket that is never closed
        raise UsageError(
            f"{text!r} is no URL", why=str(error), fix="give an http(s) URL or a folder to --from"
        ) from error
    if scheme in {"http", "https"}:
        with HttpSource(text) as source:
            yield source
    elif "://" in text:
        raise UsageError(
            f"{scheme}:// is not supported", fix="give an http(s) URL or a folder to --from"
        )
    elif not Path(text).is_dir():
        raise UsageError(
            f"there is no catalogue at {text}",
            why="it is no folder",
            fix="give --from the folder or URL that holds catalogue.json",
        )
    else:
        yield FolderSource(Path(text))


class _CutError(NetworkError):
    """A file came with another length than the manifest says."""


def _cut(path: str, size_bytes: int) -> _CutError:
    return _CutError(
        f"{path} did not arrive whole",
        why=f"it should have {size_bytes} bytes",
        fix="run the same command again; finished files are kept",
    )


def _unreadable(path: str, why: str) -> NetworkError:
    return NetworkError(
        f"{path} could not be had from the source",
        why=why,
        fix="check --from, then run the same command again; finished files are kept",
    )


def _bounded(data: bytes, *, path: str, limit_bytes: int) -> bytes:
    if len(data) > limit_bytes:
        raise VerificationError(
            f"{path} is larger than a release may have it",
            why=f"more than {limit_bytes} bytes",
            fix="ask the coordinator; the source may have been tampered with",
        )
    return data


def _demand_open(status: int, path: str) -> None:
    if status in _CLOSED:
        raise AuthError(
            f"the server refuses to give {path}",
            why=f"it answers {status}",
            fix="ask the coordinator for access",
        )


def _asked_pause_s(response: httpx.Response) -> float:
    text = response.headers.get("Retry-After", "")
    return float(text) if text.isascii() and text.isdigit() else 0.0
