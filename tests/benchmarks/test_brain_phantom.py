"""How long a phantom takes to draw, beside the usual way to make an image of labels.

The peer takes finished labels and does what a synthetic-image pipeline does with them: one
Gaussian filter a tissue for soft borders, their gray values, MONAI's random bias field and
Gaussian noise. It draws no anatomy and no lesions; ours does, and tells the labels as well.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable

import numpy as np
import pytest
from scipy import ndimage

from vitrael.core.data.measure import measure_volumes
from vitrael.core.data.phantoms.acquisition import STYLES
from vitrael.core.data.phantoms.brain import (
    BrainImages,
    draw_acquisition,
    draw_anatomy,
    image_brain,
    render_brain,
)
from vitrael.core.data.phantoms.contrasts import CONTRASTS, signals
from vitrael.core.data.phantoms.lesions import draw_lesions
from vitrael.core.data.phantoms.tissues import Tissue
from vitrael.core.rng import stream

RUNS = 7
MOST_S, MOST_SMALL_S = 0.5, 0.010
GRID = (64, 64, 64)
SHOWN = (Tissue.CSF, Tissue.CORTEX, Tissue.WHITE, Tissue.VENTRICLES, Tissue.CEREBELLUM_GRAY)


def draw(number: int) -> BrainImages:
    """Return a new patient with lesions, texture, bias field and noise, and the truth."""
    rng = stream(17, "bench", number)
    anatomy = draw_anatomy(rng)
    lesions = draw_lesions(rng, anatomy, wmh_ml=8.0, tumor_ml=10.0)
    scan = draw_acquisition(rng, style=STYLES["sharp"])
    return image_brain(anatomy, scan, grid_vox=GRID, spacing_mm=3.0, lesions=lesions)


def paint(labels_DHW: np.ndarray, seed: int) -> np.ndarray:
    """Return the peer's image of finished labels."""
    from monai.transforms import RandBiasField, RandGaussianNoise

    level_K = signals(CONTRASTS["T1w"])
    image = np.zeros(labels_DHW.shape, np.float32)
    for tissue in SHOWN:
        image += level_K[tissue] * ndimage.gaussian_filter(
            (labels_DHW == tissue).astype(np.float32), 0.7
        )
    bias = RandBiasField(prob=1.0).set_random_state(seed)
    noise = RandGaussianNoise(prob=1.0, std=0.01).set_random_state(seed)
    return np.asarray(noise(bias(image[None])))


def cpu_s(work: Callable[[int], object]) -> float:
    """Return the median processor time of one call, seconds."""
    times = []
    for number in range(RUNS + 1):
        before = time.process_time()
        work(number)
        times.append(time.process_time() - before)
    return statistics.median(times[1:])  # the first one loads libraries


@pytest.mark.bench
def test_brain_of_64_voxels_with_all_that_belongs_to_it() -> None:
    import torch

    torch.set_num_threads(1)
    labels = draw(0).truth.labels_DHW
    ours, peer = cpu_s(draw), cpu_s(lambda number: paint(labels, number))
    small = cpu_s(draw_small)
    print(
        f"\nbrain 64^3: {1000 * ours:.0f} ms with lesions and truth; painting finished labels "
        f"{1000 * peer:.0f} ms, ratio {ours / peer:.2f}; 24^3: {1000 * small:.1f} ms of CPU"
    )
    assert ours <= MOST_S
    assert small <= MOST_SMALL_S
    session = draw(1)
    volumes = session.truth.volumes_ml
    assert volumes["wmh"] == pytest.approx(8, rel=0.05)
    assert volumes["tumor"] == pytest.approx(10, rel=0.05)
    scan = session.scans["T1w"]
    ventricle_ml, brain_ml = measure_volumes(scan.image_CDHW[None], scan.affine)
    assert brain_ml[0] == pytest.approx(volumes["brain"], rel=0.1)
    assert ventricle_ml[0] > 0


def draw_small(number: int) -> None:
    rng = stream(17, "small", number)
    anatomy = draw_anatomy(rng)
    render_brain(anatomy, draw_acquisition(rng), grid_vox=(24, 24, 24), spacing_mm=8.0)
