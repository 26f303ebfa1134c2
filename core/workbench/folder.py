"""The folder of a model: what it is, what it may be asked, and its weights; no code, no pickle.

::

    model.json             the ModelDocument
    codec.safetensors      denoiser.safetensors      scorer.safetensors (where it was calibrated)

A folder appears whole or not at all. What is read is held against the digests in ``model.json``.
"""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Literal

from pydantic import Field, ValidationError

from vitrael.core.configs import BrainLDMConfig, Positive, Section
from vitrael.core.data.files import demand_free
from vitrael.core.data.recipes import RecipeSettings
from vitrael.core.digest import Digest, digest_bytes, digest_json, write_atomically
from vitrael.core.errors import ConfigError, WeightsError, storage_error
from vitrael.core.geometry import Affine, centered_affine
from vitrael.core.weights import Tensors, load_weights, pack_tensors, unpack_tensors
from vitrael.core.workbench.covariates import Covariate

if TYPE_CHECKING:
    from vitrael.core.models.nets.autoencoder import KLCodec
    from vitrael.core.models.nets.unet import HybridUNet

DOCUMENT: Final = "model.json"
CODEC, DENOISER, SCORER = "codec", "denoiser", "scorer"
UNSCREENED: Final = (
    "nothing of it was screened or audited: keep it, and its samples, where the scans may be"
)
"""What stands in every model that was trained on scans: it is no release."""
_SUFFIX: Final = ".safetensors"


class Provenance(Section):
    """Where the weights come from."""

    package_version: str
    origin: Literal["trained", "imported"] = "trained"
    seed: int | None = None
    training_images: int | None = None
    """How many scans the networks have learned from."""
    perceptual: str = "none"
    """What the codec's perceptual term compared, such as ``gradients``."""
    critic: bool = False
    """Whether a discriminator judged the codec."""
    notes: tuple[str, ...] = ()


class ModelDocument(Section):
    """All that is known of a model beside its weights."""

    format: Literal["vitrael/model/1"] = "vitrael/model/1"
    system: BrainLDMConfig
    """Its ``teacher`` is the denoiser of the folder."""
    grid_vox: tuple[Positive, Positive, Positive]
    spacing_mm: float = Field(gt=0)
    recipe: RecipeSettings
    orientation: Literal["RAS", "LAS"] = "RAS"
    """Where the index axes of what the networks see point to; images are RAS in any case."""
    covariates: tuple[Covariate, ...]
    provenance: Provenance
    measured: dict[str, Any] = Field(default_factory=dict)  # JSON
    """What was found at the end of the training, by name."""
    scorer: dict[str, Any] | None = None  # JSON
    """How the scorer scores, where one was calibrated."""
    files: dict[str, Digest] = Field(default_factory=dict)
    """Name of each file of weights -> its digest."""

    @property
    def digest(self) -> Digest:
        """Name of the model by its content, the weights among it."""
        return digest_json(self.model_dump(mode="json"))

    @property
    def affine(self) -> Affine:
        """Voxels of the model's grid to RAS+ millimetres, its middle at the origin."""
        return centered_affine(self.grid_vox, spacing=self.spacing_mm)

    @property
    def takes_nothing(self) -> bool:
        """Whether it has learned to draw without a condition."""
        return self.system.teacher.condition_dropout > 0


@dataclass(frozen=True, slots=True, repr=False)
class Weights:
    """The tensors of a model, part by part."""

    codec: Tensors
    denoiser: Tensors
    scorer: Tensors = field(default_factory=dict)
    """Empty where none was calibrated."""

    def parts(self) -> Mapping[str, Tensors]:
        """Return the parts that there are by name."""
        named = {CODEC: self.codec, DENOISER: self.denoiser, SCORER: self.scorer}
        return {name: tensors for name, tensors in named.items() if tensors}


@dataclass(frozen=True, slots=True, repr=False)
class Model:
    """A model that is ready: networks with their weights, on a device, in evaluation mode."""

    document: ModelDocument
    codec: KLCodec
    denoiser: HybridUNet
    scorer: Tensors
    """Empty where none was calibrated."""


