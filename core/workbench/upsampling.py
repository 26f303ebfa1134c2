"""Scans of thick slices, or with gaps, to the full grid of a model: InverseSR (Wang et al. 2023).

Axes: B C D H W of an image, K conditions.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Literal, NamedTuple

import numpy as np
import torch

from vitrael.core.data.nifti import encode_nifti, read_nifti
from vitrael.core.data.scan import Scan
from vitrael.core.digest import Digest, digest_bytes, digest_file, digest_json
from vitrael.core.errors import DataError, ScanError
from vitrael.core.models.brain_ldm import latent_denoiser, latent_levels
from vitrael.core.sampling.inverse import InversionSettings, Prior, SuperResolver
from vitrael.core.sampling.operators import SliceMask, ThickSlices, VoxelMask
from vitrael.core.workbench.covariates import scale_values, unscale_values
from vitrael.core.workbench.inputs import (
    Refused,
    read_record,
    reason_of,
    stem_of,
    take_each,
    tell_unreadable,
    write_record,
)
from vitrael.core.workbench.masked import HiddenVoxels, place_masked
from vitrael.core.workbench.progress import Tell, silent
from vitrael.core.workbench.thick import AxisName, ProfileName, find_slices, place_slices

if TYPE_CHECKING:
    from vitrael.core.geometry import Affine
    from vitrael.core.models.nets.autoencoder import KLCodec
    from vitrael.core.sampling.operators import Operator
    from vitrael.core.workbench.folder import Model, ModelDocument

MeasuredName = Literal["thick", "thin", "masked"]
"""Thick slices, thin ones with gaps, or what a mask leaves."""

_GUESS: Final = "what was not measured is the guess of a model"
_MIDDLE: Final = 0.5
_DIGITS: Final = 12
"""Of a digest in base 16."""
_STEPS: Final = 46
"""Evaluations of the network in a search over noise, as in the paper."""


@dataclass(frozen=True, slots=True)
class UpsamplingOrder:
    """How scans are upsampled; None: as the scan itself tells."""

    strategy: Literal["latent", "noise"] = "latent"
    thickness_mm: float | None = None
    factor: int | None = None
    axis: AxisName | None = None
    profile: ProfileName = "thick"
    hidden: HiddenVoxels | None = None
    """What was not measured of scans that lie on the model's grid: no slices are looked for."""
    prepared: bool = False
    """The scans show a brain alone, with intensities in [0, 1]."""
    known: Mapping[str, float] = field(default_factory=dict)
    """Covariates of the patient, in units; the others are searched."""
    settings: InversionSettings = field(default_factory=InversionSettings)
    steps: int = _STEPS
    seed: int = 0


@dataclass(frozen=True, slots=True)
class Upsampled:
    """One file that was written."""

    number: int
    source: Path
    path: Path
    digest: Digest
    axis: int | None
    """From slice to slice; None where a mask told what was measured."""
    factor: int
    measured: MeasuredName
    is_stretched: bool
    """Whether the slices were taken as thicker or thinner than they are by more than 2 %."""
    tilt_deg: float
    """By how much the scan's own axes, and those of the result, are turned from the body's."""
    loss: float
    """Between what was acquired and what the result would give."""
    condition: Mapping[str, float]
    """Covariates that were found, in units; empty where none were searched."""
    cut_frac: float = 0.0
    """Share of the brain that lies outside the model's grid."""
    kept: bool = False
    """Whether it was there already, whole, made of the same scan in the same way."""


def upsample_files(
    model: Model,
    files: Sequence[Path],
    to: Path,
    order: UpsamplingOrder,
    *,
    tell: Tell = silent,
    written: Callable[[Upsampled], None] | None = None,
    refused: Callable[[Refused], None] | None = None,
) -> tuple[list[Upsampled], list[Refused]]:
    """Write each scan on the model's grid into a folder, and return what was and was not done.

    A file that cannot be used stops none of the others, and what is finished is on disk: it is
    kept when the same is asked for again, and nothing else is written over. The result lies where
    the scan lies in the world. Raises StorageError, which names the files that are finished, when
    the disk refuses.
    """
    return take_each(
        files,
        lambda number, path: _upsample_file(
            model, order, _Job(number, path, to / result_name(path)), tell=tell
        ),
        name=result_name,
        twice="and both would be written to one place",
        finished=written,
        refused=refused,
    )


