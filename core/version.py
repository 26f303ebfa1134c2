"""The version of the installed package, and the name of all the software that runs with it."""

from __future__ import annotations

import contextlib
import re
import sys
from functools import lru_cache
from importlib.metadata import PackageNotFoundError, distribution, version
from pathlib import Path
from typing import Final

from vitrael.core.digest import Digest, digest_json

PACKAGE: Final = "vitrael"

_EXTRA: Final = "site"
"""Of this distribution: what runs beside private scans."""
_REQUIREMENT = re.compile(r"\s*([A-Za-z0-9._-]+)\s*(?:\[([^\]]*)\])?")
_OF_EXTRA = re.compile(r"""extra\s*==\s*["']([^"']+)["']""")


def package_version() -> str:
    """Return the version of the installed package; ``0`` when it runs from bare folders."""
    try:
        return version(PACKAGE)
    except PackageNotFoundError:
        return "0"


def lock_digest() -> Digest:
    """Return the name of the installed software: ``locked_versions`` as one digest.

    That takes a while, and is done again only once a folder that Python imports from was changed,
    as every installation does.
    """
    return _digest_for(_import_folders())


def locked_versions() -> list[str]:
    """Return ``name==version`` of this distribution and of all that it requires at a site.

    Requirements are followed to the end, also into optional parts that are asked for; one that is
    not installed does not count, and neither do the extras for servers and for development.
    """
    found: dict[str, str] = {}
    seen: set[tuple[str, str]] = set()
    left = [(PACKAGE, ""), (PACKAGE, _EXTRA)]
    while left:
        part = left.pop()
        if part in seen:
            continue
        seen.add(part)
        name, extra = part
        try:
            metadata = distribution(name).metadata
        except PackageNotFoundError:
            continue
        found[name] = metadata["Version"]
        for requirement in metadata.get_all("Requires-Dist") or ():
            left += _parts(requirement, extra=extra)
    return [f"{name}=={found[name]}" for name in sorted(found)]


@lru_cache(maxsize=1)
def _digest_for(_folders: tuple[tuple[str, int], ...]) -> Digest:
    return digest_json(locked_versions())


def _import_folders() -> tuple[tuple[str, int], ...]:
    """Return where Python imports from, each place with the time of its last change."""
    found = []
    for place in sys.path:
        with contextlib.suppress(OSError):
            found.append((place, Path(place).stat().st_mtime_ns))
    return tuple(found)


def _parts(requirement: str, *, extra: str) -> list[tuple[str, str]]:
    """Return distribution and extra for each part of a requirement that an extra ("": none) has."""
    asked = _OF_EXTRA.search(requirement)
    told = _REQUIREMENT.match(requirement)
    if told is None or (asked.group(1) if asked else "") != extra:
        return []
    name = re.sub(r"[-_.]+", "-", told.group(1)).lower()
    extras = [one.strip() for one in (told.group(2) or "").split(",") if one.strip()]
    return [(name, one) for one in ("", *extras)]
