"""Privacy distillation does what it is for: the student is re-identified less, and no less useful.

The teacher is a mixture: three of four of its samples come from a network that knows a few patients
by heart, the fourth from one that never saw a patient of the site. The attacker is a network of
another shape, trained on other patients, that no filter holds. Students learn without what keeps
a network from learning by heart, as the first network does: where a student of the random filter
forgets its patients too, nothing is proven, and the comparison says so.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
import pytest
import torch

from tests.factories.certified import (
    SEED,
    Certified,
    certified_site,
    disjoint_model,
    draw_conditioned,
    learn_denoiser,
    rows_of,
    sample_of,
)
from tests.factories.filter_power import RATE
from tests.factories.trained import VENTRICLE, Trained
from vitrael.core.configs import ReidEncoderConfig
from vitrael.core.digest import Digest, digest_bytes
from vitrael.core.metrics.intervals import Estimate, auc, clopper_pearson
from vitrael.core.models import SYSTEMS
from vitrael.core.models.reid import ReidEncoder, build_reid_encoder
from vitrael.core.rng import stream, torch_stream
from vitrael.core.training.contrastive import VisitPairs
from vitrael.core.training.loop import fit
from vitrael.core.weights import module_tensors, pack_tensors
from vitrael.privacy.audit.arms import LARGEST_RATIO, Arms, compare_arms, random_subset
from vitrael.privacy.reid.calibrate import verify_encoder
from vitrael.privacy.reid.gallery import build_gallery, with_round_trips
from vitrael.privacy.reid.lens import MEMBERS, embed
from vitrael.privacy.reid.template import lay_onto

pytestmark = pytest.mark.slow

_CANDIDATES, _SAMPLES = 600, 384
_BY_HEART, _BY_HEART_IMAGES = 8, 8_000
_ONE_HONEST_IN = 4
_STUDENT_IMAGES = 36_000
_VERIFIED, _NULL, _ATTACKERS = 200, 300, 64
_BLOCK_VOX = 4
_RIDGE = 0.1
_SHUFFLES = 50
_LEAST_AUC = 0.95
_PUBLIC_AUC = 0.98
_LARGEST_DROP = 0.05


@pytest.fixture(scope="module")
def site() -> Certified:
    return certified_site()


@dataclass(frozen=True)
class Mixture:
    """A teacher that has some patients by heart: three of four samples are asked of one of them."""

    by_heart: Trained
    honest: Trained
    known_PK: np.ndarray
    """Conditions of the patients whom it gives back."""
    other_BK: np.ndarray

    def conditions(self, first: int, count: int) -> np.ndarray:
        """Return what the samples from ``first`` on are asked for."""
        owner, rows = _owners(first, count), np.arange(first, first + count)
        other = self.other_BK[rows % len(self.other_BK)]
        return np.where((owner >= 0)[:, None], self.known_PK[owner], other)

    def draw(self, first: int, count: int) -> np.ndarray:
        """Return the samples from ``first`` on."""
        asked, heart = self.conditions(first, count), _owners(first, count) >= 0
        images = np.empty((count, 1, *self.honest.grid_vox), np.float32)
        images[heart] = sample_of(self.by_heart, asked[heart], seed=SEED + first)
        images[~heart] = sample_of(self.honest, asked[~heart], seed=SEED + first)
        return images


def _owners(first: int, count: int) -> np.ndarray:
    """Return whom of the patients known by heart each sample is asked of, -1 for none."""
    rows = np.arange(first, first + count)
    place = rows - rows // _ONE_HONEST_IN - 1
    return np.where(rows % _ONE_HONEST_IN == 0, -1, place % _BY_HEART)


@dataclass(frozen=True)
class Attacker:
    """A re-identification network that is no member of the filter, and its operating point."""

    encoder: ReidEncoder
    known_NE: np.ndarray
    threshold: float

    def __call__(self, image_BCDHW: np.ndarray) -> np.ndarray:
        """Return whether each image is taken for a patient of the gallery."""
        return np.asarray(self.score(image_BCDHW) > self.threshold)

    def score(self, image_BCDHW: np.ndarray) -> np.ndarray:
        """Return the largest cosine with a scan of the gallery."""
        return np.asarray((embed(image_BCDHW, self.encoder) @ self.known_NE.T).max(1))


@pytest.fixture(scope="module")
def attacker(site: Certified) -> Attacker:
    training = {"length_images": 3_000, "batch_images": 32, "learning_rate": 1e-3}
    config = ReidEncoderConfig.model_validate(
        {
            "kind": "reid_encoder",
            "channels": (24, 48),
            "embedding": 48,
            "training": training,
        }
    )
    encoder = build_reid_encoder(config, seed=SEED + 7)
    fit(
        encoder,
        SYSTEMS[config.kind].objective(config, "encoder"),
        VisitPairs(draw_conditioned("Z", _ATTACKERS, visits=2)),
        config.training,
        length_images=config.training.length_images,
        rng=torch_stream(SEED + 7, "attacker"),
    )
    known = embed(site.hospital.training.image_BCDHW, encoder)
    blank = Attacker(encoder, known, 1.0)
    null = draw_conditioned("N", _NULL, visits=1).image_BCDHW
    return replace(blank, threshold=float(np.quantile(blank.score(null), 1 - RATE)))


@pytest.fixture(scope="module")
def teacher(site: Certified) -> Mixture:
    known = rows_of(site.hospital.training, np.arange(_BY_HEART))
    by_heart = learn_denoiser(
        site.model,
        known.image_BCDHW,
        known.condition_BK,
        seed=SEED + 5,
        length_images=_BY_HEART_IMAGES,
        by_heart=True,
    )
    return Mixture(by_heart, disjoint_model(), known.condition_BK, site.others.condition_BK)


@dataclass(frozen=True)
class Distillation:
    """Images of the three arms, asked for the same."""

    arms: Arms
    condition_NK: np.ndarray


@pytest.fixture(scope="module")
def distillation(site: Certified, teacher: Mixture) -> Distillation:
    candidates, asked = teacher.draw(0, _CANDIDATES), teacher.conditions(0, _CANDIDATES)
    keep = site.screener(candidates)
    heart = _owners(0, _CANDIDATES) >= 0
    print(
        f"\nkept {keep.sum()} of {_CANDIDATES}: of those by heart {keep[heart].mean():.3f}, "
        f"of the others {keep[~heart].mean():.3f}"
    )
    kept = np.flatnonzero(keep)
    drawn = random_subset(_CANDIDATES, len(kept), rng=stream(SEED, "random filter"))
    wanted = teacher.conditions(_CANDIDATES, _SAMPLES)

    def student(rows: np.ndarray) -> np.ndarray:
        model = learn_denoiser(
            site.model,
            candidates[rows],
            asked[rows],
            seed=SEED + 11,
            length_images=_STUDENT_IMAGES,
            by_heart=True,
        )
        return sample_of(model, wanted, seed=SEED + _CANDIDATES)

    owner = _owners(_CANDIDATES, _SAMPLES)
    cluster = np.where(owner >= 0, owner, _BY_HEART + np.arange(_SAMPLES))
    arms = Arms(teacher.draw(_CANDIDATES, _SAMPLES), student(drawn), student(kept), cluster)
    return Distillation(arms, wanted)


def test_encoder_knows_patients_again_whom_it_never_saw(site: Certified) -> None:
    unseen = draw_conditioned("V", _VERIFIED, visits=2)
    laid = replace(unseen, image_BCDHW=lay_onto(unseen.image_BCDHW, site.hospital.template))
    for name in ("patient", "copy"):
        found = verify_encoder(laid, site.screener.gallery.lens.encoders.named(name))
        area = found.wins / found.patients
        low, _ = clopper_pearson(found.wins, found.patients)
        print(
            f"\n{name}: verification AUC {area:.4f}, bound {low:.4f}, n {found.patients}; "
            f"public from {_PUBLIC_AUC}: {low >= _PUBLIC_AUC}"
        )
        if name == "patient":
            assert area >= _LEAST_AUC


def test_student_is_reidentified_less_by_a_network_outside_the_filter(
    site: Certified, attacker: Attacker, distillation: Distillation
) -> None:
    encoders = site.screener.gallery.lens.encoders
    found = compare_arms(
        distillation.arms,
        attacker,
        held_out=site.hospital.fresh.image_BCDHW,
        attacker=_digest(attacker.encoder),
        members=[_digest(encoders.copy), _digest(encoders.patient)],
        rng=stream(SEED, "arms"),
    )
    print()
    for one in found.measurements:
        print(f"  {one.name:30} {one.value} ({one.low} to {one.high}), n {one.n}")
    print(f"  p {found.student.p:.4f}; of the random filter {found.random_filter.p:.4f}")
    assert found.verdict == "falls", found.reason
    assert found.student.ratio.value is not None
    assert found.student.ratio.value <= LARGEST_RATIO
    assert found.student.p < 0.05
    assert found.random_filter.verdict == "does not fall"  # the control


def test_student_teaches_as_much_as_its_teacher(
    site: Certified, distillation: Distillation
) -> None:
    arms, asked = distillation.arms, distillation.condition_NK[:, VENTRICLE]
    fresh = site.hospital.fresh
    large = fresh.condition_BK[:, VENTRICLE] > np.median(fresh.condition_BK[:, VENTRICLE])
    edge = float(np.median(fresh.condition_BK[:, VENTRICLE]))
    areas: dict[str, Estimate] = {}
    for name, images in (
        ("teacher", arms.teacher),
        ("random", arms.random_filter),
        ("student", arms.student),
    ):
        score = _learn_linear(images, asked > edge)(fresh.image_BCDHW)
        areas[name] = auc(score[large], score[~large])
    rng, blind = stream(SEED, "shuffled"), []
    for _ in range(_SHUFFLES):
        score = _learn_linear(arms.teacher, rng.permutation(asked > edge))(fresh.image_BCDHW)
        blind.append(auc(score[large], score[~large]).value)
    print(f"\nlarge or small ventricles, {len(fresh)} real patients: {areas}")
    print(f"  of shuffled labels {np.mean(blind):.3f}, mean of {_SHUFFLES}")
    assert areas["teacher"].value > 0.8  # the classifier learned something
    assert areas["teacher"].value - areas["student"].value <= _LARGEST_DROP
    assert abs(np.mean(blind) - 0.5) < 0.15  # the control


def test_fresh_patients_are_rejected_at_the_nominal_rate_and_not_at_that_of_another_size(
    site: Certified,
) -> None:
    hospital, point, gallery = site.hospital, site.screener.point, site.screener.gallery
    come = site.model.reconstruct  # as candidates come, for whom alone the rate is meant
    member_BM = site.screener.members(come(hospital.fresh.image_BCDHW))
    score = member_BM.max(1)
    dropped = int((score > point.threshold).sum())
    few = build_gallery(
        with_round_trips(hospital.calibration, site.model.reconstruct), gallery.lens
    )
    # As published, by similarities: the last member measures a margin to the next patients, which
    # falls as there are more of them.
    similar = slice(MEMBERS.index("latents"))
    unequal = replace(site.screener, gallery=few).members(come(hospital.training.image_BCDHW))
    published = float(np.quantile(unequal[:, similar].max(1), 1 - RATE))
    inflated = int((member_BM[:, similar].max(1) > published).sum())
    ratio = gallery.patients / few.patients
    low, high = clopper_pearson(dropped, len(score))
    low_of_published, high_of_published = clopper_pearson(inflated, len(score))
    print(
        f"\nfresh patients: {dropped} of {len(score)} dropped ({low:.3f} to {high:.3f}), nominal "
        f"{RATE}; by a threshold from {few.patients} patients for {gallery.patients}: {inflated} "
        f"({low_of_published:.3f} to {high_of_published:.3f}), in theory "
        f"{1 - (1 - RATE) ** ratio:.3f}"
    )
    assert low <= RATE <= high
    assert low_of_published > 2 * RATE


def _digest(encoder: object) -> Digest:
    assert isinstance(encoder, torch.nn.Module)
    return digest_bytes(pack_tensors(module_tensors(encoder)))


def _learn_linear(
    image_BCDHW: np.ndarray, label_B: np.ndarray
) -> Callable[[np.ndarray], np.ndarray]:
    """Return the score of a ridge regression of a label on block means."""

    def blocks(images: np.ndarray) -> np.ndarray:
        pooled = torch.nn.functional.avg_pool3d(torch.from_numpy(images), _BLOCK_VOX)
        return pooled.flatten(1).numpy()

    feature = blocks(image_BCDHW)
    mean, spread = feature.mean(0), feature.std(0) + 1e-3
    x, y = (feature - mean) / spread, 2.0 * label_B - 1.0
    weight = np.linalg.solve(x.T @ x + _RIDGE * len(x) * np.eye(x.shape[1]), x.T @ (y - y.mean()))
    return lambda images: ((blocks(images) - mean) / spread) @ weight
