"""A study of experts that trains in a second, and cohorts of its pictures and clips on disk."""

from __future__ import annotations

import tomllib
from collections.abc import Iterator, Mapping
from itertools import islice, product
from pathlib import Path
from typing import Any, Final

import numpy as np

from vitrael.core.data.cache import SHARDS_NAME, write_shard
from vitrael.core.data.manifest import MANIFEST_NAME, Item, Manifest, write_manifest
from vitrael.core.data.recipes import recipe_of_study
from vitrael.core.data.splits import Split, split_of
from vitrael.core.protocols import ViewData
from vitrael.core.rng import stream
from vitrael.core.study import Study, parse_study

KEY: Final = bytes(32)
VIEWS: Final = ("A2C", "A4C", "PLAX", "PSAX")
EDGE_PX: Final = 16
FRAMES: Final = 3

STUDY: Final = """
[protocol]
aim = "experts"
name = "small-views"
purpose = "Train experts in a second."
seed = 5

[protocol.data]
recipe = "image-2d"
edge_px = 16
views = ["A2C", "A4C", "PLAX", "PSAX"]

[protocol.data.splits]
training_frac = 0.4
calibration_frac = 0.3
utility_frac = 0.3

[[protocol.systems]]
kind = "view_expert"
channels = [4, 4, 8, 8]
blocks = [1, 1, 1, 1]
stem_stride = 2
training = { length_images = 32, batch_images = 16, learning_rate = 2e-3 }

[[protocol.systems]]
kind = "score_fusion"
hidden = 4
training = { length_images = 32, batch_images = 16 }

[protocol.baselines]
averaged_rounds = 2
in_turn = true

[protocol.federation]
quorum = 2

[roster]
sites = ["north", "harbour", "valley"]

[roster.labels.north]
"apical 4" = "A4C"
"""
"""The site of the tests is north, and calls one view otherwise."""


def experts_study(changes: Mapping[str, Any] | None = None, *, text: str = STUDY) -> Study:
    """Return the study with other values under dotted keys of its protocol."""
    study = parse_study(text.encode(), label="small")
    document = study.model_dump(mode="json")
    for key, value in (changes or {}).items():
        *path, last = key.split(".")
        place = document["protocol"]
        for part in path:
            place = place[int(part)] if part.isdigit() else place[part]
        place[last] = value
    return Study.model_validate(document)


def document_of(text: str = STUDY) -> dict[str, Any]:
    """Return the document of a study as TOML gives it."""
    return tomllib.loads(text)


def bar_of(word: str) -> int:
    """Return which of the bars from 0 a word's pictures show; words for one view show the same."""
    view = "A4C" if word == "apical 4" else word
    return VIEWS.index(view) if view in VIEWS else len(VIEWS)


def draw_view(number: int, word: str, *, edge_px: int = EDGE_PX) -> np.ndarray:
    """Return float32 ``[1, H, W]``: noise with a bright bar, three rows at ``bar_of`` the word."""
    image = 0.4 * stream(number, "own view").random((1, edge_px, edge_px), dtype=np.float32)
    image[0, 3 * bar_of(word) : 3 * bar_of(word) + 3] += 0.5
    return image.astype(np.float32)


def draw_clip(number: int) -> tuple[np.ndarray, np.ndarray]:
    """Return uint8 frames ``[T, H, W]``, each of one gray, and the sector ``[1, H, W]``.

    The middle frame is ``100 + number`` of 255 gray.
    """
    frames = np.zeros((FRAMES, EDGE_PX, EDGE_PX), dtype=np.uint8)
    frames[:] = (100 + number + 50 * (np.arange(FRAMES) - FRAMES // 2))[:, None, None]
    sector = np.zeros((1, EDGE_PX, EDGE_PX), dtype=np.uint8)
    sector[0, : 4 + number % 4] = 1
    return frames, sector


def subjects_of(split: Split, data: ViewData, *, key: bytes = KEY) -> Iterator[str]:
    """Yield pseudonyms that fall into a split, always the same."""
    for number in range(1 << 16):
        if split_of(f"p-{number}", data.splits, key=key) is split:
            yield f"p-{number}"


def write_views(
    folder: Path,
    data: ViewData,
    patients: Mapping[Split, Mapping[str, int]],
    *,
    pictures: int = 1,
) -> Manifest:
    """Write a cohort with so many patients for each split and word, and return its manifest.

    Each patient has so many pictures, all of one word. ``image-2d`` gives pictures, any other
    recipe clips.
    """
    items = []
    for split, words in patients.items():
        subjects = subjects_of(split, data)
        for word, count in words.items():
            for subject, visit in product(islice(subjects, count), range(pictures)):
                items.append(_item(folder, data, subject, visit, word, number=len(items)))
    manifest = Manifest(recipe=recipe_of_study(data), items=tuple(items))
    write_manifest(manifest, folder / MANIFEST_NAME)
    return manifest


def _item(
    folder: Path, data: ViewData, subject: str, visit: int, word: str, *, number: int
) -> Item:
    arrays = {"image": draw_view(number, word, edge_px=data.edge_px)}
    if data.recipe != "image-2d":
        arrays = dict(zip(("image", "sector"), draw_clip(number), strict=True))
    shard = write_shard(folder / SHARDS_NAME, arrays, store="int16")
    rows = np.eye(4)
    return Item(
        subject=subject,
        visit=visit,
        shard=shard.name,
        digest=shard.digest,
        affine=tuple((float(a), float(b), float(c), float(d)) for a, b, c, d in rows),
        unit="px",
        labels={"view": word},
    )
