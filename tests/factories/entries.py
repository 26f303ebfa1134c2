"""Items with their facts, as an intake has them: small images of patients who all differ."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import nibabel as nib
import numpy as np
from scipy import ndimage

from vitrael.client.site.ingest.facts import measure_facts
from vitrael.client.site.ingest.findings import Entry
from vitrael.client.site.ingest.outcome import IngestReport
from vitrael.core.data.manifest import Item, Manifest
from vitrael.core.data.planar import Clip, Picture
from vitrael.core.data.recipes import Prepared, RecipeInput, RecipeSettings
from vitrael.core.data.scan import Scan
from vitrael.core.digest import Digest, digest_bytes
from vitrael.core.geometry import centered_affine
from vitrael.core.rng import stream

EDGE_VOX = 24
EDGE_PX = 128
SETTINGS = RecipeSettings(name="brain-t1", version=1, grid_vox=(24, 24, 24), spacing_mm=8.0)


def draw_head(patient: int, visit: int = 0) -> np.ndarray:
    """Return float32 ``[24, 24, 24]`` in [0, 1]: one head, some slopes, and a patient's own folds.

    At a later visit they have changed somewhat.
    """
    axis = np.linspace(-1, 1, EDGE_VOX, dtype=np.float32)
    x, y, z = np.meshgrid(axis, axis, axis, indexing="ij")
    head = np.clip(4 * (0.8 - np.sqrt((x / 0.8) ** 2 + y**2 + (z / 0.8) ** 2)), 0, 0.6)
    folds = ndimage.gaussian_filter(stream(patient, "folds").normal(size=head.shape), 2.0)
    noise = stream(patient, "noise", visit).normal(0, 0.01, size=head.shape)
    changed = ndimage.gaussian_filter(stream(patient, "changed", visit).normal(size=head.shape), 2)
    slopes = stream(patient, "slopes").normal(0, 0.15, 3)
    head = head * (1 + slopes[0] * x + slopes[1] * y + slopes[2] * z)
    image = head * (1 + 2.5 * folds + 1.0 * min(visit, 1) * changed) + noise * (head > 0)
    return np.clip(image, 0, 1).astype(np.float32)


def draw_plane(patient: int) -> np.ndarray:
    """Return float32 ``[128, 128]`` in [0, 1]: bright at the top, with a patient's own pattern."""
    ramp = np.linspace(0.7, 0.3, EDGE_PX)[:, None]
    own = ndimage.gaussian_filter(stream(patient, "pattern").normal(size=(EDGE_PX, EDGE_PX)), 8.0)
    return np.clip(ramp + 3 * own, 0, 1).astype(np.float32)


def volume(image_DHW: np.ndarray, *, spacing_mm: Sequence[float] = (1.0, 1.0, 1.0)) -> Scan:
    """Return a scan as a site could have it: the image in other units."""
    affine = np.diag([*spacing_mm, 1.0])
    image_CDHW = (900 * image_DHW + 1).astype(np.float32)[None]
    return Scan(image_CDHW=image_CDHW, affine=affine, modality="T1w")


def prepare_volume(image_DHW: np.ndarray) -> Prepared:
    """Return an image as a recipe for brains leaves it."""
    affine = centered_affine((EDGE_VOX,) * 3, spacing=8.0)
    return Prepared({"image": image_DHW[None].astype(np.float32)}, affine, "mm")


def prepare_picture(image_HW: np.ndarray) -> Prepared:
    """Return an image as a recipe for radiographs leaves it."""
    return Prepared({"image": image_HW[None].astype(np.float32)}, np.eye(4), "px")


def prepare_clip(frames_THW: np.ndarray) -> Prepared:
    """Return frames as a recipe for clips leaves them."""
    return Prepared({"image": frames_THW}, np.eye(4), "px", frame_s=0.04)


def item(
    patient: int,
    *,
    visit: int = 0,
    part: int = 0,
    days: int | None = None,
    covariates: Mapping[str, float] | None = None,
    labels: Mapping[str, str] | None = None,
    digest: Digest | None = None,
) -> Item:
    """Return an item of a patient, with a content of its own unless told otherwise."""
    code = digest or digest_bytes(f"{patient} {visit} {part}".encode())
    name = code.removeprefix("sha256:")
    return Item(
        subject=f"p-{patient:04d}",
        visit=visit,
        part=part,
        shard=f"{name[:2]}/{name}.safetensors",
        digest=code,
        affine=tuple(tuple(row) for row in np.eye(4).tolist()),
        days=days,
        covariates=covariates or {},
        labels=labels or {},
    )


def head_entry(
    patient: int,
    image_DHW: np.ndarray | None = None,
    *,
    scan: Scan | None = None,
    described: Item | None = None,
) -> Entry:
    """Return the entry of a volume; without an image, of the patient's own."""
    image = draw_head(patient) if image_DHW is None else image_DHW
    source = scan or volume(image)
    axes = "".join(map(str, nib.aff2axcodes(source.affine)))
    given = RecipeInput({"T1w": source})
    facts = measure_facts(given, prepare_volume(image), orientation=axes)
    return Entry(described or item(patient), facts)


def picture_entry(patient: int, image_HW: np.ndarray | None = None) -> Entry:
    """Return the entry of a picture without a pixel size."""
    image = draw_plane(patient) if image_HW is None else image_HW
    given = RecipeInput({"image": Picture(image.astype(np.float32), None, "DX")})
    return Entry(item(patient), measure_facts(given, prepare_picture(image)))


def clip_entry(patient: int, frames_THW: np.ndarray) -> Entry:
    """Return the entry of a clip with pixels of half a millimeter."""
    given = RecipeInput({"image": Clip(frames_THW, 0.04, (0.5, 0.5), "US")})
    return Entry(item(patient), measure_facts(given, prepare_clip(frames_THW)))


def manifest_of(items: Sequence[Item], *, withdrawn: int = 0) -> Manifest:
    """Return a manifest of items under the brain recipe."""
    return Manifest(recipe=SETTINGS, items=tuple(items), withdrawn=withdrawn)


def intake_of(entries: Sequence[Entry], **changes: object) -> IngestReport:
    """Return what an intake reports of these entries."""
    manifest = manifest_of([entry.item for entry in entries])
    report = {
        "cohort": "main",
        "settings": SETTINGS,
        "files": len(entries),
        "sources": len(entries),
        "items": len(entries),
        "patients": len({entry.item.subject for entry in entries}),
        "anew": len(entries),
        "version": 1,
        "digest": manifest.digest,
        "changed": True,
        "report": Path("report.html"),
    }
    return IngestReport(**{**report, **changes})  # type: ignore[arg-type]
