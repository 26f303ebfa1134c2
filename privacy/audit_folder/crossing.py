"""The filter of an audit: each scan in a gallery whose encoders never saw its patient.

Axes: B candidates, N real scans, E encoders, which are as many as parts.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import dataclass, replace
from typing import Final

import numpy as np

from vitrael.core.errors import CohortError
from vitrael.core.records import PatientImages
from vitrael.core.rng import stream
from vitrael.core.workbench.progress import Tell, silent
from vitrael.privacy.audit_folder.encoders import (
    FEWEST_SEEN_AGAIN,
    Budget,
    seen_again,
    train_encoders,
)
from vitrael.privacy.audit_folder.parting import (
    PARTS,
    encoder_for,
    part_candidates,
    part_patients,
)
from vitrael.privacy.audit_folder.templates import fit_templates
from vitrael.privacy.reid.calibrate import OperatingPoint, freeze, least_null_patients
from vitrael.privacy.reid.gallery import Gallery, build_gallery, extend_gallery
from vitrael.privacy.reid.lens import Work, fit_lens
from vitrael.privacy.reid.search import Matches, match
from vitrael.privacy.reid.template import lay_onto

ALL_PARTS: Final = tuple(range(PARTS))
LEAST_PATIENTS: Final = 2 * PARTS
"""Patients: two in each part, or nothing can be learned to be told apart."""


@dataclass(frozen=True, slots=True, repr=False, eq=False)
class CrossFilter:
    """The real scans as the filter sees them; private."""

    images: PatientImages
    part_N: np.ndarray
    galleries: tuple[Gallery, ...]
    """By encoder: each holds every real scan, and is asked for those of the other parts alone."""
    rows: tuple[np.ndarray, ...]
    """The order of the scans in each: those of the encoder's own part come first."""
    knows_visits: bool
    """Whether an encoder was trained on several scans of a patient."""
    key: bytes
    """Of the digests by which candidates are dealt a part."""

    def __repr__(self) -> str:
        """Show nothing of a patient."""
        return "CrossFilter(private)"

    def matches(
        self,
        image_BCDHW: np.ndarray,
        part_B: np.ndarray,
        *,
        allowed_BN: np.ndarray | None = None,
        work: Work | None = None,
    ) -> Matches:
        """Return how near candidates of these parts come to the real scans that are allowed.

        Each is judged for itself, by encoders that never saw whom it is compared with, nor the
        patients of its own part.
        """
        order = np.argsort(part_B, kind="stable")
        whole: Matches | None = None
        for own in ALL_PARTS:
            rows_B = order[part_B[order] == own]
            if len(rows_B):
                allowed = None if allowed_BN is None else allowed_BN[rows_B]
                found = self._match_part(image_BCDHW[rows_B], own, allowed, work or Work())
                whole = found if whole is None else found.behind(whole)
        if whole is None:
            return match(image_BCDHW, self.galleries[0])
        back = np.argsort(order, kind="stable")
        return Matches(whole.best_BK[back], whole.region_BR[back])

    def _match_part(
        self, image_BCDHW: np.ndarray, own: int, allowed_BN: np.ndarray | None, work: Work
    ) -> Matches:
        found: Matches | None = None
        for encoder in (each for each in ALL_PARTS if each != own):
            judged = [other for other in ALL_PARTS if encoder_for(own, other) == encoder]
            mask_BN = np.tile(np.isin(self.part_N, judged), (len(image_BCDHW), 1))
            if allowed_BN is not None:
                mask_BN &= allowed_BN
            mask_BN = np.ascontiguousarray(mask_BN[:, self.rows[encoder]])
            here = match(image_BCDHW, self.galleries[encoder], allowed_BN=mask_BN, work=work)
            found = here if found is None else found.larger(here)
        assert found is not None  # noqa: S101 - there are two other parts
        return found


@dataclass(frozen=True, slots=True, repr=False, eq=False)
class CrossScreener:
    """A filter with its frozen operating point; private."""

    filter: CrossFilter
    point: OperatingPoint
    parts: tuple[int, ...] = ALL_PARTS
    """Of which the patients stand in the gallery and in the null."""
    dealt: int | None = None
    """The part of all candidates; None deals by their content."""

    def __repr__(self) -> str:
        """Show nothing of a patient or a threshold."""
        return "CrossScreener(private)"

    def __call__(self, image_BCDHW: np.ndarray) -> np.ndarray:
        """Return ``[B]`` bool: false for what comes too close to a patient of the gallery."""
        return np.asarray((self.members(image_BCDHW) <= self.point.threshold).all(1))

    def members(
        self,
        image_BCDHW: np.ndarray,
        *,
        allowed_BN: np.ndarray | None = None,
        work: Work | None = None,
    ) -> np.ndarray:
        """Return ``[B, 4]``: how near each member finds each image, in spreads of the null."""
        if self.dealt is None:
            part_B = part_candidates(image_BCDHW, key=self.filter.key)
        else:
            part_B = np.full(len(image_BCDHW), self.dealt)
        if len(self.parts) < PARTS:
            inside_BN = np.tile(np.isin(self.filter.part_N, self.parts), (len(image_BCDHW), 1))
            allowed_BN = inside_BN if allowed_BN is None else inside_BN & allowed_BN
        matches = self.filter.matches(image_BCDHW, part_B, allowed_BN=allowed_BN, work=work)
        return self.point.members(matches)


