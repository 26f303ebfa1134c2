"""Learning views without labels: two neighbouring clips of a sweep show almost the same place.

A window of a sweep is cut in two clips; each is told from clips of the same sweep that lie well
away. What a whole sweep has in common (the patient, the gain, the tilt of the probe) then tells
nothing, and what is left to learn is the place. Whoever might show the same place is never a
rival: a window nearby, or any other sweep of the same patient, whose windows have no known place.

Axes: B clips, P pairs, T frames, H rows, W columns. Clips are ``[P, 1, T, H, W]`` in [0, 1].
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
import torch
from torch import nn
from torch.nn import functional

from vitrael.core.errors import DataError
from vitrael.core.records import Loss


@dataclass(frozen=True, slots=True, repr=False, eq=False)
class Sweep:
    """The frames of one sweep, in the order of time, and whose they are."""

    frames_THW: np.ndarray
    """uint8."""
    patient: int

    def __repr__(self) -> str:
        """Show nothing of a patient."""
        return f"Sweep({len(self.frames_THW)} frames)"


@dataclass(frozen=True, slots=True, eq=False)
class ClipPairs:
    """Two clips of each of P windows, and which windows may be told apart."""

    first_P1THW: torch.Tensor
    second_P1THW: torch.Tensor
    rivals_PP: torch.Tensor
    """bool, symmetric: these two windows surely show different places."""


@dataclass(frozen=True, slots=True)
class ClipDistortion:
    """How far the two clips of a window are moved apart; uniform unless said otherwise."""

    rotation_rad: float = 0.15
    shift_frac: float = 0.12
    """Of half the picture."""
    stretch_frac: float = 0.12
    """Of rows and of columns, apart: a muscle that shrinks shows the same view."""
    gain: float = 0.12
    """Added to all pixels: decibels, where the picture is log-compressed."""
    gamma: float = 0.2
    """Of the exponent's logarithm."""
    noise: float = 0.08
    """Largest standard deviation."""
    blur_share: float = 0.5
    cut_share: float = 0.8
    cut_frac: float = 0.16
    """Edge of the cut-out, of the picture's edge (Kerdegari et al.: 10 of 64 pixels)."""
    flip_share: float = 0.5
    """Of windows, whose two clips are mirrored together."""


DISTORTION: Final = ClipDistortion()


@dataclass(frozen=True, slots=True)
class Windows:
    """How windows are cut from a sweep; in frames."""

    clip_frames: int = 5
    apart_frames: int = 15
    """Windows whose beginnings lie this far apart are rivals; the window itself has 10."""
    per_sweep: int = 8
    """Windows of one sweep in a batch."""
    strangers: bool = False
    """Whether the windows of other patients are rivals too."""

    def __post_init__(self) -> None:
        """Raise DataError for windows that would be rivals of what they share frames with."""
        if min(self.clip_frames, self.per_sweep) < 1:
            raise DataError("a window needs frames, and a batch windows", fix="give 1 or more")
        if self.apart_frames < 2 * self.clip_frames:
            raise DataError(
                "windows that overlap cannot be rivals",
                why=f"two clips of {self.clip_frames} frames make a window",
                fix=f"set apart_frames to {2 * self.clip_frames} or more",
            )


WINDOWS: Final = Windows()


