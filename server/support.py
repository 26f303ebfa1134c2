"""What of a coordinator's home may go into a bundle for support."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Final, get_args

from vitrael.core.support import journal_part, settings_part, store_part
from vitrael.privacy.journal_line import Event
from vitrael.server.config import SERVER_FILE

KEPT: Final[Mapping[str, str]] = {
    "address": "",
    "ports.superlink": "",
    "ports.enrollment": "",
    "ports.metrics": "",
    "tls.certificate": "",
    "enrollment_days": "",
    "threads": "",
}
"""Keys of ``server.toml``; no word of it goes."""

_TABLES: Final = ("stages", "enrollments", "invitations", "words")


def parts_of(home: Path) -> Mapping[str, bytes]:
    """Return file name -> content for a coordinator's home; nothing for another folder."""
    if not (home / SERVER_FILE).exists():
        return {}
    return {
        **settings_part(home / SERVER_FILE, KEPT),
        **journal_part(home / "journal.jsonl", get_args(Event)),
        **store_part(home / "server.sqlite", _TABLES),
    }
