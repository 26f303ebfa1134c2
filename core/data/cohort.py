"""A Cohort: the prepared scans of one site, parted by patient. Private; it never leaves the site.

A cohort's folder holds ``manifest.json``, ``shards`` (``core.data.cache``) and ``latents``
(``core.data.latent_cache``). Only the client side imports this module. Errors name a scan by its
place in the manifest.

Axes: B batch, C channels, D H W depth, height, width, K covariates.
"""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Self

import numpy as np

from vitrael.core.data.cache import SHARDS_NAME
from vitrael.core.data.conditions import scale_covariates
from vitrael.core.data.latent_cache import LatentCache
from vitrael.core.data.manifest import MANIFEST_NAME, Item, Manifest, read_manifest
from vitrael.core.data.measure import measure_volumes
from vitrael.core.data.recipes import RecipeSettings, recipe_of_study
from vitrael.core.data.retention import LATENTS_NAME
from vitrael.core.data.shard_set import ShardSet
from vitrael.core.data.splits import Split, split_subjects
from vitrael.core.digest import Digest
from vitrael.core.errors import CohortError
from vitrael.core.protocols import COVARIATES, Data, Protocol, StudyData
from vitrael.core.records import PatientImages, ViewImages

_ORDER_DOMAIN = b"vitrael/order/1\0"
_SEX_UNKNOWN = 0.5
_TAKE_IN = "take the scans in with --study"


