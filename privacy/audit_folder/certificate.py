"""The power certificate of an audit: copies planted by the auditor, caught or not, class by class.

Copies of the real images themselves are disguised and shown to the very filter that judges the
synthetic folder. What has to be mixed with a stranger, and what is nobody's copy, needs patients
whom neither gallery nor null knows: each part of the patients in turn stands aside for that, and
the filter is calibrated anew on the two others.

Axes: P plants, B images, N real scans.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Final, Literal

import numpy as np

from vitrael.core.metrics.intervals import clopper_pearson
from vitrael.core.records import PatientImages
from vitrael.core.rng import stream
from vitrael.core.workbench.progress import Tell
from vitrael.privacy.audit.planting import on_levels
from vitrael.privacy.audit.plants import (
    VOLUME_PLANTS,
    Means,
    PlantClass,
    Sources,
    draw_sources,
    each_plant,
    found_groups,
    why_empty,
)
from vitrael.privacy.audit.plants.negatives import look_alikes, template_means
from vitrael.privacy.audit.power import Tally, share_dropped
from vitrael.privacy.audit_folder.crossing import (
    ALL_PARTS,
    CrossFilter,
    CrossScreener,
    calibrate,
    rows_of,
)
from vitrael.privacy.audit_folder.findings import (
    Certificate,
    NegativeOutcome,
    Outcome,
    PlantOutcome,
    Subgroup,
)
from vitrael.privacy.audit_folder.mixtures import votes_agree
from vitrael.privacy.audit_folder.parting import PARTS
from vitrael.privacy.audit_folder.picture_plants import PICTURE_PLANTS
from vitrael.privacy.audit_folder.prepare import Kind
from vitrael.privacy.evidence import measure_share, not_estimable
from vitrael.privacy.leakage import SMALLEST_COUNT

LEAST_GROUPS: Final = 59
"""Patients of whom all must be caught for a lower bound of 0.95."""
_MOST_TAKEN: Final = 10_000
_METHOD: Final = "planted copies, Clopper-Pearson"
_NEVER: Final = frozenset(
    {"round_trip", "renoise", "latent_blend", "memorized", "embedder", "sequence"}
)
"""Means that two folders do not hold: the generator, its autoencoder, the same place otherwise."""
_NEVER_WHY: Final = "it takes the generator, its autoencoder or another contrast, not two folders"
_NEGATIVES: Final[Mapping[str, str]] = {
    "stranger": "patients of the real folder who stood aside",
    "look_alike": "the half of them whose pixels are nearest to a patient's",
    "template": "means of many patients",
}


@dataclass(slots=True)
class _Count:
    """What was shown of each class, and what of it each source patient had caught."""

    tallies: dict[str, list[Tally]] = field(default_factory=dict)
    caught_of: dict[int, list[bool]] = field(default_factory=dict)
    """By row of the source: must-catch plants."""

    def add(self, name: str, tally: Tally) -> None:
        self.tallies.setdefault(name, []).append(tally)


def plants_of(kind: Kind) -> Mapping[str, PlantClass]:
    """Return the classes of plants of an audit of pictures or volumes."""
    return PICTURE_PLANTS if kind == "picture" else VOLUME_PLANTS


def certify(
    screener: CrossScreener,
    synthetic_BCDHW: np.ndarray,
    *,
    kind: Kind,
    most_plants: int,
    classes: frozenset[str] | None = None,
    seed: int,
    content_N: np.ndarray,
    groups: Mapping[str, np.ndarray],
    tell: Tell,
) -> Certificate:
    """Return the certificate of a filter whose operating point is frozen.

    ``content_N`` numbers the real images, equal ones alike; ``groups`` tells for each name which
    real images it is of, such as those of one sex.
    """
    cross, table = screener.filter, plants_of(kind)
    if classes is not None:
        table = {name: plant for name, plant in table.items() if name in classes}
    numbered = _numbered(cross.images)
    count, reasons = _Count(), dict[str, str]()
    rehearsed = {name for name, plant in table.items() if "stranger" in plant.needs}
    made = [name for name, plant in table.items() if not _NEVER & {*plant.needs}]
    sources = draw_sources(numbered, most_plants, rng=stream(seed, "audit-folder", "sources"))
    shown = {name: table[name] for name in made if name not in rehearsed}
    if len(sources) < LEAST_GROUPS:
        for name in [name for name, plant in shown.items() if plant.group_images > 1]:
            reasons[name] = f"groups take {LEAST_GROUPS} patients"
            del shown[name]
    mixed: dict[str, np.ndarray] = {}
    for done, (name, plants) in enumerate(_make(shown, sources, seed), 1):
        if len(plants):
            allowed = _without_itself(sources, content_N) if name == "other_visit" else None
            _show(count, screener, table[name], plants, sources=sources, allowed_BN=allowed)
            if table[name].group_images == 1 and name != "other_visit":
                mixed[name] = plants
        else:
            reasons[name] = why_empty(table[name], sources, Means())
            if name == "other_visit" and cross.knows_visits:
                reasons[name] += ": tell visits by a column visit of the table"
        tell("show planted copies to the filter", done, len(shown))
    negatives = _rehearse(cross, table, rehearsed, count, rate=screener.point.false_match_rate,
                          most_plants=most_plants, seed=seed, tell=tell)  # fmt: skip
    agreement = votes_agree(mixed, synthetic_BCDHW, screener, seed=seed, tell=tell)
    return Certificate(
        plants=tuple(_outcome(table[name], count, reasons.get(name, "")) for name in made),
        negatives=negatives,
        subgroups=tuple(_subgroups(count, groups)),
        agreement=agreement,
        not_made={_NEVER_WHY: tuple(name for name in table if name not in made)},
    )


def no_certificate(kind: Kind, reason: str) -> Certificate:
    """Return the certificate of a filter that does not exist: nothing in it is estimable."""
    table = {} if kind == "clip" else plants_of(kind)
    return Certificate(
        plants=tuple(
            PlantOutcome(
                name=name,
                says=plant.says,
                must=plant.must,
                demanded=plant.demanded,
                takes=plants_taken(plant),
                caught=not_estimable(f"power.{name}", reason, method=_METHOD, unit="patients"),
                outcome="not estimable",
            )
            for name, plant in table.items()
            if not _NEVER & {*plant.needs}
        ),
        agreement=not_estimable("votes.changed", reason, method="mixtures", unit="images"),
    )


def plants_taken(plant: PlantClass) -> int | None:
    """Return how many plants, all of them caught, show what is demanded; None without a demand.

    0.95 takes 59, 0.98 takes 149, 0.99 takes 299.
    """
    if plant.demanded is None:
        return None
    if plant.group_images > 1:
        return LEAST_GROUPS
    demanded = plant.demanded
    return next(n for n in range(1, _MOST_TAKEN) if most_shown(n) >= demanded)


def most_shown(plants: int) -> float:
    """Return the lower bound of the share caught when all of so many plants are."""
    return clopper_pearson(plants, plants)[0]


def judge(plant: PlantClass, tally: Tally) -> Outcome:
    """Return whether a class met its demand; too few patients for it are never a pass.

    A class that misses clearly, because even its upper bound lies below the demand, is not reached
    however few they are.
    """
    if plant.demanded is None:
        return "reported" if tally.shown else "not estimable"
    if not tally.shown:
        return "not estimable"
    if plant.group_images > 1:
        if tally.dropped < plant.demanded * tally.shown:
            return "not reached"
        return "reached" if tally.shown >= LEAST_GROUPS else "not estimable"
    low, high = clopper_pearson(tally.dropped, tally.shown)
    if low >= plant.demanded:
        return "reached"
    could = most_shown(tally.shown) >= plant.demanded
    return "not reached" if could or high < plant.demanded else "not estimable"


def deal_plants(most: int) -> tuple[int, ...]:
    """Return how many plants each part of the patients may give, as many as allowed in all."""
    return tuple(most // PARTS + (part < most % PARTS) for part in ALL_PARTS)


def _numbered(images: PatientImages) -> PatientImages:
    """Return the images with the number of its row as the condition of each: sources keep it."""
    row_N1 = np.arange(len(images), dtype=np.float32)[:, None]
    return PatientImages(images.image_BCDHW, row_N1, images.patient_B, images.visit_B)


def _make(
    table: Mapping[str, PlantClass], sources: Sources, seed: int
) -> Iterator[tuple[str, np.ndarray]]:
    rng = stream(seed, "audit-folder", "plants")
    for name, plants in each_plant(table, sources, Means(), rng=rng):
        yield name, on_levels(plants)


def _without_itself(sources: Sources, content_N: np.ndarray) -> np.ndarray | None:
    """Return ``[P, N]``: the gallery lacks each planted image itself, and what equals it."""
    if sources.visit_row_V is None:
        return None
    return np.asarray(content_N[sources.visit_row_V][:, None] != content_N)


def _show(
    count: _Count,
    screener: CrossScreener,
    plant: PlantClass,
    plants: np.ndarray,
    *,
    sources: Sources,
    allowed_BN: np.ndarray | None = None,
) -> None:
    members = screener.members(plants, allowed_BN=allowed_BN)
    dropped_P = np.any(members > screener.point.threshold, axis=1)
    count.add(plant.name, found_groups(dropped_P, plant))
    if plant.must and plant.group_images == 1 and len(dropped_P) == len(sources):
        for row, dropped in zip(sources.condition_PK[:, 0].astype(int), dropped_P, strict=True):
            count.caught_of.setdefault(int(row), []).append(bool(dropped))


def _rehearse(
    cross: CrossFilter,
    table: Mapping[str, PlantClass],
    names: set[str],
    count: _Count,
    *,
    rate: float,
    most_plants: int,
    seed: int,
    tell: Tell,
) -> tuple[NegativeOutcome, ...]:
    """Show what takes strangers, each part of the patients being the strangers once.

    Meanwhile the next part is the one that is copied, so that each patient is copied once.
    """
    dropped: dict[str, list[Tally]] = {name: [] for name in _NEGATIVES}
    dealt = deal_plants(most_plants)
    for aside in ALL_PARTS:
        tell("let each third of the patients stand aside", aside, len(ALL_PARTS))
        parts = tuple(part for part in ALL_PARTS if part != aside)
        point, _ = calibrate(cross, rate=rate, seed=seed, parts=parts)
        if point is None:
            continue
        screener = CrossScreener(cross, point, parts, aside)
        rng = stream(seed, "audit-folder", "aside", aside)
        gallery = _of_parts(cross, parts)
        strangers = _of_parts(cross, (aside,))
        images = _draw_negatives(strangers, gallery, most_plants, rng=rng)
        for name, shown in images.items():
            if len(shown):
                dropped[name].append(Tally(len(shown), int((~screener(shown)).sum())))
        if not dealt[aside]:
            continue
        copied = _of_parts(cross, ((aside + 1) % PARTS,))
        sources = draw_sources(copied, dealt[aside], rng=rng, strangers=strangers)
        for name, plants in _make({name: table[name] for name in sorted(names)}, sources, seed):
            _show(count, screener, table[name], plants, sources=sources)
    tell("let each third of the patients stand aside", len(ALL_PARTS), len(ALL_PARTS))
    return tuple(_negative(name, tallies, most=rate) for name, tallies in dropped.items())


def _of_parts(cross: CrossFilter, parts: tuple[int, ...]) -> PatientImages:
    return rows_of(_numbered(cross.images), np.flatnonzero(np.isin(cross.part_N, parts)))


def _draw_negatives(
    strangers: PatientImages, gallery: PatientImages, most: int, *, rng: np.random.Generator
) -> dict[str, np.ndarray]:
    patients = rng.permutation(np.unique(strangers.patient_B))[:most]
    rows = np.array([rng.choice(np.flatnonzero(strangers.patient_B == one)) for one in patients])
    image = on_levels(strangers.image_BCDHW[rows])
    near = look_alikes(image, gallery.image_BCDHW, count=max(1, len(rows) // 2))
    means = template_means(gallery, min(len(rows), most), rng=rng)
    return {"stranger": image, "look_alike": image[near], "template": on_levels(means)}


def _negative(name: str, tallies: list[Tally], *, most: float) -> NegativeOutcome:
    method = "patients who stood aside, Clopper-Pearson"
    label = f"dropped.{name}"
    if not tallies:
        why = "two thirds of the patients are too few for it"
        dropped = not_estimable(label, why, method=method, unit="images")
    else:
        dropped = share_dropped(label, tallies, unit="images", method=method)
    outcome: Literal["within", "above", "not estimable"] = "not estimable"
    if dropped.low is not None:
        outcome = "above" if dropped.low > most else "within"
    return NegativeOutcome(
        name=name, says=_NEGATIVES[name], dropped=dropped, most=most, outcome=outcome
    )


def _outcome(plant: PlantClass, count: _Count, reason: str) -> PlantOutcome:
    tallies = count.tallies.get(plant.name, [])
    unit = "patients"
    label = f"power.{plant.name}"
    if not tallies:
        why = reason or "two thirds of the patients are too few for it"
        caught = not_estimable(label, why, method=_METHOD, unit=unit)
    else:
        caught = share_dropped(label, tallies, unit=unit, method=_METHOD)
    total = Tally(sum(t.shown for t in tallies), sum(t.dropped for t in tallies))
    return PlantOutcome(
        name=plant.name,
        says=plant.says,
        must=plant.must,
        demanded=plant.demanded,
        takes=plants_taken(plant),
        caught=caught,
        outcome=judge(plant, total),
    )


def _subgroups(count: _Count, groups: Mapping[str, np.ndarray]) -> Iterator[Subgroup]:
    """Yield for each group the mean share of must-catch plants that were caught of a patient."""
    for name, inside_N in groups.items():
        shares = [float(np.mean(c)) for row, c in sorted(count.caught_of.items()) if inside_N[row]]
        label, method = f"power.{name}", "mean over patients, bounds of Clopper and Pearson"
        if len(shares) < SMALLEST_COUNT:
            why = f"fewer than {SMALLEST_COUNT} patients"
            caught = not_estimable(label, why, method=method, n=len(shares), unit="patients")
        else:
            caught = measure_share(label, sum(shares), len(shares), unit="patients", method=method)
        yield Subgroup(name=name, caught=caught)
