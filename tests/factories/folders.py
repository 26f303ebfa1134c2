"""Folders as hospitals have them, with empty files: what is found in them needs names alone."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from pathlib import Path

from vitrael.core.data.layouts.find import find_sources
from vitrael.core.data.recipes import Prepared, Recipe, RecipeInput, RecipeName, RecipeSettings
from vitrael.core.data.sources import Found, Source
from vitrael.core.data.walk import walk_files


def _prepare(given: RecipeInput, settings: RecipeSettings) -> Prepared:
    raise AssertionError("finding opens no image")


def _recipe(name: RecipeName, takes: str, images: tuple[str, ...], *masks: str) -> Recipe:
    return Recipe(
        settings=RecipeSettings(name=name, version=1, grid_vox=(8, 8, 8)),
        takes=takes,  # type: ignore[arg-type]
        images=images,
        masks=masks,
        covariates=(),
        prepare=_prepare,
    )


RECIPE_OF: Mapping[str, Recipe] = {
    "brain-t1": _recipe("brain-t1", "volume", ("T1w",), "brain"),
    "brain-lesion": _recipe("brain-lesion", "volume", ("T1w", "T2w", "FLAIR"), "brain", "lesion"),
    "echo-apical": _recipe("echo-apical", "clip", ("image",)),
    "xray-2d": _recipe("xray-2d", "picture", ("image",)),
    "image-2d": _recipe("image-2d", "picture", ("image",)),
}


def plant(root: Path, *names: str) -> None:
    """Make empty files."""
    for name in names:
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()


def find(root: Path, recipe: str = "brain-t1") -> Found:
    """Return what a folder holds for a recipe."""
    return find_sources(root, walk_files(root), recipe=RECIPE_OF[recipe])


def visits(found: Found) -> list[tuple[str, str]]:
    """Return subject and session of each source."""
    return [(source.subject, source.session) for source in found.sources]


def only(found: Found) -> Source:
    """Return the one source of a folder."""
    (source,) = found.sources
    return source


def reasons(found: Found) -> dict[str, int]:
    """Return how many files are left out for each reason."""
    counts: Counter[str] = Counter()
    for left in found.left_out:
        counts[left.reason] += len(left.paths)
    return dict(counts)


def partial(found: Found) -> dict[str, int]:
    """Return the same for those reasons alone that are not to be expected."""
    kept = tuple(left for left in found.left_out if not left.expected)
    return reasons(Found(left_out=kept))


def essence(found: Found) -> list[tuple[object, ...]]:
    """Return all that an intake takes from sources, in the order of visits."""
    sources = sorted(found.sources, key=lambda s: (s.subject, s.session))
    return [
        (
            *(s.kind, s.subject, s.session, s.taken, dict(s.covariates), dict(s.labels)),
            *sorted((key, len(paths)) for key, paths in s.images.items()),
            *sorted(s.masks),
        )
        for s in sources
    ]


def places(found: Found, root: Path) -> dict[str, list[str]]:
    """Return what each file below a folder was found to be, in words."""
    groups = [group for source in found.sources for group in source.images.values()]
    told = {
        "image": [path for group in groups for path in group],
        "mask": list({path for source in found.sources for path in source.masks.values()}),
        "left out": [path for left in found.left_out for path in left.paths],
        "table": list(found.tables),
        "rest": list(found.rest),
    }
    where: dict[str, list[str]] = {}
    for place, paths in told.items():
        for path in paths:
            if path.is_relative_to(root):
                where.setdefault(path.relative_to(root).as_posix(), []).append(place)
    return where
