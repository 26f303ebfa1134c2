"""The audit of two folders from their images to its findings, in the one order that is honest.

First the encoders and the null, of the real images alone; then the operating point is frozen; then
plants are made and shown; and only then is the synthetic folder judged.

Axes: B synthetic images, N real ones.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Final

import numpy as np
from scipy import stats

from vitrael.core.errors import DataError
from vitrael.core.records import PatientImages
from vitrael.core.rng import stream
from vitrael.core.version import package_version
from vitrael.core.workbench.progress import Tell, silent
from vitrael.privacy.audit.power import Tally, share_dropped
from vitrael.privacy.audit_folder.certificate import certify, no_certificate
from vitrael.privacy.audit_folder.closeness import Closeness, measure_closeness
from vitrael.privacy.audit_folder.crossing import (
    LEAST_PATIENTS,
    CrossScreener,
    calibrate,
    fit_filter,
)
from vitrael.privacy.audit_folder.encoders import Budget
from vitrael.privacy.audit_folder.findings import (
    Certificate,
    Conspicuous,
    Distances,
    Filter,
    Findings,
    FolderFacts,
    Neighbor,
    Neighbors,
    RefusedFile,
    SameFile,
)
from vitrael.privacy.audit_folder.images import FolderImages
from vitrael.privacy.audit_folder.naming import MOST_NAMED, name_scans
from vitrael.privacy.audit_folder.pair import Shared, find_shared
from vitrael.privacy.audit_folder.sentences import NOT_CLAIMED, tell_found, tell_not_estimated
from vitrael.privacy.audit_folder.turns import AS_IT_IS, find_turn
from vitrael.privacy.evidence import Measurement, not_estimable
from vitrael.privacy.reid.calibrate import OperatingPoint, least_null_patients
from vitrael.privacy.reid.lens import MEMBERS

_SHARE: Final = "conspicuous.share"
_METHOD: Final = "frozen operating point, Clopper-Pearson"
_CHUNK: Final = 64
_RATES: Final = (0.05, 0.1, 0.15, 0.2)
"""That too few patients for a smaller one are told of; beyond them a threshold says little."""


@dataclass(frozen=True, slots=True)
class Order:
    """What is asked of an audit."""

    rate: float = 0.05
    """Share of images of strangers that may be conspicuous."""
    seed: int = 0
    budget: Budget = field(default_factory=Budget)
    most_plants: int = 60
    """Patients who are copied in each class, at most."""
    classes: frozenset[str] | None = None
    """Of plants, by name; None for all."""


@dataclass(slots=True)
class _Judged:
    """What the filter said; as it stands, of a filter that does not exist."""

    filter: Filter
    certificate: Certificate
    share: Measurement
    conspicuous: tuple[Conspicuous, ...] = ()
    chance: float | None = None


@dataclass(slots=True)
class _Watch:
    """Wall time by step."""

    seconds: dict[str, float] = field(default_factory=dict)

    @contextmanager
    def over(self, step: str) -> Iterator[None]:
        begun = time.perf_counter()
        yield
        self.seconds[step] = round(time.perf_counter() - begun, 2)


def audit_folders(
    real: FolderImages, synthetic: FolderImages, order: Order, *, tell: Tell = silent
) -> Findings:
    """Return what is found of two folders that were read to one grid.

    Equal folders, orders and seeds give equal findings but for the times.
    """
    watch = _Watch()
    shared = find_shared(real, synthetic)
    images = PatientImages(
        real.image_BCDHW,
        np.zeros((len(real), 1), np.float32),
        real.patient_B,
        real.visit_B,
    )
    judged = _judge(real, synthetic, images, order, watch=watch, tell=tell)
    with watch.over("neighbors"):
        rng = stream(order.seed, "audit-folder", "closeness")
        is_clip = real.kind == "clip"
        closeness = measure_closeness(synthetic.image_BCDHW, images, is_clip=is_clip, rng=rng)
    same_files = tuple(_same_files(shared))
    neighbors = None if closeness is None else _neighbors(closeness, real, synthetic)
    draft = Findings(
        version=package_version(),
        kind=real.kind,
        grid=real.grid.shape(real.kind),
        seed=order.seed,
        images_budget=order.budget.length_images,
        plants=order.most_plants,
        real=_facts(real),
        synthetic=_facts(synthetic),
        notes=tuple(_notes(real, synthetic)),
        same_files=same_files,
        shared_patients=len(shared.patients),
        filter=judged.filter,
        conspicuous=judged.conspicuous,
        conspicuous_share=judged.share,
        chance=judged.chance,
        certificate=judged.certificate,
        neighbors=neighbors,
        found=(),
        not_estimated=(),
        not_claimed=NOT_CLAIMED,
        seconds=watch.seconds,
    )
    told = {"found": tell_found(draft), "not_estimated": tell_not_estimated(draft)}
    return draft.model_copy(update=told)


def chance_of(conspicuous: int, images: int, *, null: int, rate: float) -> float:
    """Return how likely so many of the images are conspicuous, or more, when none is a copy.

    The threshold is an order statistic of the null, and as uncertain as that is small: the number
    of newcomers above it is beta-binomial, whatever the distribution of independent scores. Those
    of left-out patients are alike in pairs; so as many are counted above the threshold as the rate
    allows, one more than were left there.
    """
    allowed = int((null + 1) * rate + 1e-9)
    law = stats.betabinom(images, allowed, null + 1 - allowed)
    return float(law.sf(conspicuous - 1))


def _judge(
    real: FolderImages,
    synthetic: FolderImages,
    images: PatientImages,
    order: Order,
    *,
    watch: _Watch,
    tell: Tell,
) -> _Judged:
    reason = _why_no_filter(real, order.rate)
    if reason:
        return _unjudged(real, order.rate, reason)
    try:
        with watch.over("training"):
            cross = fit_filter(images, budget=order.budget, seed=order.seed, tell=tell)
    except DataError as error:  # files that are equal are told all the same
        why = f" ({error.why})" if error.why else ""
        reason = f"no filter can be made of these images: {error.what}{why}"
        return _unjudged(real, order.rate, reason)
    with watch.over("null"):
        point, _ = calibrate(cross, rate=order.rate, seed=order.seed)
    if point is None:
        return _unjudged(real, order.rate, "the null of the filter is too small for the rate")
    screener = CrossScreener(cross, point)
    with watch.over("certificate"):
        certificate = certify(
            screener,
            synthetic.image_BCDHW,
            kind=real.kind,
            most_plants=order.most_plants,
            classes=order.classes,
            seed=order.seed,
            content_N=np.unique(real.content_digest, return_inverse=True)[1],
            groups=_groups(real),
            tell=tell,
        )
    with watch.over("screening"):
        conspicuous, members = _screen(real, synthetic, screener, tell=tell)
    count, total = len(conspicuous), len(members)
    notes = () if cross.knows_visits else (_NO_VISITS,)
    return _Judged(
        filter=_filter_of(point, knows_visits=cross.knows_visits, notes=notes),
        certificate=certificate,
        share=share_dropped(_SHARE, [Tally(total, count)], unit="synthetic images", method=_METHOD),
        conspicuous=conspicuous,
        chance=chance_of(count, total, null=point.null_patients, rate=order.rate),
    )


_NO_VISITS: Final = (
    "Too few patients have several scans, so that no encoder could learn to know a patient again: "
    "the one that knows copies stands in for it, and another scan of a patient is hardly found."
)


def _why_no_filter(real: FolderImages, rate: float) -> str:
    if real.kind == "clip":
        return "there is no filter for clips yet; copies are found by bytes and content alone"
    patients, least = len(real.patients), _least_patients(rate)
    if patients >= least:
        return ""
    larger = next((each for each in _RATES if rate < each and _least_patients(each) <= patients), 0)
    helps = f", or give --rate {larger:g}, which takes {_least_patients(larger)}" if larger else ""
    return (
        f"a rate of {rate:g} takes {least} patients, and the real folder has {patients}; add the "
        f"images of {least - patients} more patients{helps}"
    )


def _least_patients(rate: float) -> int:
    return max(LEAST_PATIENTS, least_null_patients(rate))


def _unjudged(real: FolderImages, rate: float, reason: str) -> _Judged:
    return _Judged(
        filter=Filter(calibrated=False, reason=reason, rate=rate, patients=len(real.patients)),
        certificate=no_certificate(real.kind, reason),
        share=not_estimable(_SHARE, reason, method=_METHOD, unit="synthetic images"),
    )


def _filter_of(point: OperatingPoint, *, knows_visits: bool, notes: tuple[str, ...]) -> Filter:
    return Filter(
        calibrated=True,
        rate=point.false_match_rate,
        patients=point.null_patients,
        threshold=point.threshold,
        knows_visits=knows_visits,
        notes=notes,
    )


def _screen(
    real: FolderImages, synthetic: FolderImages, screener: CrossScreener, *, tell: Tell
) -> tuple[tuple[Conspicuous, ...], np.ndarray]:
    """Return the conspicuous images, the most conspicuous first, and what members say of all."""
    image = synthetic.image_BCDHW
    rows = []
    for at in range(0, len(image), _CHUNK):
        rows.append(screener.members(image[at : at + _CHUNK]))
        tell("judge the synthetic folder", min(at + _CHUNK, len(image)), len(image))
    members_B4 = np.concatenate(rows)
    over_B4 = members_B4 > screener.point.threshold
    dropped = np.flatnonzero(over_B4.any(1) | ~np.isfinite(members_B4).all(1))
    order = dropped[np.argsort(-members_B4[dropped].max(1), kind="stable")]
    named = order[:MOST_NAMED]
    scan_B = name_scans(
        image[named],
        screener,
        tell=lambda done, total: tell("name the real scans", done, total),
    )
    found = dict(zip(named.tolist(), scan_B.tolist(), strict=True))
    conspicuous = tuple(
        Conspicuous(
            synthetic=synthetic.paths[row],
            real=real.paths[found[row]] if row in found else "",
            members=tuple(
                name for name, over in zip(MEMBERS[:4], over_B4[row], strict=True) if over
            ),
            score=float(members_B4[row].max()),
        )
        for row in order.tolist()
    )
    return conspicuous, members_B4


def _groups(real: FolderImages) -> dict[str, np.ndarray]:
    """Return which real images are of each sex and of each scanner that is told."""
    told = {
        "sex": np.array([one.sex for one in real.told_B]),
        "scanner": np.array([one.scanner for one in real.told_B]),
    }
    return {
        f"{what}: {value}": values == value
        for what, values in told.items()
        for value in sorted({*values.tolist()} - {""})
    }


def _same_files(shared: Shared) -> Iterator[SameFile]:
    for real, synthetic in shared.same_bytes:
        yield SameFile(real=real, synthetic=synthetic, how="bytes")
    for real, synthetic in shared.same_content:
        yield SameFile(real=real, synthetic=synthetic, how="content")


def _facts(folder: FolderImages) -> FolderFacts:
    return FolderFacts(
        images=len(folder),
        patients=len(folder.patients),
        told=folder.told,
        refused=dict(sorted(folder.reasons.items())),
        refused_files=tuple(
            RefusedFile(file=one.place, reason=one.reason)
            for one in sorted(folder.refused, key=lambda one: one.place)
        ),
        left_out=dict(sorted(folder.left_out.items())),
    )


def _notes(real: FolderImages, synthetic: FolderImages) -> Iterator[str]:
    if find_turn(real, synthetic) != AS_IT_IS:
        yield (
            "The synthetic images lie turned or mirrored against the real ones, as a whole; the "
            "filter turns each image before it compares, and is less sure where it has to."
        )
    if real.teller == "file":
        yield (
            "Nobody told whose the real images are: each counts as a patient of its own. Where a "
            "patient has several, the threshold is too high and copies pass; give --patients TABLE."
        )


def _neighbors(closeness: Closeness, real: FolderImages, synthetic: FolderImages) -> Neighbors:
    matched, strangers = closeness.matched_B, closeness.stranger_P
    nearer = np.searchsorted(np.sort(strangers), matched, side="right")
    ties = nearer - np.searchsorted(np.sort(strangers), matched, side="left")
    share = 1 - float((nearer - ties / 2).mean()) / len(strangers)
    return Neighbors(
        synthetic_to_real=_distances(matched),
        stranger_to_stranger=_distances(strangers),
        nearer_share=round(share, 6),
        each=tuple(
            Neighbor(synthetic=path, real=real.paths[row], distance=round(float(distance), 5))
            for path, row, distance in zip(
                synthetic.paths,
                closeness.nearest_B.tolist(),
                closeness.distance_B,
                strict=True,
            )
        ),
    )


def _distances(values: np.ndarray) -> Distances:
    p05, median, p95 = np.quantile(values, [0.05, 0.5, 0.95])
    least = float(values.min())
    return Distances(
        n=len(values),
        least=round(least, 5),
        p05=round(float(p05), 5),
        median=round(float(median), 5),
        p95=round(float(p95), 5),
    )
