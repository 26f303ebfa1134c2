"""What the tests of the intake share."""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache

import pytest

from vitrael.client.site.ingest import report


@pytest.fixture(scope="session", autouse=True)
def template() -> Iterator[None]:
    """Compile the report's template once, and not for each of some hundred intakes."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(report, "_environment", cache(report._environment))
        yield
