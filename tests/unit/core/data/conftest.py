"""A brain of known volumes, made of ellipsoids, and the data section of the demo study."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from vitrael.core.data.scan import Scan
from vitrael.core.geometry import centered_affine
from vitrael.core.protocols import Data, Protocol
from vitrael.core.study import load_study

MakeBrain = Callable[..., Scan]


@pytest.fixture(scope="session")
def protocol(root: Path) -> Protocol:
    return load_study(root / "deploy/studies/brain-demo.toml").protocol


@pytest.fixture(scope="session")
def data(protocol: Protocol) -> Data:
    return protocol.data


@pytest.fixture(scope="session")
def real_scans(root: Path) -> Path:
    folder = root.parent / "shared/data/brain_t1"
    if not folder.is_dir():
        pytest.skip("the public brain scans (brain_t1) are not on this machine")
    return folder


@pytest.fixture(scope="session")
def make_brain() -> MakeBrain:
    """Return a maker of scans: gray rim, white matter, two ventricles; volumes exact."""

    def make(
        *,
        ventricle_ml: float = 30.0,
        brain_ml: float = 1250.0,
        shape: tuple[int, int, int] = (24, 24, 24),
        spacing: float = 8.0,
        parts: int | None = None,
        gain: float = 1.0,
        noise: float = 0.0,
        seed: int = 0,
        centre_mm: tuple[float, float, float] = (0.0, 0.0, 0.0),
    ) -> Scan:
        affine = centered_affine(shape, spacing=spacing)
        # Sub-voxels along an axis: true partial volume.
        parts = parts or max(1, round(spacing / 2))
        depth, height, width = (n * parts for n in shape)
        fine = centered_affine((depth, height, width), spacing=spacing / parts)
        axes = [fine[i, 3] + spacing / parts * np.arange(n * parts) for i, n in enumerate(shape)]
        world = np.stack(np.meshgrid(*axes, indexing="ij")) - np.reshape(centre_mm, (3, 1, 1, 1))
        form = (0.92, 1.18, 0.91)
        image = 0.5 * inside(world, brain_ml, form, (0, 0, 0))
        image[inside(world, 0.6 * brain_ml, form, (0, 0, 0))] = 0.8
        for side in (-16, 16):
            image[inside(world, ventricle_ml / 2, (0.6, 1.9, 0.9), (side, -2, 8))] = 0.16
        blocks = [n for size in shape for n in (size, parts)]
        image = image.reshape(blocks).mean(axis=(1, 3, 5)) * gain
        if noise:
            image += noise * np.random.Generator(np.random.PCG64(seed)).normal(size=shape)
        return Scan(image_CDHW=image.astype(np.float32)[None], affine=affine, modality="T1w")

    return make


def inside(
    world: np.ndarray,
    volume_ml: float,
    form: tuple[float, float, float],
    centre_mm: tuple[float, float, float],
) -> np.ndarray:
    radius = (volume_ml * 1000 / (4 / 3 * np.pi * np.prod(form))) ** (1 / 3)
    axes = radius * np.array(form)
    offset = (world - np.reshape(centre_mm, (3, 1, 1, 1))) / axes.reshape(3, 1, 1, 1)
    return np.asarray((offset**2).sum(axis=0) < 1)
