"""A procedural T1-weighted brain: identity, age, sex, and ventricles of a known volume.

Anatomy and acquisition have separate random streams: a patient keeps the anatomy over visits
while position, bias field and noise change. The shapes are implicit: an ellipsoid whose radius is
modulated by a few waves over the sphere (the identity), white matter inside with finer folds, two
lateral ventricles, deep gray nuclei, and a dark interhemispheric fissure. Everything outside the
brain is zero, as after skull stripping. World axes are RAS+ millimetres.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from vitrael.core.data.scan import Scan
from vitrael.core.geometry import centered_affine

_SHAPE_WAVES = 8
_FOLD_WAVES = 14
_WHITE, _GRAY, _FLUID = 0.85, 0.55, 0.15


@dataclass(frozen=True, slots=True, repr=False)
class Anatomy:
    """What makes a patient: volumes, proportions and the waves that shape the surfaces."""

    age_years: float
    sex: float
    """0 female, 1 male."""
    brain_ml: float
    """Of the ellipsoid before its surface is modulated: what is drawn differs by some percent."""
    ventricle_ml: float
    proportions: np.ndarray
    """[3] semi-axes relative to their geometric mean."""
    shape_waves: np.ndarray
    """[waves, 5]: frequency vector, phase, amplitude of the outer surface."""
    fold_waves: np.ndarray
    """[waves, 5]: the same for the white-matter surface."""
    ventricle_form: np.ndarray
    """[5]: distance from the midline, length, height (relative), tilt, asymmetry."""
    nuclei: np.ndarray
    """[4]: half distance, height, radius in millimetres, and contrast of the deep gray."""


@dataclass(frozen=True, slots=True)
class Acquisition:
    """What differs from scan to scan: position, bias field, contrast, noise."""

    shift_mm: np.ndarray
    rotation_rad: np.ndarray
    bias: np.ndarray
    """[3] relative slope of the receive field along each axis, per 100 mm."""
    contrast: float
    noise_frac: float
    noise_seed: int


def draw_anatomy(rng: np.random.Generator) -> Anatomy:
    """Return a new patient.

    Age is uniform on 20 to 90 years; brain volume falls and ventricles grow with age, men have
    larger brains, and both vary among people of one age.
    """
    age = float(rng.uniform(20, 90))
    sex = float(rng.integers(0, 2))
    brain = 1180 + 130 * sex - 2.2 * (age - 50) + rng.normal(0, 90)
    ventricle = (12 + 0.011 * (age - 20) ** 2) * np.exp(rng.normal(0, 0.45))
    proportions = np.exp(rng.normal([-0.07, 0.14, -0.07], 0.05))
    return Anatomy(
        age_years=age,
        sex=sex,
        brain_ml=float(np.clip(brain, 900, 1500)),
        ventricle_ml=float(np.clip(ventricle, 8, 110)),
        proportions=proportions / np.prod(proportions) ** (1 / 3),
        shape_waves=_draw_waves(rng, _SHAPE_WAVES, frequency=(1.0, 3.5), amplitude=0.022),
        fold_waves=_draw_waves(rng, _FOLD_WAVES, frequency=(4.0, 8.0), amplitude=0.034),
        ventricle_form=rng.normal([13.0, 1.0, 1.0, 0.15, 0.0], [1.6, 0.12, 0.12, 0.12, 0.10]),
        nuclei=rng.normal([20.0, -6.0, 11.0, 0.9], [2.0, 3.0, 1.2, 0.08]),
    )


def age_anatomy(anatomy: Anatomy, rng: np.random.Generator, *, years: float) -> Anatomy:
    """Return the same patient some years later: larger ventricles, a slightly smaller brain."""
    growth = np.exp(years * abs(rng.normal(0.02, 0.01)))
    return replace(
        anatomy,
        age_years=anatomy.age_years + years,
        ventricle_ml=float(np.clip(anatomy.ventricle_ml * growth, 8, 120)),
        brain_ml=anatomy.brain_ml * (1 - 0.003 * years),
    )


def draw_acquisition(rng: np.random.Generator, *, site_contrast: float = 0.0) -> Acquisition:
    """Return the circumstances of one scan; ``site_contrast`` shifts a scanner's gray-white gap."""
    return Acquisition(
        shift_mm=rng.normal(0, 1.5, 3),
        rotation_rad=rng.normal(0, 0.02, 3),
        bias=rng.normal(0, 0.05, 3),
        contrast=1 + site_contrast + float(rng.normal(0, 0.03)),
        noise_frac=float(rng.uniform(0.008, 0.016)),
        noise_seed=int(rng.integers(0, 2**62)),
    )


def render_brain(
    anatomy: Anatomy,
    acquisition: Acquisition,
    *,
    grid_vox: tuple[int, int, int],
    spacing_mm: float,
) -> Scan:
    """Return the T1-weighted scan of a patient, ``[1, D, H, W]`` float32, intensities near [0, 1].

    Tissue borders are softened over one voxel, which stands for partial volume.
    """
    affine = centered_affine(grid_vox, spacing=spacing_mm)
    axes = [affine[i, 3] + spacing_mm * np.arange(n) for i, n in enumerate(grid_vox)]
    world = np.stack(np.meshgrid(*axes, indexing="ij"), axis=-1)
    head = (world - acquisition.shift_mm) @ _rotation(acquisition.rotation_rad)
    brain, white = _surfaces(anatomy, head, spacing_mm)
    tissue = _GRAY + (_WHITE - _GRAY) * acquisition.contrast * white
    tissue = _deep_gray(anatomy, head, tissue, spacing_mm)
    ventricle = _ventricles(anatomy, head, spacing_mm)
    fissure = _fissure(anatomy, head, spacing_mm)
    fluid = np.maximum(ventricle, fissure)
    image = brain * (tissue * (1 - fluid) + _FLUID * fluid)
    image *= 1 + (world / 100) @ acquisition.bias
    noise = np.random.Generator(np.random.PCG64(acquisition.noise_seed))
    image += brain * noise.normal(0, acquisition.noise_frac, image.shape)
    image_cdhw = np.clip(image, 0, 1.2).astype(np.float32)[None]
    return Scan(image_CDHW=image_cdhw, affine=affine, modality="T1w")


