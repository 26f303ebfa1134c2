"""What Flower's SuperNode says is understood; the words are those of the Flower installed here."""

from __future__ import annotations

import inspect

import pytest
from flwr.supercore.error.catalog import API_ERROR_MAP
from flwr.supercore.exit import ExitCode
from flwr.supercore.retry import http_retry
from flwr.supernode import fleet_http_connection, start_client_internal

from vitrael.client.site.courier.endings import Ending, connected, explain, node_id
from vitrael.core.errors import AuthError, NetworkError, ProcessError

AT = "coordinator.test:443"
FAILED = "ERROR : Exit Code: 305\nFailed to initialize the connection to the SuperLink.\n"


def explained(
    said: str, *, code: int = 1, was_connected: bool = False, once_connected: bool = False
) -> Ending:
    return explain(
        said, code=code, address=AT, was_connected=was_connected, once_connected=once_connected
    )


def test_the_words_are_those_of_the_flower_that_is_installed() -> None:
    assert '"SuperNode ID: %s"' in inspect.getsource(start_client_internal)
    assert "[code: {flower_error.code}]" in inspect.getsource(fleet_http_connection)
    assert "Failed to initialize the connection" in inspect.getsource(fleet_http_connection)
    retry = inspect.getsource(http_retry)
    assert "Connection attempt failed" in retry
    assert "Connection successful after" in retry
    assert API_ERROR_MAP[2004].public_message == "Failed to activate SuperNode."
    assert ExitCode.SUPERNODE_NODE_AUTH_KEY_INVALID == 302
    assert ExitCode.SUPERNODE_CONNECTION_ERROR == 305
    assert ExitCode.RUNTIME_VERSION_INCOMPATIBLE == 606


def test_the_connection_is_read_from_the_lines() -> None:
    assert node_id("INFO :      SuperNode ID: 14261859719647585601") == "14261859719647585601"
    assert node_id("INFO : Starting Flower SuperNode") is None
    assert connected("INFO :      SuperNode ID: 1") is True
    assert connected("WARNING : Connection attempt failed, retrying in 1.52 seconds") is False
    assert connected("INFO : Connection successful after 3.96 seconds and 4 tries.") is True
    assert connected("INFO : Receiving: query message") is None


@pytest.mark.parametrize(
    ("said", "why"),
    [
        ("unable to get local issuer certificate", "no authority that this site trusts"),
        ("self-signed certificate", "no authority that this site trusts"),
        ("certificate has expired", "it has expired"),
        ("certificate is not yet valid", "it is not valid yet"),
        ("Hostname mismatch, certificate is not valid for 'a'", "for another host"),
    ],
)
def test_a_certificate_that_does_not_hold_ends_the_courier(said: str, why: str) -> None:
    text = f"{FAILED}[SSL: CERTIFICATE_VERIFY_FAILED] certificate verify failed: {said} (_ssl.c:1)"
    ending = explained(text)
    assert ending.kind == "final"
    assert isinstance(ending.error, AuthError)
    assert why in ending.error.sentence()


@pytest.mark.parametrize("said", ["WRONG_VERSION_NUMBER", "RECORD_LAYER_FAILURE"])
def test_a_port_that_speaks_no_tls_ends_the_courier(said: str) -> None:
    text = f"{FAILED}[SSL: {said}] {said.replace('_', ' ').lower()} (_ssl.c:1006)"
    ending = explained(text)
    assert (ending.kind, ending.error.exit_code) == ("final", 4)
    assert "no TLS is spoken there, and nothing was sent" in ending.error.sentence()


def test_a_loss_is_told_by_its_reason_and_not_by_what_flower_says_last() -> None:
    text = f"{FAILED}[Errno 111] Connection refused\nFor more information, visit\nINFO:  Finished"
    ending = explained(text)
    assert (ending.kind, ending.error.why) == ("lost", "[Errno 111] Connection refused")


def test_a_refused_key_is_tried_for_a_while() -> None:
    ending = explained(f"{FAILED}[code: 2004] Failed")
    assert (ending.kind, ending.error.exit_code) == ("held", 4)
    silent = explained("SuperNode terminated gracefully.", code=0)
    assert (silent.kind, silent.error.exit_code) == ("held", 4)
    assert "clocks" in silent.error.why


def test_a_connection_that_was_lost_is_made_again() -> None:
    ended = explained("SuperNode terminated gracefully.", code=0, was_connected=True)
    assert (ended.kind, type(ended.error)) == ("lost", NetworkError)
    killed = explained("SuperNode ID: 1", code=-9, was_connected=True)
    assert (killed.kind, type(killed.error)) == ("lost", ProcessError)
    assert killed.error.why == "signal 9"


def test_a_proxy_is_named_by_its_answer() -> None:
    ending = explained(
        f"{FAILED}407 Proxy Authentication Required\n\nFor more information, visit",
        code=1,
    )
    assert ending.kind == "lost"
    assert ending.error.why == "it answered 407 Proxy Authentication Required"


@pytest.mark.parametrize("code", [302, 606])
def test_what_no_second_try_mends_is_final(code: int) -> None:
    said = f"ERROR : Exit Code: {code}\nx"
    assert explained(said).kind == "final"


@pytest.mark.parametrize(
    "said",
    ["certificate verify failed: self-signed certificate", "[SSL] record layer failure"],
)
def test_what_stands_in_the_way_later_may_go_again(said: str) -> None:
    ending = explained(f"{FAILED}{said}", once_connected=True)
    assert (ending.kind, type(ending.error)) == ("lost", AuthError)
    assert explained(f"{FAILED}{said}").kind == "final"  # the control: at the first connection
