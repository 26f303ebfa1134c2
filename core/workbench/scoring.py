"""How foreign local scans are to a model: scores, p-values, and maps on the model's grid.

Axes: B images, C channels, D H W space, K conditions.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import torch

from vitrael.core.data.nifti import write_nifti
from vitrael.core.data.scan import Scan
from vitrael.core.errors import ConfigError, DataError, ScanError
from vitrael.core.models.brain_ldm import latent_denoiser, trained_sigmas
from vitrael.core.sampling.denoisers import NULL_CONDITION
from vitrael.core.scoring.calibration import Calibration, read_calibration
from vitrael.core.scoring.reconstruction import Reconstructor, StartPlan, spread_starts
from vitrael.core.scoring.scorer import ErrorMaps, ReconstructionScorer, calibrate
from vitrael.core.workbench.folder import CODEC, DENOISER
from vitrael.core.workbench.inputs import Input, Refused, read_inputs, stem_of
from vitrael.core.workbench.progress import Tell, silent

if TYPE_CHECKING:
    from vitrael.core.configs import DiffusionConfig
    from vitrael.core.digest import Digest
    from vitrael.core.models.nets.autoencoder import KLCodec
    from vitrael.core.models.nets.unet import HybridUNet
    from vitrael.core.workbench.folder import Model, ModelDocument
    from vitrael.core.workbench.intake import Rows

_STARTS: Final = 7
_STEPS: Final = 10
_BATCH_IMAGES: Final = 4


@dataclass(frozen=True, slots=True)
class Scored:
    """What a model thinks of one file."""

    number: int
    path: Path
    scores: Mapping[str, float]
    """By the names of ``core.scoring.calibration.SCORES``; higher is more foreign."""
    p_values: Mapping[str, float]
    """Approximately conformal: how often a familiar scan scores as high."""
    z: Mapping[str, float]
    """Each part of the scores, in standard deviations of familiar scans."""
    maps: tuple[Path, ...] = ()


def calibrate_scorer(
    codec: KLCodec,
    denoiser: HybridUNet,
    part: DiffusionConfig,
    held: Rows,
    *,
    identity: Mapping[str, str],
    usual_K: Sequence[float],
    seed: int,
    tell: Tell = silent,
) -> Calibration:
    """Return the calibration of a model's scorer by scans that it has not learned from.

    The model is asked for nothing where it has learned to draw so, else for ``usual_K``. Raises
    DataError for fewer than ten scans.
    """
    condition = (NULL_CONDITION,) * len(usual_K) if part.condition_dropout else tuple(usual_K)
    starts = min(_STARTS, part.timesteps)
    plan = StartPlan(
        levels=spread_starts(trained_sigmas(part), starts),
        steps=_STEPS,
        seed=seed,
        condition_K=tuple(map(float, condition)),
    )
    reconstructor = _reconstructor(codec, denoiser, part, plan, identity)

    def batches() -> Iterator[torch.Tensor]:
        for first in range(0, len(held), _BATCH_IMAGES):
            rows = list(range(first, min(first + _BATCH_IMAGES, len(held))))
            yield torch.from_numpy(held.images.batch(rows))
            tell("calibrate the scorer", rows[-1] + 1, len(held))

    return calibrate(reconstructor, batches())


def identity_of(files: Mapping[str, Digest]) -> dict[str, str]:
    """Return whose scores they are: the digests of the weights."""
    return {part: str(files[f"{part}.safetensors"]) for part in (CODEC, DENOISER)}


def open_scorer(model: Model) -> ReconstructionScorer:
    """Return the Scorer of a model; ConfigError for one that was never calibrated."""
    document = model.document
    if document.scorer is None or not model.scorer:
        raise ConfigError(
            "the model has no scorer",
            why="it was not calibrated: fewer than ten scans were held out, or it was imported",
            fix="train it on more patients, or with a larger data.validation_frac",
        )
    calibration = read_calibration(model.scorer, document.scorer)
    plan = _read_plan(document)
    part = document.system.teacher
    identity = identity_of(document.files)
    reconstructor = _reconstructor(model.codec, model.denoiser, part, plan, identity)
    return ReconstructionScorer(reconstructor, calibration)


def score_files(
    model: Model,
    files: Sequence[Path],
    *,
    maps: Path | None = None,
    prepared: bool = False,
    tell: Tell = silent,
    scored: Callable[[Scored], None] | None = None,
) -> tuple[list[Scored], list[Refused]]:
    """Return the scores of files, and those that cannot be used with their reasons.

    With ``maps`` two NIfTI files for each lie in that folder, where its scan lies in the world:
    the error, and the error in standard deviations of familiar scans. A file that cannot be used
    stops none of the others.
    """
    scorer = open_scorer(model)
    done: list[Scored] = []
    refused: list[Refused] = []
    names: dict[str, int] = {}
    for read in read_inputs(files, model.document, prepared=prepared):
        if isinstance(read, Refused):
            refused.append(read)
        elif maps is not None and stem_of(read.path) in names:
            reason = f"file {names[stem_of(read.path)]} has the same name, so would its maps"
            refused.append(Refused(read.number, read.path, reason))
        else:
            names[stem_of(read.path)] = read.number
            try:
                result = _score(scorer, read, maps)
            except (DataError, ScanError) as error:
                refused.append(Refused(read.number, read.path, error.what))
                continue
            done.append(result)
            if scored is not None:
                scored(result)
        tell("score files", read.number, len(files))
    return done, refused


def _score(scorer: ReconstructionScorer, read: Input, maps: Path | None) -> Scored:
    image = torch.from_numpy(np.ascontiguousarray(read.image_CDHW[None]))
    written: tuple[Path, ...] = ()
    if maps is None:
        parts = scorer.score_parts(image)
    else:
        parts, errors = scorer.judge(image)
        written = _write_maps(errors, read, maps)
    return Scored(
        number=read.number,
        path=read.path,
        scores={name: float(value[0]) for name, value in parts.score_B.items()},
        p_values={name: float(value[0]) for name, value in parts.p_value_B.items()},
        z={name: float(value) for name, value in zip(parts.names, parts.z_BF[0], strict=True)},
        maps=written,
    )


def _write_maps(errors: ErrorMaps, read: Input, folder: Path) -> tuple[Path, ...]:
    written = []
    for name, map_B in (("error", errors.raw), ("zscore", errors.standardized)):
        path = folder / f"{stem_of(read.path)}_{name}.nii.gz"
        image_CDHW = np.ascontiguousarray(map_B.float().numpy())
        write_nifti(Scan(image_CDHW, read.affine, name), path)
        written.append(path)
    return tuple(written)


def _reconstructor(
    codec: KLCodec,
    denoiser: HybridUNet,
    part: DiffusionConfig,
    plan: StartPlan,
    identity: Mapping[str, str],
) -> Reconstructor:
    return Reconstructor(
        codec=codec,
        denoiser=latent_denoiser(denoiser, part),
        plan=plan,
        identity=identity,
        batch_images=_BATCH_IMAGES,
        decode=codec.decode_in_parts,
        device=next(codec.parameters()).device,
    )


def _read_plan(document: ModelDocument) -> StartPlan:
    try:
        facts: dict[str, Any] = dict((document.scorer or {})["fitted_with"])
        return StartPlan(
            levels=tuple(map(float, facts["levels"])),
            steps=int(facts["steps"]),
            seed=int(facts["seed"]),
            condition_K=tuple(map(float, facts["condition"])),
        )
    except (KeyError, TypeError, ValueError) as error:
        raise ConfigError(
            "the model's scorer cannot be used",
            why="model.json does not tell how it was calibrated",
            fix="copy the folder again",
        ) from error
