"""Six sites join one after another: their experts together know what pooled training would."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import pytest
import torch

from tests.factories.view_experts import (
    ask,
    learn,
    shapes_of,
    small_expert,
    train_expert,
    train_fusion,
)
from tests.factories.views import SITES, Views, draw_views
from vitrael.core.metrics.intervals import auc, clopper_pearson
from vitrael.core.models.expert_baselines import COMBINATIONS
from vitrael.core.models.fusion_learning import (
    SMALLEST_CLASS,
    SiteOutlook,
    draw_readings,
    read_all,
    tell_site,
)
from vitrael.core.models.nets.view_net import ViewNet
from vitrael.core.models.score_fusion import Fused, Readings, merge_classes
from vitrael.core.models.view_expert import ViewExpert, build_view_net
from vitrael.core.rng import stream, torch_stream
from vitrael.core.scoring.in_distribution import fit_gaussians, low_confidence, toward_round

pytestmark = pytest.mark.slow

SEEDS = (80_341, 80_342, 80_343)
TRAIN, TEST, EPOCHS = 180, 90, 16
CONFIG = small_expert(TRAIN * EPOCHS)


@dataclass(frozen=True)
class Sites:
    """What six sites hold, and what nobody has learned from."""

    seed: int
    train: Mapping[str, Views]
    test: Mapping[str, Views]

    @property
    def classes(self) -> tuple[str, ...]:
        return tuple(dict.fromkeys(view for views in self.train.values() for view in views.views))

    def images(self, part: Mapping[str, Views]) -> torch.Tensor:
        return torch.from_numpy(np.concatenate([views.image_BCHW for views in part.values()]))

    def names(self, part: Mapping[str, Views]) -> list[str]:
        return [views.views[label] for views in part.values() for label in views.label_B]

    def labels(self, part: Mapping[str, Views]) -> np.ndarray:
        return np.array([self.classes.index(name) for name in self.names(part)])

    def site_of(self, part: Mapping[str, Views]) -> torch.Tensor:
        return torch.repeat_interleave(
            torch.arange(len(part)), torch.tensor([len(views) for views in part.values()])
        )


def draw_sites(seed: int) -> Sites:
    parts = [
        {
            name: draw_views(number, style, views, count=count)
            for name, (style, views) in SITES.items()
        }
        for number, count in ((2 * seed, TRAIN), (2 * seed + 1, TEST))
    ]
    return Sites(seed, *parts)


def tell_all(sites: Sites, readings: Readings) -> list[SiteOutlook]:
    """Return what each site tells of its classes; each picture is of another patient."""
    told, first = [], 0
    for views in sites.train.values():
        rows = torch.arange(first, first + len(views))
        names = [views.views[label] for label in views.label_B]
        told.append(tell_site(readings.rows(rows), names, range(len(views))))
        first += len(views)
    return told


def without_meaning(readings: Readings, seed: int) -> Readings:
    """Return readings whose discrepancies are noise."""
    noise = {
        name: torch.randn(value.shape, generator=torch_stream(seed, "noise", name, len(value)))
        for name, value in readings.discrepancy.items()
    }
    return replace(readings, discrepancy=noise)


@dataclass
class Table:
    """Accuracy by method over the seeds, and what else is measured."""

    right: dict[str, list[float]]
    facts: dict[str, list[float]]

    def add(self, name: str, right: float) -> None:
        self.right.setdefault(name, []).append(right)

    def note(self, name: str, value: float) -> None:
        self.facts.setdefault(name, []).append(value)

    def show(self) -> None:
        images = TEST * len(SITES) * len(SEEDS)
        print(f"\n{'accuracy':24s} mean of {len(SEEDS)} seeds (interval over images)   each")
        for name, values in self.right.items():
            mean = float(np.mean(values))
            low, high = clopper_pearson(mean * images, images)
            each = " ".join(f"{value:.3f}" for value in values)
            print(f"{name:24s} {mean:.3f} ({low:.3f} to {high:.3f})   {each}")
        for name, values in self.facts.items():
            print(f"{name}: {' '.join(f'{value:.3f}' for value in values)}")


def expert_of(views: Views, name: str, *, seed: int, first: ViewExpert | None) -> ViewExpert:
    return train_expert(
        views.image_BCHW,
        views.label_B,
        CONFIG,
        name=name,
        labels=views.views,
        seed=seed,
        first=first,
    )


@dataclass(frozen=True)
class Trial:
    """One seed: its sites, the pooled network's time, and the experts with their own."""

    sites: Sites
    pooled_s: float
    experts: list[ViewExpert]
    expert_s: float
    reading_s: float
    """Of one expert on all images: what joining asks of the other sites."""
    readings: Readings
    seen: Readings
    table: Table

    def tell(self, name: str, score_BG: torch.Tensor) -> None:
        """Write down how often the largest score is right."""
        truth = torch.from_numpy(self.sites.labels(self.sites.test))
        self.table.add(name, float((score_BG.argmax(1) == truth).float().mean()))

    def tell_heaviest(self, name: str, fused: Fused) -> None:
        """Write down how often the expert of the site that made a picture weighs most."""
        own = fused.weight_BN.argmax(1) == self.sites.site_of(self.sites.test)
        self.table.note(name, float(own.float().mean()))


