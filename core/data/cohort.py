"""A Cohort: the real scans of one site, parted by patient. Private; it never leaves the site.

Only the client side imports this module. Errors name a scan by its place in the manifest.
"""

from __future__ import annotations

import hashlib
import hmac
from pathlib import Path
from typing import Self

import numpy as np

from vitrael.core.data.conditions import scale_covariates
from vitrael.core.data.manifest import MANIFEST_NAME, Item, Manifest, read_manifest
from vitrael.core.data.measure import measure_volumes
from vitrael.core.data.nifti import read_nifti
from vitrael.core.data.preprocess import prepare_scan
from vitrael.core.data.scan import Scan
from vitrael.core.data.splits import Split, split_subjects
from vitrael.core.digest import digest_file
from vitrael.core.errors import CohortError, ScanError
from vitrael.core.records import PatientImages
from vitrael.core.study import COVARIATES, Data, Protocol

_ORDER_DOMAIN = b"vitrael/order/1\0"


class Cohort:
    """The scans of one site's folder under one protocol: images by split.

    Images are read, prepared and measured on the first request of a split and kept in memory.
    """

    def __init__(self, folder: Path, manifest: Manifest, data: Data, *, key: bytes) -> None:
        """Part the patients; no scan is opened. ``open`` is the usual way in."""
        self._folder = folder
        self._items = manifest.items
        self._data = data
        self._key = key
        self._subjects = split_subjects(
            (item.subject for item in manifest.items), data.splits, key=key
        )
        self._images: dict[Split, PatientImages] = {}

    @classmethod
    def open(cls, folder: Path, protocol: Protocol, *, key: bytes) -> Self:
        """Return the cohort of a folder that holds the scans and their ``manifest.json``.

        ``key`` is the site's secret for the splits, at least 16 bytes. Raises CohortError when the
        manifest cannot be used or a file that it names is missing.
        """
        manifest = read_manifest(folder / MANIFEST_NAME)
        for index, item in enumerate(manifest.items):
            if not (folder / item.path).is_file():
                raise CohortError(
                    f"scan {index} of the manifest is missing", fix="take the scans in again"
                )
        return cls(folder, manifest, protocol.data, key=key)

    def __repr__(self) -> str:
        """Show nothing of a patient, not even how many there are."""
        return "Cohort(private)"

    def images(self, split: Split) -> PatientImages:
        """Return all images of a split, patients in an order that says nothing, visits in time.

        An empty split gives arrays of length 0. Raises ScanError or CohortError that names a scan
        by its place in the manifest when it cannot be read, prepared, or was changed.
        """
        if split not in self._images:
            self._images[split] = self._load(split)
        return self._images[split]

    def _load(self, split: Split) -> PatientImages:
        chosen = self._visits(split)
        scans = [self._prepare(index) for _, _, index in chosen]
        image_BCDHW = np.zeros((len(scans), 1, *self._data.grid_vox), dtype=np.float32)
        covariate_BK = np.zeros((len(scans), len(COVARIATES)))
        for row, (scan, (_, _, index)) in enumerate(zip(scans, chosen, strict=True)):
            image_BCDHW[row] = scan.image_CDHW
            covariate_BK[row] = self._covariates(self._items[index], scan)
        return PatientImages(
            image_BCDHW=image_BCDHW,
            condition_BK=scale_covariates(covariate_BK, self._data),
            patient_B=np.array([patient for patient, _, _ in chosen], dtype=np.int64),
            visit_B=np.array([visit for _, visit, _ in chosen], dtype=np.int64),
        )

    def _visits(self, split: Split) -> list[tuple[int, int, int]]:
        """Return (patient, rank of the visit, place in the manifest) of a split's scans."""

        def shuffled(subject: str) -> bytes:
            return hmac.new(self._key, _ORDER_DOMAIN + subject.encode(), hashlib.sha256).digest()

        chosen: list[tuple[int, int, int]] = []
        for patient, subject in enumerate(sorted(self._subjects[split], key=shuffled)):
            own = [i for i, item in enumerate(self._items) if item.subject == subject]
            own.sort(key=lambda i: self._items[i].visit)
            chosen += [(patient, rank, index) for rank, index in enumerate(own)]
        return chosen

    def _prepare(self, index: int) -> Scan:
        item = self._items[index]
        path = self._folder / item.path
        label = f"scan {index} of the manifest"
        try:
            changed = digest_file(path) != item.digest
        except OSError:
            raise CohortError(f"{label} cannot be opened", fix="check the folder") from None
        if changed:
            raise CohortError(
                f"{label} is not the file that was taken in",
                why="its digest differs from the manifest",
                fix="restore the file or take the scans in again",
            )
        scan = read_nifti(path, label=label)
        try:
            return prepare_scan(scan, self._data)
        except ScanError as error:
            raise ScanError(f"{label} cannot be used", why=error.what) from None

    def _covariates(self, item: Item, scan: Scan) -> list[float]:
        """Return a patient's values in the order of COVARIATES, measured where not recorded."""
        ventricle_ml, brain_ml = item.ventricle_ml, item.brain_ml
        if ventricle_ml is None or brain_ml is None:
            measured_ventricle_B, measured_brain_B = measure_volumes(
                scan.image_CDHW[None], scan.affine
            )
            ventricle_ml = float(measured_ventricle_B[0]) if ventricle_ml is None else ventricle_ml
            brain_ml = float(measured_brain_B[0]) if brain_ml is None else brain_ml
        return [item.age_years, item.sex, ventricle_ml, brain_ml]
