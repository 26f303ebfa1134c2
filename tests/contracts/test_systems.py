"""One suite for each role, run over every system that plays it."""

from __future__ import annotations

import re

import pytest
import torch

from tests.factories.systems import CONFIGS, GRID, batch, images, parts_of
from vitrael.core.interfaces import Codec, Denoiser, Embedder, Objective
from vitrael.core.models import SYSTEMS
from vitrael.core.records import Loss
from vitrael.core.weights import module_tensors

SEED = 5
ONE_TOKEN = re.compile(r"\.attn2\.to_[qk]\.|\.norm2\.")
"""Cross-attention to a single token gives that token, whatever is asked of it."""
PARTS = [(kind, part) for kind in SYSTEMS for part in parts_of(kind)]


def players(role: type) -> list[str]:
    return [kind for kind, spec in SYSTEMS.items() if role in spec.roles]


def play(kind: str, role: type) -> object:
    spec, config = SYSTEMS[kind], CONFIGS[kind]
    return spec.roles[role](spec.build(config, SEED), config)


def tensors_of(kind: str, seed: int) -> dict[str, torch.Tensor]:
    parts = SYSTEMS[kind].build(CONFIGS[kind], seed)
    return {
        f"{part}.{name}": torch.from_numpy(array)
        for part, network in parts.items()
        for name, array in module_tensors(network).items()
    }


def test_every_system_is_tried_and_every_role_has_its_suite() -> None:
    assert set(CONFIGS) == set(SYSTEMS)
    roles = {role for spec in SYSTEMS.values() for role in spec.roles}
    assert roles == {Codec, Denoiser, Embedder}


@pytest.mark.parametrize("kind", SYSTEMS)
def test_entry_describes_itself(kind: str) -> None:
    spec, config = SYSTEMS[kind], CONFIGS[kind]
    assert spec.kind == kind
    assert isinstance(config, spec.config)
    for role in spec.roles:
        assert isinstance(play(kind, role), role)


# Weights


@pytest.mark.parametrize("kind", SYSTEMS)
def test_seed_decides_the_weights(kind: str) -> None:
    one, same, other = (tensors_of(kind, seed) for seed in (SEED, SEED, SEED + 1))
    assert all(one[name].equal(same[name]) for name in one)
    differs = {name.split(".")[0] for name in one if not one[name].equal(other[name])}
    assert differs == set(parts_of(kind))


@pytest.mark.parametrize("kind", SYSTEMS)
def test_build_leaves_the_global_generator_alone(kind: str) -> None:
    before = torch.random.get_rng_state()
    SYSTEMS[kind].build(CONFIGS[kind], SEED)
    assert torch.random.get_rng_state().equal(before)
    torch.rand(1)  # the control: a draw is seen
    assert not torch.random.get_rng_state().equal(before)


@pytest.mark.parametrize("kind", SYSTEMS)
def test_parts_are_built_ready_for_use(kind: str) -> None:
    for network in SYSTEMS[kind].build(CONFIGS[kind], SEED).values():
        assert not any(module.training for module in network.modules())


# Objective


@pytest.mark.parametrize(("kind", "part"), PARTS)
def test_loss_is_a_finite_scalar_and_its_gradient_reaches_every_parameter(
    kind: str, part: str
) -> None:
    spec, config = SYSTEMS[kind], CONFIGS[kind]
    network = spec.build(config, SEED)[part]
    objective = spec.objective(config, part)
    assert isinstance(objective, Objective)
    optimizer = torch.optim.SGD(network.parameters(), lr=0.01)
    rng = torch.Generator().manual_seed(1)
    loss = objective(network, batch(kind, part), rng)
    for _ in range(4):  # layers that start at zero let nothing through at first
        loss = objective(network, batch(kind, part), rng)
        optimizer.zero_grad()
        loss.total.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
    assert isinstance(loss, Loss)
    assert loss.total.ndim == 0
    assert torch.isfinite(loss.total)
    assert all(part.ndim == 0 and torch.isfinite(part) for part in loss.parts.values())
    still = [name for name, p in network.named_parameters() if p.grad is None or not p.grad.any()]
    assert [name for name in still if not ONE_TOKEN.search(name)] == []


@pytest.mark.parametrize(("kind", "part"), PARTS)
def test_equal_generators_give_equal_losses(kind: str, part: str) -> None:
    spec, config = SYSTEMS[kind], CONFIGS[kind]
    network = spec.build(config, SEED)[part]
    objective = spec.objective(config, part)
    with torch.no_grad():
        losses = [
            objective(network, batch(kind, part), torch.Generator().manual_seed(seed)).total.item()
            for seed in (1, 1, 2)
        ]
    assert losses[0] == losses[1]
    if kind == "brain_ldm":  # the contrastive loss draws nothing itself
        assert losses[0] != losses[2]


