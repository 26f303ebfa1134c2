"""Who a phantom patient is: age, sex, disease, volumes, and the waves that shape the surfaces.

``EFFECTS`` holds the true coefficients by which age, sex and disease act. A study that estimates
them from images can be held to them.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from types import MappingProxyType

import numpy as np

from vitrael.core.data.phantoms.forms import draw_waves
from vitrael.core.rng import stream

EFFECTS: Mapping[str, float] = MappingProxyType(
    {
        "brain_ml.at_50_female": 1180.0,
        "brain_ml.per_year": -2.2,
        "brain_ml.male": 130.0,
        "brain_ml.sd": 90.0,
        "brain_frac.per_year_of_a_patient": -0.003,
        "ventricle_ml.at_20": 12.0,
        "ventricle_ml.per_year_squared_from_20": 0.011,
        "ventricle_log.sd": 0.45,
        "ventricle_log.per_year_of_a_patient": 0.02,
        "ventricle_log.per_year_of_a_patient_sd": 0.01,
        "ventricle_frac.disease": 0.25,
        "cortex_frac_of_radius.at_20": 0.26,
        "cortex_frac_of_radius.per_year": -0.0012,
        "hippocampus_ml.at_50": 7.0,
        "hippocampus_log.per_year": -0.005,
        "hippocampus_log.male": 0.05,
        "hippocampus_log.sd": 0.07,
        "hippocampus_frac.disease": -0.15,
        "wmh_ml.at_60": 1.5,
        "wmh_log.per_year": 0.05,
        "wmh_log.sd": 0.6,
    }
)
"""True coefficients. ``_log`` acts on the logarithm, ``_frac`` as a part of the value.

