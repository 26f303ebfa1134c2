"""Images that are changed each time they are drawn: moved a little, or set on other backgrounds.

Who is moved is not learned by heart. Who is set on the background of others (BackMix: Bransby et
al., MICCAI 2024) cannot be told by what a machine burns in beside the sector.

Axes: B batch, N all images, C channels, D H W space.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final, Literal, get_args

import numpy as np
import torch
from torch.nn import functional

from vitrael.core.checks import finite
from vitrael.core.errors import DataError

_MIRRORED_FRAC: Final = 0.5
_GAINS: Final = (0.9, 1.1)

Background = Literal["donor", "black", "noise", "shuffled", "dim"]
_BRIGHTEST_NOISE: Final = 30 / 255
_DIMMED: Final = 0.74
_FEWEST_CLASSES: Final = 2

Draw = Callable[[int, torch.Generator], torch.Tensor]


def draw_moved(count: int, read: Callable[[torch.Tensor], torch.Tensor], *, device: str) -> Draw:
    """Return a function that draws of ``count`` images with replacement, each moved its own way.

    ``read`` gives the images ``[B, C, D, H, W]`` of rows. Half are mirrored left to right, each is
    shifted by at most one voxel along every axis (the border is background), and its intensities
    are scaled by up to a tenth and cut to [0, 1]. A codec that sees the scans themselves again and
    again decodes everything toward them, and an audit notices.
    """

    def draw(batch_images: int, rng: torch.Generator) -> torch.Tensor:
        rows = torch.randint(count, (batch_images,), generator=rng)
        mirrored = torch.rand(batch_images, generator=rng) < _MIRRORED_FRAC
        shifts = torch.randint(-1, 2, (batch_images, 3), generator=rng).tolist()
        low, high = _GAINS
        gain = torch.rand(batch_images, generator=rng) * (high - low) + low
        batch = torch.stack(
            [
                torch.roll(image.flip(1) if flip else image, shift, dims=(1, 2, 3))
                for image, flip, shift in zip(read(rows), mirrored, shifts, strict=True)
            ]
        )
        return (batch * gain.reshape(-1, 1, 1, 1, 1)).clamp(0, 1).to(device)

    return draw


@dataclass(frozen=True, slots=True)
class PlanarMotion:
    """How far a picture is moved at most, each time anew; uniform, but for the mirror."""

    rotation_rad: float = math.radians(30)
    mirrored_frac: float = 0.5
    brightness: float = 0.15
    """Added, of the whole range of grays."""
    contrast: float = 0.15
    """Added to a factor of one."""

    def __post_init__(self) -> None:
        """Raise DataError for a reach that is negative, and for shares outside [0, 1]."""
        shares = (self.mirrored_frac, self.brightness, self.contrast)
        if not (0 <= self.rotation_rad <= math.pi and all(0 <= share <= 1 for share in shares)):
            raise DataError(
                "pictures cannot be moved so",
                fix="give a rotation from 0 to pi and shares from 0 to 1",
            )


PUBLISHED_MOTION: Final = PlanarMotion()
"""That of Bransby et al."""


@dataclass(frozen=True, slots=True, eq=False)
class ViewBatch:
    """Pictures, their classes, and which of them stand on a background that was changed."""

    image_BCHW: torch.Tensor
    """float32 in [0, 1]: never standardized before its background is changed."""
    label_B: torch.Tensor
    is_mixed_B: torch.Tensor


def move_planar(
    image_BCHW: torch.Tensor,
    sector_BCHW: torch.Tensor,
    *,
    motion: PlanarMotion,
    rng: torch.Generator,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return pictures and their sectors, moved together: each pair turned and mirrored as one.

    What a turn brings in from outside repeats the border. Only the pictures change their grays,
    which are cut to [0, 1]. Images are ``[B, 1, H, W]`` float, sectors the same in bool.
    """
    batch, _, height, width = image_BCHW.shape
    reach = torch.tensor([motion.rotation_rad, motion.contrast, motion.brightness])
    drawn_3B = (2 * torch.rand(3, batch, generator=rng) - 1) * reach[:, None]
    sign_B = 1 - 2 * (torch.rand(batch, generator=rng) < motion.mirrored_frac).float()
    angle_B, contrast_B, brightness_B = drawn_3B
    cos, sin, none = angle_B.cos(), angle_B.sin(), torch.zeros(batch)
    # The two axes of the grid both reach from -1 to 1: a turn of an oblong picture needs its sides.
    across = torch.stack([sign_B * cos, -sin * height / width, none], dim=1)
    along = torch.stack([sign_B * sin * width / height, cos, none], dim=1)
    theta = torch.stack([across, along], dim=1).to(image_BCHW)
    grid = functional.affine_grid(theta, list(image_BCHW.shape), align_corners=False)
    image, sector = (
        functional.grid_sample(x, grid, mode=mode, padding_mode="border", align_corners=False)
        for x, mode in ((image_BCHW, "bilinear"), (sector_BCHW.to(image_BCHW), "nearest"))
    )
    gain, offset = (x.reshape(-1, 1, 1, 1).to(image) for x in (1 + contrast_B, brightness_B))
    return (gain * image + offset).clamp(0, 1), sector > 0.5  # noqa: PLR2004 - it is 0 or 1


