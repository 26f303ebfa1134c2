"""The enrollment service: HTTP around the desk, on loopback behind the reverse proxy.

``POST /v1/enrollment/join`` and ``/word`` take a DSSE envelope and answer with one; what is
refused is told as ``{"error": {"what", "why", "fix", "exit_code"}}``. ``GET /health`` says that
the service lives. Nothing else is shown: no documentation, no version. How often one address may
ask is the reverse proxy's to say; a token cannot be guessed, however often it is tried.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from datetime import datetime
from typing import Final

from fastapi import FastAPI, HTTPException, Request, Response
from fastapi.concurrency import run_in_threadpool
from fastapi.responses import JSONResponse

from vitrael.core.errors import (
    AuthError,
    EnvelopeError,
    NetworkError,
    StorageError,
    UsageError,
    VitraelError,
)
from vitrael.privacy.enrollment import ENROLLMENT_PATH
from vitrael.server.config import ServerSettings
from vitrael.server.settings import utc_now
from vitrael.server.sites.desk import Desk

MOST_BYTES: Final = 32_768
"""Of a request's body; a join request has about 2000."""
_BODY_S = 20.0
"""How long a body may take to come."""

_STATUS: Final[dict[type[VitraelError], int]] = {
    EnvelopeError: 400,
    AuthError: 403,
    StorageError: 503,
}
"""The first class that fits decides."""

_WORDS: Final = {
    404: "there is nothing at this address",
    405: "this address takes no such request",
    408: "the request did not come to its end in time",
    413: f"the request has more than {MOST_BYTES} bytes",
}

_log = logging.getLogger(__name__)


def create_app(settings: ServerSettings, clock: Callable[[], datetime] = utc_now) -> FastAPI:
    """Return the service of a coordinator's home; it closes the database when it ends.

    Raises AuthError or StorageError when keys or database cannot be used.
    """
    desk = Desk(settings, clock=clock)

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        yield
        desk.close()

    app = FastAPI(docs_url=None, redoc_url=None, openapi_url=None, lifespan=lifespan)
    app.add_exception_handler(Exception, _tell_failure)
    app.add_exception_handler(VitraelError, _tell_refusal)
    for status in _WORDS:
        app.add_exception_handler(status, _tell_http)

    @app.post(f"{ENROLLMENT_PATH}/join")
    async def join(request: Request) -> Response:
        return await _answer(request, desk.join)

    @app.post(f"{ENROLLMENT_PATH}/word")
    async def word(request: Request) -> Response:
        return await _answer(request, desk.word)

    @app.get("/health")
    async def health() -> dict[str, str]:
        return {"status": "ok"}

    return app


async def _answer(request: Request, desk: Callable[[bytes], bytes]) -> Response:
    data = await _read_body(request)
    return Response(await run_in_threadpool(desk, data), media_type="application/json")


async def _read_body(request: Request) -> bytes:
    data = bytearray()
    try:
        async with asyncio.timeout(_BODY_S):
            async for block in request.stream():
                data += block
                if len(data) > MOST_BYTES:
                    raise HTTPException(413)
    except TimeoutError:
        raise HTTPException(408) from None
    return bytes(data)


async def _tell_refusal(_: Request, error: Exception) -> Response:
    told = error if isinstance(error, VitraelError) else VitraelError("it failed")
    status = next((code for kind, code in _STATUS.items() if isinstance(told, kind)), 500)
    _log.warning("refused with %d: %s", status, told.sentence(), extra={"reason": told})
    if status >= 500:  # noqa: PLR2004 - of HTTP
        return _unable(status)
    return _as_json(told, status=status)


async def _tell_failure(_: Request, error: Exception) -> Response:
    _log.error("failed: %s", type(error).__name__, exc_info=error)
    return _unable(500)


def _unable(status: int) -> Response:
    """Say that it is our fault; what lies here is nobody's business."""
    error = NetworkError(
        "the coordinator cannot answer now", fix="try again later, or tell its operator"
    )
    return _as_json(error, status=status)


async def _tell_http(_: Request, error: Exception) -> Response:
    status = int(getattr(error, "status_code", 404))
    told = UsageError(_WORDS[status], fix="run the same package version on both sides")
    return _as_json(told, status=status)


def _as_json(error: VitraelError, *, status: int) -> Response:
    fields = {
        "what": error.what,
        "why": error.why,
        "fix": error.fix,
        "exit_code": error.exit_code,
    }
    return JSONResponse({"error": fields}, status_code=status)
