"""A model from a folder of scans: prepare, codec, latents, denoiser, and how good it became.

Each step leaves what it has finished in the workshop, ``NAME.training`` beside the folder of the
model. A command that was killed goes on from there when it is given again; when the model is
written, the workshop is removed. Until then it holds prepared brains, their latents and what the
networks, the critic among them, have learned so far: it is as private as the scans.
"""

from __future__ import annotations

import fcntl
import os
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final

import torch

from vitrael.core.configs import TrainingConfig
from vitrael.core.data.cache import make_private_folder
from vitrael.core.data.files import demand_free
from vitrael.core.data.latent_cache import LatentCache
from vitrael.core.digest import Digest, digest_bytes, digest_json, write_atomically
from vitrael.core.errors import CohortError, StorageError, storage_error
from vitrael.core.models import SYSTEMS
from vitrael.core.models.brain_ldm import (
    LatentGenerator,
    build_codec,
    build_denoiser,
    draw_latents,
)
from vitrael.core.models.codec_learning import codec_learning
from vitrael.core.models.nets.autoencoder import KLCodec
from vitrael.core.models.nets.unet import HybridUNet
from vitrael.core.rng import stream, torch_stream
from vitrael.core.scoring.calibration import LEAST_IMAGES, Calibration
from vitrael.core.training.checkpoints import FileCheckpoints
from vitrael.core.training.compute import Compute
from vitrael.core.training.distributed import Ranks, join_ranks
from vitrael.core.training.loop import fit
from vitrael.core.version import lock_digest, package_version
from vitrael.core.weights import Tensors, load_weights, module_tensors, pack_tensors, unpack_tensors
from vitrael.core.workbench.batches import draw_images, encode_rows, set_latent_scale
from vitrael.core.workbench.folder import (
    CODEC,
    DENOISER,
    UNSCREENED,
    ModelDocument,
    Provenance,
    Weights,
    write_model,
)
from vitrael.core.workbench.generation import within_memory
from vitrael.core.workbench.intake import SHARDS, Rows, Share, part_by_patient, rows_of, take_in
from vitrael.core.workbench.progress import Tell, silent
from vitrael.core.workbench.quality import measure_ceiling, measure_obedience
from vitrael.core.workbench.recipe import ModelRecipe
from vitrael.core.workbench.scoring import calibrate_scorer

_LOCK: Final = "lock"
_WITHOUT_SCORER: Final = "give --no-scorer, or a larger GPU; what was trained is kept"
_LARGER: Final = (
    "give the command again on a larger GPU, where what was trained is kept, or with --device cpu, "
    "where it begins anew"
)


@dataclass(frozen=True, slots=True)
class TrainingOrder:
    """What is trained on what, where it goes, and where the arithmetic happens."""

    recipe: ModelRecipe
    scans: Path
    to: Path
    seed: int
    compute: Compute
    threads: int
    perceptual_weights: Path | None = None
    """Of MedicalNet, where the recipe asks for it."""
    scorer: bool = True
    """Whether one is calibrated: it keeps a score of each held-out scan and two mean images."""

    @property
    def workshop(self) -> Path:
        """Where unfinished work lies."""
        return self.to.with_name(f"{self.to.name}.training")


@dataclass(frozen=True, slots=True)
class Trained:
    """What came of an order."""

    document: ModelDocument
    scans: int
    patients: int
    left_out: Mapping[str, int]
    """Reason -> how many files or visits."""
    clipped: Mapping[str, int]
    """Covariate -> how many scans lie outside of its range and count as its end."""
    cut: int = 0
    """How many brains reach beyond the grid, so that their volumes are too small."""
    leftover: Path | None = None
    """The workshop, where it could not be removed: it holds prepared brains."""


def train_model(order: TrainingOrder, *, tell: Tell = silent) -> Trained | None:
    """Train a model, measure it, write its folder; go on with what an earlier attempt has left.

    Equal scans, recipe, seed, threads and machine give equal weights, whether or not the command
    was killed in between. Under torchrun the processes share the work; all but the first return
    None. Raises CohortError for a folder that cannot be used, StorageError when something lies
    where the model shall go or another command trains it, DataError when a loss is not finite,
    ConfigError where the memory does not hold a batch.
    """
    order = replace(order, to=order.to.resolve())  # "." has no name that a workshop could have
    demand_free(order.to)
    with ExitStack() as lock:
        return _train(order, lock, tell)


