"""Cross-entropy counts pictures and classes as it is told, and only while it trains."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn import functional

from vitrael.core.configs import LocalTrainingConfig
from vitrael.core.data.augment import ViewBatch
from vitrael.core.errors import DataError, TaskStopped
from vitrael.core.models.nets.view_net import ViewNet
from vitrael.core.records import Loss
from vitrael.core.rng import seeded_initialization, torch_stream
from vitrael.core.training.checkpoints import FileCheckpoints
from vitrael.core.training.loop import fit
from vitrael.core.training.objectives import ClassifierObjective, mixing_weights

LABELS = torch.tensor([0, 1, 2, 2, 1, 0, 0, 0])
MIXED = torch.tensor([True, False, False, False, True, False, False, False])


class Told(nn.Module):
    """Returns logits that it was given, whatever it sees."""

    def __init__(self, logits: torch.Tensor) -> None:
        super().__init__()
        self.logits = nn.Parameter(logits)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        del x
        return self.logits


def told(classes: int = 3) -> Told:
    return Told(torch.randn(8, classes, generator=torch.Generator().manual_seed(1)))


def batch(labels: torch.Tensor = LABELS) -> ViewBatch:
    return ViewBatch(torch.zeros(8, 1, 4, 4), labels, MIXED)


def total(model: nn.Module, **options: Any) -> float:
    rng = torch.Generator().manual_seed(1)
    return ClassifierObjective(classes=3, **options)(model, batch(), rng).total.item()


def test_without_weights_it_is_cross_entropy() -> None:
    model = told()
    assert total(model) == pytest.approx(functional.cross_entropy(model.logits, LABELS).item())


def test_class_weights_are_those_of_torch() -> None:
    model, weights = told(), [0.2, 1.0, 3.0]
    expected = functional.cross_entropy(model.logits, LABELS, weight=torch.tensor(weights))
    assert total(model, class_weights=weights) == pytest.approx(expected.item())
    assert total(model) != pytest.approx(expected.item())


def test_mixed_pictures_count_more_in_training_and_alike_in_evaluation() -> None:
    model = told()
    plain = functional.cross_entropy(model.logits, LABELS, reduction="none")
    weight = torch.where(MIXED, 1 + 2 * 0.75, 1 - 2 * 0.25)
    trained = total(model, emphasis=2.0, mixed_frac=0.25)
    assert trained == pytest.approx((weight * plain).mean().item())
    assert trained != pytest.approx(plain.mean().item())
    assert total(model.eval(), emphasis=2.0, mixed_frac=0.25) == pytest.approx(plain.mean().item())


@pytest.mark.parametrize(("emphasis", "frac"), [(0.0, 0.1), (2.0, 0.1), (9.0, 0.1), (0.9, 1.0)])
def test_mixing_weights_have_mean_one_and_are_positive(emphasis: float, frac: float) -> None:
    count = 1000
    mixed = torch.arange(count) < frac * count
    weights = mixing_weights(mixed, emphasis=emphasis, mixed_frac=frac)
    assert weights.mean().item() == pytest.approx(1.0, abs=1e-5)
    assert bool((weights > 0).all())


def test_wrong_share_has_another_mean() -> None:
    weights = mixing_weights(torch.arange(1000) < 100, emphasis=2.0, mixed_frac=0.4)
    assert weights.mean().item() != pytest.approx(1.0, abs=0.1)


@pytest.mark.parametrize(
    ("emphasis", "frac", "match"),
    [
        (10.0, 0.1, "too large or negative"),
        (1.0, 1.0, "too large or negative"),
        (-0.5, 0.1, "too large or negative"),
        (math.nan, 0.1, "too large or negative"),
        (1.0, 0.0, "share of mixed"),
        (1.0, 1.2, "share of mixed"),
        (1.0, math.nan, "share of mixed"),
    ],
)
def test_lambda_and_share_that_cannot_be_are_refused(
    emphasis: float, frac: float, match: str
) -> None:
    with pytest.raises(DataError, match=match):
        mixing_weights(MIXED, emphasis=emphasis, mixed_frac=frac)
    with pytest.raises(DataError, match=match):
        ClassifierObjective(classes=3, emphasis=emphasis, mixed_frac=frac)


@pytest.mark.parametrize("weights", [[1.0, 1.0], [1.0, 1.0, 0.0], [1.0, 1.0, math.nan], []])
def test_class_weights_that_cannot_be_are_refused(weights: list[float]) -> None:
    with pytest.raises(DataError, match="class weights"):
        ClassifierObjective(classes=3, class_weights=weights)


def test_fewer_than_two_classes_are_refused() -> None:
    with pytest.raises(DataError, match="nothing to tell apart"):
        ClassifierObjective(classes=1)


@pytest.mark.parametrize(
    ("model", "labels"), [(told(), LABELS + 1), (told(), LABELS - 1), (told(4), LABELS)]
)
def test_labels_beyond_the_classes_are_refused(model: nn.Module, labels: torch.Tensor) -> None:
    objective, rng = ClassifierObjective(classes=3), torch.Generator()
    with pytest.raises(DataError, match="labels are not those"):
        objective(model, batch(labels), rng)
    assert math.isfinite(objective(told(), batch(), rng).total.item())


class LeftToItself(ClassifierObjective):
    """The control: what is dropped out comes from the global generator."""

    def __call__(self, model: nn.Module, batch: ViewBatch, rng: torch.Generator) -> Loss:
        del rng
        nats = functional.cross_entropy(model(batch.image_BCHW), batch.label_B)
        return Loss(total=nats, parts={})


def train(
    name: str = "north",
    *,
    objective: ClassifierObjective | None = None,
    kept: FileCheckpoints | None = None,
    until: int | None = None,
) -> list[torch.Tensor]:
    """Return the weights after 6 steps that see the same 8 pictures: only dropout is by chance."""
    image = torch.rand(8, 1, 8, 8, generator=torch_stream(1, "pictures"))
    learned = ViewBatch(image, LABELS, MIXED)
    with seeded_initialization(1, "net"):
        net = ViewNet(channels=(4, 4, 4, 4), blocks=(1, 1, 1, 1), classes=3, dropout=0.5)

    def poll(done: int, total: int) -> None:
        del total
        if until is not None and done >= 8 * until:
            raise TaskStopped("the task was told to stop")

    fit(
        net,
        objective or ClassifierObjective(classes=3),
        lambda _images, _rng: learned,
        LocalTrainingConfig(length_images=48, batch_images=8, learning_rate=1e-2),
        length_images=48,
        rng=torch_stream(1, name),
        poll=poll,
        checkpoints=kept,
    )
    return [tensor.clone() for tensor in net.state_dict().values()]


def alike(one: list[torch.Tensor], other: list[torch.Tensor]) -> bool:
    return all(a.equal(b) for a, b in zip(one, other, strict=True))


def test_trainings_with_equal_generators_drop_out_alike_and_leave_the_global_one_alone() -> None:
    before = torch.get_rng_state()
    first = train()
    assert torch.equal(before, torch.get_rng_state())
    with torch.random.fork_rng(devices=[]):
        torch.rand(3)  # whoever else draws from the global generator changes nothing
        assert alike(first, train())
        assert not alike(first, train("south"))  # control: another generator
        itself = LeftToItself(classes=3)
        assert not alike(train(objective=itself), train(objective=itself))  # control: no generator


@pytest.mark.parametrize("at", [1, 4])
def test_training_with_dropout_that_was_stopped_goes_on_to_the_same_weights(
    at: int, tmp_path: Path
) -> None:
    def kept(name: str) -> FileCheckpoints:
        return FileCheckpoints(tmp_path / name, key=name, every_s=1000, clock=lambda: 0.0)

    for name, objective in (("own", None), ("itself", LeftToItself(classes=3))):
        with torch.random.fork_rng(devices=[]):
            state = torch.get_rng_state()
            whole = train(objective=objective)
            torch.set_rng_state(state)
            with pytest.raises(TaskStopped):
                train(objective=objective, kept=kept(name), until=at)
            torch.rand(3)
            gone_on = train(objective=objective, kept=kept(name))
        assert alike(whole, gone_on) is (name == "own"), "the control does not go on alike"


def test_evaluation_draws_nothing_from_the_generator() -> None:
    rng = torch_stream(1, "north")
    state = rng.get_state()
    objective, model = ClassifierObjective(classes=3), told()
    objective(model.eval(), batch(), rng)
    assert torch.equal(state, rng.get_state())
    objective(model.train(), batch(), rng)
    assert not torch.equal(state, rng.get_state())  # control
