"""What is measured is one piece of a plane whose pixels have a size; all else is refused."""

from __future__ import annotations

import numpy as np
import pytest

from vitrael.core.errors import DataError
from vitrael.core.metrics.piece import measured_piece

MASK = np.zeros((32, 40), dtype=bool)
MASK[4:10, 5:15] = True
MASK[20:23, 30:34] = True


def test_largest_piece_is_the_one_that_is_measured() -> None:
    piece = measured_piece(MASK, spacing_mm=(1.0, 0.5), organ="muscle")
    assert piece.sum() == 60
    assert piece[4:10, 5:15].all()


@pytest.mark.parametrize(
    "mask",
    [
        np.zeros((32, 32), dtype=bool),
        np.zeros((0, 32), dtype=bool),
        np.eye(32, dtype=bool)[:8],
        np.ones((32, 32), np.uint8),
        np.ones((2, 32, 32), dtype=bool),
    ],
    ids=["empty", "no pixel", "a few pixels", "numbers", "a volume"],
)
def test_mask_that_shows_nothing_is_refused(mask: np.ndarray) -> None:
    with pytest.raises(DataError, match="mask to measure"):
        measured_piece(mask, spacing_mm=(1.0, 1.0), organ="muscle")


@pytest.mark.parametrize("size", [0.0, -1.0, float("nan"), float("inf")])
def test_pixels_without_a_size_are_refused(size: float) -> None:
    for spacing_mm in ((size, 1.0), (1.0, size)):
        with pytest.raises(DataError, match="have no size"):
            measured_piece(MASK, spacing_mm=spacing_mm, organ="muscle")