def begin(seed: int, table: Table) -> Trial:
    """Train the pooled network and the experts of a seed."""
    sites = draw_sites(seed)
    began = time.process_time()
    net = build_view_net(CONFIG, len(sites.classes), seed=seed)
    image, label = sites.images(sites.train).numpy(), sites.labels(sites.train)
    whole = TRAIN * EPOCHS * len(SITES)
    learn(net, image, label, images=whole, rng=torch_stream(seed, "pooled"))
    pooled_s = time.process_time() - began
    table.add("pooled training", float(np.mean(right_by_site(net, sites))))
    began = time.process_time()
    experts: list[ViewExpert] = []
    for name, views in sites.train.items():
        first = experts[0] if experts else None
        experts.append(expert_of(views, name, seed=seed, first=first))
    expert_s = (time.process_time() - began) / len(SITES)
    began = time.process_time()
    readings = read_all(experts, sites.images(sites.train))
    reading_s = (time.process_time() - began) / len(SITES)
    seen = read_all(experts, sites.images(sites.test))
    return Trial(sites, pooled_s, experts, expert_s, reading_s, readings, seen, table)


def fuse(trial: Trial) -> None:
    """Fuse the experts in all ways, and tell what each gives."""
    experts, sites, table, seed = trial.experts, trial.sites, trial.table, trial.sites.seed
    assert merge_classes(shapes_of(experts)) == sites.classes
    for name, combine in COMBINATIONS.items():
        trial.tell(name, combine(shapes_of(experts), trial.seen))
    names = sites.names(sites.train)
    plain = train_fusion(experts, trial.readings, names, seed=seed, weighted=False)
    trial.tell("fusion, unweighted", ask(plain, trial.seen).logit_BG)
    told = tell_all(sites, trial.readings)
    began = time.process_time()
    drawn, drawn_names = draw_readings(told, experts, rng=stream(seed, "outlooks"))
    fused = ask(train_fusion(experts, drawn, drawn_names, seed=seed), trial.seen)
    fusion_s = time.process_time() - began + trial.reading_s
    trial.tell("fusion, from means", fused.logit_BG)
    trial.tell_heaviest("own expert heaviest", fused)
    shared = ask(train_fusion(experts, trial.readings, names, seed=seed), trial.seen)
    trial.tell("fusion, from features", shared.logit_BG)
    trial.tell_heaviest("own expert heaviest, from features", shared)
    noise = without_meaning(trial.readings, seed)
    blind = train_fusion(experts, noise, names, seed=seed)
    blinded = ask(blind, without_meaning(trial.seen, seed))
    trial.tell("fusion, scores are noise", blinded.logit_BG)
    off = (blinded.weight_BN.mean(0) - 1 / len(SITES)).abs().max()
    table.note("noise: largest mean weight off uniform", float(off))
    table.note("fusion over pooled, time", fusion_s / trial.pooled_s)
    both = (trial.expert_s + fusion_s) / trial.pooled_s
    table.note("expert and fusion over pooled, time", both)


