"""An expert is published whole, knows its own images, and refuses what makes none."""

from __future__ import annotations

import pytest
import torch

from vitrael.core.configs import LocalTrainingConfig, ViewExpertConfig
from vitrael.core.errors import DataError, WeightsError
from vitrael.core.interfaces import Predictor
from vitrael.core.models.view_expert import (
    ViewExpert,
    build_view_net,
    complete_expert,
    open_expert,
)
from vitrael.core.rng import torch_stream
from vitrael.core.weights import module_tensors

CONFIG = ViewExpertConfig(
    kind="view_expert",
    channels=(4, 4, 8, 8),
    blocks=(1, 1, 1, 1),
    stem_stride=2,
    training=LocalTrainingConfig(length_images=8),
)
LABELS = ("A4C", "A2C", "PLAX")


def images(count: int = 12, *, seed: int = 1) -> torch.Tensor:
    return torch.rand((count, 1, 24, 24), generator=torch_stream(seed, "images"))


def expert() -> ViewExpert:
    net = build_view_net(CONFIG, 3, seed=1)
    return complete_expert(net, images(), name="north", labels=LABELS)


def test_published_network_has_as_many_maps_as_the_paper_says() -> None:
    whole = ViewExpertConfig(kind="view_expert", training=CONFIG.training)
    with torch.device("meta"):
        net = build_view_net(whole, 8, seed=1)
    assert len(net.layers) == 17
    assert sum(net.layers) == 3_904
    assert net.features == 512


def test_published_expert_reads_images_as_the_site_does() -> None:
    own = expert()
    opened = open_expert(own.tensors(), CONFIG, name="north", labels=LABELS)
    x = images(5, seed=2)
    for name in ("logit_BK", "feature_BE", "discrepancy_BL"):
        torch.testing.assert_close(getattr(opened.read(x), name), getattr(own.read(x), name))
    assert isinstance(opened, Predictor)
    probability_BK = opened.predict(x)
    torch.testing.assert_close(probability_BK.sum(1), torch.ones(5))


def test_reading_of_an_image_does_not_depend_on_its_batch() -> None:
    own, x = expert(), images(70, seed=3)
    together, alone = own.read(x), own.read(x[66:67])
    torch.testing.assert_close(together.logit_BK[66:67], alone.logit_BK, atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(
        together.discrepancy_BL[66:67], alone.discrepancy_BL, atol=1e-4, rtol=1e-3
    )


def test_own_images_are_more_usual_than_foreign_ones() -> None:
    own = expert()
    foreign = images(12, seed=4) ** 6
    assert own.read(images()).discrepancy_BL.mean() < own.read(foreign).discrepancy_BL.mean() - 0.2


def test_gain_and_offset_of_an_image_change_nothing() -> None:
    own, x = expert(), images(4, seed=5)
    torch.testing.assert_close(
        own.read(x).logit_BK, own.read(0.5 * x + 0.1).logit_BK, atol=1e-4, rtol=1e-3
    )


def test_later_expert_begins_with_the_weights_of_the_first_but_for_the_head() -> None:
    first = module_tensors(build_view_net(CONFIG, 3, seed=1))
    later = module_tensors(build_view_net(CONFIG, 2, seed=2, start=first))
    assert (later["body.conv1.weight"] == first["body.conv1.weight"]).all()
    assert later["head.weight"].shape == (2, 8)
    fresh = module_tensors(build_view_net(CONFIG, 2, seed=2))
    assert (fresh["body.conv1.weight"] != first["body.conv1.weight"]).any()  # the control


def test_site_with_one_class_or_few_images_makes_no_expert() -> None:
    with pytest.raises(DataError, match="two views at least"):
        build_view_net(CONFIG, 1, seed=1)
    net = build_view_net(CONFIG, 3, seed=1)
    with pytest.raises(DataError, match="9 images are too few"):
        complete_expert(net, images(9), name="north", labels=LABELS)
    with pytest.raises(DataError, match="not those of the network"):
        complete_expert(net, images(), name="north", labels=("A4C", "A2C"))


@pytest.mark.parametrize("shape", [(2, 4, 24, 24), (2, 24, 24), (2, 1, 4, 24, 24)])
def test_image_of_other_channels_is_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(DataError, match="not gray pictures"):
        expert().read(torch.zeros(shape))


def test_damaged_expert_is_refused() -> None:
    tensors = expert().tensors()
    with pytest.raises(DataError, match="activity profile"):
        open_expert(
            {**tensors, "activity.std": 0 * tensors["activity.std"]},
            CONFIG,
            name="north",
            labels=LABELS,
        )
    with pytest.raises(WeightsError):
        open_expert(tensors, CONFIG, name="north", labels=LABELS[:2])
    nan = {**tensors, "net.body.conv1.weight": float("nan") * tensors["net.body.conv1.weight"]}
    with pytest.raises((DataError, WeightsError), match="finite"):
        open_expert(nan, CONFIG, name="north", labels=LABELS).read(images(2))


def test_repr_of_an_expert_shows_whose_it_is_and_no_numbers() -> None:
    assert repr(expert()) == "ViewExpert(north: A4C, A2C, PLAX)"
