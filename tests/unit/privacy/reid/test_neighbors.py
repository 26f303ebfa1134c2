from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch

from vitrael.core.errors import DataError
from vitrael.core.rng import stream
from vitrael.privacy.reid import neighbors
from vitrael.privacy.reid.neighbors import Excluded, nearest
from vitrael.privacy.reid.rounding import GROUP, multiplies_integers


def _unit(rows: np.ndarray) -> np.ndarray:
    return np.asarray(rows / np.linalg.norm(rows, axis=1, keepdims=True), dtype=np.float32)


def _random(rng: np.random.Generator, rows: int, width: int) -> np.ndarray:
    return _unit(rng.normal(size=(rows, width)))


def _clustered(rng: np.random.Generator, rows: int, width: int) -> np.ndarray:
    centers = _random(stream(1, "centers", width), 6, width)
    return _unit(centers[rng.integers(0, 6, rows)] + 0.05 * _random(rng, rows, width))


def _alike(rng: np.random.Generator, rows: int, width: int) -> np.ndarray:
    """Vectors that only the last bits tell apart, as those of a network that has collapsed."""
    return _unit(np.ones(width) + 1e-6 * rng.normal(size=(rows, width)))


def _equal(rng: np.random.Generator, rows: int, width: int) -> np.ndarray:
    return _random(stream(1, "few", width), 5, width)[rng.integers(0, 5, rows)]


def _uneven(rng: np.random.Generator, rows: int, width: int) -> np.ndarray:
    """Norms over six orders of magnitude, rows of zeros, and single values far out."""
    made = _random(rng, rows, width) * 10.0 ** rng.uniform(-3, 3, (rows, 1))
    made[::7] = 0
    made[3::11, 0] = 1e4
    return made.astype(np.float32)


def _tiny(rng: np.random.Generator, rows: int, width: int) -> np.ndarray:
    return _random(rng, rows, width) * np.float32(1e-17)


KINDS = [_random, _clustered, _alike, _equal, _uneven, _tiny]


