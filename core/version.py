"""The version of the installed package."""

from __future__ import annotations

from importlib.metadata import PackageNotFoundError, version


def package_version() -> str:
    """Return the version of the installed package; ``0`` when it runs from bare folders."""
    try:
        return version("vitrael")
    except PackageNotFoundError:
        return "0"
