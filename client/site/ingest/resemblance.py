"""Findings on images that are too alike, or too unlike: copies, and mistaken names.

What the likeness of two images can and cannot tell stands in ``likeness``. A copy that was turned,
cropped or much stretched is not found, and neither are two radiographs of one person.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence
from typing import Final

import numpy as np

from vitrael.client.site.ingest.facts import FINGERPRINT_SHAPE, MIRRORED_AXIS, read_fingerprint
from vitrael.client.site.ingest.findings import (
    Check,
    Entry,
    Finding,
    Severity,
    have,
    number_of,
)
from vitrael.client.site.ingest.likeness import Best, Likeness, compare_images

ALIKE: Final = 0.8
"""Likeness from which images of two patients may be of one.

Strangers stay below: 0.64 at most among 37 real brains, 0.68 among the radiographs of 36 patients,
0.77 in 40 draws of 20 and 0.67 in 40 of 900 phantom patients. Of second visits under another name
85 to 100 % are found among 20 to 900 phantom patients, and the one real one at hand was.
"""
SURELY_ALIKE: Final = 0.95
"""Likeness from which they are of one person, or one image; also if one is mirrored."""
REPEATED: Final = 0.998
"""Likeness from which two images of one patient count as one: visits reached 0.996."""
UNLIKE: Final = 0.2
"""Likeness below which two brain images of one patient are hardly of one.

No phantom patient was below between two visits; 82 to 92 % of pairs of strangers are.
"""


def check_copies(entries: Sequence[Entry], *, shared: Sequence[int]) -> Iterable[Finding]:
    """Yield what is the very same content as another item, or was left out as another's image.

    ``shared`` are the places of items, once for each copy that was left out.
    """
    places: dict[str, list[int]] = defaultdict(list)
    for place, (item, _) in enumerate(entries):
        places[item.digest].append(place)
    if pairs := [(group[0], other) for group in places.values() for other in group[1:]]:
        yield _tell_pairs(
            "copies", "problem", pairs, "have the very same content as another; leave out the copy"
        )
    if shared:
        text = (
            f"{number_of(len(shared), 'image')} {'was' if len(shared) == 1 else 'were'} left out "
            "as the very image of another patient, which was taken in; find out whose it is, and "
            "correct the names"
        )
        items = tuple(sorted({*shared}))
        yield Finding(
            check="copies", severity="problem", count=len(shared), sentence=text, items=items
        )


def check_likeness(entries: Sequence[Entry]) -> Iterable[Finding]:
    """Yield images that are too alike or too unlike for whom they are said to show."""
    for kind in sorted({facts.kind for _, facts in entries}):
        places = [i for i, (_, facts) in enumerate(entries) if facts.kind == kind]
        names = [entries[i][0].subject for i in places]
        likeness = compare_images(
            np.stack([read_fingerprint(entries[i][1]) for i in places]),
            np.unique(names, return_inverse=True)[1],
            shape=FINGERPRINT_SHAPE[kind],
            mirrored_axis=MIRRORED_AXIS[kind],
        )
        yield from _tell_strangers(likeness, places)
        yield from _tell_mirrored(likeness, places)
        yield from _tell_own(likeness, places, is_volume=kind == "volume")


def _tell_strangers(likeness: Likeness, places: Sequence[int]) -> Iterable[Finding]:
    score_N = likeness.stranger.score_N
    sure_N = score_N >= SURELY_ALIKE
    if pairs := _pairs(likeness.stranger, places, sure_N):
        yield _tell_pairs(
            "same-image",
            "problem",
            pairs,
            "of different patients are one image or show one person; find out whose they are, "
            "correct the names and take the images in again: a patient who is in two splits voids "
            "every measurement",
        )
    if pairs := _pairs(likeness.stranger, places, (score_N >= ALIKE) & ~sure_N):
        yield _tell_pairs(
            "alike-strangers",
            "warning",
            pairs,
            "of different patients are so alike that they may show one person under two names; "
            "compare them below, and give one person one name",
        )


def _tell_mirrored(likeness: Likeness, places: Sequence[int]) -> Iterable[Finding]:
    score_N = likeness.mirrored.score_N
    straight_N = np.maximum(likeness.stranger.score_N, likeness.own.score_N)
    is_mirrored_N = (score_N >= SURELY_ALIKE) & (score_N > straight_N)
    if pairs := _pairs(likeness.mirrored, places, is_mirrored_N):
        yield _tell_pairs(
            "mirrored",
            "problem",
            pairs,
            "are like another one mirrored left to right; find out which of the two is right, and "
            "leave the other out",
        )


def _tell_own(likeness: Likeness, places: Sequence[int], *, is_volume: bool) -> Iterable[Finding]:
    score_N = likeness.own.score_N
    if pairs := _pairs(likeness.own, places, score_N >= REPEATED):
        yield _tell_pairs(
            "repeated",
            "note",
            pairs,
            "are like another one of the same patient but for noise; if one scan was exported "
            "twice, leave the copy out",
        )
    odd_N = np.isfinite(score_N) & (score_N < UNLIKE)
    if is_volume and likeness.sees_persons and odd_N.any():
        odd = [places[row] for row in np.flatnonzero(odd_N).tolist()]
        text = (
            f"{number_of(len(odd), 'image')} {have(odd)} little in common with the patient's other "
            "images; look whether two patients share one name"
        )
        yield Finding(
            check="changed-anatomy",
            severity="warning",
            count=len(odd),
            sentence=text,
            items=tuple(odd),
        )


def _tell_pairs(
    check: Check, severity: Severity, pairs: Sequence[tuple[int, int]], text: str
) -> Finding:
    items = tuple(sorted({place for pair in pairs for place in pair}))
    return Finding(
        check=check,
        severity=severity,
        count=len(items),
        sentence=f"{number_of(len(items), 'image')} {text}",
        items=items,
        pairs=tuple(pairs),
    )


def _pairs(best: Best, places: Sequence[int], chosen_N: np.ndarray) -> tuple[tuple[int, int], ...]:
    """Return each chosen item with the one that it is most like; a mutual pair comes once."""
    rows = np.flatnonzero(chosen_N).tolist()
    ends = [(places[i], places[int(best.index_N[i])]) for i in rows]
    return tuple(sorted({(min(pair), max(pair)) for pair in ends}))