class Cohort:
    """The scans of one site's cohort under one protocol: images by split.

    Images are read and held against their digests on the first request of a split, and kept in
    memory.
    """

    def __init__(self, folder: Path, manifest: Manifest, data: StudyData, *, key: bytes) -> None:
        """Part the patients; no scan is opened. ``open`` is the usual way in."""
        self._folder = folder
        self._manifest = manifest
        self._data = data
        self._key = key
        self._shards = ShardSet(folder / SHARDS_NAME, manifest.items, keep_bytes=0)
        self._subjects = split_subjects(
            (item.subject for item in manifest.items), data.splits, key=key
        )
        self._places: dict[str, list[int]] = {}
        for place, item in enumerate(manifest.items):
            self._places.setdefault(item.subject, []).append(place)
        self._images: dict[Split, PatientImages] = {}
        self._views: dict[Split, ViewImages] = {}

    @classmethod
    def open(cls, folder: Path, protocol: Protocol, *, key: bytes) -> Self:
        """Return the cohort of a folder, for a protocol whose recipe it was taken in by.

        ``key`` is the site's secret for the splits, at least 16 bytes. Raises CohortError when the
        manifest cannot be used, when its recipe, grid or spacing is another than the study's, or
        when a scan is missing; ConfigError when no recipe fits the study.
        """
        manifest = read_manifest(folder / MANIFEST_NAME)
        if reason := _misfit(manifest.recipe, protocol.data):
            raise CohortError(
                "this cohort does not fit the study", why=f"it {reason}", fix=_TAKE_IN
            )
        for index, item in enumerate(manifest.items):
            if not (folder / SHARDS_NAME / item.shard).is_file():
                raise CohortError(f"item {index} of the cohort is missing", fix=_TAKE_IN)
        return cls(folder, manifest, protocol.data, key=key)

    def __repr__(self) -> str:
        """Show nothing of a patient, not even how many there are."""
        return "Cohort(private)"

    @property
    def version(self) -> Digest:
        """Name of what the cohort holds; every change of it has another."""
        return self._manifest.digest

    @property
    def subjects(self) -> frozenset[str]:
        """Pseudonyms of all patients."""
        return frozenset(self._places)

    @property
    def latents(self) -> LatentCache:
        """Where latents of these scans are kept, by codec."""
        return LatentCache(self._folder / LATENTS_NAME)

    def items(self, split: Split) -> tuple[Item, ...]:
        """Return the entries of a split's scans, row by row as in ``images``."""
        return tuple(self._manifest.items[place] for _, _, place in self._visits(split))

    def images(self, split: Split) -> PatientImages:
        """Return all images of a split, patients in an order that says nothing, visits in time.

        An empty split gives arrays of length 0. Of what is not known, age is taken as the middle
        of the study's range, sex as 0.5, and volumes are measured. Raises CohortError that names a
        scan by its place in the manifest when it cannot be read or was changed.
        """
        if split not in self._images:
            self._images[split] = self._load(split, self._volumes())
        return self._images[split]

    def views(self, split: Split) -> ViewImages:
        """Return all pictures of a split with their labels, of a clip its middle frame.

        A label is the item's ``view``, or its ``label`` where there is no such. Raises CohortError
        that names a picture by its place in the manifest when it has neither, cannot be read or
        was changed.
        """
        if isinstance(self._data, Data):
            raise CohortError("this cohort holds volumes, not pictures", fix=_TAKE_IN)
        if split not in self._views:
            self._views[split] = self._load_views(split)
        return self._views[split]

    def _volumes(self) -> Data:
        if isinstance(self._data, Data):
            return self._data
        raise CohortError("this cohort holds pictures, not volumes", fix=_TAKE_IN)

    def _load_views(self, split: Split) -> ViewImages:
        chosen = self._visits(split)
        places = [place for _, _, place in chosen]
        grid = self._data.grid_vox
        image_BCHW = np.empty((len(chosen), 1, *grid), dtype=np.float32)
        is_clip = self._data.recipe == "echo-apical"
        sector_BHW = np.empty((len(chosen), *grid), dtype=bool) if is_clip else None
        sectors = ShardSet(
            self._folder / SHARDS_NAME, self._manifest.items, array="sector", keep_bytes=0
        )
        for row, place in enumerate(places):
            if sector_BHW is None:
                self._shards.batch([place], out=image_BCHW[row : row + 1])
                continue
            clip_THW = self._shards.batch([place])[0]
            image_BCHW[row, 0] = clip_THW[len(clip_THW) // 2]
            sector_BHW[row] = sectors.batch([place])[0, 0] > 0
        return ViewImages(
            image_BCHW=image_BCHW,
            label_B=tuple(_label_of(self._manifest.items[place], place) for place in places),
            patient_B=np.array([patient for patient, _, _ in chosen], dtype=np.int64),
            sector_BHW=sector_BHW,
        )

    def _load(self, split: Split, data: Data) -> PatientImages:
        chosen = self._visits(split)
        places = [place for _, _, place in chosen]
        image_BCDHW = np.empty((len(chosen), 1, *data.grid_vox), dtype=np.float32)
        self._shards.batch(places, out=image_BCDHW)
        covariate_BK = np.empty((len(chosen), len(COVARIATES)))
        for row, place in enumerate(places):
            item = self._manifest.items[place]
            covariate_BK[row] = _covariates(item, image_BCDHW[row], data)
        return PatientImages(
            image_BCDHW=image_BCDHW,
            condition_BK=scale_covariates(covariate_BK, data),
            patient_B=np.array([patient for patient, _, _ in chosen], dtype=np.int64),
            visit_B=np.array([rank for _, rank, _ in chosen], dtype=np.int64),
        )

    def _visits(self, split: Split) -> list[tuple[int, int, int]]:
        """Return (patient, rank of the scan in time, place in the manifest) of a split's scans."""

        def shuffled(subject: str) -> bytes:
            return hmac.new(self._key, _ORDER_DOMAIN + subject.encode(), hashlib.sha256).digest()

        def time(place: int) -> tuple[int, int]:
            item = self._manifest.items[place]
            return item.visit, item.part

        chosen: list[tuple[int, int, int]] = []
        for patient, subject in enumerate(sorted(self._subjects[split], key=shuffled)):
            own = sorted(self._places[subject], key=time)
            chosen += [(patient, rank, place) for rank, place in enumerate(own)]
        return chosen


def _covariates(item: Item, image_CDHW: np.ndarray, data: Data) -> list[float]:
    """Return a patient's values in the order of COVARIATES."""
    known = item.covariates
    age = data.covariates["age_years"]
    values = {"age_years": (age.low + age.high) / 2, "sex": _SEX_UNKNOWN, **known}
    if not {"ventricle_ml", "brain_ml"} <= known.keys():
        ventricle_B, brain_B = measure_volumes(image_CDHW[None], np.array(item.affine))
        measured = {"ventricle_ml": float(ventricle_B[0]), "brain_ml": float(brain_B[0])}
        values = {**measured, **values}
    return [values[name] for name in COVARIATES]


def _label_of(item: Item, place: int) -> str:
    label = item.labels.get("view") or item.labels.get("label")
    if label is None:
        raise CohortError(
            f"item {place} of the cohort has no view",
            why="nothing says what it shows",
            fix="take them in with a table that has a column view, or in a folder for each view",
        )
    return label


def find_cohort(folder: Path, data: StudyData, *, name: str | None = None) -> Path:
    """Return the folder of the one cohort that fits a study, or of the one that is named.

    ``folder`` holds the cohorts of a site. Whether a named one fits is for ``Cohort.open`` to say.
    Raises CohortError when there is none, when several fit, and, without a name, when a manifest
    cannot be read: it might be the one.
    """
    if name is not None:
        found = _manifests(folder)
        if name not in found:
            raise CohortError("the site has no cohort of this name", fix=_TAKE_IN)
        return found[name].parent
    manifests = _manifests(folder)
    misfits = {key: _misfit(read_manifest(path).recipe, data) for key, path in manifests.items()}
    fitting = [key for key, reason in misfits.items() if not reason]
    if len(fitting) > 1:
        raise CohortError(
            f"{len(fitting)} cohorts fit the study", fix="name the one to use: cohort in site.toml"
        )
    if not fitting:
        raise CohortError(
            "no cohort of this site fits the study", why=_sum_up(misfits), fix=_TAKE_IN
        )
    return manifests[fitting[0]].parent


def _manifests(folder: Path) -> dict[str, Path]:
    paths = sorted(folder.glob(f"[!.]*/{MANIFEST_NAME}"))
    return {path.parent.name: path for path in paths}


def _misfit(recipe: RecipeSettings, data: StudyData) -> str:
    """Return why a recipe's cohort cannot serve a study, as a sentence's end; nothing if it can."""
    wanted = recipe_of_study(data)
    if recipe.name != wanted.name:
        return f"was taken in by the recipe {recipe.name}, the study wants {wanted.name}"
    if recipe.version != wanted.version:
        return f"was taken in by another version of the recipe {recipe.name}"
    return "" if recipe == wanted else "was taken in for another grid"


def _sum_up(misfits: Mapping[str, str]) -> str:
    if not misfits:
        return "nothing was taken in yet"
    reasons: Sequence[str] = sorted(set(misfits.values()))
    return "; ".join(f"one {reason}" for reason in reasons)
