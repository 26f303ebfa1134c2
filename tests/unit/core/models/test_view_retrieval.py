"""An embedding is a clip's own: of unit length, without its batch, its gain or its length."""

from __future__ import annotations

import pytest
import torch

from vitrael.core.configs import LocalTrainingConfig, ViewRetrievalConfig
from vitrael.core.errors import DataError
from vitrael.core.interfaces import Embedder
from vitrael.core.models.view_retrieval import build_view_encoder
from vitrael.core.rng import torch_stream

CONFIG = ViewRetrievalConfig(
    kind="view_retrieval",
    patch_px=2,
    channels=(4, 8),
    features=16,
    embedding=6,
    training=LocalTrainingConfig(length_images=64, batch_images=16),
)


def clips(count: int = 5) -> torch.Tensor:
    return torch.rand(count, 1, 3, 16, 16, generator=torch_stream(1, "clips"))


@torch.inference_mode()
def test_embedding_has_unit_length_and_ignores_the_batch() -> None:
    encoder = build_view_encoder(CONFIG, seed=1)
    assert isinstance(encoder, Embedder)
    whole = encoder.embed(clips())
    assert whole.shape == (5, 6)
    assert torch.allclose(whole.norm(dim=1), torch.ones(5), atol=1e-5)
    assert torch.allclose(encoder.train().embed(clips())[:1], encoder.embed(clips()[:1]), atol=1e-5)
    assert not torch.allclose(whole[:1], whole[1:2], atol=1e-3)  # the control


@torch.inference_mode()
def test_gain_and_offset_of_a_clip_do_not_matter() -> None:
    encoder = build_view_encoder(CONFIG, seed=1)
    assert torch.allclose(encoder.embed(clips()), encoder.embed(0.5 * clips() + 0.2), atol=1e-4)


@torch.inference_mode()
def test_frames_are_averaged_whatever_their_number_and_order() -> None:
    encoder = build_view_encoder(CONFIG, seed=1)
    whole = encoder.embed(clips())
    assert torch.allclose(whole, encoder.embed(clips().flip(2)), atol=1e-5)
    assert torch.allclose(whole, encoder.embed(clips().repeat(1, 1, 2, 1, 1)), atol=1e-4)
    assert not torch.allclose(whole, encoder.embed(clips()[:, :, :1]), atol=1e-3)  # the control


@torch.inference_mode()
def test_constant_clip_still_has_a_direction() -> None:
    found = build_view_encoder(CONFIG, seed=1).embed(torch.full((1, 1, 2, 16, 16), 0.3))
    assert float(found.norm()) == pytest.approx(1, abs=1e-5)


@torch.inference_mode()
def test_equal_seeds_give_equal_encoders() -> None:
    one, same, other = (build_view_encoder(CONFIG, seed=s).embed(clips()) for s in (1, 1, 2))
    assert torch.equal(one, same)
    assert not torch.equal(one, other)


@pytest.mark.parametrize("shape", [(2, 3, 3, 16, 16), (2, 1, 16, 16), (2, 1, 0, 16, 16)])
def test_what_is_no_gray_clip_is_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(DataError, match="takes gray clips"):
        build_view_encoder(CONFIG, seed=1).embed(torch.zeros(shape))


def test_edges_that_patches_do_not_divide_are_refused() -> None:
    with pytest.raises(DataError, match="multiples of 2"):
        build_view_encoder(CONFIG, seed=1).embed(torch.zeros(1, 1, 2, 16, 15))
