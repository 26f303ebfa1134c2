"""Samples of a model as a folder of files: laid out as in BIDS, each with what was asked of it.

::

    sub-syn0001/anat/sub-syn0001_T1w.nii.gz   the image
    sub-syn0001/anat/sub-syn0001_T1w.json     what was asked, measured, and the image's digest
    participants.tsv  participants.json  dataset_description.json  README  .bidsignore
    manifest.json                             request, and every image with its digest

Each sample has a seed of its own, so shards that write into one folder make what one process
makes; whoever finds all samples there writes the tables. What is there and whole is kept.
"""

from __future__ import annotations

import csv
import io
import json
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from vitrael.core.data.measure import measure_volumes
from vitrael.core.data.nifti import encode_nifti
from vitrael.core.data.scan import Scan
from vitrael.core.digest import Digest, digest_bytes, digest_file, digest_json, write_atomically
from vitrael.core.errors import ScanError, StorageError, storage_error
from vitrael.core.geometry import Affine
from vitrael.core.records import SampleRequest
from vitrael.core.version import package_version
from vitrael.core.workbench.covariates import Covariate
from vitrael.core.workbench.progress import Tell, silent

if TYPE_CHECKING:
    from vitrael.core.configs import SamplerName
    from vitrael.core.workbench.generation import FrugalGenerator

MANIFEST: Final = "manifest.json"
_WAITING: Final = 2
"""Batches that may wait for the disk while the next one is drawn."""
_MEASURED: Final = ("ventricle_ml", "brain_ml")


@dataclass(frozen=True, slots=True, eq=False)
class SetRequest:
    """A whole set: what is asked of which model, how it is drawn. Shards do not enter."""

    model: Digest
    covariates: tuple[Covariate, ...]
    condition_BK: np.ndarray
    """float32; every entry -1 for a set that nothing is asked of."""
    asked: tuple[Mapping[str, float], ...]
    """In units, row by row; empty where nothing is asked."""
    seed: int
    sampler: SamplerName
    steps: int
    guidance: float = 1.0
    origin: str = "trained"
    """Where the model's weights come from, and what it says of itself: told with the set. The
    model's digest stands for both, so they are no part of a sample's name."""
    notes: tuple[str, ...] = ()

    def __len__(self) -> int:
        """Return the number of samples."""
        return len(self.condition_BK)

    def describe(self) -> dict[str, Any]:
        """Return what all samples have in common."""
        return {
            "model": self.model,
            "seed": self.seed,
            "sampler": self.sampler,
            "steps": self.steps,
            "guidance": self.guidance,
        }

    def key(self, index: int) -> Digest:
        """Return the name of one sample: equal names, equal samples."""
        row = self.condition_BK[index].astype(float).tolist()
        return digest_json([self.describe(), index, row])


@dataclass(frozen=True, slots=True)
class Drawn:
    """What became of a shard."""

    drawn: int
    kept: int
    """That were there already."""
    skipped: Mapping[int, str]
    """Index -> why the sample could not be written."""
    is_whole: bool
    """Whether all samples of the set are there, with their tables."""


def image_path(index: int) -> str:
    """Return where a sample lies; indices count from 0, names from 1."""
    subject = f"sub-syn{index + 1:04d}"
    return f"{subject}/anat/{subject}_T1w.nii.gz"


