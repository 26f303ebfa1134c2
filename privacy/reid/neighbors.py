"""Exact nearest neighbors by inner product, without an index and without the whole matrix.

Every pair is looked at; most are looked at coarsely. A block of the gallery is rounded to eight
bits and multiplied in integers, which a processor with VNNI does at about four times the rate of
float32. How far such a product can be from the true one is known: with q' and g' the rounded
vectors, |q g - q' g'| <= |q| |g - g'| + |q - q'| |g'|, and these norms are measured, not assumed.
Pairs that may still be among the best by that bound are multiplied again in float32, and those that
its rounding (Higham 2002, section 3.1) cannot tell apart a third time: in float64, summed as a
fixed tree and rounded to float32 once. So a similarity is a function of its two vectors alone, to
the bit, and an answer depends on no block, batch, thread or device.

Axes: B queries, N scans of the gallery, E embedding, k neighbors, G groups, P pairs.
"""

from __future__ import annotations

import warnings
from dataclasses import dataclass, replace
from typing import Final

import numpy as np
import torch
from torch.nn import functional

from vitrael.core.errors import DataError
from vitrael.privacy.reid.rounding import (
    GROUP,
    TINY,
    ULP,
    RoundedQueries,
    RoundedRows,
    multiplies_integers,
    norm_of,
    round_queries,
    round_rows,
)

_Pairs = tuple[torch.Tensor, torch.Tensor]
"""Queries of a chunk and rows of a block, rising by query and then by row."""

_BLOCK_BYTES: Final = 4 * 2**20  # of a block of the gallery, at eight bits
_CHUNK: Final = {"cpu": 192, "cuda": 1024}  # queries at a time
_MANY: Final = 1 / 24  # share of pairs above which all at once in float32 cost less
_FEWEST_QUERIES: Final = 16  # fewer do not pay for rounding the gallery
_PAIR_VALUES: Final = 2**18  # multiplied in float64 at a time
_TOO_LARGE: Final = 1e15  # sums of squares of more could overflow
_SHORT: Final = 2.0**-6  # more than two factors of eight bits are off


@dataclass(frozen=True, slots=True, repr=False)
class Neighbors:
    """Private: for each query its nearest scans, the nearest first."""

    index_Bk: np.ndarray
    """int64: rows of the gallery; of equal similarities the lowest row comes first."""
    similarity_Bk: np.ndarray
    """float32: inner products."""

    def __repr__(self) -> str:
        """Show nothing of a patient."""
        return "Neighbors(private)"


@dataclass(frozen=True, slots=True, repr=False)
class Excluded:
    """Private: whose the queries and the scans are; no query meets a scan of its own patient."""

    query_patient_B: np.ndarray
    gallery_patient_N: np.ndarray

    def __repr__(self) -> str:
        """Show nothing of a patient."""
        return "Excluded(private)"


@dataclass(frozen=True, slots=True, repr=False)
class _Block:
    """Some rows of the gallery."""

    start: int
    row_NE: torch.Tensor
    longest: float  # of the norms of its rows
    rounded: RoundedRows | None
    patient_N: torch.Tensor | None  # rising; None where nobody is excluded
    order_N: torch.Tensor | None  # the rows of these patients


@dataclass(frozen=True, slots=True, repr=False)
class _Chunk:
    """Some queries, and views of the best that they have met so far."""

    row_BE: torch.Tensor
    norm_B: torch.Tensor
    rounded: RoundedQueries | None  # None where float32 is as fast
    patient_B: torch.Tensor | None
    similarity_Bk: torch.Tensor
    index_Bk: torch.Tensor


@dataclass(frozen=True, slots=True, repr=False)
class _Coarse:
    """Products of which ``unit * product + offset`` is off by ``error`` at most."""

    product_BN: torch.Tensor  # int32 or float32; the lowest value where a pair is excluded
    unit_B1: torch.Tensor
    offset_B1: torch.Tensor
    error_BG: torch.Tensor


