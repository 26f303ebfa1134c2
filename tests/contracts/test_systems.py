"""One suite for each role, run over every system that plays it."""

from __future__ import annotations

import re
from typing import Any

import pytest
import torch

from tests.factories.systems import (
    CONFIGS,
    GRID,
    batch,
    build_parts,
    data_of,
    images,
    images_of,
    parts_of,
)
from vitrael.core.errors import DataError
from vitrael.core.interfaces import Codec, Denoiser, Embedder, Objective, Predictor
from vitrael.core.models import SYSTEMS
from vitrael.core.records import Loss
from vitrael.core.weights import module_tensors

SEED = 5
ONE_TOKEN = re.compile(r"\.attn2\.to_[qk]\.|\.norm2\.")
"""Cross-attention to a single token gives that token, whatever is asked of it."""
SHARED_BIAS = re.compile(r"^weigh\.2\.bias$")
"""One number on the scores of all experts alike: their softmax does not see it."""
PARTS = [(kind, part) for kind in SYSTEMS for part in parts_of(kind)]


def players(role: type) -> list[str]:
    return [kind for kind, spec in SYSTEMS.items() if role in spec.roles]


def play(kind: str, role: type, *, seed: int = SEED) -> object:
    parts = build_parts(kind, seed)
    return SYSTEMS[kind].roles[role](parts, CONFIGS[kind], *data_of(kind))


def objective_of(kind: str, part: str) -> Objective:
    return SYSTEMS[kind].objective(CONFIGS[kind], part, *data_of(kind))


def tensors_of(kind: str, seed: int) -> dict[str, torch.Tensor]:
    parts = build_parts(kind, seed)
    return {
        f"{part}.{name}": torch.from_numpy(array)
        for part, network in parts.items()
        for name, array in module_tensors(network).items()
    }


def test_every_system_is_tried_and_every_role_has_its_suite() -> None:
    assert set(CONFIGS) == set(SYSTEMS)
    roles = {role for spec in SYSTEMS.values() for role in spec.roles}
    assert roles == {Codec, Denoiser, Embedder, Predictor}


@pytest.mark.parametrize("kind", SYSTEMS)
def test_entry_describes_itself(kind: str) -> None:
    spec, config = SYSTEMS[kind], CONFIGS[kind]
    assert spec.kind == kind
    assert isinstance(config, spec.config)
    for role in spec.roles:
        assert isinstance(play(kind, role), role)


@pytest.mark.parametrize("kind", SYSTEMS)
def test_nothing_stands_in_for_what_data_decide(kind: str) -> None:
    spec, config = SYSTEMS[kind], CONFIGS[kind]
    if not data_of(kind):
        assert spec.build(config, SEED)  # the control
        return
    with pytest.raises(TypeError, match="missing 1 required positional argument"):
        spec.build(config, SEED)


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
    build_parts(kind, SEED)
    assert torch.random.get_rng_state().equal(before)
    torch.rand(1)  # the control: a draw is seen
    assert not torch.random.get_rng_state().equal(before)


@pytest.mark.parametrize("kind", SYSTEMS)
def test_parts_are_built_ready_for_use(kind: str) -> None:
    for network in build_parts(kind, SEED).values():
        assert not any(module.training for module in network.modules())


# Objective


@pytest.mark.parametrize(("kind", "part"), PARTS)
def test_loss_is_a_finite_scalar_and_its_gradient_reaches_every_parameter(
    kind: str, part: str
) -> None:
    network, objective = build_parts(kind, SEED)[part], objective_of(kind, part)
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
    blind = (ONE_TOKEN, SHARED_BIAS)
    assert [name for name in still if not any(one.search(name) for one in blind)] == []


@pytest.mark.parametrize(("kind", "part"), PARTS)
def test_equal_generators_give_equal_losses(kind: str, part: str) -> None:
    network, objective = build_parts(kind, SEED)[part], objective_of(kind, part)
    with torch.no_grad():
        losses = [
            objective(network, batch(kind, part), torch.Generator().manual_seed(seed)).total.item()
            for seed in (1, 1, 2)
        ]
    assert losses[0] == losses[1]
    if kind == "brain_ldm":  # the losses of the others draw nothing themselves
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
def embedder(request: pytest.FixtureRequest) -> tuple[str, Embedder]:
    played = play(request.param, Embedder)
    assert isinstance(played, Embedder)
    return request.param, played


def test_embeddings_have_unit_length_even_of_an_image_that_shows_nothing(
    embedder: tuple[str, Embedder],
) -> None:
    kind, own = embedder
    shown = images_of(kind, 4)
    with torch.no_grad():
        points = own.embed(torch.cat([shown, torch.zeros_like(shown[:1])]))
    assert points.ndim == 2
    torch.testing.assert_close(points.norm(dim=1), torch.ones(5))


def test_image_that_no_feature_of_an_expert_answers_to_has_unit_length() -> None:
    parts, shown = build_parts("view_expert", SEED), images_of("view_expert", 2)
    roles = SYSTEMS["view_expert"].roles
    own = roles[Embedder](parts, CONFIGS["view_expert"], *data_of("view_expert"))
    assert isinstance(own, Embedder)
    assert own.embed(shown).std() > 0.1  # the control: features answer
    for parameter in parts["net"].parameters():
        parameter.data.zero_()
    points = own.embed(shown)
    assert points.std() < 1e-6  # equal parts of all
    torch.testing.assert_close(points.norm(dim=1), torch.ones(2))


