"""What holds for every test: one thread and fixed examples."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from hypothesis import settings

ROOT = Path(__file__).resolve().parent.parent

# Torch reads this when it is first imported; two workers share the processors.
os.environ.setdefault("OMP_NUM_THREADS", "1")

# The same examples on every machine and no time limit: budgets are counted, not timed.
settings.register_profile("vitrael", derandomize=True, deadline=None, database=None)
settings.load_profile("vitrael")


@pytest.fixture(scope="session")
def root() -> Path:
    """Return the folder that holds pyproject.toml."""
    return ROOT
