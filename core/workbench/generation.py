"""A Generator from a model, and one that makes do with the memory that there is."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

import numpy as np
import torch

from vitrael.core.configs import DiffusionConfig, SamplerName
from vitrael.core.errors import ConfigError
from vitrael.core.models.brain_ldm import LatentGenerator
from vitrael.core.records import SampleRequest, Samples

if TYPE_CHECKING:
    from vitrael.core.interfaces import Generator
    from vitrael.core.workbench.folder import Model, ModelDocument


def choose_part(
    document: ModelDocument,
    *,
    sampler: SamplerName | None = None,
    steps: int | None = None,
) -> DiffusionConfig:
    """Return the denoiser's config with a sampler and steps of one's own."""
    part = document.system.teacher
    chosen = {"sampler": sampler or part.sampler, "sampling_steps": steps or part.sampling_steps}
    return part.model_copy(update=chosen)


def build_generator(
    model: Model,
    part: DiffusionConfig,
    *,
    guidance: float = 1.0,
    batch_images: int = 1,
    bf16: bool = False,
) -> LatentGenerator:
    """Return the Generator of a model, on the model's own grid."""
    document = model.document
    return LatentGenerator(
        model.codec,
        model.denoiser,
        part,
        grid_vox=document.grid_vox,
        affine=document.affine,
        batch_images=batch_images,
        bf16=bf16,
        guidance=guidance,
    )


@contextmanager
def within_memory(step: str, *, fix: str) -> Iterator[None]:
    """Do a step; where the memory does not hold it, raise ConfigError that names it and ``fix``."""
    try:
        yield
    except torch.OutOfMemoryError as error:
        raise ConfigError(f"the memory of the GPU does not hold {step}", fix=fix) from error
    except MemoryError as error:
        raise ConfigError(f"the memory of this machine does not hold {step}", fix=fix) from error


class FrugalGenerator:
    """Draws in batches; when a GPU's memory does not hold one, halves them, once."""

    def __init__(self, generator: Generator, *, batch_images: int) -> None:
        """Take a Generator and how many images are drawn at a time at most."""
        self.batch_images = batch_images
        self._generator = generator
        self._halved = False

    def sample(self, request: SampleRequest) -> Samples:
        """Return one sample for each row of a request, of which there is one at least.

        Raises ConfigError, which says what to set, when half a batch does not fit either.
        """
        parts: list[Samples] = []
        done = 0
        while done < len(request.condition_BK):
            rows = request.condition_BK[done : done + self.batch_images]
            part = SampleRequest(rows, seed=request.seed, first=request.first + done)
            samples = self._try(part)
            if samples is None:
                self._halve(len(rows))
                continue
            parts.append(samples)
            done += len(rows)
        image_BCDHW = np.concatenate([part.image_BCDHW for part in parts])
        return Samples(image_BCDHW, request.condition_BK, parts[0].affine)

    def _try(self, request: SampleRequest) -> Samples | None:
        """Return the samples, or None when the memory does not hold them."""
        try:
            return self._generator.sample(request)
        except torch.OutOfMemoryError:
            return None  # what the attempt held is free once this frame is left

    def _halve(self, rows: int) -> None:
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
        if self._halved or rows == 1:
            raise ConfigError(
                f"the memory of the GPU does not hold {rows} image{'s' * (rows > 1)} at a time",
                why="half the batch was tried" if self._halved else "there is no smaller batch",
                fix=f"give --batch {rows // 2}"
                if rows > 1
                else "give --device cpu, or a larger GPU",
            )
        self._halved = True
        self.batch_images = rows // 2
