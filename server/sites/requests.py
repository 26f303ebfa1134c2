"""What a join request must hold before it waits for approval, and how it is approved."""

from __future__ import annotations

from datetime import datetime
from hmac import compare_digest

from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    PublicFormat,
    load_pem_public_key,
)
from sqlalchemy import Select, or_, select
from sqlalchemy.orm import Session

from vitrael.core.errors import AuthError
from vitrael.privacy.enrollment import JoinRequest, proof_of
from vitrael.privacy.node_keys import check_node_proof
from vitrael.server.db.sites import EnrollmentRow, InvitationRow

_NEW_ONE = "ask the coordinator for a new invitation"


def check_node(request: JoinRequest) -> None:
    """Raise AuthError unless the node key is on P-384, signed the other keys and is spelled right.

    One key has one spelling: otherwise the same key could be enrolled for two sites.
    """
    check_node_proof(request.node, proof_of(request.keys, site=request.site), request.node_proof)
    try:
        key = load_pem_public_key(request.node.encode())
    except (ValueError, UnsupportedAlgorithm) as error:
        raise AuthError("the node key is no public key", fix="make the keys again") from error
    pem = key.public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo).decode()
    if request.node != pem:
        raise AuthError(
            "the node key is spelled in an unusual way",
            why="it must be PEM of a SubjectPublicKeyInfo with nothing around it",
            fix="make the keys again",
        )


def check_issued(invitation: InvitationRow | None, request: JoinRequest) -> InvitationRow:
    """Return the invitation of a request's token; raise AuthError unless it is for the site."""
    if invitation is None:
        raise AuthError(
            "the token is unknown",
            why="this coordinator did not issue it, or it was changed on its way",
            fix=_NEW_ONE,
        )
    if invitation.site != request.site:
        raise AuthError(
            f"the token is not for site {request.site}",
            why="it was issued to another site",
            fix=_NEW_ONE,
        )
    return invitation


def check_unspent(invitation: InvitationRow, *, now: datetime) -> None:
    """Raise AuthError for a token that was used, made void or has expired."""
    if invitation.used_utc is not None:
        raise AuthError(
            "the token was used already",
            why=f"other keys came with it on {_tell(invitation.used_utc)}",
            fix=f"if that was not you tell the coordinator at once; {_NEW_ONE}",
        )
    if invitation.void_utc is not None:
        raise AuthError(
            "the token is void",
            why=f"since {_tell(invitation.void_utc)}: it was revoked, or a newer one was issued",
            fix=f"use the newer one, or {_NEW_ONE}",
        )
    if now >= invitation.expires_utc:
        raise AuthError(
            "the token has expired",
            why=f"it was good until {_tell(invitation.expires_utc)}, and now it is {_tell(now)}",
            fix=_NEW_ONE,
        )


def with_keys(request: JoinRequest) -> Select[EnrollmentRow]:
    """Return the query for the enrollment with exactly a request's three keys."""
    keys = request.keys
    return select(EnrollmentRow).filter_by(
        signing=keys.signing, sealing=keys.sealing, node=request.node
    )


def find_waiting(session: Session, request: JoinRequest) -> EnrollmentRow | None:
    """Return the request with the same keys that the site made before and that still waits.

    Raises AuthError when any of the keys was brought in another request, by whatever site.
    """
    keys = request.keys
    waiting = session.scalar(with_keys(request).filter_by(site=request.site, status="pending"))
    if waiting is not None:
        return waiting
    same = or_(
        EnrollmentRow.signing == keys.signing,
        EnrollmentRow.sealing == keys.sealing,
        EnrollmentRow.node == request.node,
    )
    if session.scalar(select(EnrollmentRow).where(same)) is not None:
        raise AuthError(
            f"the keys of site {request.site} were brought before",
            why="a signing, sealing or node key is taken once: no two sites may share one, and "
            "what was replaced or revoked stays out",
            fix="make new keys for this site",
        )
    return None


def new_row(request: JoinRequest, invitation: InvitationRow, *, now: datetime) -> EnrollmentRow:
    """Return the row of a request that waits for approval."""
    return EnrollmentRow(
        site=request.site,
        invitation_id=invitation.id,
        status="pending",
        signing=request.keys.signing,
        sealing=request.keys.sealing,
        node=request.node,
        package_version=request.package_version,
        joined_utc=now,
        reason="",
    )


def compare_fingerprints(site: str, *, wanted: str, heard: str) -> None:
    """Raise AuthError unless a fingerprint was heard; white space and case do not count."""
    whole, given = len(_digits(wanted)), len(_digits(heard))
    if given != whole:
        raise AuthError(
            f"the fingerprint of site {site} has {whole} digits, and {given} were given",
            why="the eight digits of a list find a request again, and prove nothing",
            fix=f"have all {whole} digits read out over a channel that you trust, and name them",
        )
    if not compare_digest(_digits(wanted), _digits(heard)):
        raise AuthError(
            f"the fingerprint is not that of the keys which came from site {site}",
            why="it was misheard, or somebody else asks in the site's name",
            fix="have all 64 digits read out again over a channel that you trust; if they differ "
            f"still, run `vitrael server sites revoke {site} --reason TEXT` and invite it anew",
        )


def _digits(fingerprint: str) -> bytes:
    return "".join(fingerprint.split()).lower().encode()


def _tell(moment: datetime) -> str:
    return f"{moment:%Y-%m-%d %H:%M} UTC"