# Codec


@pytest.mark.parametrize("kind", players(Codec))
def test_codec_round_trip_keeps_the_shape_and_is_finite(kind: str) -> None:
    codec = play(kind, Codec)
    assert isinstance(codec, Codec)
    with torch.no_grad():
        z = codec.encode(images(3))
        x = codec.decode(z)
    assert len(z) == 3
    assert z[0].numel() < GRID[0] ** 3  # it compresses
    assert x.shape == (3, 1, *GRID)
    assert torch.isfinite(z).all()
    assert x.min() >= 0
    assert x.max() <= 1


@pytest.mark.parametrize("kind", players(Codec))
def test_codec_treats_every_image_alone(kind: str) -> None:
    codec = play(kind, Codec)
    assert isinstance(codec, Codec)
    with torch.no_grad():
        together = codec.encode(images(3))
        alone = torch.cat([codec.encode(image[None]) for image in images(3)])
    torch.testing.assert_close(together, alone, atol=1e-5, rtol=1e-4)
    assert not torch.allclose(together[0], together[1], atol=1e-3)


# Denoiser


@pytest.fixture(params=players(Denoiser))
def denoiser(request: pytest.FixtureRequest) -> Denoiser:
    played = play(request.param, Denoiser)
    assert isinstance(played, Denoiser)
    return played


def noisy(count: int, *, seed: int = 3) -> tuple[torch.Tensor, torch.Tensor]:
    rng = torch.Generator().manual_seed(seed)
    x_t = torch.randn((count, 2, 4, 4, 4), generator=rng)
    return x_t, torch.rand((count, 4), generator=rng)


def test_denoiser_answers_in_the_shape_it_is_asked(denoiser: Denoiser) -> None:
    x_t, condition = noisy(3)
    with torch.no_grad():
        x_0 = denoiser(x_t, torch.tensor([0.1, 1.0, 10.0]), condition)
    assert x_0.shape == x_t.shape
    assert x_0.dtype == x_t.dtype
    assert torch.isfinite(x_0).all()


def test_denoiser_returns_what_has_no_noise(denoiser: Denoiser) -> None:
    x_t, condition = noisy(3)
    with torch.no_grad():
        x_0 = denoiser(x_t, torch.full((3,), 1e-5), condition)
        far = denoiser(x_t, torch.full((3,), 5.0), condition)
    torch.testing.assert_close(x_0, x_t, atol=1e-3, rtol=1e-3)
    assert not torch.allclose(far, x_t, atol=0.1)  # the control


def test_denoiser_takes_each_row_at_its_own_level(denoiser: Denoiser) -> None:
    x_t, condition = noisy(3)
    sigma = torch.tensor([0.1, 1.0, 10.0])
    with torch.no_grad():
        together = denoiser(x_t, sigma, condition)
        alone = [denoiser(x_t[i : i + 1], sigma[i : i + 1], condition[i : i + 1]) for i in range(3)]
    torch.testing.assert_close(together, torch.cat(alone), atol=1e-5, rtol=1e-4)


# Embedder


@pytest.fixture(params=players(Embedder))
def embedder(request: pytest.FixtureRequest) -> Embedder:
    played = play(request.param, Embedder)
    assert isinstance(played, Embedder)
    return played


def test_embeddings_have_unit_length(embedder: Embedder) -> None:
    with torch.no_grad():
        points = embedder.embed(images(4))
        dark = embedder.embed(torch.zeros(1, 1, *GRID))
    assert points.ndim == 2
    torch.testing.assert_close(points.norm(dim=1), torch.ones(4))
    assert torch.isfinite(dark).all()


def test_embedding_does_not_depend_on_the_batch(embedder: Embedder) -> None:
    with torch.no_grad():
        together = embedder.embed(images(4))
        alone = torch.cat([embedder.embed(image[None]) for image in images(4)])
    torch.testing.assert_close(together, alone, atol=1e-5, rtol=1e-4)
    assert (together @ together.T).fill_diagonal_(0).max() < 1 - 1e-4  # the control


def test_embedding_knows_neither_gain_nor_side(embedder: Embedder) -> None:
    with torch.no_grad():
        points = embedder.embed(images(2))
        torch.testing.assert_close(embedder.embed(images(2) * 0.5 + 0.1), points, atol=1e-4, rtol=0)
        torch.testing.assert_close(embedder.embed(images(2).flip(2)), points, atol=1e-5, rtol=0)
