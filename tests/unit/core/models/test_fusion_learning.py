"""Fusion is learned from what sites tell of classes with enough patients, and of no image."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from tests.unit.core.models.test_view_expert import CONFIG, images
from vitrael.core.errors import DataError
from vitrael.core.models.fusion_learning import (
    SMALLEST_CLASS,
    SiteOutlook,
    draw_readings,
    pick_readings,
    read_all,
    tell_site,
)
from vitrael.core.models.score_fusion import Readings
from vitrael.core.models.view_expert import ViewExpert, build_view_net, complete_expert
from vitrael.core.rng import stream, torch_stream
from vitrael.privacy.leakage import SMALLEST_COUNT

COUNT = 60
LABELS = ["A4C" if number % 3 else "A2C" for number in range(COUNT)]


@pytest.fixture(scope="module")
def experts() -> list[ViewExpert]:
    sites = {"north": ("A4C", "A2C"), "south": ("PLAX", "A4C", "PSAX")}
    return [
        complete_expert(
            build_view_net(CONFIG, len(labels), seed=seed),
            images(seed=seed),
            name=name,
            labels=labels,
        )
        for seed, (name, labels) in enumerate(sites.items())
    ]


@pytest.fixture(scope="module")
def readings(experts: list[ViewExpert]) -> Readings:
    return read_all(experts, images(COUNT, seed=7))


@pytest.fixture(scope="module")
def told(readings: Readings) -> SiteOutlook:
    return tell_site(readings, LABELS, range(COUNT))


def test_means_are_told_by_class_and_one_spread_of_the_site(
    readings: Readings, told: SiteOutlook
) -> None:
    assert told.images == {"A2C": 20, "A4C": 40}
    rows = [number for number, label in enumerate(LABELS) if label == "A4C"]
    seen = torch.cat([readings.features["south"], readings.discrepancy["south"]], dim=1).numpy()
    outlook = told.experts["south"]
    np.testing.assert_allclose(outlook.mean["A4C"], seen[rows].mean(0), rtol=1e-6)
    square = sum(
        np.square(seen[number] - outlook.mean[label]) for number, label in enumerate(LABELS)
    )
    np.testing.assert_allclose(outlook.std, np.sqrt(square / COUNT), rtol=1e-5)


def test_class_with_too_few_patients_is_not_told_however_many_images_it_has(
    readings: Readings,
) -> None:
    few = [number % (SMALLEST_CLASS - 1) for number in range(COUNT)]
    patients = [100 + number if LABELS[number] == "A4C" else few[number] for number in range(COUNT)]
    some = tell_site(readings, LABELS, patients)
    assert set(some.images) == {"A4C"}
    assert all(set(outlook.mean) == {"A4C"} for outlook in some.experts.values())
    with pytest.raises(DataError, match="none has 11 patients"):
        tell_site(readings, LABELS, few)


def test_smallest_class_is_the_smallest_count_that_may_be_told_anywhere() -> None:
    assert SMALLEST_CLASS == SMALLEST_COUNT


def test_spread_of_what_is_told_does_not_know_classes_that_are_not(readings: Readings) -> None:
    few = [number % 5 if LABELS[number] == "A2C" else 100 + number for number in range(COUNT)]
    rows = torch.tensor([number for number, label in enumerate(LABELS) if label == "A4C"])
    alone = tell_site(readings.rows(rows), ["A4C"] * len(rows), range(len(rows)))
    beside = tell_site(readings, LABELS, few)
    for name in alone.experts:
        np.testing.assert_array_equal(beside.experts[name].std, alone.experts[name].std)


def test_noise_over_means_is_as_wide_as_told_and_apart_for_each_number(readings: Readings) -> None:
    exact = tell_site(readings, LABELS, range(COUNT))
    offsets = []
    for draw in range(40):
        rng = stream(1, "noise", draw)
        told = tell_site(readings, LABELS, range(COUNT), noise_frac=0.5, rng=rng)
        assert told.images == exact.images
        for name, own in exact.experts.items():
            own_std = own.std.astype(float)
            np.testing.assert_allclose(told.experts[name].std, own_std * np.sqrt(1.25), rtol=1e-5)
            assert all(mean.dtype == np.float32 for mean in told.experts[name].mean.values())
            spread = np.where(own_std > 1e-6, own_std, np.inf)  # what never changes gets no noise
            offsets.append([(told.experts[name].mean[k] - own.mean[k]) / spread for k in own.mean])
    north_DCW = np.array(offsets[::2])
    north_DCW = north_DCW[:, :, north_DCW.any(axis=(0, 1))]
    width = north_DCW.shape[2]
    assert width > 1
    assert north_DCW.std() == pytest.approx(0.5, rel=0.05)
    assert abs(north_DCW.mean()) < 0.03
    correlation = np.corrcoef(north_DCW.reshape(40, 2 * width).T) - np.eye(2 * width)
    assert abs(correlation.mean()) < 0.05, "two classes or two numbers share their noise"


def test_noise_of_a_generator_is_drawn_again_alike_and_no_noise_is_the_exact_mean(
    readings: Readings, told: SiteOutlook
) -> None:
    def tell(noise_frac: float, name: str) -> np.ndarray:
        rng = stream(1, name)
        one = tell_site(readings, LABELS, range(COUNT), noise_frac=noise_frac, rng=rng)
        outlook = one.experts["north"]
        return np.stack([*outlook.mean.values(), outlook.std])

    np.testing.assert_array_equal(tell(0.5, "secret"), tell(0.5, "secret"))
    assert not np.array_equal(tell(0.5, "secret"), tell(0.5, "guessed"))
    own = told.experts["north"]
    np.testing.assert_array_equal(tell(0.0, "secret"), np.stack([*own.mean.values(), own.std]))


def test_noise_of_a_mean_is_the_same_whatever_else_is_told_and_new_when_images_change(
    experts: list[ViewExpert], readings: Readings
) -> None:
    few = [number % 5 if LABELS[number] == "A2C" else 100 + number for number in range(COUNT)]
    alone = read_all(experts[1:], images(COUNT, seed=7))

    def noise(
        readings: Readings, patients: list[int], label: str, labels: list[str] = LABELS
    ) -> np.ndarray:
        exact, told = (
            tell_site(readings, labels, patients, noise_frac=frac, rng=stream(1, "secret"))
            for frac in (0.0, 0.5)
        )
        own = exact.experts["south"]
        offset = told.experts["south"].mean[label] - own.mean[label]
        return offset / np.maximum(own.std, 1e-6)

    whole = noise(readings, list(range(COUNT)), "A4C")
    again, other = noise(alone, few, "A4C"), noise(readings, list(range(COUNT)), "A2C")
    spread = (whole != 0) & (again != 0)  # what is the same in all images gets no noise
    assert spread.sum() > 10
    np.testing.assert_allclose(again[spread], whole[spread], atol=1e-3)
    assert not np.allclose(other[spread], whole[spread], atol=0.1)  # control: another class
    assert LABELS[1] == "A4C"
    less = ["PSAX" if number == 1 else label for number, label in enumerate(LABELS)]
    changed = noise(readings, list(range(COUNT)), "A4C", less)
    assert not np.allclose(changed[spread], whole[spread], atol=0.1), "one image less, same noise"


@pytest.mark.parametrize("noise_frac", [-0.1, np.nan, np.inf, -np.inf])
def test_noise_that_cannot_be_is_refused(readings: Readings, noise_frac: float) -> None:
    with pytest.raises(DataError, match="noise over what is told cannot be used"):
        tell_site(readings, LABELS, range(COUNT), noise_frac=noise_frac, rng=stream(1, "noise"))


def test_noise_without_a_generator_is_refused(readings: Readings) -> None:
    with pytest.raises(DataError, match="nothing to draw the noise"):
        tell_site(readings, LABELS, range(COUNT), noise_frac=0.5)


def test_draws_have_the_means_and_the_spread_that_were_told_and_the_logits_that_follow(
    experts: list[ViewExpert], told: SiteOutlook
) -> None:
    many = replace(told, images={label: 200 * count for label, count in told.images.items()})
    drawn, labels = draw_readings([many], experts, rng=stream(1, "draws"))
    assert labels == ["A2C"] * 4_000 + ["A4C"] * 8_000
    for expert in experts:
        outlook, width = told.experts[expert.name], expert.net.features
        seen = drawn.discrepancy[expert.name][4_000:].numpy()
        np.testing.assert_allclose(seen.mean(0), outlook.mean["A4C"][width:], atol=0.03)
        np.testing.assert_allclose(seen.std(0), outlook.std[width:], rtol=0.05)
        assert (drawn.features[expert.name] >= 0).all()
        with torch.no_grad():
            logit = expert.net.classify(drawn.features[expert.name])
        torch.testing.assert_close(drawn.logits[expert.name], logit)


def test_nothing_told_and_an_expert_that_was_not_run_are_refused(
    experts: list[ViewExpert], told: SiteOutlook
) -> None:
    with pytest.raises(DataError, match="nothing to learn fusion from"):
        draw_readings([], experts, rng=stream(1, "draws"))
    alone = tell_site(read_all(experts[:1], images(COUNT, seed=7)), LABELS, range(COUNT))
    with pytest.raises(DataError, match="what the expert south sees"):
        draw_readings([told, alone], experts, rng=stream(1, "draws"))


def test_site_that_tells_of_another_network_or_nan_is_refused(
    experts: list[ViewExpert], readings: Readings, told: SiteOutlook
) -> None:
    own = told.experts["south"]
    narrow = replace(own, std=own.std[:-1])
    with pytest.raises(DataError, match="not of its network"):
        draw_readings(
            [replace(told, experts={**told.experts, "south": narrow})],
            experts,
            rng=stream(1, "draws"),
        )
    nan = replace(own, std=own.std * np.nan)
    with pytest.raises(DataError):
        draw_readings(
            [replace(told, experts={**told.experts, "south": nan})], experts, rng=stream(1, "x")
        )
    spoiled = replace(readings, features={k: v * np.nan for k, v in readings.features.items()})
    with pytest.raises(DataError):
        tell_site(spoiled, LABELS, range(COUNT))


def test_batches_are_picked_with_their_labels(readings: Readings) -> None:
    label_B = torch.arange(COUNT)
    part, label = pick_readings(readings, label_B)(8, torch_stream(1, "batch"))
    assert torch.equal(part.logits["north"], readings.logits["north"][label])
