"""How foreign local scans are to a model: scores, p-values, and maps on the model's grid.

Axes: B images, C channels, D H W space, K conditions.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, NamedTuple

import numpy as np
import torch

from vitrael.core.data.nifti import encode_nifti
from vitrael.core.data.scan import Scan
from vitrael.core.digest import digest_file, digest_json
from vitrael.core.errors import ConfigError, DataError, ScanError
from vitrael.core.models.brain_ldm import latent_denoiser, trained_sigmas
from vitrael.core.sampling.denoisers import NULL_CONDITION
from vitrael.core.scoring.calibration import Calibration, read_calibration
from vitrael.core.scoring.reconstruction import Reconstructor, StartPlan, spread_starts
from vitrael.core.scoring.scorer import (
    ErrorMaps,
    ReconstructionScorer,
    ScoreParts,
    calibrate,
)
from vitrael.core.workbench.folder import CODEC, DENOISER
from vitrael.core.workbench.generation import within_memory
from vitrael.core.workbench.inputs import (
    Input,
    Refused,
    read_input,
    read_record,
    reason_of,
    stem_of,
    take_each,
    tell_unreadable,
    write_record,
)
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
_LARGER: Final = "give --device cpu, or a larger GPU"


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
    cut_frac: float = 0.0
    """Share of the brain that lies outside the model's grid."""
    kept: bool = False
    """Whether its maps were there already, whole, with the scores beside them."""


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
    refused: Callable[[Refused], None] | None = None,
) -> tuple[list[Scored], list[Refused]]:
    """Return the scores of files, and those that cannot be used with their reasons.

    With ``maps`` two NIfTI files for each lie in that folder, where its scan lies in the world:
    the error, and the error in standard deviations of familiar scans. Maps that are there are
    kept when they are of the same scan and model, and nothing is written over. A file that cannot
    be used stops none of the others. Where a GPU's memory does not hold a batch of restorations,
    they are done one by one from there on. Raises StorageError, which names the files that are
    finished, when the disk refuses, and ConfigError when not even one restoration fits; ``scored``
    and ``refused`` were told of each file before.
    """
    scorer = FrugalScorer(open_scorer(model))

    def score(number: int, path: Path) -> Scored | Refused:
        result = _score_file(model, scorer, path, maps, number=number, prepared=prepared)
        tell("score files", number, len(files))
        return result

    return take_each(
        files,
        score,
        name=None if maps is None else stem_of,
        twice="so would its maps",
        finished=scored,
        refused=refused,
    )


class FrugalScorer:
    """Judges images; restores them one by one once a GPU's memory did not hold several."""

    def __init__(self, scorer: ReconstructionScorer) -> None:
        """Take the scorer, whose batches are as large as it likes at first."""
        self._scorer = scorer
        self._is_least = False

    def judge(self, x: torch.Tensor, *, maps: bool) -> tuple[ScoreParts, ErrorMaps | None]:
        """Return the scores of images, and their error maps where they are wanted.

        Raises ConfigError when the memory does not hold the restoration of one image.
        """
        if self._is_least:
            with within_memory("the restoration of one image", fix=_LARGER):
                return self._judge(x, maps=maps)
        try:
            return self._judge(x, maps=maps)
        except (torch.OutOfMemoryError, MemoryError):
            pass  # what the attempt held is free once its frames are left
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
        self._scorer, self._is_least = self._scorer.one_by_one(), True
        return self.judge(x, maps=maps)

    def _judge(self, x: torch.Tensor, *, maps: bool) -> tuple[ScoreParts, ErrorMaps | None]:
        return self._scorer.judge(x) if maps else (self._scorer.score_parts(x), None)


class _Maps(NamedTuple):
    """Where the maps of a scan lie, and what stands beside them."""

    error: Path
    zscore: Path
    record: Path

    @classmethod
    def of(cls, path: Path, folder: Path) -> _Maps:
        stem = stem_of(path)
        ends = ("error.nii.gz", "zscore.nii.gz", "scores.json")
        return cls(*(folder / f"{stem}_{end}" for end in ends))

    @property
    def images(self) -> tuple[Path, Path]:
        return self.error, self.zscore


def _score_file(
    model: Model,
    scorer: FrugalScorer,
    path: Path,
    maps: Path | None,
    *,
    number: int,
    prepared: bool,
) -> Scored | Refused:
    """Return the scores of one file, computed or kept, or why it cannot be used."""
    place = None if maps is None else _Maps.of(path, maps)
    try:
        key = digest_json([model.document.digest, digest_file(path), prepared])
        kept = None if place is None else _recall(place, key, path, number=number)
        if kept is not None:
            return kept
        read = read_input(path, model.document, number=number, prepared=prepared)
        return read if isinstance(read, Refused) else _score(scorer, read, place, key=key)
    except ScanError as error:
        return Refused(number, path, reason_of(error))
    except DataError as error:
        return Refused(number, path, error.what)
    except OSError as error:
        return Refused(number, path, tell_unreadable(error))


def _recall(place: _Maps, key: Digest, path: Path, *, number: int) -> Scored | None:
    """Return the scores that stand beside whole maps; None where there are none yet."""
    record = read_record(place.record, key, place.images)
    if record is None:
        return None
    try:
        scores, p_values, z = (dict(record[name]) for name in ("scores", "p_values", "z"))
        cut_frac = float(record["cut_frac"])
    except (KeyError, TypeError, ValueError):
        raise ScanError("the scores beside its maps were changed", fix="remove both") from None
    return Scored(number, path, scores, p_values, z, place.images, cut_frac, kept=True)


def _score(scorer: FrugalScorer, read: Input, place: _Maps | None, *, key: Digest) -> Scored:
    image = torch.from_numpy(np.ascontiguousarray(read.image_CDHW[None]))
    parts, errors = scorer.judge(image, maps=place is not None)
    scored = Scored(
        number=read.number,
        path=read.path,
        scores={name: float(value[0]) for name, value in parts.score_B.items()},
        p_values={name: float(value[0]) for name, value in parts.p_value_B.items()},
        z={name: float(value) for name, value in zip(parts.names, parts.z_BF[0], strict=True)},
        maps=() if place is None else place.images,
        cut_frac=read.cut_frac,
    )
    if place is not None and errors is not None:
        _write_maps(errors, read, place, scored=scored, key=key)
    return scored


def _write_maps(
    errors: ErrorMaps, read: Input, place: _Maps, *, scored: Scored, key: Digest
) -> None:
    files = {}
    for path, map_B in zip(place.images, (errors.raw, errors.standardized), strict=True):
        scan = Scan(np.ascontiguousarray(map_B.float().numpy()), read.affine, "T1w")
        files[path] = encode_nifti(scan, dtype="float32", compressed=True)
    facts = {
        "scores": dict(scored.scores),
        "p_values": dict(scored.p_values),
        "z": dict(scored.z),
        "cut_frac": scored.cut_frac,
    }
    write_record(place.record, key, facts, files=files, what=f"the result of file {scored.number}")


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
