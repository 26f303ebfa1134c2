"""The teacher learns from the latents of the codec that came with its task, and of no other."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pytest
import torch

from vitrael.client.site.tasks import SiteContext, train_teacher
from vitrael.core.data.splits import Split

if TYPE_CHECKING:
    from tests.unit.client.site.conftest import Home
    from vitrael.core.weights import Tensors


class FakeCodec:
    """Halves every axis and multiplies by its one weight; counts the images it has seen."""

    seen = 0

    def __init__(self, weight: float) -> None:
        self.weight = weight

    def cpu(self) -> FakeCodec:
        return self

    def scale(self, means: torch.Tensor) -> torch.Tensor:
        return means

    def encode(self, images: torch.Tensor) -> torch.Tensor:
        type(self).seen += len(images)
        return images[:, :, ::2, ::2, ::2] * self.weight


@pytest.fixture
def codec(monkeypatch: pytest.MonkeyPatch) -> type[FakeCodec]:
    class Codec(FakeCodec):
        seen = 0

    def load(_: SiteContext, tensors: Tensors, __: str) -> FakeCodec:
        return Codec(float(tensors["w"][0]))

    def encode(codec: FakeCodec, images: torch.Tensor, _: str) -> torch.Tensor:
        return codec.encode(images)

    monkeypatch.setattr(train_teacher, "load_codec", load)
    monkeypatch.setattr(train_teacher, "encode_images", encode)
    return Codec


def started(home: Home) -> SiteContext:
    """Return the context of a steward that has just been started."""
    return home.context()


def latents(home: Home, context: SiteContext, weight: float) -> tuple[np.ndarray, np.ndarray]:
    attachments = {"codec": {"w": np.array([weight], dtype=np.float32)}}
    task = home.task(attachments, stage="teacher")
    latent, condition = train_teacher._latents(task, attachments, context)
    return latent.numpy(), condition.numpy()


def test_latents_are_those_of_the_tasks_own_codec(home: Home, codec: type[FakeCodec]) -> None:
    context = started(home)
    images = context.cohort.images(Split.TRAINING)
    count = len(images)
    assert count > 0
    for number, weight in enumerate((3.0, 5.0), start=1):
        latent, condition = latents(home, context, weight)
        assert codec.seen == number * 2 * count
        half = FakeCodec(weight).encode(torch.from_numpy(images.image_BCDHW))
        np.testing.assert_allclose(latent[:count], half.numpy(), rtol=1 / 256)
        turned = torch.from_numpy(images.image_BCDHW[:, :, ::-1].copy())
        mirrored = FakeCodec(weight).encode(turned).numpy()
        np.testing.assert_allclose(latent[count:], mirrored, rtol=1 / 256)
        assert np.array_equal(condition, np.tile(images.condition_BK, (2, 1)))


def test_steward_that_is_started_again_reads_the_same_latents(
    home: Home, codec: type[FakeCodec]
) -> None:
    first, _ = latents(home, started(home), 3.0)
    computed = codec.seen
    again, _ = latents(home, started(home), 3.0)
    assert codec.seen == computed
    assert np.array_equal(first, again)
