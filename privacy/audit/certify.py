"""The power certificate of a site's filter: every class of plants, the negatives, the subgroups.

Plants come from patients of the gallery, whom no encoder has seen; the operating point was frozen
before the first of them was made. They are shown by the very function that votes on candidates,
class by class, and once more mixed into images that are no plants, at two shares. They exist
inside one process of the site for the length of one audit, and are never written: what is kept is
the list of their salted digests.

Axes: P source patients, G divisions into subgroups.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Final

import numpy as np

from vitrael.core.rng import stream
from vitrael.privacy.audit.mixing import compare_mixtures
from vitrael.privacy.audit.planting import PlantList, content_ids, on_levels
from vitrael.privacy.audit.plants import Means, PlantClass, Sources, each_plant, found_groups
from vitrael.privacy.audit.power import Caught, Certificate, Tally, show_to_filter
from vitrael.privacy.leakage import SMALLEST_COUNT
from vitrael.privacy.reid.roles import Keep

_MIXED: Final = 4
"""Plants of each class that must be caught in the mixtures."""
_LARGEST_SEED: Final = 2**63 - 1


def certify_filter(
    keep: Keep,
    sources: Sources,
    means: Means,
    *,
    table: Mapping[str, PlantClass],
    keep_others: Keep,
    negatives: Mapping[str, np.ndarray],
    genuine_BCDHW: np.ndarray,
    subgroup_PG: np.ndarray,
    salt: str,
    rng: np.random.Generator,
    told: Callable[[int, int], None],
) -> tuple[Certificate, PlantList]:
    """Return what the filter caught of every class of the table, and the list of all plants.

    ``keep_others`` is the filter without the scans that the other visits show. ``genuine_BCDHW``
    are images that are no plants, for the mixtures. ``subgroup_PG`` holds the names of the
    subgroups of each source patient. A class of fewer than ``SMALLEST_COUNT`` plants, or groups,
    is shown to nobody; of a division one of whose subgroups is smaller nothing is told, and nothing
    of other visits where fewer patients have none.
    """
    ids, tallies = {}, {}
    dropped_of: list[np.ndarray] = []
    mixed: dict[str, np.ndarray] = {}
    for done, (name, made) in enumerate(each_plant(table, sources, means, rng=rng), 1):
        plant = table[name]
        ids[name] = content_ids(made, salt=salt)
        tallies[name] = Tally(0, 0)
        left_out = len(sources) - len(made) if name == "other_visit" else 0
        if len(made) // plant.group_images >= SMALLEST_COUNT and not 0 < left_out < SMALLEST_COUNT:
            dropped_P = ~(keep_others if name == "other_visit" else keep)(made)
            tallies[name] = found_groups(dropped_P, plant)
            if plant.must and plant.group_images == 1 and "memorized" not in plant.needs:
                dropped_of.append(dropped_P)
                mixed[name] = on_levels(made[:_MIXED])
        told(done, len(table))
    share_P = np.mean(dropped_of, axis=0) if dropped_of else np.empty(0)
    mixing = compare_mixtures(
        mixed,
        genuine_BCDHW,
        keep,
        salt=salt,
        draw=partial(stream, int(rng.integers(_LARGEST_SEED)), "mixtures"),
    )
    certificate = Certificate(
        plants=tallies,
        negatives=show_to_filter(negatives, keep),
        mixing=mixing,
        must=Caught(float(share_P.sum()), len(share_P)),
        subgroups=_by_subgroup(share_P, subgroup_PG) if len(share_P) else {},
    )
    return certificate, PlantList(salt=salt, grid=sources.image_PCDHW.shape[1:], plants=ids)


def _by_subgroup(share_P: np.ndarray, subgroup_PG: np.ndarray) -> dict[str, Caught]:
    """Return every subgroup of the divisions of which none is too small to be told."""
    found = {}
    for name_P in subgroup_PG.T:
        names, counts = np.unique(name_P, return_counts=True)
        if counts.min() >= SMALLEST_COUNT:
            for name in names:
                inside = share_P[name_P == name]
                found[str(name)] = Caught(float(inside.sum()), len(inside))
    return found