def write_model(document: ModelDocument, weights: Weights, folder: Path) -> ModelDocument:
    """Write a model's folder, whole or not at all, and return the document with its digests.

    ``folder`` may be missing or empty; StorageError when something lies in it, or the disk refuses.
    """
    demand_free(folder)
    files = {f"{name}{_SUFFIX}": pack_tensors(part) for name, part in weights.parts().items()}
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder.parent, prefix=f".{folder.name}-") as name:
            workshop = Path(name) / "model"
            workshop.mkdir()
            for file, data in files.items():
                write_atomically(workshop / file, data)
            digests = {file: digest_bytes(data) for file, data in sorted(files.items())}
            complete = document.model_copy(update={"files": digests})
            text = complete.model_dump_json(indent=1) + "\n"
            write_atomically(workshop / DOCUMENT, text.encode())
            if folder.is_dir():
                folder.rmdir()
            workshop.rename(folder)
    except OSError as error:
        raise storage_error("the folder of the model", error) from error
    return complete


def read_document(folder: Path) -> ModelDocument:
    """Return the document of a model's folder without opening its weights.

    Raises ConfigError for a folder that is none, or of another version.
    """
    path = folder / DOCUMENT
    try:
        return ModelDocument.model_validate_json(path.read_bytes())
    except OSError as error:
        raise ConfigError(
            f"{folder} is no model",
            why=f"it has no {DOCUMENT} that can be read",
            fix="give a folder that 'vitrael model train' or 'vitrael model import' has written",
        ) from error
    except ValidationError as error:
        fault = error.errors(include_url=False, include_input=False)[0]
        where = ".".join(map(str, fault["loc"])) or "the document"
        raise ConfigError(
            f"{path} cannot be used",
            why=f"{where}: {fault['msg']}",
            fix="use the version of vitrael that wrote it, or copy the folder again",
        ) from error


def read_tensors(folder: Path, document: ModelDocument, part: str) -> dict[str, Any]:
    """Return the tensors of one part, empty for one that the model does not have.

    Raises WeightsError for a file that is missing or not the one that ``model.json`` names.
    """
    file = f"{part}{_SUFFIX}"
    digest = document.files.get(file)
    if digest is None:
        if part == SCORER:
            return {}
        raise WeightsError(f"the model names no {file}", fix="copy the folder again")
    try:
        data = (folder / file).read_bytes()
    except OSError as error:
        raise WeightsError(
            f"{file} of the model cannot be read",
            why=error.strerror or "",
            fix="copy the folder again",
        ) from error
    if digest_bytes(data) != digest:
        raise WeightsError(
            f"{file} is not the file that {DOCUMENT} names",
            why="its digest is another: it was damaged, changed, or taken from another model",
            fix="copy the whole folder again",
        )
    return unpack_tensors(data)


def load_model(folder: Path, *, device: str = "cpu") -> Model:
    """Return a model from its folder, ready on a device.

    Raises ConfigError for a folder that is no model, WeightsError for weights that are damaged or
    do not fit: the first tensor that differs is named.
    """
    from vitrael.core.models.brain_ldm import build_codec, build_denoiser  # noqa: PLC0415

    document = read_document(folder)
    system = document.system
    codec = build_codec(system, seed=0)
    fit_weights(codec, read_tensors(folder, document, CODEC), part=CODEC)
    codec.mirrored = document.orientation == "LAS"
    denoiser = build_denoiser(system, system.teacher, seed=0)
    fit_weights(denoiser, read_tensors(folder, document, DENOISER), part=DENOISER)
    scorer = read_tensors(folder, document, SCORER)
    return Model(document, codec.to(device), denoiser.to(device), scorer)


def fit_weights(network: KLCodec | HybridUNet, tensors: Tensors, *, part: str) -> None:
    """Load tensors into a network; WeightsError names the part and the first that differs."""
    try:
        load_weights(network, tensors)
    except WeightsError as error:
        told = f"{error.what}, and {error.why}" if error.why else error.what
        raise WeightsError(
            f"the weights of the {part} do not fit: {told}",
            why="they are weights of another preset",
            fix=f"use weights and {DOCUMENT} of one model",
        ) from None