class BackMix:
    """Draws pictures whose sector stands on the background of another picture.

    Each picture with a sector keeps it and gets what lies outside the sector of a donor, which is
    drawn from all pictures with a sector, of any class, and may be the picture itself. The donor is
    not moved, and is black where its own sector was (Bransby et al., section 2). A picture without
    a sector is moved only. Grays stay in [0, 1]; the network standardizes them afterwards, since
    whoever does it before tells the class by the mean of all grays.

    Other choices of ``background`` are the baselines of the paper: ``black``, ``noise`` (uniform,
    up to 30 of 255), ``shuffled`` (the picture's own pixels) and ``dim`` (its own, times 0.74).
    """

    def __init__(
        self,
        image_NCHW: np.ndarray,
        label_N: np.ndarray,
        *,
        sectors: Sequence[np.ndarray | None],
        classes: int,
        background: Background = "donor",
        motion: PlanarMotion = PUBLISHED_MOTION,
        device: str = "cpu",
    ) -> None:
        """Take images ``[N, 1, H, W]`` in [0, 1], labels and a sector ``[H, W]`` or None for each.

        Raises DataError where no picture has a sector; for a sector of another size, or that holds
        all of its picture or nothing; for fewer than two classes, a label that is none of them, and
        grays that are not finite or outside [0, 1]; for an unknown background.
        """
        if not any(sector is not None for sector in sectors):
            raise DataError(
                "backgrounds cannot be exchanged",
                why="no picture has a sector mask",
                fix="give masks for some of them, or train without BackMix",
            )
        if background not in get_args(Background):
            raise DataError(
                f"the background {background!r} is unknown",
                fix=f"choose one of {', '.join(get_args(Background))}",
            )
        self._plain = MovedViews(image_NCHW, label_N, classes=classes, motion=motion, device=device)
        sector_NCHW, has_sector_N = _stack_sectors(sectors, image_NCHW.shape)
        self._sector_NCHW = torch.from_numpy(sector_NCHW).to(device)
        self._has_sector_N = torch.from_numpy(has_sector_N)
        self._donors = torch.from_numpy(np.flatnonzero(has_sector_N))
        self.background = background
        self.motion = motion

    @property
    def mixed_frac(self) -> float:
        """Share of the pictures that have a sector: the f of wBackMix."""
        return float(self._has_sector_N.float().mean())

    def __call__(self, batch_images: int, rng: torch.Generator) -> ViewBatch:
        """Return pictures drawn with replacement, each on the background that it got."""
        rows, image, label = self._plain.pick(batch_images, rng)
        image, sector = move_planar(image, self._sector_NCHW[rows], motion=self.motion, rng=rng)
        mixed = torch.where(sector, image, self._draw_background(image, sector, rng)).clamp(0, 1)
        # A picture without a sector has one that covers all of it, so it stays what it is.
        return ViewBatch(mixed, label, self._has_sector_N[rows].to(image.device))

    def _draw_background(
        self, image: torch.Tensor, sector: torch.Tensor, rng: torch.Generator
    ) -> torch.Tensor:
        if self.background == "donor":
            donors = self._donors[torch.randint(len(self._donors), (len(image),), generator=rng)]
            return self._plain.image_NCHW[donors] * ~self._sector_NCHW[donors]
        if self.background == "noise":
            return (torch.rand(image.shape, generator=rng) * _BRIGHTEST_NOISE).to(image)
        if self.background == "shuffled":
            return _shuffle_outside(image, sector, rng)
        return image * (_DIMMED if self.background == "dim" else 0.0)