@torch.no_grad()
def nearest(
    query_BE: np.ndarray,
    gallery_NE: np.ndarray,
    *,
    count: int = 1,
    excluded: Excluded | None = None,
    device: str = "cpu",
) -> Neighbors:
    """Return the ``count`` scans of the gallery with the largest inner products of each query.

    The answer is exact: no pair is left out for speed, and of equal similarities the lowest row
    wins. That of one query does not depend on the others, to the bit. Beyond the arguments it takes
    some 40 MiB on a CPU and a quarter of what the queries take, more where very many scans are
    almost equally near.

    Raises DataError for vectors of unequal length, for values that are not finite or beyond 1e15,
    for a gallery of fewer than ``count`` scans, and when so many are not of other patients.
    """
    query, gallery = (_vectors(rows) for rows in (query_BE, gallery_NE))
    if query.shape[1] != gallery.shape[1]:
        raise DataError("queries and gallery hold vectors of unequal length")
    if not 1 <= count <= len(gallery):
        fix = "ask for one or more, and for no more than there are"
        raise DataError("as many neighbors as were asked for are not in the gallery", fix=fix)
    patients = None if excluded is None else _numbered(excluded, len(query), len(gallery))
    similarity_Bk = torch.full((len(query), count), -torch.inf, device=device)
    index_Bk = torch.full((len(query), count), len(gallery), device=device)
    integers = len(query) >= _FEWEST_QUERIES and multiplies_integers(device, gallery.shape[1])
    size = _CHUNK[torch.device(device).type]
    chunks = [
        _Chunk(
            part := query[at : at + size].to(device),
            norm_of(part),
            round_queries(part) if integers else None,
            None if patients is None else patients[0][at : at + size].to(device),
            similarity_Bk[at : at + size],
            index_Bk[at : at + size],
        )
        for at in range(0, len(query), size)
    ]
    blocks = -(-len(gallery) // max(GROUP, _BLOCK_BYTES // gallery.shape[1]))
    size = -(-len(gallery) // blocks)
    for start in range(0, len(gallery), size):
        own = None if patients is None else patients[1][start : start + size].to(device)
        rows = gallery[start : start + size].to(device)
        block = _make_block(rows, own, start=start, integers=integers)
        for chunk in chunks:
            block = _meet(chunk, block)
    if (index_Bk == len(gallery)).any():
        raise DataError(
            "a query has too few scans to be compared with",
            why=f"fewer than {count} are of other patients",
            fix="give scans of more patients, or ask for fewer neighbors",
        )
    return Neighbors(index_Bk.cpu().numpy(), similarity_Bk.cpu().numpy())


def _vectors(rows: np.ndarray) -> torch.Tensor:
    if np.ndim(rows) != 2 or np.shape(rows)[1] == 0:  # noqa: PLR2004 - a row for each vector
        raise DataError("vectors to compare are rows of a matrix")
    vectors = torch.from_numpy(np.ascontiguousarray(rows, dtype=np.float32))
    if len(vectors):
        low, high = (float(edge) for edge in torch.aminmax(vectors))
        if not (low >= -_TOO_LARGE and high <= _TOO_LARGE):
            raise DataError("vectors to compare hold values that are not finite, or beyond 1e15")
    return vectors


def _numbered(excluded: Excluded, queries: int, scans: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the patients of both sides as common numbers."""
    sides = [np.asarray(excluded.query_patient_B), np.asarray(excluded.gallery_patient_N)]
    if sides[0].shape != (queries,) or sides[1].shape != (scans,):
        raise DataError("leaving patients out needs the patient of each query and of each scan")
    _, numbers = np.unique(np.concatenate(sides), return_inverse=True)
    both = torch.from_numpy(numbers.astype(np.int64))
    return both[:queries], both[queries:]


def _make_block(
    row_NE: torch.Tensor, patient_N: torch.Tensor | None, *, start: int, integers: bool
) -> _Block:
    longest = float(norm_of(row_NE).max())
    rounded = round_rows(row_NE, longest) if integers else None
    sorted_N = (None, None) if patient_N is None else torch.sort(patient_N, stable=True)
    return _Block(start, row_NE, longest, rounded, *sorted_N)


def _meet(chunk: _Chunk, block: _Block) -> _Block:
    """Update what queries have met by a block, and return it as it shall meet the next ones.

    Where eight bits tell too little apart it goes on in float32: the answer is the same.
    """
    if chunk.rounded is not None and block.rounded is not None:
        coarse = _multiply_integers(chunk, block, chunk.rounded, block.rounded)
        pairs = _promising(coarse, chunk)
        if len(pairs[0]) <= _MANY * coarse.product_BN.numel():
            _keep(_refine(pairs, chunk, block), chunk, block)
            return block
    _keep(_promising(_multiply_floats(chunk, block), chunk), chunk, block)
    return replace(block, rounded=None)


def _multiply_integers(
    chunk: _Chunk, block: _Block, query: RoundedQueries, rounded: RoundedRows
) -> _Coarse:
    product_BN = torch._int_mm(query.integer_BE, rounded.integer_NE.T)  # noqa: SLF001
    _exclude(product_BN, chunk, block)
    error_BG = chunk.norm_B[:, None] * rounded.off_2G[0] + query.off_B[:, None] * rounded.off_2G[1]
    offset_B1 = (chunk.row_BE.double() @ rounded.offset_E.double()[:, None]).float()
    return _Coarse(product_BN, query.unit_B1 * rounded.unit, offset_B1, error_BG)


def _multiply_floats(chunk: _Chunk, block: _Block) -> _Coarse:
    fill = (0, -len(block.row_NE) % GROUP)
    product_BN = functional.pad(chunk.row_BE @ block.row_NE.T, fill)
    _exclude(product_BN, chunk, block)
    error_B = _float_error(chunk, block)
    if _shortens():
        error_B = error_B + _SHORT * block.longest * chunk.norm_B
    error_B1 = error_B[:, None]
    return _Coarse(product_BN, torch.ones_like(error_B1), torch.zeros_like(error_B1), error_B1)


def _float_error(chunk: _Chunk, block: _Block) -> torch.Tensor:
    """Return by how much a float32 product can be off, in whatever order it is summed."""
    width = chunk.row_BE.shape[1]
    return (width + 16) * (ULP * block.longest * chunk.norm_B + TINY**2)


def _shortens() -> bool:
    """Return whether torch may shorten the factors of a float32 product, as it can be told to."""
    try:
        highest = torch.get_float32_matmul_precision() == "highest"
    except RuntimeError:  # told by backend
        return True
    return not highest or torch.backends.cuda.matmul.allow_tf32


def _lowest(product_BN: torch.Tensor) -> float:
    kind = torch.finfo if product_BN.is_floating_point() else torch.iinfo
    return kind(product_BN.dtype).min


def _exclude(product_BN: torch.Tensor, chunk: _Chunk, block: _Block) -> None:
    """Set the products with a query's own patient, and with what fills the last group, lowest."""
    lowest = _lowest(product_BN)
    product_BN[:, len(block.row_NE) :] = lowest
    if block.patient_N is None or block.order_N is None or chunk.patient_B is None:
        return
    first_B = torch.searchsorted(block.patient_N, chunk.patient_B)
    scans_B = torch.searchsorted(block.patient_N, chunk.patient_B, right=True) - first_B
    b_P = torch.repeat_interleave(scans_B)
    before_B = torch.cumsum(scans_B, 0) - scans_B
    place_P = torch.arange(len(b_P), device=b_P.device) + (first_B - before_B)[b_P]
    product_BN[b_P, block.order_N[place_P]] = lowest


def _promising(coarse: _Coarse, chunk: _Chunk) -> _Pairs:
    """Return all pairs that can be among the best.

    The largest of each group, which are different scans, tell how good these are at least.
    """
    count, lowest = chunk.index_Bk.shape[1], _lowest(coarse.product_BN)
    grouped_BJG = coarse.product_BN.view(len(chunk.row_BE), GROUP, -1)
    top_BG = grouped_BJG.amax(1)
    score_BG = top_BG * coarse.unit_B1 + coarse.offset_B1
    least_B1 = _least(chunk)[:, None]
    if count <= top_BG.shape[1]:
        reached_BG = torch.where(top_BG > lowest, score_BG - coarse.error_BG, -torch.inf)
        least_B1 = torch.maximum(least_B1, reached_BG.topk(count, dim=1).values[:, -1:])
    above_BG = (coarse.offset_B1 + coarse.error_BG - least_B1).expand(top_BG.shape)
    b_F, g_F = torch.nonzero(top_BG * coarse.unit_B1 + above_BG >= 0, as_tuple=True)
    product_FJ = grouped_BJG[b_F, :, g_F]
    above_FJ = product_FJ * coarse.unit_B1[b_F] + above_BG[b_F, g_F, None] >= 0
    f_P, j_P = torch.nonzero(above_FJ & (product_FJ > lowest), as_tuple=True)
    width = coarse.product_BN.shape[1]
    key_P = torch.sort(b_F[f_P] * width + j_P * top_BG.shape[1] + g_F[f_P]).values
    return key_P // width, key_P % width


def _refine(pairs: _Pairs, chunk: _Chunk, block: _Block) -> _Pairs:
    """Return the pairs that float32 cannot tell from the best; no vector is copied."""
    (b_P, column_P), count = pairs, chunk.index_Bk.shape[1]
    ends = functional.pad(torch.bincount(b_P, minlength=len(chunk.row_BE)).cumsum(0), (1, 0))
    size = (len(chunk.row_BE), len(block.row_NE))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch calls its sparse matrices a beta, once a process
        wanted = torch.sparse_csr_tensor(
            ends, column_P, torch.zeros(len(b_P)), size=size, check_invariants=False
        )
        found = torch.sparse.sampled_addmm(wanted, chunk.row_BE, block.row_NE.T, beta=0.0)
    product_P: torch.Tensor = found.values()
    error_B = _float_error(chunk, block)
    reached_B = torch.full_like(error_B, -torch.inf)
    if count == 1:
        reached_B.scatter_reduce_(0, b_P, product_P, "amax")
    else:
        order_P, rank_P = _rank(b_P, product_P, column_P)
        last_P = order_P[rank_P == count - 1]
        reached_B[b_P[last_P]] = product_P[last_P]
    least_B = torch.maximum(_least(chunk), reached_B - error_B) - error_B
    kept_P = product_P >= least_B[b_P]
    return b_P[kept_P], column_P[kept_P]


def _keep(pairs: _Pairs, chunk: _Chunk, block: _Block) -> None:
    """Score pairs exactly, and write the best of them and of those before to the chunk."""
    (b_P, column_P), count = pairs, chunk.index_Bk.shape[1]
    at_once = max(1, _PAIR_VALUES // chunk.row_BE.shape[1])
    parts = zip(b_P.split(at_once), column_P.split(at_once), strict=True)
    found = [_similarity(chunk.row_BE[b], block.row_NE[column]) for b, column in parts]
    before_P = torch.arange(len(chunk.row_BE), device=b_P.device).repeat_interleave(count)
    index_P = torch.cat([chunk.index_Bk.flatten(), block.start + column_P])
    similarity_P = torch.cat([chunk.similarity_Bk.flatten(), *found])
    order_P, rank_P = _rank(torch.cat([before_P, b_P]), similarity_P, index_P)
    best_P = order_P[rank_P < count]
    chunk.index_Bk.copy_(index_P[best_P].view(-1, count))
    chunk.similarity_Bk.copy_(similarity_P[best_P].view(-1, count))


def _rank(
    b_P: torch.Tensor, similarity_P: torch.Tensor, index_P: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the pairs by query, best first, equals by index; and the rank of each in its query."""
    order_P = torch.argsort(index_P, stable=True)
    order_P = order_P[torch.argsort(similarity_P[order_P], descending=True, stable=True)]
    order_P = order_P[torch.argsort(b_P[order_P], stable=True)]
    rising_P = b_P[order_P]
    place_P = torch.arange(len(rising_P), device=b_P.device)
    return order_P, place_P - torch.searchsorted(rising_P, rising_P)


def _least(chunk: _Chunk) -> torch.Tensor:
    """Return what a true similarity must reach to be among the best so far, after rounding."""
    last_B = chunk.similarity_Bk[:, -1]
    return last_B - 8 * ULP * last_B.abs()


def _similarity(first_PE: torch.Tensor, second_PE: torch.Tensor) -> torch.Tensor:
    """Return ``[P]`` float32 inner products, each a function of its two vectors alone.

    Products of two float32 are exact in float64; they are added in pairs, then pairs of pairs.
    """
    part = first_PE.double().mul_(second_PE)
    width = part.shape[1]
    part = functional.pad(part, (0, (1 << (width - 1).bit_length()) - width))
    while part.shape[1] > 1:
        half = part.shape[1] // 2
        part = part[:, :half] + part[:, half:]
    return part[:, 0].to(torch.float32)