def test_embedding_does_not_depend_on_the_batch(embedder: tuple[str, Embedder]) -> None:
    kind, own = embedder
    shown = images_of(kind, 4)
    with torch.no_grad():
        together = own.embed(shown)
        alone = torch.cat([own.embed(image[None]) for image in shown])
    assert (together - alone).norm(dim=1).max() < 1e-5
    assert torch.pdist(together).min() > 5e-4  # the control: untrained, it still tells them apart


def test_embedding_does_not_know_the_gain(embedder: tuple[str, Embedder]) -> None:
    kind, own = embedder
    shown = images_of(kind, 2)
    with torch.no_grad():
        points = own.embed(shown)
        brighter, harder = own.embed(shown * 0.5 + 0.1), own.embed(shown**2)
    assert (brighter - points).norm(dim=1).max() < 1e-5
    assert (harder - points).norm(dim=1).min() > 5e-4  # the control


@pytest.mark.parametrize("kind", ["reid_encoder", "view_retrieval"])
def test_embedding_knows_neither_side_of_a_volume_nor_order_of_a_clip(kind: str) -> None:
    own, shown = play(kind, Embedder), images_of(kind, 2)
    assert isinstance(own, Embedder)
    with torch.no_grad():
        points = own.embed(shown)
        same, turned = own.embed(shown.flip(2)), own.embed(shown.flip(3))
    assert (same - points).norm(dim=1).max() < 1e-5
    assert (turned - points).norm(dim=1).min() > 5e-4  # the control


# Predictor


@pytest.fixture(params=players(Predictor))
def predictor(request: pytest.FixtureRequest) -> tuple[str, Predictor]:
    played = play(request.param, Predictor)
    assert isinstance(played, Predictor)
    return request.param, played


def numbers(prediction: Any) -> torch.Tensor:
    """Return what is predicted of each image as numbers, whatever form it has."""
    if isinstance(prediction, torch.Tensor):
        return prediction
    return torch.tensor([[one.probability, *one.weights.values()] for one in prediction])


@pytest.mark.parametrize("count", [1, 3, 70])
def test_every_image_has_one_prediction(predictor: tuple[str, Predictor], count: int) -> None:
    kind, own = predictor
    found = own.predict(images_of(kind, count))
    assert len(found) == count
    assert torch.isfinite(numbers(found)).all()


def test_prediction_does_not_depend_on_the_batch(predictor: tuple[str, Predictor]) -> None:
    kind, own = predictor
    shown = images_of(kind, 4)
    together = numbers(own.predict(shown))
    alone = torch.cat([numbers(own.predict(image[None])) for image in shown])
    torch.testing.assert_close(together, alone, atol=1e-5, rtol=1e-4)
    assert not torch.allclose(together[0], together[1], atol=1e-5, rtol=1e-3)  # the control


def test_prediction_repeats_itself_and_draws_nothing(predictor: tuple[str, Predictor]) -> None:
    kind, own = predictor
    shown, before = images_of(kind, 3), torch.random.get_rng_state()
    first = numbers(own.predict(shown))
    assert numbers(own.predict(shown)).equal(first)
    assert torch.random.get_rng_state().equal(before)
    same, other = (play(kind, Predictor, seed=seed) for seed in (SEED, SEED + 1))
    assert isinstance(same, Predictor)
    assert isinstance(other, Predictor)
    assert numbers(same.predict(shown)).equal(first)
    assert not numbers(other.predict(shown)).equal(first)  # the control


def test_images_that_a_predictor_cannot_know_are_refused(
    predictor: tuple[str, Predictor],
) -> None:
    kind, own = predictor
    shown = images_of(kind, 3)
    spoiled = shown.clone()
    spoiled[1, 0, 2, 2] = torch.nan
    endless = shown.clone()
    endless[2, 0, 2, 2] = torch.inf
    colored = shown.repeat(1, 4, *(1,) * (shown.ndim - 2))
    for x in (spoiled, endless, colored, shown[:, 0]):
        with pytest.raises(DataError, match="the images"):
            own.predict(x)
    own.predict(shown)  # the control


def test_expert_whose_network_answers_with_nan_says_nothing() -> None:
    parts, shown = build_parts("view_expert", SEED), images_of("view_expert", 2)
    roles, told = SYSTEMS["view_expert"].roles, (CONFIGS["view_expert"], *data_of("view_expert"))
    predictor, embedder = (roles[role](parts, *told) for role in (Predictor, Embedder))
    assert isinstance(predictor, Predictor)
    assert isinstance(embedder, Embedder)
    assert len(predictor.predict(shown)) == len(embedder.embed(shown)) == 2  # the control
    for parameter in parts["net"].parameters():
        parameter.data.fill_(torch.nan)
    for ask in (predictor.predict, embedder.embed):
        with pytest.raises(DataError, match="not finite"):
            ask(shown)


def test_what_data_decide_shows_no_image() -> None:
    assert repr(data_of("view_expert")[0]) == "SiteViews(north: A4C, A2C)"
    assert "tensor" not in repr(data_of("score_fusion")[0])
    assert "tensor" in repr(data_of("view_expert")[0].image_BCHW)  # the control


def test_images_of_another_size_are_refused_by_who_knows_one_size_only() -> None:
    larger = torch.nn.functional.pad(images_of("view_expert", 2), (2, 2, 2, 2))
    panel, expert = (play(kind, Predictor) for kind in ("score_fusion", "view_expert"))
    assert isinstance(panel, Predictor)
    assert isinstance(expert, Predictor)
    with pytest.raises(DataError, match="16 x 16"):
        panel.predict(larger)
    assert len(expert.predict(larger)) == 2  # one network sees every size