def shard_of(count: int, shard: tuple[int, int]) -> range:
    """Return the indices of one of several shards, counted from 1: runs of about equal length."""
    number, shards = shard
    return range((number - 1) * count // shards, number * count // shards)


def draw_set(
    request: SetRequest,
    generator: FrugalGenerator,
    folder: Path,
    *,
    indices: range,
    tell: Tell = silent,
) -> Drawn:
    """Draw the samples of some indices into a folder, and write the tables when all are there.

    A sample that is there with its digest is kept. Images are measured and written by a thread
    while the next batch is drawn. Raises StorageError when the folder holds something else, and
    when the disk refuses; what was written stays and is kept by the next attempt.
    """
    demand_same_set(request, folder)
    wanted = [index for index in indices if not _is_whole(request, folder, index)]
    skipped: dict[int, str] = {}
    waiting: deque[Future[dict[int, str]]] = deque()
    done = len(indices) - len(wanted)
    tell("draw samples", done, len(indices))
    with ThreadPoolExecutor(max_workers=1, thread_name_prefix="write") as writer:
        for first, count in _runs(wanted, generator):
            rows = request.condition_BK[first : first + count]
            samples = generator.sample(SampleRequest(rows, seed=request.seed, first=first))
            waiting.append(
                writer.submit(
                    _write_batch, request, folder, first, samples.image_BCDHW, samples.affine
                )
            )
            while len(waiting) > _WAITING:
                skipped |= waiting.popleft().result()
            done += count
            tell("draw samples", done, len(indices))
        for future in waiting:
            skipped |= future.result()
    return Drawn(
        drawn=len(wanted) - len(skipped),
        kept=len(indices) - len(wanted),
        skipped=skipped,
        is_whole=finish_set(request, folder),
    )


def demand_same_set(request: SetRequest, folder: Path) -> None:
    """Raise StorageError when a folder holds files that are not samples of a request."""
    strange = StorageError(
        f"{folder} holds something else already",
        why="its files are no samples of this request",
        fix="choose another folder, or repeat model, seed, conditions and sampler of the first run",
    )
    if not folder.exists():
        return
    if not folder.is_dir():
        raise strange
    own = {image_path(index).split("/", 1)[0]: index for index in range(len(request))}
    about = {*_about(request), MANIFEST, "participants.tsv"}
    for path in folder.iterdir():
        if path.name in about or path.name.startswith(".partial-"):
            continue
        index = own.get(path.name)
        if index is None:
            raise strange
        sidecar = _read_sidecar(folder, index)
        if sidecar and sidecar.get("RequestDigest") != request.key(index):
            raise strange


def finish_set(request: SetRequest, folder: Path) -> bool:
    """Write tables and manifest when all samples are there; say whether they are.

    Every process that finds them all writes the same bytes.
    """
    sidecars = [_read_sidecar(folder, index) for index in range(len(request))]
    whole = [
        side
        for side, index in zip(sidecars, range(len(request)), strict=True)
        if side and side.get("RequestDigest") == request.key(index)
    ]
    if len(whole) < len(request):
        return False
    files = {image_path(index): side["ImageDigest"] for index, side in enumerate(whole)}
    manifest = {
        "format": "vitrael/samples/1",
        **request.describe(),
        "origin": request.origin,
        "notes": list(request.notes),
        "count": len(request),
        "covariates": [covariate.model_dump() for covariate in request.covariates],
        "files": files,
    }
    try:
        for name, text in {
            **_about(request),
            "participants.tsv": _participants(request, whole),
            MANIFEST: _json(manifest),
        }.items():
            write_atomically(folder / name, text.encode())
    except OSError as error:
        raise storage_error("the tables of the samples", error) from error
    return True


def _runs(indices: Sequence[int], generator: FrugalGenerator) -> Iterator[tuple[int, int]]:
    """Yield first and length of runs of neighbours, none longer than a batch is at the time."""
    place = 0
    while place < len(indices):
        end = place + 1
        while (
            end < len(indices)
            and indices[end] == indices[end - 1] + 1
            and end - place < generator.batch_images
        ):
            end += 1
        yield indices[place], end - place
        place = end


def _write_batch(
    request: SetRequest, folder: Path, first: int, image_BCDHW: np.ndarray, affine: Affine
) -> dict[int, str]:
    """Write samples with their sidecars; return why some could not be."""
    skipped: dict[int, str] = {}
    for index, image_CDHW in enumerate(image_BCDHW, start=first):
        try:
            scan = Scan(image_CDHW, affine, "T1w")
        except ScanError as error:
            skipped[index] = error.what
            continue
        volumes = measure_volumes(image_CDHW[None], affine)
        found = {name: float(ml[0]) for name, ml in zip(_MEASURED, volumes, strict=True)}
        data = encode_nifti(scan, dtype="float32", compressed=True)
        sidecar = {
            "Synthetic": True,
            "SampleIndex": index,
            "Asked": dict(request.asked[index]) if request.asked else None,
            "Measured": found,
            "ImageDigest": digest_bytes(data),
            "RequestDigest": request.key(index),
        }
        try:
            write_atomically(folder / image_path(index), data)
            write_atomically(_sidecar_path(folder, index), _json(sidecar).encode())
        except OSError as error:
            raise storage_error("a sample", error) from error
    return skipped


def _is_whole(request: SetRequest, folder: Path, index: int) -> bool:
    sidecar = _read_sidecar(folder, index)
    path = folder / image_path(index)
    if sidecar.get("RequestDigest") != request.key(index) or not path.is_file():
        return False
    return digest_file(path) == sidecar.get("ImageDigest")


def _sidecar_path(folder: Path, index: int) -> Path:
    return folder / image_path(index).replace(".nii.gz", ".json")


def _read_sidecar(folder: Path, index: int) -> dict[str, Any]:
    """Return what stands beside an image; nothing where it is missing or damaged."""
    try:
        sidecar = json.loads(_sidecar_path(folder, index).read_bytes())
    except (OSError, ValueError):
        return {}
    return sidecar if isinstance(sidecar, dict) else {}


def _participants(request: SetRequest, sidecars: Sequence[Mapping[str, Any]]) -> str:
    text = io.StringIO()
    table = csv.writer(text, delimiter="\t", lineterminator="\n")
    names = [covariate.name for covariate in request.covariates]
    asked, found = [f"asked_{name}" for name in names], [f"measured_{name}" for name in _MEASURED]
    table.writerow(["participant_id", "sample_index", "seed", *asked, *found])
    for index, sidecar in enumerate(sidecars):
        told = sidecar["Asked"] or {}
        values = [*(told.get(name) for name in names), *(sidecar["Measured"][n] for n in _MEASURED)]
        cells = ["n/a" if value is None else f"{value:.6g}" for value in values]
        table.writerow([image_path(index).split("/", 1)[0], index, request.seed, *cells])
    return text.getvalue()


def _about(request: SetRequest) -> dict[str, str]:
    """Return the files that say what the others are."""
    columns: dict[str, Any] = {
        "sample_index": {"Description": "row of the request, from 0"},
        "seed": {"Description": "of the request; with the index it decides the sample's noise"},
    }
    for covariate in request.covariates:
        about = {"Description": "what the model was asked for", "Units": covariate.unit}
        columns[f"asked_{covariate.name}"] = about
    for name in _MEASURED:
        about = {"Description": "measured on the image, never seen by the model", "Units": "ml"}
        columns[f"measured_{name}"] = about
    description = {
        "Name": "Synthetic T1-weighted brain volumes",
        "BIDSVersion": "1.9.0",
        "DatasetType": "derivative",
        "GeneratedBy": [{"Name": "vitrael", "Version": package_version()}],
        "ModelDigest": request.model,
        "ModelOrigin": request.origin,
        "Notes": list(request.notes),
    }
    return {
        "participants.json": _json(columns),
        "dataset_description.json": _json(description),
        "README": _readme(request),
        ".bidsignore": f"{MANIFEST}\n",
    }


def _readme(request: SetRequest) -> str:
    """Return what a person who finds the folder must know first."""
    lines = [
        "Synthetic T1-weighted brain volumes: nobody was scanned for them.",
        f"They were drawn from the {request.origin} model {request.model}.",
        "This set is no release: it comes without a proof that it tells nothing of a patient.",
        *(f"{note[:1].upper()}{note[1:]}".rstrip(".") + "." for note in request.notes),
    ]
    return "\n\n".join(lines) + "\n"


def _json(document: Mapping[str, Any]) -> str:
    return json.dumps(document, sort_keys=True, indent=1, allow_nan=False) + "\n"
