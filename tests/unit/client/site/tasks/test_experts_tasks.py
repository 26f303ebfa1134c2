"""What a site does for a study of experts: each task alone, and that its result may leave."""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import pytest
import torch

from tests.factories.own_views import VIEWS, experts_study
from tests.unit.client.site.tasks.conftest import OWN
from vitrael.client.site.rules import RULES
from vitrael.client.site.tasks import canary, tell_outlooks, train_common, train_expert
from vitrael.client.site.tasks.layouts import study_layouts
from vitrael.client.site.tasks.views import build_common, read_learnable, read_views
from vitrael.core.data.splits import Split
from vitrael.core.errors import DataError, WeightsError
from vitrael.core.models.fusion_learning import read_all
from vitrael.core.models.view_expert import (
    ViewExpert,
    build_view_net,
    complete_expert,
    open_expert,
)
from vitrael.core.weights import check_like, module_tensors

if TYPE_CHECKING:
    from tests.unit.client.site.tasks.conftest import MakeStation, Station
    from vitrael.client.site.tasks import TaskResult
    from vitrael.core.study import Study
    from vitrael.core.weights import Tensors

STILL = {"systems.0.training.learning_rate": 1e-12}
"""A training that moves no weight to speak of."""


def train(
    station: Station, inputs: Mapping[str, Tensors] | None = None, *, study: Study | None = None
) -> TaskResult:
    inputs, study = inputs or {}, study or station.study
    task = station.task("expert", inputs, study=study)
    result = train_expert.run(task, inputs, station.context(study))
    station.let_out(task, result, inputs, study=study)
    return result


def opened(station: Station, result: TaskResult) -> ViewExpert:
    config = station.study.experts.expert
    return open_expert(result.tensors["expert"], config, name="north", labels=OWN)


def test_expert_has_the_layout_of_the_study_with_a_row_for_each_view(station: Station) -> None:
    result = train(station)
    layout = study_layouts(station.study)["expert"]
    own = {key: a[:2] if key.startswith("net.head.") else a for key, a in layout.items()}
    check_like(result.tensors["expert"], own)
    assert result.num_examples == 23
    with pytest.raises(WeightsError):  # the control: with every view it has more rows
        check_like(result.tensors["expert"], layout)


def test_words_of_the_expert_are_those_that_the_site_tells_apart(station: Station) -> None:
    body = RULES["expert"].body.model_validate(dict(train(station).body)).model_dump()
    assert body["words"] == {"A2C": "A2C", "apical 4": "A4C"}  # not PLAX, of ten patients
    assert body["curve_images"][-1] == 32
    assert len(body["curve_loss"]) == len(body["curve_images"])


def test_scores_are_calibrated_on_pictures_that_nobody_learned_from(station: Station) -> None:
    result = train(station)
    assert result.body["calibrated"] is True
    context, expert = station.context(), opened(station, result)
    held_out = read_views(context, Split.CALIBRATION, views=OWN).images
    assert len(held_out) == 11  # not those of a view that it does not know
    own_BL = expert.read(held_out).discrepancy_BL.numpy()
    np.testing.assert_allclose(expert.calibration.mean_L, own_BL.mean(axis=0), atol=1e-4)
    np.testing.assert_allclose(expert.calibration.std_L, own_BL.std(axis=0), atol=1e-4)
    every = context.cohort.views(Split.CALIBRATION).image_BCHW
    for others in (read_learnable(context).images, torch.from_numpy(every)):  # the controls
        other_BL = expert.read(others).discrepancy_BL.numpy()
        assert np.abs(other_BL.mean(axis=0) - expert.calibration.mean_L).max() > 0.01