Both hippocampi together. Volumes are cut to plausible ranges, see ``draw_anatomy``. The law of
white-matter hyperintensities (``wmh``) is that of ``lesions.draw_lesions``.
"""

AGES_YEARS = (20.0, 90.0)
_SHAPE_WAVES = 8
_FOLD_WAVES = 14
_MOST_VENTRICLE_ML = 120.0


@dataclass(frozen=True, slots=True, repr=False)
class Anatomy:
    """What makes a patient: volumes, proportions and the waves that shape the surfaces."""

    age_years: float
    sex: float
    """0 female, 1 male."""
    brain_ml: float
    """Of the ellipsoid before its surface is modulated: what is drawn differs by some percent."""
    ventricle_ml: float
    """Of both lateral ventricles."""
    proportions: np.ndarray
    """[3] semi-axes relative to their geometric mean."""
    shape_waves: np.ndarray
    """[waves, 5]: frequency vector, phase, amplitude of the outer surface."""
    fold_waves: np.ndarray
    """[waves, 5]: the same for the depth of the folded layer."""
    ventricle_form: np.ndarray
    """[5]: distance from the midline, length, height (relative), tilt, asymmetry."""
    nuclei: np.ndarray
    """[4]: half distance, height, radius in millimetres, and contrast of the deep gray."""
    hippocampus_ml: float
    """Of both."""
    detail_seed: int
    """Names the streams of what is finer: sulci, face, texture within the tissues."""
    disease: float = 0.0
    """1 with disease: smaller hippocampi, larger ventricles; see ``with_disease``."""


def draw_anatomy(
    rng: np.random.Generator, *, ages_years: tuple[float, float] = AGES_YEARS
) -> Anatomy:
    """Return a new patient without disease.

    Age is uniform; brain volume falls and ventricles grow with age, men have larger brains, and
    both vary among people of one age. Brains are cut to 900 to 1500 ml and ventricles to 8 to
    110 ml.
    """
    age = float(rng.uniform(*ages_years))
    sex = float(rng.integers(0, 2))
    effect = EFFECTS
    brain = (
        effect["brain_ml.at_50_female"]
        + effect["brain_ml.male"] * sex
        + effect["brain_ml.per_year"] * (age - 50)
        + rng.normal(0, effect["brain_ml.sd"])
    )
    typical = (
        effect["ventricle_ml.at_20"]
        + effect["ventricle_ml.per_year_squared_from_20"] * (age - 20) ** 2
    )
    ventricle = typical * np.exp(rng.normal(0, effect["ventricle_log.sd"]))
    proportions = np.exp(rng.normal([-0.07, 0.14, -0.07], 0.05))
    proportions = proportions / np.prod(proportions) ** (1 / 3)
    shape_waves = draw_waves(rng, _SHAPE_WAVES, frequency=(1.0, 3.5), amplitude=0.022)
    fold_waves = draw_waves(rng, _FOLD_WAVES, frequency=(4.0, 8.0), amplitude=0.034)
    ventricle_form = rng.normal([13.0, 1.0, 1.0, 0.15, 0.0], [1.6, 0.12, 0.12, 0.12, 0.10])
    nuclei = rng.normal([20.0, -6.0, 11.0, 0.9], [2.0, 3.0, 1.2, 0.08])
    detail_seed = int(rng.integers(0, 2**62))
    return Anatomy(
        age_years=age,
        sex=sex,
        brain_ml=float(np.clip(brain, 900, 1500)),
        ventricle_ml=float(np.clip(ventricle, 8, 110)),
        proportions=proportions,
        shape_waves=shape_waves,
        fold_waves=fold_waves,
        ventricle_form=ventricle_form,
        nuclei=nuclei,
        hippocampus_ml=_draw_hippocampus(detail_seed, age, sex),
        detail_seed=detail_seed,
    )


def age_anatomy(anatomy: Anatomy, rng: np.random.Generator, *, years: float) -> Anatomy:
    """Return the same patient some years later: larger ventricles, a slightly smaller brain.

    The ventricles of one patient grow by a rate of his own; hippocampi shrink by the common one.
    """
    mean, sd = (
        EFFECTS["ventricle_log.per_year_of_a_patient"],
        EFFECTS["ventricle_log.per_year_of_a_patient_sd"],
    )
    growth = np.exp(years * abs(rng.normal(mean, sd)))
    shrinkage = np.exp(EFFECTS["hippocampus_log.per_year"] * years)
    return replace(
        anatomy,
        age_years=anatomy.age_years + years,
        ventricle_ml=float(np.clip(anatomy.ventricle_ml * growth, 8, _MOST_VENTRICLE_ML)),
        brain_ml=anatomy.brain_ml * (1 + EFFECTS["brain_frac.per_year_of_a_patient"] * years),
        hippocampus_ml=float(anatomy.hippocampus_ml * shrinkage),
    )


def with_disease(anatomy: Anatomy) -> Anatomy:
    """Return the same patient as he would be with the disease; one who has it stays as he is."""
    if anatomy.disease:
        return anatomy
    ventricle = anatomy.ventricle_ml * (1 + EFFECTS["ventricle_frac.disease"])
    return replace(
        anatomy,
        disease=1.0,
        ventricle_ml=float(min(ventricle, _MOST_VENTRICLE_ML)),
        hippocampus_ml=anatomy.hippocampus_ml * (1 + EFFECTS["hippocampus_frac.disease"]),
    )


def semi_axes_mm(anatomy: Anatomy) -> np.ndarray:
    """Return the three semi-axes of the brain before its surface is modulated."""
    radius = (anatomy.brain_ml * 1000 / (4 / 3 * np.pi)) ** (1 / 3)
    return np.asarray(radius * anatomy.proportions)


def _draw_hippocampus(detail_seed: int, age_years: float, sex: float) -> float:
    rng = stream(detail_seed, "hippocampus")
    logarithm = (
        EFFECTS["hippocampus_log.per_year"] * (age_years - 50)
        + EFFECTS["hippocampus_log.male"] * sex
        + rng.normal(0, EFFECTS["hippocampus_log.sd"])
    )
    return float(EFFECTS["hippocampus_ml.at_50"] * np.exp(logarithm))
