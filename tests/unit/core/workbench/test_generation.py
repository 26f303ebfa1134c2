"""A batch that the memory does not hold is halved once; then it is said what to set."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pytest
import torch

from tests.factories.models import untrained
from vitrael.core.errors import ConfigError
from vitrael.core.geometry import centered_affine
from vitrael.core.records import SampleRequest, Samples
from vitrael.core.workbench.folder import read_document
from vitrael.core.workbench.generation import (
    FrugalGenerator,
    build_generator,
    choose_part,
    within_memory,
)

GRID = (4, 4, 4)


@dataclass
class SmallMemory:
    """A Generator that runs out of memory above so many images; its images tell their index."""

    most: int
    asked: list[int] = field(default_factory=list)

    def sample(self, request: SampleRequest) -> Samples:
        rows = len(request.condition_BK)
        self.asked.append(rows)
        if rows > self.most:
            raise torch.OutOfMemoryError
        index = request.first + np.arange(rows, dtype=np.float32)
        image = np.broadcast_to(index[:, None, None, None, None], (rows, 1, *GRID))
        return Samples(image.copy(), request.condition_BK, centered_affine(GRID, spacing=1))


def request(rows: int) -> SampleRequest:
    return SampleRequest(np.zeros((rows, 4), np.float32), seed=1, first=10)


def test_batch_is_halved_once_and_nothing_is_lost() -> None:
    small = SmallMemory(most=4)
    frugal = FrugalGenerator(small, batch_images=8)
    samples = frugal.sample(request(10))
    assert samples.image_BCDHW[:, 0, 0, 0, 0].tolist() == list(range(10, 20))
    assert small.asked == [8, 4, 4, 2]
    assert frugal.batch_images == 4


def test_enough_memory_halves_nothing() -> None:
    small = SmallMemory(most=8)
    FrugalGenerator(small, batch_images=8).sample(request(10))
    assert small.asked == [8, 2]


def test_second_shortage_says_what_to_set() -> None:
    frugal = FrugalGenerator(SmallMemory(most=1), batch_images=8)
    with pytest.raises(ConfigError, match=r"give --batch 2"):
        frugal.sample(request(8))


def test_single_image_that_does_not_fit_leads_to_another_device() -> None:
    frugal = FrugalGenerator(SmallMemory(most=0), batch_images=1)
    with pytest.raises(ConfigError, match=r"1 image at a time.*--device cpu"):
        frugal.sample(request(3))


def test_sampler_and_steps_are_the_models_own_unless_chosen(model_folder: Path) -> None:
    document = read_document(model_folder)
    assert choose_part(document).sampling_steps == document.system.teacher.sampling_steps
    chosen = choose_part(document, sampler="heun", steps=3)
    assert (chosen.sampler, chosen.sampling_steps) == ("heun", 3)


def test_generator_draws_on_the_models_grid(tmp_path: Path) -> None:
    model = untrained(tmp_path / "model")
    generator = build_generator(model, choose_part(model.document, steps=2))
    samples = generator.sample(SampleRequest(np.full((1, 4), 0.5, np.float32), seed=1))
    assert samples.image_BCDHW.shape == (1, 1, *model.document.grid_vox)
    assert np.array_equal(samples.affine, model.document.affine)


@pytest.mark.parametrize("error", [torch.OutOfMemoryError, MemoryError])
def test_lack_of_memory_says_what_to_set(error: type[Exception]) -> None:
    with (
        pytest.raises(ConfigError, match=r"the scorer's calibration.*To do: buy a GPU"),
        within_memory("the scorer's calibration", fix="buy a GPU"),
    ):
        raise error
    with (
        pytest.raises(ValueError, match="another"),  # the control
        within_memory("the scorer's calibration", fix="buy a GPU"),
    ):
        raise ValueError("another")