def _naive(
    query: np.ndarray, gallery: np.ndarray, count: int, allowed: np.ndarray | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """Return the same by the whole matrix in float64, rounded once, and a stable sort."""
    similarity = (query.astype(np.float64) @ gallery.astype(np.float64).T).astype(np.float32)
    if allowed is not None:
        similarity = np.where(allowed, similarity, -np.inf).astype(np.float32)
    order = np.argsort(-similarity, axis=1, kind="stable")[:, :count]
    return order, np.take_along_axis(similarity, order, 1)


def _floats_only(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(neighbors, "multiplies_integers", lambda *_: False)


@pytest.mark.parametrize("count", [1, 3, 40])
@pytest.mark.parametrize("kind", KINDS)
def test_neighbors_are_those_of_a_naive_search(
    kind: Callable[[np.random.Generator, int, int], np.ndarray], count: int
) -> None:
    rng = stream(2, "search", kind.__name__)
    for queries, scans, width in ((70, 333, 64), (17, 41, 5), (20, 1200, 512)):
        query, gallery = kind(rng, queries, width), kind(rng, scans, width)
        found = nearest(query, gallery, count=count)
        index, similarity = _naive(query, gallery, count)
        assert found.index_Bk.dtype == np.int64
        assert found.similarity_Bk.dtype == np.float32
        # Float64 may sum in another order, so that one in 2 ** 29 rounds the other way.
        assert (found.index_Bk == index).mean() > 0.999
        np.testing.assert_allclose(found.similarity_Bk, similarity, rtol=1e-6, atol=1e-36)


@pytest.mark.parametrize("kind", KINDS)
def test_answer_depends_on_no_block_batch_thread_or_arithmetic(
    kind: Callable[[np.random.Generator, int, int], np.ndarray], monkeypatch: pytest.MonkeyPatch
) -> None:
    rng = stream(3, "blocks", kind.__name__)
    query, gallery = kind(rng, 50, 96), kind(rng, 700, 96)
    whole = nearest(query, gallery, count=2)
    found = [nearest(query[b : b + 1], gallery, count=2) for b in range(50)]
    alone_index = np.concatenate([one.index_Bk for one in found])
    alone = np.concatenate([one.similarity_Bk for one in found])
    others = [(alone_index, alone)]
    for bytes_, chunk in ((96 * 16, 7), (96 * 200, 64), (96 * 699, 49)):
        monkeypatch.setattr(neighbors, "_BLOCK_BYTES", bytes_)
        monkeypatch.setattr(neighbors, "_CHUNK", {"cpu": chunk})
        other = nearest(query, gallery, count=2)
        others.append((other.index_Bk, other.similarity_Bk))
    _floats_only(monkeypatch)
    other = nearest(query, gallery, count=2)
    others.append((other.index_Bk, other.similarity_Bk))
    for index, similarity in others:
        assert (index == whole.index_Bk).all()
        assert (similarity.view(np.int32) == whole.similarity_Bk.view(np.int32)).all()


def test_float32_alone_would_depend_on_the_batch_or_miss_the_nearest() -> None:
    """The control: what one float32 product calls the largest is not always so."""
    rng = stream(4, "control")
    query, gallery = _alike(rng, 64, 512), _alike(rng, 3000, 512)
    plain = torch.from_numpy(query) @ torch.from_numpy(gallery).T
    index, _ = _naive(query, gallery, 1)
    assert (plain.argmax(1).numpy() == index[:, 0]).mean() < 0.9
    assert (nearest(query, gallery).index_Bk == index).mean() > 0.98


@pytest.mark.parametrize("floats", [False, True])
def test_error_of_coarse_products_is_within_its_bound(
    *, floats: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The bound is what makes the search exact; a tenth of it would not hold."""
    if floats:
        _floats_only(monkeypatch)
    seen: list[float] = []
    looked = neighbors._promising

    def check(coarse: neighbors._Coarse, chunk: neighbors._Chunk) -> neighbors._Pairs:
        groups = coarse.product_BN.shape[1] // GROUP
        product = coarse.product_BN.double() * coarse.unit_B1 + coarse.offset_B1
        product = product[:, : len(gallery)]
        true = chunk.row_BE.double() @ torch.from_numpy(gallery).double().T
        error = coarse.error_BG.expand(-1, groups).repeat(1, GROUP)
        seen.append(float(((product - true).abs() / error[:, : len(gallery)]).max()))
        return looked(coarse, chunk)

    monkeypatch.setattr(neighbors, "_promising", check)
    for kind in KINDS:
        rng = stream(5, "bound", kind.__name__)
        gallery = kind(rng, 400, 48)
        nearest(kind(rng, 32, 48), gallery)
    assert len(seen) >= len(KINDS)
    assert max(seen) <= 1
    assert max(seen) > (0.01 if floats else 0.1)


def test_integers_multiply_exactly() -> None:
    if not multiplies_integers("cpu", 512):
        pytest.skip("this processor multiplies in float32")
    rng = stream(6, "integers")
    sides = [rng.integers(-127, 128, (40, 700)).astype(np.int8) for _ in range(2)]
    sides[0][0], sides[1][0], sides[1][1] = 127, 127, -127  # sixteen bits would saturate
    found = torch._int_mm(torch.from_numpy(sides[0]), torch.from_numpy(sides[1]).T)
    assert (found.numpy() == sides[0].astype(np.int64) @ sides[1].astype(np.int64).T).all()


@pytest.mark.parametrize("floats", [False, True])
@pytest.mark.parametrize("kind", [_random, _clustered, _equal])
def test_own_patient_is_left_out(
    kind: Callable[[np.random.Generator, int, int], np.ndarray],
    *,
    floats: bool,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    if floats:
        _floats_only(monkeypatch)
    rng = stream(7, "own", kind.__name__)
    gallery, patient = kind(rng, 300, 40), rng.integers(0, 60, 300) * 5
    found = nearest(gallery, gallery, count=2, excluded=Excluded(patient, patient))
    allowed = patient[:, None] != patient
    index, _ = _naive(gallery, gallery, 2, allowed)
    assert (found.index_Bk == index).mean() > 0.99
    assert (patient[found.index_Bk] != patient[:, None]).all()
    unknown = Excluded(np.full(300, 1), patient)  # the control: nobody's own, each finds itself
    themselves = nearest(gallery, gallery, excluded=unknown)
    assert (themselves.similarity_Bk[:, 0] > 0.999).all()


def test_query_without_another_patient_is_refused() -> None:
    rows = _random(stream(8, "one"), 20, 8)
    patient = np.repeat([1, 2], [18, 2])
    assert nearest(rows, rows, count=2, excluded=Excluded(patient[::-1], patient)) is not None
    for count in (3, 19):
        with pytest.raises(DataError, match="too few scans"):
            nearest(rows, rows, count=count, excluded=Excluded(patient, patient))
    with pytest.raises(DataError, match="too few scans"):
        nearest(rows, rows, excluded=Excluded(np.ones(20), np.ones(20)))


def test_equal_scans_are_told_by_the_lowest_row() -> None:
    one = _random(stream(9, "equal"), 1, 32)
    found = nearest(np.repeat(one, 20, 0), np.repeat(one, 500, 0), count=3)
    assert (found.index_Bk == [0, 1, 2]).all()


def test_lower_precision_of_torch_does_not_change_the_answer() -> None:
    rng = stream(10, "precision")
    query, gallery = _clustered(rng, 9, 64), _clustered(rng, 500, 64)
    before = nearest(query, gallery)
    torch.set_float32_matmul_precision("medium")
    try:
        assert neighbors._shortens()
        after = nearest(query, gallery)
    finally:
        torch.set_float32_matmul_precision("highest")
    assert (before.index_Bk == after.index_Bk).all()
    assert (before.similarity_Bk == after.similarity_Bk).all()


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf, 1e20])
def test_values_that_cannot_be_compared_are_refused(bad: float) -> None:
    good = _random(stream(11, "bad"), 30, 8)
    spoilt = good.copy()
    spoilt[17, 3] = bad
    for pair in ((good, spoilt), (spoilt, good)):
        with pytest.raises(DataError, match="not finite"):
            nearest(*pair)


@pytest.mark.parametrize(
    ("query", "gallery", "count"),
    [
        (np.zeros((3, 4)), np.zeros((3, 5)), 1),
        (np.zeros((3, 4)), np.zeros((0, 4)), 1),
        (np.zeros((3, 4)), np.zeros((3, 4)), 4),
        (np.zeros((3, 4)), np.zeros((3, 4)), 0),
        (np.zeros(4), np.zeros((3, 4)), 1),
        (np.zeros((3, 0)), np.zeros((3, 0)), 1),
    ],
)
def test_what_has_no_neighbors_is_refused(
    query: np.ndarray, gallery: np.ndarray, count: int
) -> None:
    with pytest.raises(DataError):
        nearest(query, gallery, count=count)


def test_patients_that_do_not_fit_are_refused_and_nothing_private_is_shown() -> None:
    rows = _random(stream(12, "fit"), 20, 8)
    with pytest.raises(DataError, match="patient of each"):
        nearest(rows, rows, excluded=Excluded(np.arange(19), np.arange(20)))
    assert repr(nearest(rows, rows)) == "Neighbors(private)"
    assert repr(Excluded(np.arange(2), np.arange(2))) == "Excluded(private)"
    assert nearest(rows[:0], rows).index_Bk.shape == (0, 1)
