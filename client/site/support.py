"""What of a site's home may go into a bundle for support."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Final, get_args

from vitrael.core.messages import StageName
from vitrael.core.support import journal_part, log_part, settings_part, store_part
from vitrael.privacy.journal_line import Event

KEPT: Final[Mapping[str, str]] = {
    "performance.device": "cpu|cuda",
    "performance.threads": "",
    "performance.coordinator_threads": "",
    "performance.bf16": "auto|off",
    "performance.vram_frac": "",
    "limits.parcel_bytes": "",
    "limits.study_bytes": "",
    "limits.rounds": "",
    "limits.stages": "|".join(map(re.escape, get_args(StageName))),
    "limits.smallest_roster": "",
    "limits.epsilon": "",
    "network.node_host": r"127\.0\.0\.1|supernode",
    "network.node_port": "",
    "network.metrics_port": "",
    "network.proxy": "",
    "network.authority": "",
    "address": "",
    "schedule.hours": r"\d\d:\d\d-\d\d:\d\d",
    "release": "automatic|manual",
}
"""Keys of ``site.toml`` and what a word there may be; of the others not even the key goes."""

_TABLES: Final = (
    *("consents", "nonces", "finished", "journal_head"),
    *("site_state", "owed_lines", "held"),
)


def parts_of(home: Path) -> Mapping[str, bytes]:
    """Return file name -> content for a site's home; nothing for another folder."""
    if not (home / "site.toml").exists():
        return {}
    return {
        **settings_part(home / "site.toml", KEPT),
        **log_part(home / "steward.log", name="steward"),
        **log_part(home / "flower" / "node" / "courier.log", name="node"),
        **log_part(home / "flower" / "executor" / "courier.log", name="executor"),
        **journal_part(home / "journal.jsonl", get_args(Event)),
        **store_part(home / "store.sqlite", _TABLES),
    }
