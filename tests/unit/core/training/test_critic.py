"""A critic learns beside a codec, is heard from its start on, and comes back from a checkpoint."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn

from vitrael.core.configs import CriticConfig, TrainingConfig
from vitrael.core.errors import TaskStopped
from vitrael.core.records import Loss
from vitrael.core.rng import seeded_initialization
from vitrael.core.training.checkpoints import FileCheckpoints
from vitrael.core.training.critic import Critic
from vitrael.core.training.loop import fit
from vitrael.core.training.state import Curve

REAL = torch.rand((8, 1, 12, 12), generator=torch.Generator().manual_seed(7))
STEPS = 10


class Painter(nn.Module):
    """Paints one picture."""

    def __init__(self) -> None:
        super().__init__()
        self.picture = nn.Parameter(torch.full((1, 1, 12, 12), 2.0))


class Painting:
    """A loss by the critic alone; notes what the critic has said."""

    def __init__(self, critic: Critic) -> None:
        self.critic = critic
        self.heard: list[float] = []

    def __call__(self, model: Painter, batch: torch.Tensor, rng: torch.Generator) -> Loss:
        del rng
        image = model.picture.expand(len(batch), -1, -1, -1)
        fooling, judging = self.critic.fooling(image), self.critic.judging(batch, image)
        self.heard.append(fooling.item())
        return Loss(
            total=fooling + judging + 0 * image.sum(),
            parts={"adversarial": fooling, "critic": judging},
        )


def make_critic(**changes: float) -> Critic:
    config = CriticConfig.model_validate({"channels": 4, "layers": 1, **changes})
    with seeded_initialization(1, "critic"):
        layers = (nn.Conv2d(1, 4, 4, 2), nn.SiLU(), nn.Conv2d(4, 1, 3))
        return Critic(nn.Sequential(*layers), config)


def train(
    critic: Critic, *, folder: Path | None = None, stop_at: int = 0, accumulated: int = 1
) -> tuple[Painter, Curve, list[float]]:
    painter, painting = Painter(), Painting(critic)

    def poll(done: int, total: int) -> None:
        if done == stop_at < total:
            raise TaskStopped("the task was told to stop")

    config = TrainingConfig(
        length_images=4 * accumulated * STEPS,
        batch_images=4,
        accumulated_batches=accumulated,
        learning_rate=0.01,
    )
    curve = fit(
        painter,
        painting,
        lambda count, rng: REAL[torch.randint(len(REAL), (count,), generator=rng)],
        config,
        length_images=config.length_images,
        rng=torch.Generator().manual_seed(3),
        companion=critic,
        poll=poll,
        checkpoints=FileCheckpoints(folder, key="k", every_s=1e9) if folder else None,
    )
    return painter, curve, painting.heard


def weights(module: nn.Module) -> torch.Tensor:
    return torch.cat([parameter.detach().ravel() for parameter in module.parameters()])


def test_critic_learns_to_tell_real_from_made() -> None:
    critic = make_critic()
    before = weights(critic).clone()
    _, curve, _ = train(critic)
    assert curve.losses["critic"][-1] < 0.7 * curve.losses["critic"][0]
    assert not weights(critic).equal(before)


def test_critic_is_heard_from_its_start_on_and_learns_before() -> None:
    critic = make_critic(start_images=20)
    before = weights(critic).clone()
    _, curve, heard = train(critic)
    assert [value > 0 for value in heard] == [False] * 5 + [True] * 5
    assert curve.losses["critic"][4] < curve.losses["critic"][0]
    assert not weights(critic).equal(before)
    _, _, heard = train(make_critic(start_images=0))
    assert all(value > 0 for value in heard)  # the control


def test_painter_learns_only_from_a_critic_that_is_heard() -> None:
    mute, _, _ = train(make_critic(start_images=10_000))
    assert mute.picture.equal(Painter().picture)
    heard, _, _ = train(make_critic())
    assert not heard.picture.equal(Painter().picture)


def test_critic_has_a_learning_rate_of_its_own() -> None:
    before = weights(make_critic())
    moved = {}
    for factor in (0.01, 1.0):
        critic = make_critic(learning_rate_factor=factor, start_images=10_000)
        train(critic)
        moved[factor] = (weights(critic) - before).abs().max().item()
    assert moved[0.01] < 0.03 * moved[1.0]


def test_gradients_of_the_two_are_clipped_apart() -> None:
    painter, critic = Painter(), make_critic()

    def steep(model: Painter, batch: torch.Tensor, rng: torch.Generator) -> Loss:
        gentle = 0.1 * model.picture.sum() / 12
        return Loss(total=gentle + 1e6 * critic.judging(batch, 0 * batch), parts={})

    config = TrainingConfig(length_images=4, batch_images=4)
    rng = torch.Generator().manual_seed(3)
    fit(painter, steep, lambda *_: REAL, config, length_images=4, rng=rng, companion=critic)
    norms = [
        torch.cat([p.grad.ravel() for p in module.parameters() if p.grad is not None]).norm().item()
        for module in (painter, critic)
    ]
    assert norms == pytest.approx([0.1, 1.0], rel=1e-3)


@pytest.mark.parametrize("accumulated", [1, 3])
@pytest.mark.parametrize("at", [1, 5, 7])
def test_training_with_a_critic_that_was_stopped_goes_on_to_the_same(
    at: int, accumulated: int, tmp_path: Path
) -> None:
    settings = {"start_images": 20.0 * accumulated}
    whole_critic = make_critic(**settings)
    whole, curve, heard = train(whole_critic, accumulated=accumulated)
    with pytest.raises(TaskStopped):
        train(
            make_critic(**settings),
            folder=tmp_path,
            stop_at=4 * accumulated * at,
            accumulated=accumulated,
        )
    critic = make_critic(**settings)
    with torch.no_grad():
        for parameter in critic.parameters():
            parameter.zero_()  # what the checkpoint does not bring back stays lost
    resumed, same_curve, heard_since = train(critic, folder=tmp_path, accumulated=accumulated)
    assert len(heard_since) == accumulated * (STEPS - at)
    assert heard_since == heard[accumulated * at :]
    assert resumed.picture.equal(whole.picture)
    assert weights(critic).equal(weights(whole_critic))
    assert same_curve == curve


def test_least_squares_are_those_of_the_paper() -> None:
    class Constant(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x.mean((1, 2, 3))

    critic = Critic(Constant(), CriticConfig())
    real, made = torch.full((2, 1, 4, 4), 0.75), torch.full((2, 1, 4, 4), 0.5)
    assert critic.fooling(made).item() == pytest.approx(0.25)
    assert critic.judging(real, made).item() == pytest.approx(0.5 * (0.0625 + 0.25))
    assert critic.judging(made + 0.5, made * 0).item() == pytest.approx(0)
