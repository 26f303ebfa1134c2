"""Models that several slow tests use; each is trained once, by the first that asks."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.factories.trained import Trained, train_planes, train_volumes

SEED = 4_217


@pytest.fixture(scope="session")
def plane_model() -> Trained:
    return train_planes(SEED)


@pytest.fixture(scope="session")
def volume_model() -> Trained:
    return train_volumes(SEED)


@pytest.fixture(scope="session")
def real_brains() -> list[Path]:
    """Return the public T1-weighted scans beside the checkout, one a person, or skip."""
    folder = Path(__file__).resolve().parents[3] / "shared/data/brain_t1"
    if not folder.is_dir():
        pytest.skip("the public T1 scans (shared/data/brain_t1) are not on this machine")
    return sorted(folder.glob("*.nii.gz"))