def _draw_waves(
    rng: np.random.Generator, count: int, *, frequency: tuple[float, float], amplitude: float
) -> np.ndarray:
    directions = rng.normal(size=(count, 3))
    directions /= np.linalg.norm(directions, axis=1, keepdims=True)
    waves = np.empty((count, 5))
    waves[:, :3] = directions * rng.uniform(*frequency, size=(count, 1))
    waves[:, 3] = rng.uniform(0, 2 * np.pi, count)
    waves[:, 4] = rng.normal(0, amplitude, count)
    return waves


def _rotation(angles_rad: np.ndarray) -> np.ndarray:
    x, y, z = angles_rad
    about_x = np.array([[1, 0, 0], [0, np.cos(x), -np.sin(x)], [0, np.sin(x), np.cos(x)]])
    about_y = np.array([[np.cos(y), 0, np.sin(y)], [0, 1, 0], [-np.sin(y), 0, np.cos(y)]])
    about_z = np.array([[np.cos(z), -np.sin(z), 0], [np.sin(z), np.cos(z), 0], [0, 0, 1]])
    return np.asarray(about_x @ about_y @ about_z)


def _inside(signed_mm: np.ndarray, spacing_mm: float) -> np.ndarray:
    """Return how much of a voxel lies inside, from the distance to the border (positive: in)."""
    return np.clip(0.5 + signed_mm / spacing_mm, 0, 1)


def _semi_axes_mm(anatomy: Anatomy) -> np.ndarray:
    radius = (anatomy.brain_ml * 1000 / (4 / 3 * np.pi)) ** (1 / 3)
    return np.asarray(radius * anatomy.proportions)


def _surfaces(
    anatomy: Anatomy, head: np.ndarray, spacing_mm: float
) -> tuple[np.ndarray, np.ndarray]:
    axes = _semi_axes_mm(anatomy)
    scaled = head / axes
    rho = np.linalg.norm(scaled, axis=-1)
    direction = scaled / np.maximum(rho, 1e-6)[..., None]
    outer = 1 + _wave_sum(anatomy.shape_waves, direction)
    mean_radius = float(np.prod(axes) ** (1 / 3))
    brain = _inside((outer - rho) * mean_radius, spacing_mm)
    cortex = 0.26 - 0.0012 * (anatomy.age_years - 20)
    inner = outer - cortex + _wave_sum(anatomy.fold_waves, direction)
    return brain, _inside((inner - rho) * mean_radius, spacing_mm)


def _wave_sum(waves: np.ndarray, direction: np.ndarray) -> np.ndarray:
    return np.asarray(np.sin(direction @ waves[:, :3].T + waves[:, 3]) @ waves[:, 4])


def _deep_gray(
    anatomy: Anatomy, head: np.ndarray, tissue: np.ndarray, spacing_mm: float
) -> np.ndarray:
    distance, height, radius, contrast = anatomy.nuclei
    for side in (-1, 1):
        centre = np.array([side * distance, 0.0, height])
        nucleus = _inside(radius - np.linalg.norm(head - centre, axis=-1), spacing_mm) * contrast
        tissue = tissue * (1 - nucleus) + _GRAY * nucleus
    return tissue


def _ventricles(anatomy: Anatomy, head: np.ndarray, spacing_mm: float) -> np.ndarray:
    offset, length, height, tilt, asymmetry = anatomy.ventricle_form
    both = np.zeros(head.shape[:-1])
    for side, share in ((-1, 0.5 + asymmetry / 4), (1, 0.5 - asymmetry / 4)):
        volume_mm3 = anatomy.ventricle_ml * 1000 * np.clip(share, 0.3, 0.7)
        form = np.array([0.72, 1.65 * length, 0.9 * height])
        form /= np.prod(form) ** (1 / 3)
        axes = form * (volume_mm3 / (4 / 3 * np.pi)) ** (1 / 3)
        centre = np.array([side * max(offset, axes[0] + 1), -4.0, 8.0])
        local = (head - centre) @ _rotation(np.array([tilt, 0.0, side * 0.12]))
        rho = np.linalg.norm(local / axes, axis=-1)
        # Distance to an ellipsoid to first order: (1 - rho) / |grad rho|.
        gradient = np.linalg.norm(local / axes**2, axis=-1) / np.maximum(rho, 1e-6)
        signed = (1 - rho) / np.maximum(gradient, 1e-6)
        both = np.maximum(both, _inside(np.minimum(signed, axes.min()), spacing_mm))
    return both


def _fissure(anatomy: Anatomy, head: np.ndarray, spacing_mm: float) -> np.ndarray:
    width_mm = 1.5 + 0.03 * (anatomy.age_years - 20)
    cover = np.clip(width_mm / spacing_mm * (1 - np.abs(head[..., 0]) / spacing_mm), 0, 1)
    above = _inside(head[..., 2] - 0.55 * _semi_axes_mm(anatomy)[2], spacing_mm)
    return np.asarray(cover * above)
