"""Findings on images that are unlike the cohort's others, or that do not fit into their grid.

Compared are voxels, orientation, extent and intensity. What is usual is the cohort's median; fewer
than eight images have none.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterable, Sequence

import numpy as np

from vitrael.client.site.ingest.facts import ItemFacts
from vitrael.client.site.ingest.findings import Entry, Finding, have, number_of, say_lack

_FEWEST_TO_COMPARE = 8
_MOST_CUT_FRAC = 0.005
"""Of a whole brain, up to 0.0001 strays from the usual grid; of one that is cut, 0.4 and more."""
_SPACING_RATIO = 1.5
_LEAST_EXTENT_FRAC = 0.7
_LEAST_FRAMES_FRAC = 0.5
_ROBUST_Z = 6.0
_MOST_ODD_FRAC = 0.1
_NORMAL_MAD = 1.4826


def check_grid(entries: Sequence[Entry]) -> Iterable[Finding]:
    """Yield brains of which more than half a percent lies outside the grid."""
    cut = [i for i, (_, facts) in enumerate(entries) if facts.cut_frac > _MOST_CUT_FRAC]
    if cut:
        worst = max(entries[i].facts.cut_frac for i in cut)
        text = (
            f"The grid cuts the brain of {number_of(len(cut), 'image')}, of which up to "
            f"{math.ceil(100 * worst)} % is lost, so volumes are too small; choose a larger grid "
            "or spacing, and take the folder in again"
        )
        yield Finding(
            check="cut-brain", severity="problem", count=len(cut), sentence=text, items=tuple(cut)
        )


def check_spacing(entries: Sequence[Entry]) -> Iterable[Finding]:
    """Yield images without a pixel size, and those with an unusual one."""
    if absent := [i for i, (_, facts) in enumerate(entries) if facts.spacing_mm is None]:
        text = (
            f"{say_lack(absent, entries, what='pixel size')}, so "
            "nothing can be measured in millimeters there; export with the pixel size if it matters"
        )
        yield Finding(
            check="missing-spacing",
            severity="note",
            count=len(absent),
            sentence=text,
            items=tuple(absent),
        )
    found = _find_far(entries, lambda facts: facts.spacing_mm, _SPACING_RATIO)
    if found:
        text = (
            f"{number_of(len(found), 'image')} {have(found)} voxels or pixels more than "
            f"{_SPACING_RATIO:g} times larger or smaller than usual here; look whether they are "
            "of the same protocol, and leave out what is not"
        )
        yield Finding(
            check="spacing", severity="warning", count=len(found), sentence=text, items=tuple(found)
        )


def check_orientation(entries: Sequence[Entry]) -> Iterable[Finding]:
    """Yield volumes that lay or were cut another way than most."""
    usual: list[str] = []
    found: set[int] = set()
    for ways in zip(*((facts.orientation, facts.plane) for _, facts in entries), strict=True):
        known = Counter(way for way in ways if way is not None)
        usual += [way for way, _ in known.most_common(1)]
        found |= {i for i, way in enumerate(ways) if way not in (None, *usual)}
    if other := sorted(found):
        text = (
            f"{number_of(len(other), 'image')} {have(other)} another orientation or cutting plane "
            f"than most, which are {' '.join(usual)}; all are brought to one, but look whether "
            "left and right are where they should be"
        )
        yield Finding(
            check="orientation",
            severity="note",
            count=len(other),
            sentence=text,
            items=tuple(other),
        )


def check_extent(entries: Sequence[Entry]) -> Iterable[Finding]:
    """Yield images that show less of the body than usual, and clips that are short."""
    if found := _find_far(entries, lambda facts: facts.extent_mm, 1 / _LEAST_EXTENT_FRAC, low=True):
        text = (
            f"{number_of(len(found), 'image')} {have(found)} less than "
            f"{100 * _LEAST_EXTENT_FRAC:.0f} % of the usual extent along some axis; look whether "
            "a part of the body or slices at an end are missing"
        )
        yield Finding(
            check="extent", severity="warning", count=len(found), sentence=text, items=tuple(found)
        )
    lengths = [(float(facts.frames),) if facts.kind == "clip" else None for _, facts in entries]
    if found := _far_from_median(lengths, 1 / _LEAST_FRAMES_FRAC, low=True):
        text = (
            f"{number_of(len(found), 'clip')} {have(found)} less than half as many frames as "
            "usual; look whether they show a whole heart beat"
        )
        yield Finding(
            check="frames", severity="note", count=len(found), sentence=text, items=tuple(found)
        )


def check_intensity(entries: Sequence[Entry]) -> Iterable[Finding]:
    """Yield images whose range, middle or foreground lies far from the cohort's.

    Far is more than six robust standard deviations (1.4826 times the median distance).
    """
    if len(entries) < _FEWEST_TO_COMPARE:
        return
    value_NK = np.array(
        [
            (
                math.log10(max(facts.source_percentiles[2] - facts.source_percentiles[0], 1e-6)),
                facts.percentiles[1],
                facts.percentiles[2],
                facts.foreground_frac,
            )
            for _, facts in entries
        ]
    )
    distance_NK = np.abs(value_NK - np.median(value_NK, axis=0))
    least_K = np.array([0.15, 0.02, 0.02, 0.02])
    scale_K = np.maximum(_NORMAL_MAD * np.median(distance_NK, axis=0), least_K)
    found = np.flatnonzero((distance_NK / scale_K > _ROBUST_Z).any(axis=1)).tolist()
    if len(found) > _MOST_ODD_FRAC * len(entries):
        text = (
            f"The intensities of {len(found):,} of {number_of(len(entries), 'image')} are far from "
            "usual, so there is more than one kind of image; look whether that is intended"
        )
        yield Finding(check="intensity", severity="note", count=len(found), sentence=text)
    elif found:
        text = (
            f"{number_of(len(found), 'image')} {have(found)} intensities far from the others'; "
            "look at them below, and leave out what is damaged or of another kind"
        )
        yield Finding(
            check="intensity",
            severity="warning",
            count=len(found),
            sentence=text,
            items=tuple(found),
        )


def _find_far(
    entries: Sequence[Entry],
    measure: Callable[[ItemFacts], tuple[float, ...] | None],
    ratio: float,
    *,
    low: bool = False,
) -> list[int]:
    return _far_from_median([measure(facts) for _, facts in entries], ratio, low=low)


def _far_from_median(
    values: Sequence[tuple[float, ...] | None], ratio: float, *, low: bool = False
) -> list[int]:
    """Return where some value is more than a ratio from the median of those with as many axes.

    With ``low``, only what is too small counts. Fewer than eight values have no usual one.
    """
    found: list[int] = []
    for axes in {len(value) for value in values if value is not None}:
        places = [i for i, value in enumerate(values) if value is not None and len(value) == axes]
        if len(places) < _FEWEST_TO_COMPARE:
            continue
        value_NA = np.array([values[i] for i in places])
        off_NA = value_NA / np.median(value_NA, axis=0)
        far_NA = off_NA * ratio < 1 if low else np.maximum(off_NA, 1 / off_NA) > ratio
        found += [places[i] for i in np.flatnonzero(far_NA.any(axis=1))]
    return sorted(found)
