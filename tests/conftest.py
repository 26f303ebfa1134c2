"""What holds for every test: one thread, fixed examples, Flower tests one after another."""

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


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Send every federation test to one worker, because each starts processes of its own."""
    for item in items:
        if item.get_closest_marker("federation"):
            item.add_marker(pytest.mark.xdist_group("federation"))


@pytest.fixture(scope="session")
def root() -> Path:
    """Return the folder that holds pyproject.toml."""
    return ROOT
