"""One folder of scans and one untrained model for all tests that only read them."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.factories import models


@pytest.fixture(scope="session")
def scans(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a BIDS folder of five phantom patients."""
    return models.write_scans(tmp_path_factory.mktemp("workbench") / "scans")


@pytest.fixture(scope="session")
def model_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the folder of a model with drawn weights, which learned to take no condition."""
    return models.write_untrained(tmp_path_factory.mktemp("workbench") / "model", dropout=0.2)
