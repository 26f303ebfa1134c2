"""A decode in slabs is the whole decode, wherever the cuts fall."""

from __future__ import annotations

import pytest
import torch
from monai.networks.nets.autoencoderkl import AutoencoderKL

from vitrael.core.errors import ConfigError, DataError
from vitrael.core.models.nets.slabs import decode_in_slabs
from vitrael.core.models.nets.upsampling import TransposedUpsampling
from vitrael.core.rng import seeded_initialization, torch_stream

GRID = (5, 6, 3)
"""Of the latents: odd and even, so that cuts fall on every kind of row."""

TOLERANCE = 2e-5


def build(
    *,
    dimensions: int = 3,
    convtranspose: bool = False,
    blocks: tuple[int, ...] = (2, 1, 1),
    channels: tuple[int, ...] = (8, 16, 16),
    attention: bool = False,
) -> AutoencoderKL:
    """Return an autoencoder with random weights and norms that do something."""
    with seeded_initialization(1, "slabs", dimensions):
        net = AutoencoderKL(
            dimensions,
            channels=channels,
            num_res_blocks=blocks,
            attention_levels=(False,) * len(channels),
            latent_channels=3,
            norm_num_groups=4,
            with_encoder_nonlocal_attn=False,
            with_decoder_nonlocal_attn=attention,
            use_convtranspose=convtranspose,
        )
    rng = torch_stream(1, "norms")
    with torch.no_grad():
        for parameter in net.parameters():
            if parameter.ndim == 1:
                parameter.add_(torch.randn(parameter.shape, generator=rng), alpha=0.3)
    return net.eval()


def latents(dimensions: int = 3, *, samples: int = 1) -> torch.Tensor:
    """Return noise that grows along the rows, so that slabs differ in their statistics."""
    z = torch.randn((samples, 3, *GRID[:dimensions]), generator=torch_stream(1, "latents"))
    return z * torch.linspace(0.1, 3, GRID[0]).reshape(-1, *(1,) * (dimensions - 1))


def whole(net: AutoencoderKL, z: torch.Tensor) -> torch.Tensor:
    with torch.no_grad():
        return net.decode(z)


def error(image: torch.Tensor, reference: torch.Tensor) -> float:
    return float((image - reference).abs().max())


@pytest.mark.parametrize("dimensions", [2, 3])
@pytest.mark.parametrize("convtranspose", [False, True])
@pytest.mark.parametrize("slab_vox", [1, 3, 8, 100])
def test_slabs_are_the_whole_decode(*, dimensions: int, convtranspose: bool, slab_vox: int) -> None:
    net = build(dimensions=dimensions, convtranspose=convtranspose)
    z = latents(dimensions, samples=2)
    image = decode_in_slabs(net, z, slab_vox=slab_vox, dtype=torch.float32)
    assert image.dtype == torch.float32
    assert error(image, whole(net, z)) < TOLERANCE


@pytest.mark.parametrize(
    ("channels", "blocks"),
    [
        ((8, 8), (1, 1)),
        ((8, 16), (2, 2)),
        ((16,), (1,)),
        ((8, 16, 8), (0, 1, 1)),
        ((8, 8, 8), (1, 0, 1)),
    ],
    ids=["equal channels", "fewer above", "no upsampling", "none on top", "upsampling twice"],
)
def test_every_order_of_blocks_is_the_whole_decode(
    channels: tuple[int, ...], blocks: tuple[int, ...]
) -> None:
    net, z = build(channels=channels, blocks=blocks), latents()
    image = decode_in_slabs(net, z, slab_vox=4, dtype=torch.float32)
    assert error(image, whole(net, z)) < TOLERANCE


def test_statistics_of_single_slabs_would_show() -> None:
    net, z = build(), latents()
    reference = whole(net, z)
    tiles = torch.cat([whole(net, rows) for rows in z.split([2, 3], dim=2)], 2)  # the control
    assert error(tiles, reference) > 0.1
    assert error(decode_in_slabs(net, z, slab_vox=8, dtype=torch.float32), reference) < TOLERANCE


def test_moments_hold_far_from_zero() -> None:
    net = build()
    with torch.no_grad():
        net.decoder.blocks[0].get_parameter("conv.bias").add_(300)  # mean far above deviation
    z = latents()
    reference = whole(net.double(), z.double()).float()
    image = decode_in_slabs(net.float(), z, slab_vox=2, dtype=torch.float32)
    assert error(image, reference) < 1e-3


@pytest.mark.parametrize("arithmetic", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("convtranspose", [False, True])
def test_bfloat16_keeps_the_image(*, arithmetic: torch.dtype, convtranspose: bool) -> None:
    net, z = build(convtranspose=convtranspose), latents()
    reference = whole(net, z)
    image = decode_in_slabs(net, z, slab_vox=8, dtype=torch.bfloat16, arithmetic=arithmetic)
    assert image.dtype == torch.float32
    noise = (image - reference).square().mean()
    psnr_db = 10 * torch.log10((reference.max() - reference.min()).square() / noise)
    assert psnr_db > 45
    assert noise > 0  # the control: something was rounded


def test_samples_do_not_mix() -> None:
    net, z = build(), latents(samples=2)
    z[1] *= 5
    both = decode_in_slabs(net, z, slab_vox=4, dtype=torch.float32)
    alone = decode_in_slabs(net, z[:1], slab_vox=4, dtype=torch.float32)
    assert torch.equal(both[:1], alone)


def test_decoding_leaves_weights_and_latents_alone() -> None:
    net, z = build(), latents()
    before, given = {k: v.clone() for k, v in net.state_dict().items()}, z.clone()
    image = decode_in_slabs(net, z, slab_vox=4, dtype=torch.bfloat16)
    assert not image.requires_grad
    assert torch.equal(z, given)
    assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())


@pytest.mark.parametrize("dimensions", [2, 3])
@pytest.mark.parametrize("convtranspose", [False, True])
def test_upsampling_with_summed_weights_is_the_same_map(
    *, dimensions: int, convtranspose: bool
) -> None:
    block = build(dimensions=dimensions, convtranspose=convtranspose).decoder.blocks[2]
    x = torch.randn((1, 16, *GRID[:dimensions]), generator=torch_stream(1, "x"))
    with torch.no_grad():
        expected = block(x)
    torch.testing.assert_close(TransposedUpsampling(block)(x), expected, atol=1e-5, rtol=1e-5)


def test_attention_is_refused() -> None:
    with pytest.raises(ConfigError, match="attention"):
        decode_in_slabs(build(attention=True), latents(), slab_vox=4, dtype=torch.float32)


def test_bad_requests_are_refused() -> None:
    net = build()
    with pytest.raises(DataError, match="3 channels"):
        decode_in_slabs(net, latents()[:, :2], slab_vox=4, dtype=torch.float32)
    with pytest.raises(ConfigError, match="1 or more"):
        decode_in_slabs(net, latents(), slab_vox=0, dtype=torch.float32)
    with pytest.raises(ConfigError, match="float16"):
        decode_in_slabs(net, latents(), slab_vox=4, dtype=torch.float16)
