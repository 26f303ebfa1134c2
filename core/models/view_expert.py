"""One site's expert: it tells its own views apart and knows when an image is not like its own.

Experts of Bransby et al. 2024: each is trained at its site alone, from the weights of the first,
and never again. Beside its weights it publishes the mean and the spread of its layers' activity
over its own images, so that anyone can say how far a new image is from them. Axes: B images, H W
pixels, K classes of the expert, E features, L layers.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Final

import numpy as np
import torch
from torch.nn import functional

from vitrael.core.configs import ViewExpertConfig
from vitrael.core.errors import DataError
from vitrael.core.models.nets.view_net import ViewNet
from vitrael.core.rng import seeded_initialization
from vitrael.core.scoring.in_distribution import (
    ActivityProfile,
    ScoreCalibration,
    calibrate_scores,
    profile_activity,
    without_calibration,
)
from vitrael.core.weights import Tensors, load_weights, module_tensors

FEWEST_IMAGES: Final = 10
"""Of a site; fewer make no expert."""
_HEAD: Final = "head."
_AT_ONCE: Final = 64
_TRIFLE: Final = 1e-6
"""Added to every feature before its length is made one: features are at or above 0."""


@dataclass(frozen=True, slots=True, eq=False, repr=False)
class SiteViews:
    """What a site decides of its expert by the images that it has; they never leave it."""

    name: str
    """Of the site."""
    labels: tuple[str, ...]
    """In the site's own words, in the order of the logits."""
    image_BCHW: torch.Tensor
    """``[B, 1, H, W]`` in [0, 1]: those that the expert learns from."""

    def __repr__(self) -> str:
        """Show whose they are, and nothing of an image."""
        return f"SiteViews({self.name}: {', '.join(self.labels)})"


@dataclass(frozen=True, slots=True, eq=False)
class Reading:
    """What one expert sees in images, float32 on the CPU."""

    logit_BK: torch.Tensor
    feature_BE: torch.Tensor
    discrepancy_BL: torch.Tensor
    """How far each layer is from its usual activity: 0 is usual, higher is more foreign."""


@dataclass(frozen=True, slots=True, eq=False, repr=False)
class ViewExpert:
    """A Predictor and an Embedder: a trained network, its labels, the profile of its own images.

    It takes gray images of any size. Asked about others, or about values that are not finite, it
    raises DataError, and so it does when the network answers with such values.
    """

    name: str
    """Of the site."""
    labels: tuple[str, ...]
    """In the site's own words, in the order of the logits."""
    net: ViewNet
    profile: ActivityProfile
    calibration: ScoreCalibration

    def __repr__(self) -> str:
        """Show whose it is and what it tells apart."""
        return f"ViewExpert({self.name}: {', '.join(self.labels)})"

    @torch.no_grad()
    def read(self, image_BCHW: torch.Tensor) -> Reading:
        """Return what the expert sees in images ``[B, 1, H, W]`` in [0, 1]."""
        parts = [self.net.see(part) for part in self._batches(image_BCHW)]
        activity_BA = torch.cat([part.activity_BA for part in parts]).float().cpu().numpy()
        feature_BE = self._finite(torch.cat([part.feature_BE for part in parts]))
        logit_BK = self._finite(torch.cat([part.logit_BK for part in parts]))
        discrepancy_BL = torch.from_numpy(self.profile.discrepancy(activity_BA))
        return Reading(logit_BK, feature_BE, discrepancy_BL)

    def knows(self, discrepancy_BL: torch.Tensor) -> list[bool]:
        """Return whether each image is like the expert's own, as nineteen of twenty of these are.

        What is beyond that is foreign to it, whatever it answers.
        """
        return [not foreign for foreign in self.calibration.is_foreign(discrepancy_BL.numpy())]

    @torch.no_grad()
    def predict(self, x: torch.Tensor) -> torch.Tensor:
        """Return probabilities ``[B, K]`` of the expert's own labels."""
        logit_BK = torch.cat([self.net(part) for part in self._batches(x)])
        return self._finite(logit_BK).softmax(1)

    @torch.no_grad()
    def embed(self, x: torch.Tensor) -> torch.Tensor:
        """Return unit vectors ``[B, E]``: what the head sees, whatever the labels are.

        An image that no feature answers to has equal parts of all.
        """
        parts = [self.net.see(part).feature_BE for part in self._batches(x)]
        return functional.normalize(self._finite(torch.cat(parts)) + _TRIFLE, dim=1)

    def weights(self) -> Tensors:
        """Return the weights of the network, where a later expert may begin."""
        return module_tensors(self.net)

    def tensors(self) -> Tensors:
        """Return all that the expert publishes: weights, and mean and spread of its activity."""
        return {
            **{f"net.{name}": value for name, value in self.weights().items()},
            "activity.mean": self.profile.mean_A.astype(np.float32),
            "activity.std": self.profile.std_A.astype(np.float32),
            "score.mean": self.calibration.mean_L.astype(np.float32),
            "score.std": self.calibration.std_L.astype(np.float32),
            "score.largest": np.array(
                [self.calibration.center, self.calibration.spread], dtype=np.float32
            ),
        }

    def _batches(self, x: torch.Tensor) -> Iterator[torch.Tensor]:
        if not torch.isfinite(x).all():
            raise DataError(
                "the images hold values that are not finite",
                fix="prepare them by the study's recipe",
            )
        device = next(self.net.parameters()).device
        for part in x.split(_AT_ONCE):
            yield part.to(device)

    def _finite(self, answer: torch.Tensor) -> torch.Tensor:
        """Return what the network answered in float32 on the CPU, or raise DataError."""
        answer = answer.float().cpu()
        if not torch.isfinite(answer).all():
            raise DataError(
                f"the expert of {self.name} cannot be used",
                why="it answers with values that are not finite",
                fix="train it again",
            )
        return answer


