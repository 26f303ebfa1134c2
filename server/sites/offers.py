"""The studies that are open for a site's consent: ``studies/NAME/study.toml`` in the home."""

from __future__ import annotations

import json
import logging
import re
from pathlib import Path

from vitrael.core.errors import StudyError
from vitrael.core.study import parse_study
from vitrael.privacy.enrollment import Offer

_NAME = re.compile(r"[a-z][a-z0-9-]{0,47}")
_LONGEST_BYTES = 262_144
_MOST_BYTES = 4 << 20
"""Of all offers to one site together, as they stand in the answer: its envelope, where three bytes
are four, is then small enough to be read."""

_log = logging.getLogger(__name__)


def read_offers(studies: Path, *, site: str) -> dict[str, Offer]:
    """Return the studies whose roster names the site, by the names of their folders.

    One that cannot be read is left out and logged: it must not keep a site from the others.
    """
    offers: dict[str, Offer] = {}
    size_bytes = 0
    for path in sorted(studies.glob("*/study.toml")):
        name = path.parent.name
        offer = _read_offer(path, site=site) if _NAME.fullmatch(name) else None
        if offer is None:
            continue
        size_bytes += len(json.dumps(offer.study))
        if size_bytes > _MOST_BYTES:
            _log.error("not all studies are offered: together they are too large")
            break
        offers[name] = offer
    return offers


def _read_offer(path: Path, *, site: str) -> Offer | None:
    try:
        data = path.read_bytes()
        if len(data) > _LONGEST_BYTES:
            name = path.parent.name
            _log.error("study %s is not offered: it is too large", name, extra={"study": name})
            return None
        study = parse_study(data, label=path.parent.name)
    except (OSError, StudyError) as error:
        why = error.sentence() if isinstance(error, StudyError) else error.strerror
        told = {"study": path.parent.name, "reason": why}
        _log.error("study %s is not offered: %s", path.parent.name, why, extra=told)
        return None
    if site not in study.roster.sites:
        return None
    return Offer(study=data.decode(), protocol=study.protocol.digest)