@pytest.mark.parametrize("words", [{"A2C": 10}, {"A2C": 5, "apical 4": 5, "PLAX": 20}, {}])
def test_expert_of_few_held_out_patients_is_not_calibrated_on_them(
    make_station: MakeStation, words: dict[str, int]
) -> None:
    learned = {"A2C": 12, "apical 4": 11}
    station = make_station({Split.TRAINING: learned, Split.CALIBRATION: words})
    result = train(station)
    assert result.body["calibrated"] is False
    foreign = torch.rand((4, 1, 16, 16), generator=torch.Generator().manual_seed(1)).round()
    expert = opened(station, result)
    assert all(expert.knows(expert.read(foreign).discrepancy_BL))
    more = {"A2C": 6, "apical 4": 5}  # the control: one more patient, and not all is known
    other = make_station({Split.TRAINING: learned, Split.CALIBRATION: more})
    result = train(other)
    assert result.body["calibrated"] is True
    expert = opened(other, result)
    assert not all(expert.knows(expert.read(foreign).discrepancy_BL))


def test_expert_begins_with_the_weights_that_the_task_brings(station: Station) -> None:
    study = experts_study(STILL)
    first = build_view_net(study.experts.expert, 4, seed=99)  # of a site with other views
    images = read_learnable(station.context()).images
    start = complete_expert(first, images, name="valley", labels=VIEWS).tensors()
    begun = train(station, {"start": start}, study=study).tensors["expert"]
    alone = train(station, study=study).tensors["expert"]
    name = "net.body.conv1.weight"
    np.testing.assert_allclose(begun[name], start[name], atol=1e-6)
    assert np.abs(alone[name] - start[name]).max() > 0.01  # the control
    assert begun["net.head.weight"].shape == (2, 8)
    np.testing.assert_allclose(begun["net.head.weight"], alone["net.head.weight"], atol=1e-6)


def test_start_of_another_network_is_refused(station: Station) -> None:
    wide = station.study.experts.expert.model_copy(update={"channels": (4, 4, 8, 16)})
    start = {f"net.{k}": v for k, v in module_tensors(build_view_net(wide, 2, seed=1)).items()}
    with pytest.raises(WeightsError):
        train(station, {"start": start})


def test_task_that_is_done_again_gives_the_same_expert(station: Station) -> None:
    first, second = train(station).tensors["expert"], train(station).tensors["expert"]
    for name, value in first.items():
        np.testing.assert_array_equal(second[name], value)
    other = train(station, study=experts_study({"seed": 6})).tensors["expert"]  # the control
    assert (other["net.head.weight"] != first["net.head.weight"]).any()


def test_expert_learns_what_its_pictures_show(station: Station) -> None:
    changes = {"length_images": 480, "batch_images": 16, "learning_rate": 5e-3}
    study = experts_study({f"systems.0.training.{key}": value for key, value in changes.items()})
    own = read_learnable(station.context())
    right = {}
    for name, result in (("trained", train(station, study=study)), ("still", None)):
        expert = opened(station, result or train(station, study=experts_study(STILL)))
        answer_B = expert.predict(own.images).argmax(1).numpy()
        right[name] = float((answer_B == own.view_B).mean())
    assert right["trained"] > 0.9
    assert right["still"] < right["trained"]


def test_expert_learns_on_other_backgrounds_where_the_study_says_so(
    make_station: MakeStation,
) -> None:
    clips = {"data.recipe": "echo-apical"}
    backmix = {"systems.0.backmix": {"sectors_frac": 0.5, "emphasis": 1.5}}
    station = make_station({Split.TRAINING: {"A2C": 11, "PLAX": 11}}, experts_study(clips))
    plain, mixed = train(station), train(station, study=experts_study({**clips, **backmix}))
    name = "net.body.conv1.weight"
    assert (plain.tensors["expert"][name] != mixed.tensors["expert"][name]).any()


def test_site_that_cannot_learn_is_refused_in_every_task(make_station: MakeStation) -> None:
    station = make_station({Split.TRAINING: {"A2C": 11, "PLAX": 10}})
    context = station.context()
    common = {"common": module_tensors(build_common(context))}
    for stage, run in (
        ("expert", train_expert.run),
        ("averaged", train_common.run),
        ("outlooks", tell_outlooks.run),
        ("canary", canary.run),
    ):
        inputs = common if stage == "averaged" else {}
        with pytest.raises(DataError, match="the site can train no expert"):
            run(station.task(stage, inputs), inputs, context)  # type: ignore[arg-type,operator]


