"""A front door for a rehearsal on a machine without nginx: the same paths and nothing else.

It is for trying things out on one machine. A coordinator that sites reach has nginx in front
(``vitrael server proxy-config``), which limits who asks how often and how long.
"""

from __future__ import annotations

import argparse
import re
import ssl
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import httpx
import uvicorn
from fastapi import FastAPI, HTTPException, Request, Response

from vitrael.privacy.enrollment import ENROLLMENT_PATH
from vitrael.server.config import ServerSettings, load_server
from vitrael.server.federation.flower_home import LOOPBACK, FlowerHome
from vitrael.server.proxy import proxy_files

_CALL = re.compile(r"[a-z-]{1,64}")
_MOST_BYTES = 12 << 20
_TIMEOUT_S = 75.0
_OWN_HEADERS = frozenset(
    {"connection", "content-length", "host", "keep-alive", "transfer-encoding", "upgrade"}
)


def make_front(settings: ServerSettings) -> FastAPI:
    """Return the app that hands on what the outside may reach, as nginx's configuration does."""
    ports = settings.document.ports
    superlink = f"https://{LOOPBACK}:{ports.superlink}"
    enrollment = f"http://{LOOPBACK}:{ports.enrollment}"
    trust = ssl.create_default_context(cafile=str(FlowerHome(settings.home).tls.authority))
    client = httpx.AsyncClient(verify=trust, timeout=_TIMEOUT_S, trust_env=False)

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        yield
        await client.aclose()

    app = FastAPI(docs_url=None, redoc_url=None, openapi_url=None, lifespan=lifespan)

    @app.post("/v1/fleet/{call}")
    async def fleet(call: str, request: Request) -> Response:
        return await _hand_on(client, request, f"{superlink}/v1/fleet/{_checked(call)}")

    @app.post(ENROLLMENT_PATH + "/{call}")
    async def enroll(call: str, request: Request) -> Response:
        return await _hand_on(client, request, f"{enrollment}{ENROLLMENT_PATH}/{_checked(call)}")

    @app.get("/health")
    async def health(request: Request) -> Response:
        return await _hand_on(client, request, f"{enrollment}/health")

    return app


def _checked(call: str) -> str:
    if not _CALL.fullmatch(call):
        raise HTTPException(404)
    return call


async def _hand_on(client: httpx.AsyncClient, request: Request, url: str) -> Response:
    body = bytearray()
    async for block in request.stream():
        body += block
        if len(body) > _MOST_BYTES:
            raise HTTPException(413)
    headers = {name: value for name, value in request.headers.items() if name not in _OWN_HEADERS}
    try:
        answer = await client.request(request.method, url, content=bytes(body), headers=headers)
    except httpx.HTTPError:
        raise HTTPException(502) from None
    kept = {
        name: value
        for name, value in answer.headers.items()
        if name not in _OWN_HEADERS and name not in {"content-encoding", "server", "date"}
    }
    return Response(answer.content, status_code=answer.status_code, headers=kept)


def main() -> None:
    """Serve the address of ``--home`` until SIGTERM; the address is on loopback."""
    parser = argparse.ArgumentParser(prog="vitrael-front")
    parser.add_argument("--home", type=Path, required=True)
    settings = load_server(parser.parse_args().home)
    place = proxy_files(settings)
    uvicorn.run(
        make_front(settings),
        host=LOOPBACK,
        port=int(settings.document.address.rpartition(":")[2]),
        ssl_certfile=str(place.certificate),
        ssl_keyfile=str(place.key),
        log_config=None,
        access_log=False,
        server_header=False,
        ws="none",
        timeout_keep_alive=90,
        timeout_graceful_shutdown=3,
    )


if __name__ == "__main__":
    main()
