"""Burned-in marks follow their class as often as asked, and never cover the body."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import signal

from vitrael.core.data.phantoms.cues import (
    CORNERS,
    Corner,
    Cue,
    CueKind,
    conflicting_variant,
    draw_cues,
    draw_variant,
    text_bitmap,
)
from vitrael.core.data.phantoms.sector import make_sector
from vitrael.core.errors import DataError
from vitrael.core.rng import stream

SECTOR = make_sector(edge_px=112, angle_rad=1.35, reach_mm=(8.0, 160.0))


def draw(*cues: Cue) -> tuple[np.ndarray, np.ndarray]:
    return draw_cues(cues, sector_HW=SECTOR.sector_HW, spacing_mm=SECTOR.spacing_mm)


def likeness(picture_HW: np.ndarray, text: str) -> float:
    """Return the largest normalized correlation of a text's bitmap with any place."""
    bits = text_bitmap(text).astype(float)
    pattern = (bits - bits.mean()) / bits.std() / bits.size
    image = picture_HW.astype(float)
    product = signal.fftconvolve(image, pattern[::-1, ::-1], mode="valid")
    window = np.ones_like(bits) / bits.size
    mean = signal.fftconvolve(image, window, mode="valid")
    square = signal.fftconvolve(image**2, window, mode="valid")
    spread = np.sqrt(np.maximum(square - mean**2, 1.0))
    return float((product / spread).max())


@pytest.mark.parametrize("rho", [0.0, 0.5, 0.95, 1.0])
def test_variant_follows_its_class_as_often_as_asked(rho: float) -> None:
    rng, draws = stream(21, "rho"), 3000
    own = np.arange(draws) % 4
    drawn = np.array([draw_variant(rng, int(o), count=4, rho=rho) for o in own])
    assert (drawn == own).mean() == pytest.approx(rho + (1 - rho) / 4, abs=0.025)
    assert set(drawn.tolist()) == set(range(4))
    told = np.abs(np.corrcoef(np.eye(4)[own].T, np.eye(4)[drawn].T)[:4, 4:]).max()
    assert told == pytest.approx(rho, abs=0.08)


def test_conflicting_variant_is_never_the_own_one() -> None:
    rng = stream(21, "conflict")
    drawn = [conflicting_variant(rng, 2, count=3) for _ in range(200)]
    assert set(drawn) == {0, 1}


@pytest.mark.parametrize(("own", "count", "rho"), [(0, 3, 1.2), (3, 3, 0.5), (0, 3, float("nan"))])
def test_impossible_cue_is_refused(own: int, count: int, rho: float) -> None:
    with pytest.raises(DataError):
        draw_variant(stream(21), own, count=count, rho=rho)


def test_only_class_has_no_conflict() -> None:
    with pytest.raises(DataError):
        conflicting_variant(stream(21), 0, count=1)


@pytest.mark.parametrize("corner", CORNERS)
@pytest.mark.parametrize("kind", ["text", "bar", "ruler", "trace", "logo"])
def test_mark_stands_at_its_corner_and_outside_the_cone(kind: CueKind, corner: Corner) -> None:
    gray, mask = draw(Cue(kind, corner, variant=1, text="A7" if kind == "text" else ""))
    assert mask.sum() >= 10
    assert not (mask & SECTOR.sector_HW).any()
    assert np.array_equal(mask, gray > 0)
    rows, columns = np.nonzero(mask)
    if kind != "ruler":  # which runs along the whole side
        assert (rows.mean() < 56) == corner.startswith("top")
    assert (columns.mean() < 56) == corner.endswith("left")


def test_text_reads_the_same_in_every_corner() -> None:
    for corner in CORNERS:
        for text in ("X3", "PAT-42"):
            gray, _ = draw(Cue("text", corner, text=text[:2] if "bottom" in corner else text))
            assert likeness(gray, text[:2]) > 0.99
    assert likeness(draw(Cue("text", "top-left", text="PAT-42"))[0], "QRS-97") < 0.8  # control
    assert likeness(draw()[0], "PAT-42") < 0.05


def test_long_text_runs_over_several_lines_in_reading_order() -> None:
    gray, _ = draw(Cue("text", "top-left", text="DOE JANE 1970"))
    rows = np.flatnonzero(gray.any(axis=1))
    assert np.ptp(rows) > 8
    assert likeness(gray[:10], "DOE JAN") > 0.99


def test_text_stays_readable_over_other_marks() -> None:
    gray, _ = draw(Cue("text", "top-left", text="PAT-42"), Cue("logo", "top-left"))
    assert likeness(gray, "PAT-42") > 0.99


@pytest.mark.parametrize("text", ["", "Ä", "PATIENT NAMED BY A MUCH TOO LONG LINE OF WORDS" * 3])
def test_text_that_cannot_be_drawn_is_refused(text: str) -> None:
    with pytest.raises(DataError):
        draw(Cue("text", "top-left", text=text))


def test_variants_differ() -> None:
    logos = [draw(Cue("logo", "top-left", variant=number))[1] for number in range(4)]
    bars = [draw(Cue("bar", "top-left", variant=number))[1] for number in range(2)]
    assert all(not np.array_equal(a, b) for i, a in enumerate(logos) for b in logos[:i])
    assert bars[1].sum() > bars[0].sum()


def test_bar_is_fifty_millimetres_long() -> None:
    _, mask = draw(Cue("bar", "top-left"))
    length_mm = (np.ptp(np.flatnonzero(mask.any(axis=1))) + 1) * SECTOR.spacing_mm[0]
    assert length_mm == pytest.approx(50, abs=SECTOR.spacing_mm[0])


def test_every_letter_is_its_own() -> None:
    letters = "ABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789-./ "
    forms = {text_bitmap(letter).tobytes() for letter in letters}
    assert len(forms) == len(letters)
    assert np.array_equal(text_bitmap("abc"), text_bitmap("ABC"))
    assert text_bitmap("AB", scale=2).shape == (14, 22)


def test_cue_shows_no_text() -> None:
    assert "DOE" not in repr(Cue("text", "top-left", text="DOE"))