@torch.no_grad()
def right_by_site(net: ViewNet, sites: Sites) -> list[float]:
    """Return the share of each site's pictures that a network over all classes gets right."""
    truth = torch.from_numpy(sites.labels(sites.test))
    right = net(sites.images(sites.test)).argmax(1) == truth
    site_B = sites.site_of(sites.test)
    return [float(right[site_B == place].float().mean()) for place in range(len(SITES))]


def fine_tune(sites: Sites, table: Table) -> None:
    """Train one network on one site after another, as if it could be kept up so."""
    net = build_view_net(CONFIG, len(sites.classes), seed=sites.seed)
    once: list[float] = []
    for place, (name, views) in enumerate(sites.train.items()):
        own = np.array([sites.classes.index(views.views[label]) for label in views.label_B])
        rng = torch_stream(sites.seed, "in turn", name)
        learn(net, views.image_BCHW, own, images=TRAIN * EPOCHS, rng=rng)
        once.append(right_by_site(net, sites)[place])
    now = right_by_site(net, sites)
    table.add("one network in turn", float(np.mean(now)))
    table.note(
        "forgotten by it, mean of earlier sites", float(np.mean(once[:-1]) - np.mean(now[:-1]))
    )


def compare_scores(trial: Trial) -> None:
    """Tell how well each score tells an expert's own site from all others, mean of experts."""
    home_B = trial.sites.site_of(trial.sites.test).numpy()
    train_B = trial.sites.site_of(trial.sites.train).numpy()
    labels = np.concatenate([views.label_B for views in trial.sites.train.values()])
    found: dict[str, list[float]] = {}
    for place, expert in enumerate(trial.experts):
        own = train_B == place
        gaussians = fit_gaussians(trial.readings.features[expert.name][own].numpy(), labels[own])
        feature = trial.seen.features[expert.name].numpy()
        scores = {
            "layers": trial.seen.discrepancy[expert.name].mean(1).numpy(),
            "1 - max softmax": low_confidence(trial.seen.logits[expert.name].numpy()),
            "Mahalanobis": gaussians.distance(feature),
            "relative Mahalanobis": gaussians.relative_distance(feature),
        }
        for name, score in scores.items():
            area = auc(score[home_B != place], score[home_B == place]).value
            found.setdefault(name, []).append(area)
    for name, areas in found.items():
        trial.table.note(f"own site from others by {name}, AUC", float(np.mean(areas)))


def guess_members(trial: Trial) -> None:
    """Tell how well who knows what was told guesses which images it was told of.

    The guess is how near an image's readings are to the mean of its class, in all experts at once;
    with covariances, which are not told, it is the control.
    """
    sites, names = trial.sites, [expert.name for expert in trial.experts]
    first, first_new = (
        np.cumsum([0, *map(len, part.values())]) for part in (sites.train, sites.test)
    )
    for count in (SMALLEST_CLASS, 30, TRAIN):
        areas: dict[str, list[float]] = {"means": [], "covariances": []}
        for place, (name, views) in enumerate(sites.train.items()):
            known, strange = (
                [
                    rows_of(readings, names, start + np.flatnonzero(label_B == k)[:most])
                    for k in range(len(views.views))
                ]
                for readings, start, label_B, most in (
                    (trial.readings, first[place], views.label_B, count),
                    (trial.seen, first_new[place], sites.test[name].label_B, TEST),
                )
            )
            around = [rows - rows.mean(1, keepdims=True) for rows in known]
            variance = np.concatenate(around, axis=1).var(axis=1)
            for own, other in zip(known, strange, strict=True):
                near = [nearness(rows, own, variance=variance) for rows in (own, other)]
                areas["means"].append(auc(*near).value)
                near = [nearness(rows, own, variance=None) for rows in (own, other)]
                areas["covariances"].append(auc(*near).value)
        for what, found in areas.items():
            number = "all" if count == TRAIN else count
            trial.table.note(f"members from {what} of {number} images, AUC", float(np.mean(found)))