class MovedViews:
    """Draws pictures that are moved and keep their own background."""

    def __init__(
        self,
        image_NCHW: np.ndarray,
        label_N: np.ndarray,
        *,
        classes: int,
        motion: PlanarMotion = PUBLISHED_MOTION,
        device: str = "cpu",
    ) -> None:
        """Take images ``[N, 1, H, W]`` in [0, 1] and labels; raise DataError as ``BackMix``."""
        _check_views(image_NCHW, label_N, classes)
        pixels = np.ascontiguousarray(image_NCHW, dtype=np.float32)
        self.image_NCHW = torch.from_numpy(pixels).to(device)
        self.label_N = torch.from_numpy(np.asarray(label_N, np.int64)).to(device)
        self.motion = motion

    def pick(
        self, batch_images: int, rng: torch.Generator
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Return rows drawn with replacement, and the images and labels of these as they are."""
        rows = torch.randint(len(self.label_N), (batch_images,), generator=rng)
        return rows, self.image_NCHW[rows], self.label_N[rows]

    def __call__(self, batch_images: int, rng: torch.Generator) -> ViewBatch:
        """Return moved pictures, none of them mixed."""
        _, image, label = self.pick(batch_images, rng)
        everywhere = torch.ones_like(image, dtype=torch.bool)
        image, _ = move_planar(image, everywhere, motion=self.motion, rng=rng)
        return ViewBatch(image, label, torch.zeros_like(label, dtype=torch.bool))


def choose_sectors(
    sectors: Sequence[np.ndarray | None], *, share_frac: float, rng: np.random.Generator
) -> list[np.ndarray | None]:
    """Return the sectors of a random share of the pictures, and None for all others.

    The share is of the pictures that have a sector, rounded, at least one of them. Who is chosen
    depends on no order of files, which may be that of patients. Raises DataError for a share
    outside (0, 1].
    """
    if not 0 < share_frac <= 1:
        raise DataError("the share of sectors is outside (0, 1]", fix="give a share such as 0.1")
    known = [row for row, sector in enumerate(sectors) if sector is not None]
    count = min(len(known), max(1, round(share_frac * len(known))))
    kept = {known[place] for place in rng.permutation(len(known))[:count].tolist()}
    return [sector if row in kept else None for row, sector in enumerate(sectors)]


def _stack_sectors(
    sectors: Sequence[np.ndarray | None], shape: tuple[int, ...]
) -> tuple[np.ndarray, np.ndarray]:
    """Return all sectors, True everywhere for those that are missing, and which are not."""
    if len(sectors) != shape[0]:
        raise DataError(
            f"{len(sectors)} sectors do not belong to {shape[0]} pictures",
            fix="give a sector or None for each picture",
        )
    stacked = np.ones(shape, bool)
    for row, sector in enumerate(sectors):
        if sector is None:
            continue
        if sector.shape != shape[2:]:
            raise DataError(
                f"the sector of picture {row} has another size",
                why=f"it is {sector.shape}, the picture {shape[2:]}",
                fix="prepare both by the same recipe",
            )
        inside = sector == 1
        if not (inside | (sector == 0)).all():
            raise DataError(
                f"the sector of picture {row} is not of zeros and ones",
                fix="give bool, true inside the sector",
            )
        if inside.all() or not inside.any():
            raise DataError(
                f"the sector of picture {row} is no sector",
                why=f"it covers {'everything' if inside.all() else 'nothing'}",
                fix="leave the mask of this picture out",
            )
        stacked[row, 0] = inside
    return stacked, np.array([sector is not None for sector in sectors])


def _check_views(image: np.ndarray, label: np.ndarray, classes: int) -> None:
    if image.ndim != 4 or image.shape[1] != 1 or not len(image):  # noqa: PLR2004 - N, 1, H, W
        raise DataError("the images are not gray pictures", fix="give [N, 1, H, W], one or more")
    if label.shape != image.shape[:1] or not np.issubdtype(label.dtype, np.integer):
        raise DataError(
            "the labels do not belong to the pictures", fix="give one whole number for each"
        )
    if classes < _FEWEST_CLASSES:
        raise DataError("there is nothing to tell apart", why="a classifier needs two classes")
    if label.min() < 0 or label.max() >= classes:
        raise DataError(
            "a label is none of the classes",
            why=f"labels reach from {label.min()} to {label.max()}, of {classes} classes",
            fix="map the labels of this site to its own classes",
        )
    finite(images=image)
    if image.min() < 0 or image.max() > 1:
        raise DataError(
            "the grays are outside [0, 1]",
            why="backgrounds are exchanged before anything is standardized",
            fix="scale the pictures to [0, 1] and leave the rest to the network",
        )


def _shuffle_outside(
    image: torch.Tensor, sector: torch.Tensor, rng: torch.Generator
) -> torch.Tensor:
    """Return the images with the pixels outside the sector in a random order."""
    inside = sector.flatten(1).float().cpu()
    # Keys below one lie outside the sector: both orders list those pixels first.
    there = inside.argsort(dim=1, stable=True)
    source = (2 * inside + torch.rand(inside.shape, generator=rng)).argsort(dim=1)
    flat = image.flatten(1)
    moved = flat.gather(1, source.to(flat.device))
    return flat.scatter(1, there.to(flat.device), moved).reshape(image.shape)
