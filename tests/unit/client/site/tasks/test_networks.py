"""The codec's round trip at a site: the same images, in memory that few of them need."""

from __future__ import annotations

import pytest
import torch

from tests.factories.systems import brain_ldm
from vitrael.client.site.tasks.networks import encode_images, reconstruct_images
from vitrael.core.models.brain_ldm import build_codec
from vitrael.core.models.nets.autoencoder import KLCodec


@pytest.fixture(scope="module")
def codec() -> KLCodec:
    return build_codec(brain_ldm(), seed=1).eval()


def draw(count: int, edge: int) -> torch.Tensor:
    rng = torch.Generator().manual_seed(edge)
    return torch.rand(count, 1, edge, edge, edge, generator=rng)


def test_round_trip_of_small_images_is_that_of_the_codec(codec: KLCodec) -> None:
    images = draw(3, 16)
    with torch.no_grad():
        whole = codec.decode(codec.encode(images))
        assert torch.equal(encode_images(codec, images, "cpu"), codec.posterior(images)[0])
    found = torch.from_numpy(reconstruct_images(codec, images.numpy(), "cpu"))
    assert torch.equal(found, whole)
    assert not torch.equal(found, images)  # the control


def test_large_images_are_decoded_slab_by_slab(codec: KLCodec) -> None:
    decoded_whole = []
    seen = codec.net.decoder.register_forward_hook(lambda *_: decoded_whole.append(1))
    images = draw(2, 80)
    found = torch.from_numpy(reconstruct_images(codec, images.numpy(), "cpu"))
    assert not decoded_whole
    with torch.no_grad():
        whole = codec.decode(codec.encode(images))
    assert decoded_whole  # the control
    seen.remove()
    torch.testing.assert_close(found, whole, atol=1e-4, rtol=0)


def test_images_are_encoded_few_at_a_time_where_they_are_large(codec: KLCodec) -> None:
    rows: list[int] = []
    seen = codec.net.encoder.register_forward_pre_hook(lambda _, given: rows.append(len(given[0])))
    encode_images(codec, draw(3, 64), "cpu")
    encode_images(codec, draw(3, 16), "cpu")
    seen.remove()
    assert rows == [2, 1, 3]