def nearness(
    rows_NBW: np.ndarray, own_NBW: np.ndarray, *, variance: np.ndarray | None
) -> np.ndarray:
    """Return ``[B]``: minus the distance from the mean of one's own rows, over all experts."""
    total = np.zeros(rows_NBW.shape[1])
    for number, own in enumerate(own_NBW):
        offset = rows_NBW[number] - own.mean(axis=0)
        if variance is None:
            inverse = np.linalg.inv(toward_round(np.cov(own.T, bias=True)))
        else:
            inverse = np.diag(1 / (variance[number] + 1e-6))
        total -= ((offset @ inverse) * offset).sum(axis=1)
    return total


def rows_of(readings: Readings, names: Sequence[str], rows: np.ndarray) -> np.ndarray:
    """Return ``[N, B, E + L]``: what each expert sees in some images."""
    parts = [torch.cat([readings.features[n], readings.discrepancy[n]], dim=1) for n in names]
    return np.stack([part[torch.from_numpy(rows)].double().numpy() for part in parts])


def join_stranger(trial: Trial) -> None:
    """Let an expert join that has learned from noise, and tell what it weighs and costs."""
    sites, experts = trial.sites, trial.experts
    rng = stream(sites.seed, "stranger")
    noise = Views(
        rng.random((TRAIN, 1, 48, 48), dtype=np.float32),
        np.arange(TRAIN) % 2,
        np.ones((TRAIN, 48, 48), bool),
        ("A4C", "PSAX"),
    )
    stranger = expert_of(noise, "stranger", seed=sites.seed, first=experts[0])
    everybody = [*experts, stranger]
    readings = read_all(everybody, sites.images(sites.train))
    drawn, names = draw_readings(
        tell_all(sites, readings), everybody, rng=stream(sites.seed, "stranger outlooks")
    )
    fusion = train_fusion(everybody, drawn, names, seed=sites.seed)
    fused = ask(fusion, read_all(everybody, sites.images(sites.test)))
    trial.tell("fusion, with a stranger", fused.logit_BG)
    trial.table.note("weight of the stranger", float(fused.weight_BN[:, -1].mean()))


def test_experts_together_know_what_pooled_training_would() -> None:
    torch.set_num_threads(1)
    table = Table({}, {})
    for seed in SEEDS:
        trial = begin(seed, table)
        fine_tune(trial.sites, table)
        fuse(trial)
        compare_scores(trial)
        guess_members(trial)
        join_stranger(trial)
    table.show()
    mean = {name: float(np.mean(values)) for name, values in table.right.items()}
    fused = mean["fusion, from means"]
    assert fused >= 0.95 * mean["pooled training"]
    assert fused >= mean["one network in turn"] + 0.10
    assert fused >= mean["largest logit"] + 0.03
    assert min(table.facts["forgotten by it, mean of earlier sites"]) > 0.1
    assert float(np.mean(table.facts["own expert heaviest"])) >= 0.80
    assert min(table.facts["own site from others by layers, AUC"]) > 0.8
    assert np.mean(table.facts["members from means of all images, AUC"]) < 0.6
    assert np.mean(table.facts["members from covariances of 30 images, AUC"]) > 0.9  # control
    assert max(table.facts["noise: largest mean weight off uniform"]) <= 0.1
    assert max(table.facts["weight of the stranger"]) < 0.05
    assert mean["fusion, with a stranger"] > fused - 0.01
    assert max(table.facts["fusion over pooled, time"]) <= 0.1
    assert max(table.facts["expert and fusion over pooled, time"]) <= 0.35