class NeighborClips:
    """Draws batches of neighbouring clips; each patient has one sweep at most in a batch."""

    def __init__(
        self,
        sweeps: Sequence[Sweep],
        *,
        windows: Windows = WINDOWS,
        distortion: ClipDistortion = DISTORTION,
        device: str = "cpu",
    ) -> None:
        """Keep the sweeps on a device.

        Raises DataError without a sweep, for sweeps of several sizes and for one that is too short
        to hold rivals.
        """
        least = 2 * windows.clip_frames + windows.apart_frames
        if not sweeps:
            raise DataError("there is no sweep to learn views from")
        if len({sweep.frames_THW.shape[1:] for sweep in sweeps}) > 1:
            raise DataError("the sweeps differ in rows or columns", fix="resize them to one shape")
        if min(len(sweep.frames_THW) for sweep in sweeps) < least:
            raise DataError(
                "a sweep is too short to learn views from",
                why=f"two windows that lie apart need {least} frames",
                fix="leave it out, or shorten the windows",
            )
        self.frames = [torch.from_numpy(sweep.frames_THW.copy()).to(device) for sweep in sweeps]
        patient_B = np.array([sweep.patient for sweep in sweeps])
        self.rows = [np.flatnonzero(patient_B == patient) for patient in np.unique(patient_B)]
        self.windows, self.distortion = windows, distortion

    def __call__(self, batch_images: int, rng: torch.Generator) -> ClipPairs:
        """Return ``batch_images / 2`` pairs of distorted clips, two at least."""
        pairs = max(2, batch_images // 2)
        sweep_P, start_P = self._choose(pairs, rng)
        half = self.windows.clip_frames
        window_P1THW = (
            torch.stack(
                [
                    self.frames[sweep][start : start + 2 * half]
                    for sweep, start in zip(sweep_P.tolist(), start_P.tolist(), strict=True)
                ]
            )[:, None].float()
            / 255
        )
        flipped = _coins(pairs, self.distortion.flip_share, rng)
        window_P1THW = torch.where(flipped, window_P1THW.flip(4), window_P1THW)
        first, second = (
            distort_clips(clip, self.distortion, rng) for clip in window_P1THW.split(half, dim=2)
        )
        same = sweep_P[:, None] == sweep_P[None]
        far = (start_P[:, None] - start_P[None]).abs() >= self.windows.apart_frames
        rivals = torch.where(same, far, torch.tensor(self.windows.strangers))
        return ClipPairs(first, second, rivals.to(first.device))

    def _choose(self, pairs: int, rng: torch.Generator) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the sweep and the first frame of each window, spread evenly over the sweep."""
        fewest = min(len(self.rows), -(-pairs // self.windows.per_sweep))
        shares = np.array_split(np.arange(pairs), fewest)
        sweeps, starts = [], []
        for patient, share in zip(_shuffled(len(self.rows), rng), shares, strict=False):
            rows, each = self.rows[patient], len(share)
            sweep = int(rows[_shuffled(len(rows), rng)[0]])
            last = len(self.frames[sweep]) - 2 * self.windows.clip_frames
            place = torch.arange(each) + torch.rand(each, generator=rng, device=rng.device).cpu()
            starts.append((place * ((last + 1) / each)).long().clamp_max(last))
            sweeps.append(torch.full((each,), sweep))
        return torch.cat(sweeps), torch.cat(starts)


def distort_clips(clip: torch.Tensor, by: ClipDistortion, rng: torch.Generator) -> torch.Tensor:
    """Return another view of each clip ``[P, 1, T, H, W]``: pose, blur, tone, noise, cut-out.

    All frames of a clip are changed alike but for the noise.
    """
    count, height, width = len(clip), *clip.shape[3:]
    points = functional.affine_grid(
        _poses(count, by, rng), [count, 1, height, width], align_corners=False
    )
    view = functional.grid_sample(
        clip[:, 0], points, align_corners=False, padding_mode="border"
    )  # frames pass as channels
    view = change_tone(view, by, rng)
    cut = _squares(count, (height, width), by, rng)
    return torch.where(cut, 0.0, view)[:, None]


def change_tone(frames: torch.Tensor, by: ClipDistortion, rng: torch.Generator) -> torch.Tensor:
    """Return frames ``[P, T, H, W]`` in [0, 1] as another machine would show them.

    Smoothing, gamma and gain are those of a row; noise is of a pixel.
    """
    count = len(frames)
    blurred = functional.avg_pool2d(frames, 3, stride=1, padding=1, count_include_pad=False)
    share = _uniform(count, 0.0, 1.0, rng) * _coins(count, by.blur_share, rng)
    view = frames + share[:, 0] * (blurred - frames)
    exponent = _uniform(count, -by.gamma, by.gamma, rng)[:, 0].exp()
    view = view.clamp(1e-4, 1) ** exponent + _uniform(count, -by.gain, by.gain, rng)[:, 0]
    level = _uniform(count, 0.0, by.noise, rng)[:, 0]
    noise = torch.randn(view.shape, generator=rng, device=rng.device)
    return (view + level * noise).clamp(0, 1)


class ClipContrastObjective:
    """Cross-view InfoNCE both ways over the rivals: of the other halves, find one's own.

    With unit vectors a_i and b_i of the two clips of window i, and the rivals R(i):
    L = mean over i of (l(a_i, b) + l(b_i, a)) / 2 with
    l(a_i, b) = -log( exp(a_i b_i / tau) / sum over j in {i} + R(i) of exp(a_i b_j / tau) ),
    after van den Oord et al. 2018, equation 4, and Kerdegari et al. 2023, with the sum restricted.
    """

    def __init__(self, temperature: float) -> None:
        """Take the temperature tau of the softmax over cosine similarities."""
        self.temperature = temperature

    def __call__(self, model: nn.Module, batch: ClipPairs, rng: torch.Generator) -> Loss:
        """Return the loss of a batch; ``rng`` is not used."""
        del rng
        a, b = model(torch.cat([batch.first_P1THW, batch.second_P1THW])).chunk(2)
        own = torch.arange(len(a), device=a.device)
        compared = batch.rivals_PP | torch.eye(len(a), dtype=torch.bool, device=a.device)
        similarity = (a @ b.T / self.temperature).masked_fill(~compared, -torch.inf)
        there = functional.cross_entropy(similarity, own)
        back = functional.cross_entropy(similarity.T, own)
        found = (similarity.argmax(1) == own).float().mean()
        return Loss(total=(there + back) / 2, parts={"found_frac": found})


def _shuffled(count: int, rng: torch.Generator) -> list[int]:
    order: list[int] = torch.randperm(count, generator=rng, device=rng.device).tolist()
    return order


def _uniform(count: int, low: float, high: float, rng: torch.Generator) -> torch.Tensor:
    """Return ``[P, 1, 1, 1, 1]`` uniform numbers."""
    return low + (high - low) * torch.rand((count, 1, 1, 1, 1), generator=rng, device=rng.device)


def _coins(count: int, share: float, rng: torch.Generator) -> torch.Tensor:
    """Return ``[P, 1, 1, 1, 1]`` bool, true with probability ``share``."""
    return _uniform(count, 0.0, 1.0, rng) < share


def _poses(count: int, by: ClipDistortion, rng: torch.Generator) -> torch.Tensor:
    """Return ``[P, 2, 3]`` maps of the plane near the identity."""
    turn = _uniform(count, -by.rotation_rad, by.rotation_rad, rng).flatten()
    c, s = turn.cos(), turn.sin()
    rotation = torch.stack([c, -s, s, c], dim=1).reshape(count, 2, 2)
    drawn = 2 * torch.rand((count, 4), generator=rng, device=rng.device) - 1
    stretch = 1 + by.stretch_frac * drawn[:, None, :2]
    return torch.cat([rotation * stretch, by.shift_frac * drawn[:, 2:, None]], dim=2)


def _squares(
    count: int, shape: tuple[int, int], by: ClipDistortion, rng: torch.Generator
) -> torch.Tensor:
    """Return ``[P, 1, H, W]`` bool: the square that is cut out of a clip, or nothing."""
    height, width = shape
    corner = torch.rand((count, 2, 1), generator=rng, device=rng.device) * (1 - by.cut_frac)
    y = torch.arange(height, device=rng.device) / height
    x = torch.arange(width, device=rng.device) / width
    inside_y = (y >= corner[:, 0]) & (y < corner[:, 0] + by.cut_frac)
    inside_x = (x >= corner[:, 1]) & (x < corner[:, 1] + by.cut_frac)
    square = (inside_y[:, :, None] & inside_x[:, None, :])[:, None]
    return square & _coins(count, by.cut_share, rng)[:, 0]
