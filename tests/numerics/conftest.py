"""Models that several slow tests use; each is trained once, by the first that asks."""

from __future__ import annotations

import pytest

from tests.factories.trained import Trained, train_planes, train_volumes

SEED = 4_217


@pytest.fixture(scope="session")
def plane_model() -> Trained:
    return train_planes(SEED)


@pytest.fixture(scope="session")
def volume_model() -> Trained:
    return train_volumes(SEED)
