"""A class of plants: what it is called, how it is made, and how surely it must be caught."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Final, Literal, Protocol

import numpy as np

from vitrael.core.errors import DataError
from vitrael.core.rng import stream
from vitrael.privacy.audit.plants.sources import Means, Sources, demand_usable
from vitrael.privacy.audit.power import Tally
from vitrael.privacy.suite import Demand

Need = Literal[
    "other",
    "stranger",
    "visit",
    "sequence",
    "round_trip",
    "renoise",
    "latent_blend",
    "memorized",
    "embedder",
    "video_generator",
]
"""What a class takes beside the scans of the source patients."""

Make = Callable[[Sources, Means, np.random.Generator], np.ndarray]

_LARGEST_SEED: Final = 2**63 - 1
_WHY: Final[Mapping[Need, str]] = {
    "other": "there is no second patient",
    "stranger": "no patients outside the gallery were given",
    "visit": "no source patient has a second visit",
    "sequence": "the patients have no scan in another contrast or view",
    "round_trip": "the study has no autoencoder",
    "renoise": "no generator was given that could noise and denoise",
    "latent_blend": "no autoencoder was given whose latents could be mixed",
    "memorized": "no samples of an over-trained model were harvested",
    "embedder": "the filter has no embedding that a step could be taken against",
    "video_generator": "no video generator was given",
}


@dataclass(frozen=True, slots=True)
class Way:
    """How the plants of a class are made."""

    make: Make | None
    """None: nobody can make them yet."""
    needs: tuple[Need, ...] = ()


@dataclass(frozen=True, slots=True)
class PlantClass:
    """One kind of disguise, at one strength: what is asked of the filter, and how it is made."""

    name: str
    """As in ``filter.power.NAME``."""
    demand: Demand
    way: Way

    @property
    def says(self) -> str:
        """One clause for a certificate."""
        return self.demand.says

    @property
    def demanded(self) -> float | None:
        """Lower 95 % bound of the share caught; None: reported and no more."""
        return self.demand.least

    @property
    def must(self) -> bool:
        """Whether a release is refused without it, at every tier."""
        return self.demand.must

    @property
    def group_images(self) -> int:
        """Plants that stand one after another and are copies of one patient."""
        return self.demand.group_images

    @property
    def make(self) -> Make | None:
        """The maker of the plants; None: nobody can make them yet."""
        return self.way.make

    @property
    def needs(self) -> tuple[Need, ...]:
        """What the class takes beside the scans of the source patients."""
        return self.way.needs


def join_table(suite: Mapping[str, Demand], ways: Mapping[str, Way]) -> Mapping[str, PlantClass]:
    """Return the classes of a suite in its order, each with the way in which it is made.

    Raises KeyError unless every class of the suite has a way, and every way a class.
    """
    if odd := sorted(suite.keys() ^ ways.keys()):
        raise KeyError(odd[0])
    return MappingProxyType(
        {name: PlantClass(name, demand, ways[name]) for name, demand in suite.items()}
    )


class Disguise(Protocol):
    """Draws how each image is disguised."""

    def __call__(self, image_PCDHW: np.ndarray, /, *, rng: np.random.Generator) -> np.ndarray:
        """Return the images, disguised."""


class Mix(Protocol):
    """Puts of each image a part into another patient's."""

    def __call__(
        self, image_PCDHW: np.ndarray, other_PCDHW: np.ndarray, /, *, rng: np.random.Generator
    ) -> np.ndarray:
        """Return the mixtures."""


def always(disguise: Callable[[np.ndarray], np.ndarray]) -> Make:
    """Return the maker of a disguise in which nothing is drawn."""
    return lambda sources, _means, _rng: disguise(sources.image_PCDHW)


def drawn(disguise: Disguise) -> Make:
    """Return the maker of a disguise that draws."""
    return lambda sources, _means, rng: disguise(sources.image_PCDHW, rng=rng)