def _train(order: TrainingOrder, lock: ExitStack, tell: Tell) -> Trained | None:
    data, system = order.recipe.data, order.recipe.model
    with join_ranks(device=order.compute.device) as ranks:
        if ranks.is_first:
            lock.enter_context(_locked(order.workshop))
            demand_free(order.to)  # once more: who held the lock may have written it
        else:
            tell = silent
        course = _Course(order, ranks, tell)
        try:
            intake = take_in(
                order.scans, data.settings, workshop=order.workshop, share=course.share, tell=tell
            )
        except CohortError:
            if ranks.is_first and not (order.workshop / SHARDS).exists():
                shutil.rmtree(order.workshop, ignore_errors=True)  # it holds nothing of a scan
            raise
        learned, held = (
            rows_of(items, intake.shards, data.ordered)
            for items in part_by_patient(intake, data.validation_frac)
        )
        fix = _smaller(CODEC, system.codec.training)
        with within_memory("a batch of the codec's training", fix=fix):
            codec = course.train_codec(learned)
        fix = _smaller(DENOISER, system.teacher.training)
        with within_memory("a batch of the denoiser's training", fix=fix):
            denoiser = course.train_denoiser(codec, learned)
        course.share.meet(0)
        if not ranks.is_first:
            return None
    document = _finish(course, learned, held, codec, denoiser)
    shutil.rmtree(order.workshop, ignore_errors=True)
    return Trained(
        document=document,
        scans=len(intake.items),
        patients=intake.patients,
        left_out=intake.left_out,
        clipped=learned.clipped,
        cut=intake.cut,
        leftover=order.workshop if os.path.lexists(order.workshop) else None,
    )