# What experts see.


def tell(
    station: Station, told: Literal["means", "features"], *, noise_frac: float = 0.0
) -> TaskResult:
    study, inputs = experts_study({"told": told, "noise_frac": noise_frac}), station.bring()
    task = station.task("outlooks", inputs, study=study)
    result = tell_outlooks.run(task, inputs, station.context(study))
    station.let_out(task, result, inputs, study=study)
    return result


def test_outlooks_are_means_over_views_of_enough_patients(station: Station) -> None:
    sent = tell(station, "means").tensors["outlooks"]
    own = read_learnable(station.context())
    experts = station.experts()
    readings = read_all(experts, own.images)
    width = experts[0].net.features + len(experts[0].net.layers)
    assert sent["images"].tolist() == [12, 11, 0, 0]
    assert sent["mean"].shape == (2, 4, width)
    assert sent["std"].shape == (2, width)
    for number, expert in enumerate(experts):
        name = expert.name
        seen = torch.cat([readings.features[name], readings.discrepancy[name]], 1).numpy()
        for view in (0, 1):
            mean = seen[own.view_B == view].mean(axis=0)
            np.testing.assert_allclose(sent["mean"][number, view], mean, atol=1e-4)
        assert not sent["mean"][number, 2:].any()  # of ten patients, and of none
    assert np.abs(sent["mean"][0, 0] - sent["mean"][1, 0]).max() > 0.01  # whose is whose


def test_means_are_told_under_noise_that_is_the_same_again_and_nobody_elses(
    station: Station,
) -> None:
    exact = tell(station, "means").tensors["outlooks"]
    noisy, again = (tell(station, "means", noise_frac=0.5).tensors["outlooks"] for _ in range(2))
    np.testing.assert_array_equal(noisy["mean"], again["mean"])
    np.testing.assert_array_equal(noisy["images"], exact["images"])
    moved = (noisy["mean"] - exact["mean"])[:, :2]
    spread = np.broadcast_to(exact["std"][:, None], moved.shape)
    assert 0.3 < (moved[spread > 0] / spread[spread > 0]).std() < 0.7
    assert not noisy["mean"][:, 2:].any()
    key = station.context().settings.keys / "split.key"
    secret = key.read_bytes()
    key.write_bytes(bytes(byte ^ 1 for byte in secret))
    try:
        other = tell(station, "means", noise_frac=0.5).tensors["outlooks"]
    finally:
        key.write_bytes(secret)
    assert np.abs(other["mean"] - noisy["mean"]).max() > 1e-3


def test_nothing_of_single_pictures_is_told_unless_the_study_says_so(station: Station) -> None:
    result = tell(station, "means")
    assert set(result.tensors["outlooks"]) == {"images", "mean", "std"}
    assert not result.body.get("pictures")
    assert max(array.size for array in result.tensors["outlooks"].values()) < 23 * 8 * 2


def test_features_are_those_of_every_picture_that_is_counted(station: Station) -> None:
    result = tell(station, "features")
    sent = result.tensors["outlooks"]
    assert result.body["pictures"] == result.num_examples == 23
    assert sent["seen"].shape == (2, 23, sent["std"].shape[1])
    assert np.bincount(sent["view"], minlength=4).tolist() == sent["images"].tolist()
    for view in (0, 1):
        mean_NW = sent["seen"][:, sent["view"] == view].mean(axis=1)
        np.testing.assert_allclose(mean_NW, sent["mean"][:, view], atol=1e-4)
    plain = tell(station, "means").tensors["outlooks"]
    for name in ("images", "mean", "std"):
        np.testing.assert_array_equal(plain[name], sent[name])