def mixed(mix: Mix) -> Make:
    """Return the maker of a mixture with another patient; its class needs one."""
    return lambda sources, _means, rng: mix(sources.image_PCDHW, strangers_of(sources), rng=rng)


def strangers_of(sources: Sources) -> np.ndarray:
    """Return the other patients' scans; raise DataError where there is one patient alone."""
    if sources.other_PCDHW is None:
        raise DataError(
            "nothing can be mixed of a single patient",
            why="a mixture takes two",
            fix="give the scans of at least two patients",
        )
    return sources.other_PCDHW


def why_empty(plant: PlantClass, sources: Sources, means: Means) -> str:
    """Return in one clause why the class cannot be made of these, or an empty text."""
    there: Mapping[Need, object] = {
        "other": sources.other_PCDHW,
        "stranger": sources.other_PCDHW if sources.others_are_strangers else None,
        "visit": sources.visit_PCDHW,
        "sequence": sources.sequence_PCDHW,
        "round_trip": means.round_trip,
        "renoise": means.renoise,
        "latent_blend": means.latent_blend,
        "memorized": means.memorized_BCDHW,
        "embedder": means.embedder,
        "video_generator": means.animate,
    }
    lacking = [_WHY[need] for need in plant.needs if there[need] is None]
    if lacking:
        return lacking[0]
    return "nothing makes such plants yet" if plant.make is None else ""


def each_plant(
    table: Mapping[str, PlantClass], sources: Sources, means: Means, *, rng: np.random.Generator
) -> Iterator[tuple[str, np.ndarray]]:
    """Yield each class with its plants, one class at a time, so that they need not all fit.

    A class draws from a stream of its own, named by it: with an equal ``rng`` it comes out the
    same whatever else the table holds. Raises DataError where a maker or one of the means gives
    images that are of another grid, not finite, or blank.
    """
    seed = int(rng.integers(_LARGEST_SEED))
    for name, plant in table.items():
        if plant.make is None or why_empty(plant, sources, means):
            yield name, sources.image_PCDHW[:0]
            continue
        made = plant.make(sources, means, stream(seed, "plants", name))
        yield name, _as_plants(made, plant, grid=sources.image_PCDHW.shape[1:])


def make_plants(
    table: Mapping[str, PlantClass], sources: Sources, means: Means, *, rng: np.random.Generator
) -> dict[str, np.ndarray]:
    """Return the plants of every class of the table, float32 in [0, 1] on the sources' grid.

    A class that cannot be made of these is empty; ``why_empty`` says why. Else as ``each_plant``.
    """
    return dict(each_plant(table, sources, means, rng=rng))


def found_groups(dropped_B: np.ndarray, plant: PlantClass) -> Tally:
    """Return how many groups of a class were shown, and of how many at least one was dropped.

    For a class without groups these are the plants themselves. Raises DataError for a number of
    votes that is no whole number of groups.
    """
    size = plant.group_images
    if len(dropped_B) % size:
        raise DataError(
            "the votes are no whole number of groups",
            why=f"there are {len(dropped_B)}, and a group has {size} images",
            fix="show the filter all plants of a group",
        )
    found_G = np.any(np.reshape(dropped_B, (-1, size)), axis=1)
    return Tally(len(found_G), int(found_G.sum()))


def _as_plants(made: np.ndarray, plant: PlantClass, *, grid: tuple[int, ...]) -> np.ndarray:
    if made.shape[1:] != grid:
        raise DataError(
            f"plants of class {plant.name} lie on another grid than the scans",
            fix="let every means return images of the grid it was given",
        )
    if not np.isfinite(made).all():
        raise DataError(f"plants of class {plant.name} hold values that are not finite")
    plants = np.ascontiguousarray(np.clip(made, 0, 1), dtype=np.float32)
    demand_usable(plants, what=f"a plant of class {plant.name}")
    return plants
