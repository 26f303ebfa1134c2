"""What a worker process does with one source: read, check, bring to the recipe, write the shard.

Nothing of a source's names enters the outcome. A source that cannot be used gives a reason, one
clause without a path, a name or a value.
"""

from __future__ import annotations

import errno
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from vitrael.client.site.ingest.dicom_read import (
    Converter,
    blacked_out,
    read_dicom_header,
    read_series,
)
from vitrael.client.site.ingest.facts import measure_facts
from vitrael.client.site.ingest.findings import COVARIATE_WORDS
from vitrael.client.site.ingest.montage import thumbnail
from vitrael.client.site.ingest.reasons import clause
from vitrael.core.data.cache import write_shard
from vitrael.core.data.dicom.series import SeriesPlan
from vitrael.core.data.manifest import COVARIATE_BOUNDS
from vitrael.core.data.nifti import read_mask, read_nifti, read_orientation
from vitrael.core.data.pictures import read_picture_file
from vitrael.core.data.planar import Clip, Picture
from vitrael.core.data.recipes import RecipeInput, RecipeSettings, prepare
from vitrael.core.data.scan import Scan
from vitrael.core.data.sources import Kind
from vitrael.core.data.video import read_video
from vitrael.core.errors import DISK_FULL, CohortError, ScanError, storage_error
from vitrael.privacy.deidentify import count_removed
from vitrael.privacy.pixels import read_site_mask

_TOO_LARGE = "it does not fit into memory"
_MAKE_ROOM = "make room on the disk of temporary files and run the command again"


@dataclass(frozen=True, slots=True, repr=False)
class PrepareJob:
    """Everything that a worker needs for one source."""

    source: str
    """Its code."""
    kind: Kind
    images: Mapping[str, tuple[Path, ...]]
    masks: Mapping[str, Path]
    settings: RecipeSettings
    shards: Path
    pixel_mask: Path | None = None
    """A picture that the site names: what is not 0 may be seen."""
    plans: Mapping[str, SeriesPlan] = field(default_factory=dict)
    """How the DICOM series are read, by the roles of the images."""
    converter: Converter = "own"


@dataclass(frozen=True, slots=True, repr=False)
class Outcome:
    """What became of a source."""

    reason: str = ""
    """Why it cannot be used; empty when it can."""
    taken: Mapping[str, Any] = field(default_factory=dict)
    """``shard``, ``digest``, ``size_bytes``, ``affine``, ``unit``, ``frame_s``, ``measured``,
    ``notes``, ``removed`` and ``facts``: JSON values."""
    thumbnail: bytes = b""
    settled: bool = True
    """False where another try may end otherwise: it is then tried again by the next intake."""


def unsettled(reason: str) -> Outcome:
    """Return the outcome of a source that failed for a reason that may pass."""
    return Outcome(reason=reason, settled=False)


def prepare_source(job: PrepareJob) -> Outcome:
    """Return the outcome of one source; its shard is on disk when this returns.

    Raises StorageError when the disk is full: then nothing else would succeed either.
    """
    removed: Counter[str] = Counter()
    try:
        given = read_input(job, removed)
        prepared = prepare(given, job.settings)
        _demand_possible(prepared.measured)
        facts = measure_facts(given, prepared, orientation=_read_orientation(job))
        picture = thumbnail(prepared)
    except ScanError as error:
        return Outcome(reason=clause(error))
    except MemoryError:
        return unsettled(_TOO_LARGE)
    except OSError as error:
        if error.errno in DISK_FULL:
            raise storage_error("a file on the way", error, fix=_MAKE_ROOM) from None
        return unsettled(_TOO_LARGE if error.errno == errno.ENOMEM else "it cannot be opened")
    except Exception as error:  # noqa: BLE001 - the process boundary: one bad file among thousands
        return unsettled(f"it cannot be read: unexpected {type(error).__name__}")
    try:
        shard = write_shard(job.shards, prepared.arrays, store="int16")
    except CohortError as error:  # its values; a full disk is a StorageError and ends the intake
        return Outcome(reason=clause(error))
    return Outcome(
        taken={
            "shard": shard.name,
            "digest": shard.digest,
            "size_bytes": shard.size_bytes,
            "affine": prepared.affine.tolist(),
            "unit": prepared.unit,
            "frame_s": prepared.frame_s,
            "measured": dict(prepared.measured),
            "notes": list(prepared.notes),
            "removed": dict(removed),
            "facts": facts.model_dump(mode="json"),
        },
        thumbnail=picture,
    )


def _demand_possible(measured: Mapping[str, float]) -> None:
    """Raise ScanError where a measurement says that this is no image of the recipe's kind."""
    for name, value in measured.items():
        low, high = COVARIATE_BOUNDS[name]
        if not low <= value <= high:
            raise ScanError(
                f"its {COVARIATE_WORDS[name]} is impossible",
                why=f"what was measured is not between {low:g} and {high:g}",
            )


def _read_orientation(job: PrepareJob) -> str | None:
    """Return how the first image of a source lies in its file; a DICOM series has no such order."""
    if job.kind != "nifti":
        return None
    return read_orientation(next(iter(job.images.values()))[0], label="it")


def read_input(job: PrepareJob, removed: Counter[str]) -> RecipeInput:
    """Return the images and masks of a source; raise ScanError for what cannot be read.

    ``removed`` counts what de-identification leaves out of the first header of each series.
    """
    images = {name: _read_image(job, name, paths, removed) for name, paths in job.images.items()}
    masks = {name: read_mask(path) for name, path in job.masks.items()}
    return RecipeInput(
        images=images,
        masks={name: mask for name, mask in masks.items() if mask is not None},
        unmarked=frozenset(name for name, mask in masks.items() if mask is None),
    )


def _read_image(
    job: PrepareJob, name: str, paths: tuple[Path, ...], removed: Counter[str]
) -> Scan | Clip | Picture:
    if job.kind == "nifti":
        return read_nifti(paths[0], label="it", modality=name)
    if job.kind in {"video", "picture"}:
        visible = None if job.pixel_mask is None else read_site_mask(job.pixel_mask)
        if job.kind == "video":
            return blacked_out(read_video(paths[0]), visible)
        return blacked_out(read_picture_file(paths[0]), visible)
    header = read_dicom_header(paths[0])
    removed.update(count_removed(header))
    return read_series(
        paths,
        job.plans[name],
        header=header,
        modality=name,
        mask=job.pixel_mask,
        converter=job.converter,
    )