def result_name(path: Path) -> str:
    """Return what the result of a file is called: in BIDS, with ``desc-upsampled``."""
    stem = stem_of(path)
    head, under, contrast = stem.rpartition("_")
    if under and contrast in {"T1w", "T1"}:
        return f"{head}_desc-upsampled_{contrast}.nii.gz"
    return f"{stem}_upsampled.nii.gz"


class _Job(NamedTuple):
    """One file: which, and where its result goes."""

    number: int
    source: Path
    path: Path

    @property
    def record(self) -> Path:
        """Where it stands how the result was made."""
        return self.path.with_name(f"{stem_of(self.path)}.json")


class _Measured(NamedTuple):
    """What was measured of a scan, and how."""

    name: MeasuredName
    low_CDHW: np.ndarray
    affine: Affine
    """Of the model's grid."""
    operator: Operator
    axis: int | None = None
    factor: int = 1
    is_stretched: bool = False
    tilt_deg: float = 0.0
    cut_frac: float = 0.0
    gain: float = 1.0


def _measure(scan: Scan, document: ModelDocument, order: UpsamplingOrder) -> _Measured:
    if order.hidden is not None:
        low_CDHW = place_masked(scan, order.hidden, document, prepared=order.prepared)
        operator = VoxelMask(torch.from_numpy(~order.hidden.hidden_DHW))
        return _Measured("masked", low_CDHW, scan.affine, operator)
    slices = find_slices(
        scan,
        document,
        thickness_mm=order.thickness_mm,
        factor=order.factor,
        axis=order.axis,
        profile=order.profile,
    )
    placed = place_slices(scan, slices, document, prepared=order.prepared)
    return _Measured(
        slices.profile,
        placed.low_CDHW,
        placed.affine,
        SliceMask(slices.axis, slices.factor, slices.first)
        if slices.profile == "thin"
        else ThickSlices(slices.axis, slices.factor),
        slices.axis,
        slices.factor,
        slices.is_stretched,
        slices.tilt_deg,
        placed.cut_frac,
        placed.gain,
    )


def _upsample_file(
    model: Model, order: UpsamplingOrder, job: _Job, *, tell: Tell
) -> Upsampled | Refused:
    """Return what was made of one file, now or before, or why it cannot be used."""
    try:
        source = digest_file(job.source)
        key = _key_of(model.document, source, order)
        record = read_record(job.record, key, [job.path])
        if record is not None:
            return _recall(record, job)
        scan = read_nifti(job.source, label="it")
        return _upsample(model, scan, order, job, source=source, key=key, tell=tell)
    except ScanError as error:
        return Refused(job.number, job.source, reason_of(error))
    except DataError as error:
        return Refused(job.number, job.source, error.what)
    except OSError as error:
        return Refused(job.number, job.source, tell_unreadable(error))


def _key_of(document: ModelDocument, source: Digest, order: UpsamplingOrder) -> Digest:
    """Return the name of a result: equal names, equal results, wherever the file stands."""
    hidden = order.hidden
    facts = {
        "strategy": order.strategy,
        "thickness_mm": order.thickness_mm,
        "factor": order.factor,
        "axis": order.axis,
        "profile": order.profile,
        "hidden": None
        if hidden is None
        else [digest_bytes(np.packbits(hidden.hidden_DHW).tobytes()), hidden.affine.tolist()],
        "prepared": order.prepared,
        "known": dict(order.known),
        "settings": asdict(order.settings),
        "steps": order.steps,
        "seed": order.seed,
    }
    return digest_json([document.digest, source, facts])


def _recall(record: Mapping[str, Any], job: _Job) -> Upsampled:
    """Return what was found when the result was made; ScanError where the record was changed."""
    try:
        return Upsampled(
            number=job.number,
            source=job.source,
            path=job.path,
            digest=digest_file(job.path),
            kept=True,
            **{name: record[name] for name in _FACTS},
        )
    except KeyError:
        raise ScanError(
            "the record of its result cannot be used",
            why="it was changed, or written by another version",
            fix="remove both",
        ) from None


_FACTS: Final = (
    "axis",
    "factor",
    "measured",
    "is_stretched",
    "tilt_deg",
    "loss",
    "condition",
    "cut_frac",
)
"""Of an Upsampled: what its record tells."""


