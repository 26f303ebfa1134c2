"""One site's expert: it tells its own views apart and knows when an image is not like its own.

Experts of Bransby et al. 2024: each is trained at its site alone, from the weights of the first,
and never again. Beside its weights it publishes the mean and the spread of its layers' activity
over its own images, so that anyone can say how far a new image is from them. Axes: B images, H W
pixels, K classes of the expert, E features, L layers.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
import torch

from vitrael.core.configs import ViewExpertConfig
from vitrael.core.errors import DataError
from vitrael.core.models.nets.view_net import ViewNet
from vitrael.core.rng import seeded_initialization
from vitrael.core.scoring.in_distribution import ActivityProfile, profile_activity
from vitrael.core.weights import Tensors, load_weights, module_tensors

FEWEST_IMAGES: Final = 10
"""Of a site; fewer make no expert."""
_HEAD: Final = "head."
_AT_ONCE: Final = 64


@dataclass(frozen=True, slots=True, eq=False)
class Reading:
    """What one expert sees in images, float32 on the CPU."""

    logit_BK: torch.Tensor
    feature_BE: torch.Tensor
    discrepancy_BL: torch.Tensor
    """How far each layer is from its usual activity: 0 is usual, higher is more foreign."""


@dataclass(frozen=True, slots=True, eq=False, repr=False)
class ViewExpert:
    """A trained network with its labels and the profile of its own images."""

    name: str
    """Of the site."""
    labels: tuple[str, ...]
    """In the site's own words, in the order of the logits."""
    net: ViewNet
    profile: ActivityProfile

    def __repr__(self) -> str:
        """Show whose it is and what it tells apart."""
        return f"ViewExpert({self.name}: {', '.join(self.labels)})"

    @torch.no_grad()
    def read(self, image_BCHW: torch.Tensor) -> Reading:
        """Return what the expert sees in images ``[B, 1, H, W]`` in [0, 1].

        Raises DataError for images of other channels and where the network answers with NaN.
        """
        parts = [self.net.see(part) for part in self._batches(image_BCHW)]
        activity_BA = torch.cat([part.activity_BA for part in parts]).float().cpu().numpy()
        feature_BE = torch.cat([part.feature_BE for part in parts]).float().cpu()
        logit_BK = torch.cat([part.logit_BK for part in parts]).float().cpu()
        if not (torch.isfinite(feature_BE).all() and torch.isfinite(logit_BK).all()):
            raise DataError(
                f"the expert of {self.name} cannot be used",
                why="it answers with values that are not finite",
                fix="train it again",
            )
        return Reading(
            logit_BK, feature_BE, torch.from_numpy(self.profile.discrepancy(activity_BA))
        )

    @torch.no_grad()
    def predict(self, x: torch.Tensor) -> torch.Tensor:
        """Return probabilities ``[B, K]`` of the expert's own labels."""
        return torch.cat([self.net(part) for part in self._batches(x)]).softmax(1).cpu()

    def weights(self) -> Tensors:
        """Return the weights of the network, where a later expert may begin."""
        return module_tensors(self.net)

    def tensors(self) -> Tensors:
        """Return all that the expert publishes: weights, and mean and spread of its activity."""
        return {
            **{f"net.{name}": value for name, value in self.weights().items()},
            "activity.mean": self.profile.mean_A.astype(np.float32),
            "activity.std": self.profile.std_A.astype(np.float32),
        }

    def _batches(self, x: torch.Tensor) -> Iterator[torch.Tensor]:
        device = next(self.net.parameters()).device
        for part in x.split(_AT_ONCE):
            yield part.to(device)


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
    net: ViewNet, image_BCHW: torch.Tensor, *, name: str, labels: Sequence[str]
) -> ViewExpert:
    """Return the expert of a trained network and the images that it learned from.

    Raises DataError for labels of another number than the classes, and for fewer than ten images.
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
    return ViewExpert(name, tuple(labels), net, profile)


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
    mean_A, std_A = _profile(tensors, maps)
    return ViewExpert(name, tuple(labels), net.eval(), ActivityProfile(mean_A, std_A, net.layers))


def demand_images(count: int) -> None:
    """Raise DataError for fewer images than an expert needs."""
    if count < FEWEST_IMAGES:
        raise DataError(
            f"{count} images are too few for an expert",
            why=f"{FEWEST_IMAGES} are needed",
            fix="add images, or leave the site out",
        )


def _profile(tensors: Mapping[str, np.ndarray], maps: int) -> tuple[np.ndarray, np.ndarray]:
    mean_A, std_A = (tensors.get(f"activity.{part}") for part in ("mean", "std"))
    whole = mean_A is not None and std_A is not None and mean_A.shape == std_A.shape == (maps,)
    if mean_A is None or std_A is None or not whole or not (std_A > 0).all():
        raise DataError(
            "the expert's activity profile cannot be used",
            why=f"mean and spread of {maps} maps are expected, and spreads are above 0",
            fix="let the site train its expert again",
        )
    return mean_A, std_A
