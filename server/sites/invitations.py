"""The one file that a site gets: address, authority, the coordinator's keys and a token."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

from cryptography.hazmat.primitives.serialization import Encoding

from vitrael.core.errors import ConfigError, UsageError
from vitrael.privacy.enrollment import MOST_PEM, Invitation
from vitrael.privacy.keys import KeyPair
from vitrael.server.config import ServerSettings
from vitrael.server.sites.authority import authority_file, read_roots
from vitrael.server.sites.records import Issued


def hand_out(settings: ServerSettings, path: Path, *, issue: Callable[[], Issued]) -> Invitation:
    """Return the invitation with the token that ``issue`` makes, written for its owner alone.

    No token is made before all else is in order. Raises UsageError for a file that is there or a
    folder that is not, AuthError or ConfigError when keys or authority cannot be read, and what
    ``issue`` raises; then no file is left.
    """
    authority, coordinator = _authority_pem(settings), KeyPair.load(settings.keys).public
    try:
        handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    except FileExistsError as error:
        raise UsageError(
            f"{path} exists already", fix="remove it, or choose another file with --out"
        ) from error
    except (FileNotFoundError, NotADirectoryError) as error:
        raise UsageError(
            f"{path} cannot be written", why="there is no such folder", fix="make it first"
        ) from error
    try:
        with os.fdopen(handle, "wb") as file:
            issued = issue()
            invitation = Invitation(
                site=issued.site,
                address=settings.document.address,
                authority=authority,
                coordinator=coordinator,
                token=issued.token,
                expires_utc=issued.expires_utc.isoformat(timespec="seconds"),
            )
            file.write(invitation.to_bytes())
            file.flush()
            os.fsync(file.fileno())
    except BaseException:
        path.unlink(missing_ok=True)
        raise
    return invitation


def _authority_pem(settings: ServerSettings) -> str:
    path = authority_file(settings)
    roots = read_roots(path)
    pem = "".join(root.public_bytes(Encoding.PEM).decode() for root in roots)
    if len(pem) > MOST_PEM:
        raise ConfigError(
            f"{path} cannot be handed to sites",
            why=f"it holds {len(roots)} authorities",
            fix="name a file with the one authority that signed the certificate",
        )
    return pem