def _upsample(
    model: Model,
    scan: Scan,
    order: UpsamplingOrder,
    job: _Job,
    *,
    source: Digest,
    key: Digest,
    tell: Tell,
) -> Upsampled:
    document = model.document
    seen = _measure(scan, document, order)
    device = next(model.codec.parameters()).device
    resolver = build_resolver(model, seen.operator, order, number=job.number, tell=tell)
    low = torch.from_numpy(seen.low_CDHW[None]).to(device)
    found = resolver.invert(low, first=_number_of(source))
    image_CDHW = found.image[0].float().clamp(0, 1).cpu().numpy() * np.float32(seen.gain)
    result = Scan(np.ascontiguousarray(image_CDHW), seen.affine, "T1w")
    data = encode_nifti(result, dtype="float32", compressed=True)
    condition: dict[str, float] = {}
    if found.condition is not None:
        values = unscale_values(found.condition.cpu().numpy(), document.covariates)[0]
        names = [covariate.name for covariate in document.covariates]
        condition = dict(zip(names, map(float, values), strict=True))
    upsampled = Upsampled(
        number=job.number,
        source=job.source,
        path=job.path,
        digest=digest_bytes(data),
        axis=seen.axis,
        factor=seen.factor,
        measured=seen.name,
        is_stretched=seen.is_stretched,
        tilt_deg=seen.tilt_deg,
        loss=float(found.restarts.min(dim=0).values[0]),
        condition=condition,
        cut_frac=seen.cut_frac,
    )
    facts = {name: value for name, value in asdict(upsampled).items() if name in _FACTS}
    facts |= {"Model": document.digest, "Note": _GUESS}
    write_record(
        job.record, key, facts, files={job.path: data}, what=f"the result of file {job.number}"
    )
    return upsampled


def _number_of(source: Digest) -> int:
    """Return a number that names the noise of a scan: the same wherever it stands in a list."""
    return int(source.removeprefix("sha256:")[:_DIGITS], 16)


def build_resolver(
    model: Model,
    operator: Operator,
    order: UpsamplingOrder,
    *,
    number: int = 1,
    tell: Tell = silent,
) -> SuperResolver:
    """Return the Predictor of full images that a model is for one kind of measurement."""
    document = model.document
    device = next(model.codec.parameters()).device
    part = document.system.teacher.model_copy(
        update={"sampler": "ddim", "sampling_steps": min(order.steps, _most_steps(model))}
    )
    condition, free = start_condition(model, order.known)
    return SuperResolver(
        decode=unclipped_decoder(model.codec),
        operator=operator,
        latent_shape=tuple(model.codec.latent_shape(document.grid_vox)),
        prior=Prior(
            denoiser=latent_denoiser(model.denoiser, part),
            sigmas=latent_levels(part).to(device),
            condition=torch.from_numpy(condition).to(device),
            free=torch.from_numpy(free),
        ),
        strategy=order.strategy,
        settings=order.settings,
        seed=order.seed,
        progress=lambda done, total: tell(f"upsample file {number}", done, total),
    )


def start_condition(model: Model, known: Mapping[str, float]) -> tuple[np.ndarray, np.ndarray]:
    """Return where the search begins ``[K]``, and which entries are searched ``[K]``.

    What is not known begins in the middle of its range.
    """
    covariates = model.document.covariates
    condition = np.full(len(covariates), _MIDDLE, dtype=np.float32)
    free = np.ones(len(covariates), dtype=bool)
    for column, covariate in enumerate(covariates):
        if covariate.name in known:
            value = np.array([[known[covariate.name]]])
            condition[column] = scale_values(value, [covariate])[0, 0]
            free[column] = False
    return condition, free


def unclipped_decoder(codec: KLCodec) -> Callable[[torch.Tensor], torch.Tensor]:
    """Return latents to images, not clipped: where a value is clipped no gradient comes back."""

    def decode(z: torch.Tensor) -> torch.Tensor:
        shape = (1, -1, *[1] * (z.ndim - 2))
        scaled = z * codec.latent_std.reshape(shape) + codec.latent_mean.reshape(shape)
        return codec.reconstruct(scaled)

    return decode


def _most_steps(model: Model) -> int:
    return model.document.system.teacher.timesteps
