"""The codec's latents have zero mean and unit variance once they are scaled; cubes come back."""

from __future__ import annotations

import pytest
import torch

from tests.factories.systems import GRID, brain_ldm, images
from vitrael.core.configs import AutoencoderConfig
from vitrael.core.errors import DataError
from vitrael.core.models.brain_ldm import build_codec
from vitrael.core.models.nets.autoencoder import KLCodec
from vitrael.core.weights import load_weights, module_tensors


@pytest.fixture
def codec() -> KLCodec:
    return build_codec(brain_ldm(), seed=1)


@pytest.mark.parametrize(
    ("patch_vox", "channels", "shape"),
    [(1, (8,), (16, 16, 16)), (2, (8,), (8, 8, 8)), (2, (8, 8, 8), (2, 2, 2))],
)
def test_latent_shape_is_told_before_there_is_a_latent(
    patch_vox: int, channels: tuple[int, ...], shape: tuple[int, ...]
) -> None:
    base = brain_ldm().codec
    config = base.model_copy(update={"patch_vox": patch_vox, "channels": channels})
    codec = KLCodec(AutoencoderConfig.model_validate(config.model_dump()))
    told = codec.latent_shape(GRID)
    assert told == (2, *shape)
    with torch.no_grad():
        z = codec.encode(images(1))
        assert z.shape[1:] == told
        assert codec.decode(z).shape == (1, 1, *GRID)


def test_axes_of_any_length_keep_their_places(codec: KLCodec) -> None:
    x = torch.rand(1, 1, 16, 24, 8)
    with torch.no_grad():
        z = codec.encode(x)
        assert z.shape == (1, 2, 4, 6, 2)
        assert codec.decode(z).shape == x.shape


def test_scaled_latents_have_zero_mean_and_unit_variance(codec: KLCodec) -> None:
    with torch.no_grad():
        mean, _ = codec.posterior(images(8))
        codec.latent_mean.copy_(mean.mean(dim=(0, 2, 3, 4)))
        codec.latent_std.copy_(mean.std(dim=(0, 2, 3, 4)))
        z = codec.encode(images(8))
    torch.testing.assert_close(z.mean(dim=(0, 2, 3, 4)), torch.zeros(2), atol=1e-5, rtol=0)
    torch.testing.assert_close(z.std(dim=(0, 2, 3, 4)), torch.ones(2), atol=1e-4, rtol=0)


def test_decoding_does_not_depend_on_the_scale(codec: KLCodec) -> None:
    with torch.no_grad():
        before = codec.decode(codec.encode(images(2)))
        codec.latent_mean.fill_(0.3)
        codec.latent_std.fill_(2.5)
        after = codec.decode(codec.encode(images(2)))
    torch.testing.assert_close(before, after, atol=1e-5, rtol=1e-4)


def test_scale_travels_with_the_weights(codec: KLCodec) -> None:
    codec.latent_std.fill_(2.5)
    other = build_codec(brain_ldm(), seed=2)
    load_weights(other, module_tensors(codec))
    assert other.latent_std.tolist() == [2.5, 2.5]
    with torch.no_grad():
        assert other.encode(images(1)).equal(codec.encode(images(1)))


def test_posterior_starts_with_little_noise(codec: KLCodec) -> None:
    with torch.no_grad():
        _, std = codec.posterior(images(2))
    assert (std > 0).all()
    assert std.mean() < 0.3
    assert (std < 1).all()


def test_plane_makes_the_round_trip_as_a_volume_does() -> None:
    codec = KLCodec(brain_ldm().codec, dimensions=2).eval()
    x = torch.rand(3, 1, 16, 24)
    with torch.no_grad():
        z = codec.encode(x)
        assert tuple(z.shape[1:]) == codec.latent_shape((16, 24)) == (2, 4, 6)
        assert codec.decode(z).shape == x.shape


@pytest.mark.parametrize("upsampling", ["transposed", "nearest"])
@pytest.mark.parametrize("grid_vox", [(8, 8, 8), (80, 80, 80)])
def test_decoding_in_parts_is_decoding(upsampling: str, grid_vox: tuple[int, int, int]) -> None:
    config = brain_ldm().codec.model_copy(update={"upsampling": upsampling})
    codec = KLCodec(config).eval()
    codec.latent_mean.fill_(0.3)
    codec.latent_std.fill_(2.0)
    z = torch.randn((2, *codec.latent_shape(grid_vox)), generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        whole = codec.decode(z)
        parts = codec.decode_in_parts(z)
    assert whole.std() > 0.01
    torch.testing.assert_close(parts, whole, atol=1e-4, rtol=0)


def test_rendering_is_decoding_that_was_not_clipped(codec: KLCodec) -> None:
    z = 3 * torch.randn(1, *codec.latent_shape(GRID))
    z.requires_grad_()
    image = codec.render(z)
    assert image.min() < 0
    image.clamp(max=0).sum().backward()  # type: ignore[no-untyped-call]
    assert z.grad is not None
    assert z.grad.any()
    with torch.no_grad():
        assert codec.decode(z).equal(image.clamp(0, 1))


@pytest.mark.parametrize(
    "shape",
    [
        (1, 1, 16, 16, 18),  # whole cubes, and a grid that the levels would round
        (1, 1, 16, 22, 16),
        (1, 1, 15, 16, 16),  # no whole cubes
        (1, 1, 16, 16, 0),
        (1, 2, 16, 16, 16),
        (1, 1, 16, 16),
        (1, 16, 16, 16),
    ],
)
def test_images_on_another_grid_are_refused(codec: KLCodec, shape: tuple[int, ...]) -> None:
    with torch.no_grad():
        assert codec.encode(torch.zeros(1, 1, 16, 20, 16)).shape[2:] == (4, 5, 4)  # the control
        with pytest.raises(DataError, match="multiple of 4"):
            codec.encode(torch.zeros(shape))
