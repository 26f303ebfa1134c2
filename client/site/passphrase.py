"""Where a site's passphrases come from: a credential of systemd, a file, or a hidden prompt.

This is settings: the environment is read here. Each passphrase is looked for in this order: the
credential (``LoadCredential=`` or ``LoadCredentialEncrypted=`` of a unit), the file that a variable
names, the terminal.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Literal

from vitrael.core.errors import AuthError
from vitrael.privacy.keys import demand_passphrase, read_private

Purpose = Literal["keys", "backup"]

CREDENTIALS: Final = "CREDENTIALS_DIRECTORY"
"""Set by systemd for a service with credentials."""


@dataclass(frozen=True, slots=True)
class Source:
    """What one passphrase is called in the places where it may stand."""

    credential: str
    variable: str
    words: str


SOURCES: Final[Mapping[Purpose, Source]] = {
    "keys": Source("vitrael-passphrase", "VITRAEL_PASSPHRASE_FILE", "passphrase of the keys"),
    "backup": Source(
        "vitrael-backup-passphrase", "VITRAEL_BACKUP_PASSPHRASE_FILE", "passphrase of the backup"
    ),
}


def read_passphrase(
    purpose: Purpose,
    *,
    new: bool = False,
    environment: Mapping[str, str] | None = None,
    ask: Callable[[str, bool], str] | None = None,
) -> bytes:
    """Return a passphrase, without the end of its line.

    A ``new`` one is asked for twice and must be long enough. ``environment`` and ``ask`` stand for
    those of the process and its terminal. Raises AuthError where there is none, and where its file
    is open to other users; UsageError for a new one that is too short.
    """
    source = SOURCES[purpose]
    places = os.environ if environment is None else environment  # noqa: TID251 - this is settings
    credential, named = _find_credential(source, places), places.get(source.variable)
    if credential is not None:
        # systemd lets the service's user read it by an access list, which shows as the group's.
        fix = "put it in the folder of credentials again and start the service again"
        data = read_private(credential, fix=fix, what="credential", by_group=True)
        passphrase = data.rstrip(b"\r\n")
    elif named:
        fix = f"write the passphrase there, for this user alone, or unset {source.variable}"
        passphrase = read_private(Path(named), fix=fix, what="passphrase").rstrip(b"\r\n")
    else:
        passphrase = (ask or _ask_terminal(source))(source.words.capitalize(), new).encode()
    if not passphrase:
        raise AuthError(f"the {source.words} is empty", fix="give the one that was set")
    if new:
        demand_passphrase(passphrase)
    return passphrase


def _find_credential(source: Source, environment: Mapping[str, str]) -> Path | None:
    folder = environment.get(CREDENTIALS)
    path = Path(folder) / source.credential if folder else None
    return path if path is not None and path.exists() else None


def _ask_terminal(source: Source) -> Callable[[str, bool], str]:
    """Return what asks at the terminal without showing what is typed; AuthError without one."""
    if not sys.stdin.isatty():
        raise AuthError(
            f"the {source.words} is needed",
            why="this process has no terminal to ask at",
            fix=f"give it as the credential {source.credential} of the service, or in a file that "
            f"{source.variable} names",
        )

    def ask(words: str, twice: bool) -> str:  # noqa: FBT001 - the shape of ``ask``
        import click  # noqa: PLC0415 - a service never asks

        answer: str = click.prompt(words, hide_input=True, confirmation_prompt=twice, err=True)
        return answer

    return ask