def build_view_net(
    config: ViewExpertConfig, classes: int, *, seed: int, start: Tensors | None = None
) -> ViewNet:
    """Return a network with weights of the stream ``(seed, "view expert")``, in training's state.

    With ``start``, weights of another expert, all but the head begin there. Raises DataError for
    fewer than two classes, WeightsError for weights of another network.
    """
    if classes < 2:  # noqa: PLR2004 - nothing to tell apart
        raise DataError(
            "an expert needs images of two views at least",
            why="with one there is nothing to tell apart",
            fix="leave the site out, or add images of another view",
        )
    with seeded_initialization(seed, "view expert"):
        net = ViewNet(
            channels=config.channels,
            blocks=config.blocks,
            classes=classes,
            dropout=config.dropout,
            stem_stride=config.stem_stride,
        )
    if start is not None:
        own = module_tensors(net)
        head = {name: value for name, value in own.items() if name.startswith(_HEAD)}
        body = {name: value for name, value in start.items() if not name.startswith(_HEAD)}
        load_weights(net, {**body, **head})
    return net


def complete_expert(
    net: ViewNet,
    image_BCHW: torch.Tensor,
    *,
    name: str,
    labels: Sequence[str],
    held_out_BCHW: torch.Tensor | None = None,
) -> ViewExpert:
    """Return the expert of a trained network and the images that it learned from.

    On ``held_out_BCHW``, other images of the same site, its scores are calibrated; without them no
    image is foreign to it. Raises DataError for labels of another number than the classes, and for
    fewer than ten images.
    """
    if len(labels) != net.classes or len(set(labels)) < len(labels):
        raise DataError(
            "the labels are not those of the network",
            why=f"it tells {net.classes} classes apart, and each needs a label of its own",
        )
    demand_images(len(image_BCHW))
    net.eval()
    device = next(net.parameters()).device
    with torch.no_grad():
        parts = [net.see(part.to(device)).activity_BA.cpu() for part in image_BCHW.split(_AT_ONCE)]
    profile = profile_activity(torch.cat(parts).numpy(), net.layers)
    plain = ViewExpert(name, tuple(labels), net, profile, without_calibration(len(net.layers)))
    if held_out_BCHW is None:
        return plain
    calibration = calibrate_scores(plain.read(held_out_BCHW).discrepancy_BL.numpy())
    return replace(plain, calibration=calibration)


def open_expert(
    tensors: Tensors, config: ViewExpertConfig, *, name: str, labels: Sequence[str]
) -> ViewExpert:
    """Return the expert that a site published; WeightsError for tensors of another network."""
    net = build_view_net(config, len(labels), seed=0)
    weights = {
        key.removeprefix("net."): value for key, value in tensors.items() if key[:4] == "net."
    }
    load_weights(net, weights)
    maps = sum(net.layers)
    mean_A, std_A = _spread(tensors, "activity", maps)
    mean_L, std_L = _spread(tensors, "score", len(net.layers))
    largest = tensors.get("score.largest", np.zeros(0))
    if largest.shape != (2,) or not float(largest[1]) > 0:
        raise _unusable("score")
    return ViewExpert(
        name,
        tuple(labels),
        net.eval(),
        ActivityProfile(mean_A, std_A, net.layers),
        ScoreCalibration(mean_L, std_L, float(largest[0]), float(largest[1])),
    )


def weights_to_begin_with(tensors: Tensors) -> Tensors:
    """Return the weights of a network or of what an expert publishes, by the network's names.

    Its head counts for nothing where another network begins with them.
    """
    own = {n.removeprefix("net."): value for n, value in tensors.items() if n.startswith("net.")}
    return own or tensors


def expert_layout(net: Tensors, layers: Sequence[int]) -> dict[str, np.ndarray]:
    """Return arrays like those of ``ViewExpert.tensors``, given the network's."""
    flat = {"activity": sum(layers), "score": len(layers)}
    spreads = {
        f"{part}.{name}": np.zeros(count, dtype=np.float32)
        for part, count in flat.items()
        for name in ("mean", "std")
    }
    nets = {f"net.{name}": value for name, value in net.items()}
    return {**nets, **spreads, "score.largest": np.zeros(2, dtype=np.float32)}


def demand_images(count: int) -> None:
    """Raise DataError for fewer images than an expert needs."""
    if count < FEWEST_IMAGES:
        raise DataError(
            f"{count} images are too few for an expert",
            why=f"{FEWEST_IMAGES} are needed",
            fix="add images, or leave the site out",
        )


def _spread(
    tensors: Mapping[str, np.ndarray], part: str, count: int
) -> tuple[np.ndarray, np.ndarray]:
    """Return mean and standard deviation of a part of what an expert publishes."""
    mean, std = (tensors.get(f"{part}.{name}") for name in ("mean", "std"))
    whole = mean is not None and std is not None and mean.shape == std.shape == (count,)
    if mean is None or std is None or not whole or not (std > 0).all():
        raise _unusable(part)
    return mean, std


def _unusable(part: str) -> DataError:
    return DataError(
        f"the {part} profile of the expert cannot be used",
        why="a mean and a spread above 0 are expected of each of its network's maps and layers",
        fix="let the site train its expert again",
    )