def test_risk_of_what_is_told_is_measured_where_enough_patients_are_strange_to_it(
    station: Station, make_station: MakeStation
) -> None:
    for told in ("means", "features"):
        body = tell(station, told).body  # eleven are held out, of the views that are told of
        assert body["estimable"] is True
        assert min(body["counts"].values()) >= 11
        assert {name.removesuffix(".n") for name in body["counts"]} <= set(body["metrics"])
    learned = {"A2C": 12, "apical 4": 11}
    for words in ({"A2C": 5, "apical 4": 5, "PLAX": 30}, {"PLAX": 30}, {}):
        few = make_station({Split.TRAINING: learned, Split.CALIBRATION: words})
        body = tell(few, "means").body
        assert body["estimable"] is False
        assert body["reason"]
        assert not {**body.get("metrics", {}), **body.get("counts", {})}


# What experts are held against.


@pytest.mark.parametrize("stage", ["averaged", "relay"])
def test_common_network_learns_every_view_that_the_site_has(
    station: Station, stage: Literal["averaged", "relay"]
) -> None:
    start = {"common": module_tensors(build_common(station.context()))}
    task = station.task(stage, start, round_index=1)
    result = train_common.run(task, start, station.context())
    finished = station.let_out(task, result, start)
    assert finished.num_examples == 23
    check_like(result.tensors["common"], start["common"])
    moved = {k for k, v in start["common"].items() if (result.tensors["common"][k] != v).any()}
    assert {"head.weight", "body.conv1.weight"} <= moved
    assert result.body["curve_images"] == ([32] if stage == "averaged" else [16, 32])
    small = {**result.tensors["common"], "head.weight": np.zeros((2, 8), np.float32)}
    wrong = replace(result, tensors={"common": small})  # the control
    with pytest.raises(WeightsError, match="outbox refuses common"):
        station.let_out(task, wrong, start)


def test_common_network_of_another_size_is_refused(station: Station) -> None:
    small = build_view_net(station.study.experts.expert, 2, seed=1)
    inputs = {"common": module_tensors(small)}
    with pytest.raises(WeightsError):
        train_common.run(station.task("relay", inputs), inputs, station.context())


# What is known before.


def test_canary_of_an_expert_tells_seconds_and_numbers_of_the_study(station: Station) -> None:
    ticks = itertools.count()
    station.told.clear()
    task = station.task("canary")
    result = canary.run(task, {}, station.context(), clock=lambda: float(next(ticks)))
    finished = station.let_out(task, result)
    steps = canary.STEPS - 1
    assert finished.body == {"expert_images": steps * 16, "expert_s": float(steps)}
    assert (result.tensors, result.num_examples) == ({}, 0)
    assert station.told == [(0, 1), *[(0, 1)] * canary.STEPS, (1, 1)]


def test_slow_site_is_let_off_after_the_first_step(station: Station) -> None:
    ticks = itertools.count(step=canary.LONGEST_S + 1)
    told = canary.run(
        station.task("canary"), {}, station.context(), clock=lambda: float(next(ticks))
    )
    assert told.body == {"expert_images": 16, "expert_s": canary.LONGEST_S + 1}


def test_layouts_of_experts_are_those_of_the_networks_that_the_study_builds(
    station: Station,
) -> None:
    before = torch.default_generator.get_state()
    layouts = study_layouts(station.study)
    assert torch.equal(torch.default_generator.get_state(), before)
    assert set(layouts) == {"common", "expert"}
    check_like(module_tensors(build_common(station.context())), layouts["common"])
    images = read_learnable(station.context()).images
    net = build_view_net(station.study.experts.expert, len(VIEWS), seed=1)
    expert = complete_expert(net, images, name="north", labels=VIEWS)
    check_like(expert.tensors(), layouts["expert"])
    deeper: dict[str, Any] = {"systems.0.blocks": [1, 1, 1, 2]}  # the control
    with pytest.raises(WeightsError):
        check_like(expert.tensors(), study_layouts(experts_study(deeper))["expert"])
