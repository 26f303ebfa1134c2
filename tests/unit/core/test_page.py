"""The page that a monitor asks: what stands there, and nothing else."""

from __future__ import annotations

import httpx
import pytest

from vitrael.core.errors import NetworkError
from vitrael.core.page import Health, serving_page


def well() -> Health:
    return Health(is_well=True, status="ok", facts={})


def get(port: int, page: str) -> httpx.Response:
    with httpx.Client(trust_env=False, timeout=10) as client:
        return client.get(f"http://127.0.0.1:{port}{page}")


@pytest.mark.parametrize(("is_up", "code"), [(True, 200), (False, 503)])
def test_health_is_well_where_everything_is(*, is_up: bool, code: int) -> None:
    told = Health(is_up, "any word", {"steward": is_up})
    with serving_page(0, health=lambda: told, metrics=lambda: b"a 1\n", setting="x") as port:
        answer = get(port, "/health")
        assert answer.status_code == code
        assert answer.json() == {"status": "any word", "steward": is_up}
        assert get(port, "/metrics").text == "a 1\n"
        assert get(port, "/keys/node").status_code == 404
        assert get(port, "/").status_code == 404
    with pytest.raises(httpx.ConnectError):
        get(port, "/health")


def test_a_port_in_use_is_named_with_its_setting() -> None:
    with (
        serving_page(0, health=well, metrics=bytes, setting="ports.x") as port,
        pytest.raises(NetworkError, match=f"port {port} .*choose another ports.x"),
        serving_page(port, health=well, metrics=bytes, setting="ports.x"),
    ):
        pytest.fail("two pages on one port")
