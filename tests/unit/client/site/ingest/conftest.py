"""What the tests of the intake share."""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

from tests.factories.intake import make_home, write_brains
from vitrael.client.site.ingest import report
from vitrael.client.site.ingest.places import Home


@pytest.fixture(scope="session", autouse=True)
def template() -> Iterator[None]:
    """Compile the report's template once, and not for each of some hundred intakes."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(report, "_environment", cache(report._environment))
        yield


@pytest.fixture
def scans(tmp_path: Path) -> Path:
    """A folder of three brains as NIfTI."""
    write_brains(tmp_path / "scans")
    return tmp_path / "scans"


@pytest.fixture
def home(tmp_path: Path) -> Home:
    """A home without a cohort."""
    return make_home(tmp_path / "home")