@contextmanager
def _locked(workshop: Path) -> Iterator[None]:
    """Hold a workshop alone; StorageError where another process does, or the disk refuses.

    The lock ends with its process, however that ends.
    """
    try:
        make_private_folder(workshop)
        handle = os.open(workshop / _LOCK, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    except OSError as error:
        raise storage_error("the folder of unfinished work", error) from error
    try:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise StorageError(
                "another command trains this model",
                why="two would mix what they leave for the next attempt",
                fix="wait until it has ended, or choose another folder",
            ) from error
        except OSError as error:
            raise storage_error("the lock of unfinished work", error) from error
        yield
    finally:
        os.close(handle)


def _smaller(part: str, training: TrainingConfig) -> str:
    """Return what to set in a recipe, so that a batch needs less memory."""
    half = training.batch_images // 2
    if not half:
        return "choose a smaller model or a coarser grid, or give --device cpu, or a larger GPU"
    return (
        f"set batch_images = {half} and accumulated_batches = {2 * training.accumulated_batches} "
        f"in [model.{part}.training], or give --device cpu"
    )


class _Course:
    """The two trainings of an order, each found finished, begun, or not at all."""

    def __init__(self, order: TrainingOrder, ranks: Ranks, tell: Tell) -> None:
        self.order = order
        self.ranks = ranks
        self.tell = tell
        self.system = order.recipe.model
        self.device = order.compute.device
        self.share = Share(ranks.rank, ranks.count, self._meet)
        self.learning = codec_learning(
            self.system, seed=order.seed, weights=order.perceptual_weights, device=self.device
        )

    def train_codec(self, learned: Rows) -> KLCodec:
        """Return the codec with the scale of its latents."""
        config = self.system.codec.training
        codec = build_codec(self.system, seed=self.order.seed).to(self.device)
        key = self._codec_key(learned)

        def train() -> Tensors:
            fit(
                codec,
                self.learning.objective,
                draw_images(learned, device=self.device),
                config,
                length_images=config.length_images,
                rng=torch_stream(self.order.seed, "codec training"),
                progress=lambda done, total: self.tell("train codec", done, total),
                checkpoints=FileCheckpoints(self.order.workshop / "codec", key=key),
                bf16=self.order.compute.bf16,
                companion=self.learning.critic,
                ranks=self.ranks,
            )
            set_latent_scale(codec, self._encode(codec, learned, tell=self.tell)[0])
            return module_tensors(codec)

        load_weights(codec, self._keep("codec", key, train))
        return codec

    def train_denoiser(self, codec: KLCodec, learned: Rows) -> HybridUNet:
        """Return the denoiser of a codec's latents."""
        part = self.system.teacher
        denoiser = build_denoiser(self.system, part, seed=self.order.seed).to(self.device)
        key = digest_json([self._codec_key(learned), part.model_dump(mode="json")])

        def train() -> Tensors:
            mean, condition = self._encode(codec, learned, tell=silent)  # as a rule all are cached
            fit(
                denoiser,
                SYSTEMS[self.system.kind].objective(self.system, "teacher"),
                draw_latents(codec.scale(mean.to(self.device)), condition.to(self.device)),
                part.training,
                length_images=part.training.length_images,
                rng=torch_stream(self.order.seed, "denoiser training"),
                progress=lambda done, total: self.tell("train denoiser", done, total),
                checkpoints=FileCheckpoints(self.order.workshop / "denoiser", key=key),
                bf16=self.order.compute.bf16,
                ranks=self.ranks,
            )
            return module_tensors(denoiser)

        load_weights(denoiser, self._keep("denoiser", key, train))
        return denoiser

    def _codec_key(self, learned: Rows) -> Digest:
        compute = self.order.compute
        processes = [compute.device, compute.bf16, self.ranks.count]
        scans = [item.digest for item in learned.items]
        given = [scans, learned.condition_BK.tolist(), self.order.seed, self.learning.perceptual]
        config = self.system.codec.model_dump(mode="json")
        return digest_json([config, given, lock_digest(), processes])

    def _encode(
        self, codec: KLCodec, learned: Rows, *, tell: Tell
    ) -> tuple[torch.Tensor, torch.Tensor]:
        return encode_rows(
            codec,
            learned,
            cache=LatentCache(self.order.workshop / "latents"),
            name=self._codec_key(learned),
            share=self.share,
            tell=tell,
        )

    def _keep(self, part: str, key: str, train: Callable[[], Tensors]) -> Tensors:
        """Return what a finished training of this key has left, else train and leave it."""
        code = key.removeprefix("sha256:")[:16]
        path = self.order.workshop / f"{part}-{code}.safetensors"
        is_done = torch.tensor([path.is_file()], dtype=torch.float32, device=self.device)
        self.ranks.spread([is_done])  # all do what the first one does, or some would wait for ever
        if is_done:
            return unpack_tensors(path.read_bytes())
        tensors = train()
        if self.ranks.is_first:
            write_atomically(path, pack_tensors(tensors))
        return tensors

    def _meet(self, number: int) -> None:
        self.ranks.agree(number, "what is left to do", device=torch.device(self.device))


def _finish(
    course: _Course, learned: Rows, held: Rows, codec: KLCodec, denoiser: HybridUNet
) -> ModelDocument:
    """Measure what was trained, calibrate its scorer, and write the folder."""
    order, data = course.order, course.order.recipe.data
    weights = {CODEC: module_tensors(codec), DENOISER: module_tensors(denoiser)}
    calibration: Calibration | None = None
    if order.scorer and len(held) >= LEAST_IMAGES:
        with within_memory("the calibration of the scorer", fix=_WITHOUT_SCORER):
            calibration = calibrate_scorer(
                codec,
                denoiser,
                order.recipe.model.teacher,
                held,
                identity={part: digest_bytes(pack_tensors(own)) for part, own in weights.items()},
                usual_K=learned.condition_BK.mean(axis=0).tolist(),
                seed=order.seed,
                tell=course.tell,
            )
    with within_memory("the drawing of samples", fix=_LARGER):
        measured = {
            "ceiling": measure_ceiling(codec, held, bf16=order.compute.bf16),
            "conditioning": _audit(order, learned, codec, denoiser, tell=course.tell),
        }
    document = ModelDocument(
        system=order.recipe.model,
        grid_vox=data.grid_vox,
        spacing_mm=data.spacing_mm,
        recipe=data.settings,
        covariates=data.ordered,
        provenance=Provenance(
            package_version=package_version(),
            origin="trained",
            seed=order.seed,
            training_images=len(learned),
            perceptual=course.learning.perceptual,
            critic=course.learning.critic is not None,
            notes=(UNSCREENED,),
        ),
        measured=measured,
        scorer=None if calibration is None else calibration.facts(),
    )
    scorer = {} if calibration is None else calibration.to_tensors()
    return write_model(document, Weights(weights[CODEC], weights[DENOISER], scorer), order.to)


def _audit(
    order: TrainingOrder, learned: Rows, codec: KLCodec, denoiser: HybridUNet, *, tell: Tell
) -> dict[str, Any]:
    """Return whether samples obey; asked for are the covariates of scans, with replacement."""
    data, count = order.recipe.data, order.recipe.conditioning_samples
    generator = LatentGenerator(
        codec,
        denoiser,
        order.recipe.model.teacher,
        grid_vox=data.grid_vox,
        affine=data.affine,
        bf16=order.compute.bf16,
    )
    rows = stream(order.seed, "audit rows").integers(len(learned), size=count)
    condition_BK = learned.condition_BK[rows]
    return measure_obedience(generator, condition_BK, data.ordered, seed=order.seed, tell=tell)
