"""Vectors rounded to eight bits, and bounds of how far that is off.

A processor with VNNI multiplies such integers at about four times the rate of float32.

Axes: B queries, N rows of a gallery, E embedding, G groups.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import numpy as np
import torch

GROUP: Final = 32
"""Products of which the largest alone is looked at first."""
ULP: Final = 2.0**-24
TINY: Final = 2.0**-63
"""Squares of less vanish."""
_LEVELS: Final = 127
_ROWS: Final = 256  # rounded at a time; as many tell the step of rounding
_WIDEST: Final = 2**16  # so that sums of products of integers stay below 2 to the 31
_SLACK: Final = 32 * ULP  # for the rounding of the bounds themselves


@dataclass(frozen=True, slots=True, repr=False)
class RoundedRows:
    """Rows as ``offset + unit * integers``, and how far that is off in each strided group."""

    integer_NE: torch.Tensor  # int8; rows of zeros fill the last group
    offset_E: torch.Tensor
    unit: float
    off_2G: torch.Tensor  # the largest norms of what rounding took from a row, and of what it left


@dataclass(frozen=True, slots=True, repr=False)
class RoundedQueries:
    """Queries as ``unit * integers``, each with a unit of its own."""

    integer_BE: torch.Tensor  # int8
    unit_B1: torch.Tensor
    off_B: torch.Tensor  # norms of what rounding took, or a little more


def multiplies_integers(device: str, width: int) -> bool:
    """Return whether integers are exact and faster; without VNNI their sums can saturate."""
    there = torch.device(device).type == "cpu" and torch.backends.mkldnn.is_available()
    return there and width <= _WIDEST and bool(torch.cpu.get_capabilities().get("avx512_vnni"))


def round_rows(row_NE: torch.Tensor, longest: float) -> RoundedRows:
    """Return the rows rounded to eight bits around an offset, whichever keeps the rest short.

    It adds the same to all products of a query. Values that are far out of the sample are cut, and
    the error of their group says so.
    """
    sample = row_NE[:: -(-len(row_NE) // _ROWS)]
    offset_E = sample.mean(0)
    largest = float((sample - offset_E).abs().max())
    unit = float(np.float32(largest / _LEVELS)) if largest > TINY else 1.0
    groups = -(-len(row_NE) // GROUP)
    integer_NE = torch.zeros((groups * GROUP, row_NE.shape[1]), dtype=torch.int8)
    off_2N = torch.zeros((2, groups * GROUP))
    for at in range(0, len(row_NE), _ROWS):
        rest = row_NE[at : at + _ROWS] - offset_E
        whole, some = _round(rest, unit), slice(at, at + len(rest))
        integer_NE[some] = whole
        off_2N[1, some] = norm_of(whole.mul_(unit))
        off_2N[0, some] = norm_of(rest.sub_(whole))
    off_2G = off_2N.view(2, GROUP, groups).amax(1) * (1 + _SLACK)
    off_2G[0] += _SLACK * (off_2G[1] + longest + 2 * float(norm_of(offset_E[None])))
    return RoundedRows(integer_NE, offset_E, unit, off_2G)


def round_queries(row_BE: torch.Tensor) -> RoundedQueries:
    """Return the queries rounded to eight bits."""
    largest_B1 = row_BE.abs().amax(1, keepdim=True)
    unit_B1 = torch.where(largest_B1 < TINY, 1.0, largest_B1 / _LEVELS)
    whole_BE = _round(row_BE, unit_B1)
    off_B = norm_of(row_BE - unit_B1 * whole_BE) + _SLACK * norm_of(row_BE)
    return RoundedQueries(whole_BE.to(torch.int8), unit_B1, off_B)


def _round(row_NE: torch.Tensor, unit: float | torch.Tensor) -> torch.Tensor:
    return (row_NE / unit).round_().clamp_(-_LEVELS, _LEVELS)


def norm_of(row_NE: torch.Tensor) -> torch.Tensor:
    """Return the norms of rows, or a little more than they are."""
    width = row_NE.shape[1]
    norm_N: torch.Tensor = torch.linalg.vector_norm(row_NE, dim=1)
    return norm_N * (1 + (width + 8) * ULP) + width * TINY
