"""Three sites with real pictures, three classes in common and one of its own each."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from tests.factories.view_experts import (
    ask,
    learn,
    shapes_of,
    small_expert,
    train_expert,
    train_fusion,
)
from vitrael.core.data.augment import PlanarMotion
from vitrael.core.models.expert_baselines import COMBINATIONS
from vitrael.core.models.fusion_learning import draw_readings, read_all, tell_site
from vitrael.core.models.score_fusion import merge_classes
from vitrael.core.models.view_expert import ViewExpert, build_view_net
from vitrael.core.rng import stream, torch_stream

pytestmark = pytest.mark.slow

FOLDER = Path(__file__).resolve().parents[3] / "shared/data/mednist"
SHARED = ("AbdomenCT", "ChestCT", "HeadCT")
OWN = ("BreastMRI", "CXR", "Hand")
SEEDS = (61_201, 61_202, 61_203)
TEST, EPOCHS = 30, 24
MOTION = PlanarMotion(rotation_rad=0.2, mirrored_frac=0.0)


def read_class(name: str) -> np.ndarray:
    """Return the pictures of a class, ``[N, 1, 64, 64]`` in [0, 1]."""
    paths = sorted((FOLDER / name).glob("*.jpeg"))
    pictures = [np.asarray(Image.open(path).convert("L"), np.float32) / 255 for path in paths]
    return np.stack(pictures)[:, None]


def part(seed: int) -> tuple[list[tuple[np.ndarray, list[str]]], np.ndarray, list[str]]:
    """Return what each site holds, and pictures that none of them does; all are different."""
    sites: list[tuple[list[np.ndarray], list[str]]] = [([], []) for _ in OWN]
    test_images, test_names = [], []
    for name in (*SHARED, *OWN):
        images = read_class(name)
        images = images[stream(seed, "parts", name).permutation(len(images))]
        test_images.append(images[:TEST])
        test_names += [name] * TEST
        rest = images[TEST:]
        shares = np.array_split(rest, len(OWN)) if name in SHARED else [rest]
        holders = range(len(OWN)) if name in SHARED else [OWN.index(name)]
        for site, share in zip(holders, shares, strict=True):
            sites[site][0].append(share)
            sites[site][1].extend([name] * len(share))
    held = [(np.concatenate(images), names) for images, names in sites]
    return held, np.concatenate(test_images), test_names


def run_seed(seed: int) -> dict[str, float]:
    """Return the share that each way gets right."""
    held, test, test_names = part(seed)
    everything = np.concatenate([images for images, _ in held])
    names = [name for _, own in held for name in own]
    classes = tuple(dict.fromkeys(names))
    config = small_expert(len(held[0][0]) * EPOCHS)
    net = build_view_net(config, len(classes), seed=seed)
    labels = np.array([classes.index(name) for name in names])
    rng = torch_stream(seed, "pooled")
    learn(net, everything, labels, images=len(names) * EPOCHS, rng=rng, motion=MOTION)
    truth = np.array([classes.index(name) for name in test_names])
    with torch.no_grad():
        pooled = net(torch.from_numpy(test)).argmax(1).numpy()
    found = {"pooled training": float((pooled == truth).mean())}
    experts: list[ViewExpert] = []
    for number, (images, own) in enumerate(held):
        known = tuple(dict.fromkeys(own))
        experts.append(
            train_expert(
                images,
                np.array([known.index(name) for name in own]),
                config,
                name=f"site-{number}",
                labels=known,
                seed=seed,
                first=experts[0] if experts else None,
                motion=MOTION,
            )
        )
    assert merge_classes(shapes_of(experts)) == classes
    told = []
    for images, own in held:
        readings = read_all(experts, torch.from_numpy(images))
        told.append(tell_site(readings, own, range(len(own))))
    drawn, drawn_names = draw_readings(told, experts, rng=stream(seed, "outlooks"))
    fusion = train_fusion(experts, drawn, drawn_names, seed=seed)
    seen = read_all(experts, torch.from_numpy(test))
    fused = ask(fusion, seen).logit_BG.argmax(1).numpy()
    found["fusion, from means"] = float((fused == truth).mean())
    for name, combine in COMBINATIONS.items():
        found[name] = float((combine(shapes_of(experts), seen).argmax(1).numpy() == truth).mean())
    return found


def test_fusion_of_three_sites_is_as_good_as_pooled_training() -> None:
    if not FOLDER.is_dir():
        pytest.skip("the pictures of MedNIST (shared/data/mednist) are not on this machine")
    torch.set_num_threads(1)
    found = [run_seed(seed) for seed in SEEDS]
    print(f"\n{'accuracy':24s} mean   each seed; {TEST * 6} pictures")
    for name in found[0]:
        values = [one[name] for one in found]
        print(f"{name:24s} {np.mean(values):.3f}  {' '.join(f'{value:.3f}' for value in values)}")
    mean = {name: float(np.mean([one[name] for one in found])) for name in found[0]}
    assert mean["fusion, from means"] >= 0.97 * mean["pooled training"]
    assert mean["fusion, from means"] > mean["largest logit"]  # the control