def fit_filter(
    images: PatientImages, *, budget: Budget, seed: int, tell: Tell = silent
) -> CrossFilter:
    """Return the filter of the real scans; raise CohortError for fewer than six patients."""
    patients = len(np.unique(images.patient_B))
    if patients < LEAST_PATIENTS:
        raise CohortError(
            "no filter can be trained on so few patients",
            why=f"there are {patients}, and {LEAST_PATIENTS} are needed to tell any apart",
            fix="give more patients",
        )
    part_N = part_patients(images.patient_B, rng=stream(seed, "audit-folder", "parts"))
    again = [seen_again(images.patient_B[part_N == part]) for part in ALL_PARTS]
    knows_visits = min(again) >= FEWEST_SEEN_AGAIN
    total = PARTS * budget.length_images * (2 if knows_visits else 1)
    parts = [rows_of(images, np.flatnonzero(part_N == part)) for part in ALL_PARTS]
    templates = fit_templates([own.image_BCDHW for own in parts])
    galleries, rows = [], []
    for part, own, template in zip(ALL_PARTS, parts, templates, strict=True):
        encoders = train_encoders(
            replace(own, image_BCDHW=lay_onto(own.image_BCDHW, template)),
            budget,
            seed=seed,
            part=part,
            knows_visits=knows_visits,
            tell=_behind(tell, part * total // PARTS, total),
        )
        others = np.flatnonzero(part_N != part)
        gallery = build_gallery(own, fit_lens(own, encoders, template))
        galleries.append(extend_gallery(gallery, rows_of(images, others)))
        rows.append(np.concatenate([np.flatnonzero(part_N == part), others]))
    return CrossFilter(
        images=images,
        part_N=part_N,
        galleries=tuple(galleries),
        rows=tuple(rows),
        knows_visits=knows_visits,
        key=stream(seed, "audit-folder", "key").bytes(16),
    )


def null_rows(cross: CrossFilter, parts: Collection[int], *, seed: int) -> np.ndarray:
    """Return the row of one random scan of every patient of these parts: a candidate is one too."""
    rng = stream(seed, "audit-folder", "null")
    patient_N = cross.images.patient_B
    chosen = [rng.choice(np.flatnonzero(patient_N == one)) for one in np.unique(patient_N)]
    return np.array([row for row in chosen if cross.part_N[row] in parts], np.int64)


def leave_out(cross: CrossFilter, parts: tuple[int, ...], *, seed: int) -> Matches | None:
    """Return the best match of each patient with all others of these parts; None without two."""
    rows_B = null_rows(cross, parts, seed=seed)
    if len(rows_B) < 2:  # noqa: PLR2004 - nobody to compare with
        return None
    inside_N = np.isin(cross.part_N, parts)
    own_BN = cross.images.patient_B[rows_B][:, None] == cross.images.patient_B
    return cross.matches(
        cross.images.image_BCDHW[rows_B], cross.part_N[rows_B], allowed_BN=inside_N & ~own_BN
    )


def calibrate(
    cross: CrossFilter, *, rate: float, seed: int, parts: tuple[int, ...] = ALL_PARTS
) -> tuple[OperatingPoint | None, Matches | None]:
    """Return the operating point and the null that it is of; None when patients are too few."""
    inside = np.isin(cross.part_N, parts)
    if len(np.unique(cross.images.patient_B[inside])) < least_null_patients(rate):
        return None, None
    null = leave_out(cross, parts, seed=seed)
    salt = stream(seed, "audit-folder", "salt", *parts).bytes(16).hex()
    point = freeze(
        null,
        false_match_rate=rate,
        gallery_patients=len(np.unique(cross.images.patient_B[inside])),
        salt=salt,
    )
    return point, null


def rows_of(images: PatientImages, rows: np.ndarray) -> PatientImages:
    """Return some of the images, in this order."""
    return PatientImages(
        images.image_BCDHW[rows],
        images.condition_BK[rows],
        images.patient_B[rows],
        images.visit_B[rows],
    )


def _behind(tell: Tell, first: int, total: int) -> Callable[[int], None]:
    return lambda done: tell("train the encoders of the filter", first + done, total)
