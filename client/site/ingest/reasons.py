"""Reasons, as a table shows them: one clause without a name, a path or a value of a patient."""

from __future__ import annotations

from vitrael.core.errors import VitraelError


def clause(error: VitraelError) -> str:
    """Return what an error says, and why, without its advice."""
    return f"{error.what}: {error.why}" if error.why else error.what
