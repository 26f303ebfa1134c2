from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import pytest

from vitrael.core.digest import Digest
from vitrael.core.errors import DataError, QuorumError
from vitrael.core.interfaces import Generator
from vitrael.core.records import SampleRequest, Samples
from vitrael.core.rng import stream
from vitrael.privacy.distill import (
    Batch,
    Distilled,
    Draw,
    Plan,
    Stage,
    Steps,
    distill,
    weight_digests,
)

POWER = {"north": True, "south": True}
PLAN = Plan(target=60, released=40)
_SIDE = 8
_NEAR = 1.5
"""Of two images, by the length of their difference; strangers are 3.3 apart."""


def patients(count: int, *, seed: int) -> np.ndarray:
    """Return ``[count, 1, 8, 8]`` images, each of a person of its own."""
    return stream(seed, "patients").uniform(size=(count, 1, _SIDE, _SIDE))


REAL = patients(40, seed=1)
SITES = {"north": REAL[:20], "south": REAL[20:]}


@dataclass(frozen=True)
class Copyist:
    """A generator that copies one of the images it learned from, or draws somebody new."""

    sources: np.ndarray
    share: float
    most_noise: float = 0.2

    def sample(self, request: SampleRequest) -> Samples:
        rows = []
        for row in range(len(request.condition_BK)):
            rng = stream(request.seed, "sample", request.first + row)
            noise = rng.normal(0, rng.uniform(0.02, self.most_noise), (1, _SIDE, _SIDE))
            source = self.sources[rng.integers(len(self.sources))]
            new = rng.uniform(size=(1, _SIDE, _SIDE))
            rows.append(source + noise if rng.random() < self.share else new)
        return Samples(np.stack(rows), request.condition_BK, None)  # type: ignore[arg-type]


def draws_of(generator: Generator, *, seed: int) -> Draw:
    def draw(first: int, count: int) -> Batch:
        index = np.arange(first, first + count)
        condition_BK = (index % 2)[:, None].astype(float)
        subgroup_BG = np.where(index % 2, "female", "male")[:, None]
        samples = generator.sample(SampleRequest(condition_BK, seed=seed, first=first))
        return Batch(samples.image_BCDHW, condition_BK, subgroup_BG)

    return draw


def near(images: np.ndarray, gallery: np.ndarray) -> np.ndarray:
    gap = images.reshape(len(images), 1, -1) - gallery.reshape(1, len(gallery), -1)
    return np.asarray((np.linalg.norm(gap, axis=2) < _NEAR).any(1))


def screen(images: np.ndarray) -> dict[str, np.ndarray]:
    return {site: ~near(images, gallery) for site, gallery in SITES.items()}


@dataclass
class Study:
    """Steps that can be counted."""

    teacher: Generator
    answer: Any
    shown: list[np.ndarray] = field(default_factory=list)
    learned: list[np.ndarray] = field(default_factory=list)

    def screen(self, images: np.ndarray) -> Mapping[str, np.ndarray]:
        self.shown.append(images)
        return self.answer(images)  # type: ignore[no-any-return]

    def train(self, images: np.ndarray, conditions: np.ndarray) -> Copyist:
        assert len(images) == len(conditions)
        self.learned.append(images)
        return Copyist(images.copy(), 0.9, most_noise=0.05)

    def steps(self, **changes: Any) -> Steps:
        steps = Steps(
            draw=draws_of(self.teacher, seed=2),
            screen=self.screen,
            train=self.train,
            sample=lambda student: draws_of(student, seed=3),
            weights=weights_of,
            teacher_weights=weights_of(self.teacher),
        )
        return replace(steps, **changes)


def weights_of(generator: Generator) -> dict[str, Digest]:
    assert isinstance(generator, Copyist)
    return weight_digests({"sources": generator.sources})


def make_study(share: float = 0.4, answer: Any = screen) -> Study:
    return Study(Copyist(REAL, share), answer)


def run(study: Study, plan: Plan = PLAN, *, secret: int = 4, **changes: Any) -> Distilled:
    return distill(study.steps(**changes), plan, power=POWER, rng=stream(secret, "extra"))


def keep_all(images: np.ndarray) -> dict[str, np.ndarray]:
    return {site: np.ones(len(images), dtype=bool) for site in SITES}


def test_student_learns_only_from_what_every_site_kept() -> None:
    study = make_study()
    done = run(study)
    (learned,) = study.learned
    assert len(learned) == PLAN.target
    assert not near(learned, REAL).any()
    assert done.samples is not None
    assert len(done.samples.image) == PLAN.released
    assert not near(done.samples.image, REAL).any()
    # The controls: what was drawn came near to patients of both sites, and learns unfiltered.
    drawn = study.steps().draw(0, 100)
    assert all(near(drawn.image, gallery).mean() > 0.1 for gallery in SITES.values())
    careless = make_study(answer=keep_all)
    run(careless)
    assert near(careless.learned[0], REAL).any()


def test_candidates_are_drawn_until_the_target_is_kept_and_no_further() -> None:
    study = make_study()
    done = run(study)
    assert len(done.kept) == PLAN.target
    first = done.screenings[0]
    assert done.kept[-1] == first.shown - 1
    assert PLAN.target < first.shown < PLAN.cap(PLAN.target)
    assert sum(len(images) for images in study.shown) == done.votes["north"]
    assert done.votes == dict.fromkeys(SITES, sum(one.shown for one in done.screenings))
    assert first.shown == first.dropped + first.by_chance + PLAN.target


@pytest.mark.parametrize("batch", [1, 7, 500])
def test_result_does_not_depend_on_the_size_of_a_batch(batch: int) -> None:
    finish = (Stage("quantization", lambda images: np.round(images, 2)),)
    one = run(make_study(), finish=finish)
    other = run(make_study(), replace(PLAN, batch=batch), finish=finish)
    assert one.outcome == other.outcome
    assert one.screenings == other.screenings
    assert one.measurements == other.measurements
    assert one.samples is not None
    assert other.samples is not None
    for name in ("image", "condition_BK", "subgroup_BG"):
        np.testing.assert_array_equal(getattr(one.samples, name), getattr(other.samples, name))
    np.testing.assert_array_equal(one.kept, other.kept)
    # The control: another secret rejects others.
    assert not np.array_equal(one.kept, run(make_study(), secret=5, finish=finish).kept)


@pytest.mark.parametrize("share", [1.0, 0.9])
def test_cap_on_votes_stops_a_teacher_that_copies(share: float) -> None:
    study = make_study(share)
    done = run(study)
    assert done.outcome == f"too few kept: {len(done.kept)} of 60 after 240 candidates"
    assert done.student is done.samples is None
    assert study.learned == []
    assert done.votes == {"north": 240, "south": 240}
    assert len(done.kept) < PLAN.target


def test_cap_stops_a_student_that_copies_patients() -> None:
    done = run(make_study(), train=lambda images, conditions: Copyist(REAL + 0.01, 1.0, 0.05))  # noqa: ARG005
    assert done.outcome == "too few samples kept: 0 of 40 after 160"
    assert done.student is done.samples is None
    assert len(done.kept) == PLAN.target


@pytest.mark.parametrize(
    "changes",
    [
        {"votes_per_target": 4.1},
        {"votes_per_target": float("nan")},
        {"votes_before": 181},
        {"votes_before": -1},
        {"extra_rejections": 0.0},
        {"extra_rejections": 0.06},
        {"target": 7},
        {"released": 0},
        {"batch": 0},
    ],
)
def test_plan_that_cannot_be_had_is_refused(changes: dict[str, Any]) -> None:
    with pytest.raises(DataError):
        replace(PLAN, **changes)


def test_votes_of_earlier_attempts_count_against_the_cap() -> None:
    done = run(make_study(1.0), replace(PLAN, votes_before=180))
    assert done.votes == {"north": 60, "south": 60}


@pytest.mark.parametrize(
    "power",
    [
        {},
        {"north": True, "south": False},
        {"north": True, "south": None},
        {"north": True, "south": "no"},
    ],
)
def test_site_without_power_is_refused_before_anything_is_drawn(power: dict[str, Any]) -> None:
    def draw(first: int, count: int) -> Batch:
        pytest.fail(f"drew {first} to {first + count}")

    with pytest.raises(DataError, match="no certificate"):
        distill(make_study().steps(draw=draw), PLAN, power=power, rng=stream(4, "extra"))


@pytest.mark.parametrize("silence", [None, np.empty(0, dtype=bool)])
def test_site_that_does_not_answer_leaves_nothing_screened(silence: np.ndarray | None) -> None:
    study = make_study(answer=lambda images: {**screen(images), "south": silence})
    with pytest.raises(QuorumError, match="south") as raised:
        run(study)
    assert raised.value.absences == {"south": "no votes"}
    with pytest.raises(QuorumError, match="north, south"):
        run(make_study(answer=lambda images: {}))  # noqa: ARG005
    assert study.learned == []


@pytest.mark.parametrize(
    "vote",
    [
        lambda keep: keep.astype(float),
        lambda keep: keep.astype(np.int64),
        lambda keep: keep[:-1],
        lambda keep: np.concatenate([keep, keep]),
        lambda keep: keep[:, None],
    ],
    ids=["scores", "numbers", "one short", "twice", "a column"],
)
def test_votes_that_are_not_one_bit_for_each_image_are_refused(vote: Any) -> None:
    def answer(images: np.ndarray) -> dict[str, np.ndarray]:
        votes = screen(images)
        return {**votes, "south": vote(votes["south"])}

    with pytest.raises(DataError, match="votes of south"):
        run(make_study(answer=answer))
    with pytest.raises(DataError, match="votes of west"):
        run(make_study(answer=lambda images: {**screen(images), "west": near(images, REAL)}))


SPOILED: dict[str, Any] = {
    "NaN": lambda image: np.concatenate([image[:-1], image[-1:] * np.nan]),
    "infinite": lambda image: np.concatenate([image[:-1], image[-1:] + np.inf]),
    "constant": lambda image: np.concatenate([image[:-1], image[-1:] * 0]),
    "one short": lambda image: image[:-1],
    "twice": lambda image: np.concatenate([image, image]),
    "wider": lambda image: np.concatenate([image, image], axis=3),
    "float32": lambda image: image.astype(np.float32),
}


@pytest.mark.parametrize("kind", SPOILED)
def test_images_that_no_filter_can_judge_are_never_shown(kind: str) -> None:
    study = make_study()
    whole = study.steps().draw

    def draw(first: int, count: int) -> Batch:
        batch = whole(first, count)
        return replace(batch, image=SPOILED[kind](batch.image)) if first else batch

    with pytest.raises(DataError):
        run(study, replace(PLAN, batch=16), draw=draw)
    assert [len(images) for images in study.shown] == [16]
    assert study.learned == []


@pytest.mark.parametrize("kind", ["NaN", "one short"])
def test_candidates_come_with_what_was_asked(kind: str) -> None:
    def draw(first: int, count: int) -> Batch:
        batch = make_study().steps().draw(first, count)
        return replace(batch, condition_BK=SPOILED[kind](batch.condition_BK))

    with pytest.raises(DataError, match="something else was drawn"):
        run(make_study(), draw=draw)


@pytest.mark.parametrize(
    "tensors",
    [
        {"sources": REAL},
        {"renamed": REAL},
        {"sources": REAL.astype(np.float16)},
        {"own": patients(3, seed=9), "sources": REAL},
        {},
        {"sources": np.zeros((4, 4))},
    ],
)
def test_student_with_weights_of_the_teachers_is_refused(tensors: dict[str, np.ndarray]) -> None:
    study = make_study()
    own = weight_digests(tensors)
    with pytest.raises(DataError, match="weights"):
        run(study, weights=lambda student: own)  # noqa: ARG005
    assert len(study.learned) == 1
    # The control: fresh weights share the constants that all networks begin with.
    both = {"bias": np.zeros(4), "steps": np.arange(9)}
    fresh = weight_digests({**both, "sources": patients(40, seed=9)})
    known = weight_digests({**both, "sources": REAL})
    done = run(make_study(), weights=lambda student: fresh, teacher_weights=known)  # noqa: ARG005
    assert done.student is not None


def test_teacher_itself_is_no_student() -> None:
    study = make_study()
    with pytest.raises(DataError, match="weights are the teacher's"):
        run(study, train=lambda images, conditions: study.teacher)  # noqa: ARG005


def test_chance_rejects_a_share_that_no_acceptance_shows() -> None:
    plan = Plan(target=600, released=10, extra_rejections=0.05)
    done = run(make_study(0.0, keep_all), plan)
    first = done.screenings[0]
    assert first.dropped == 0
    assert first.kept == dict.fromkeys(SITES, first.shown)
    assert 0.03 < first.by_chance / first.shown < 0.07
    assert first.shown - first.by_chance == len(done.kept) == 600
    acceptance = next(m for m in done.measurements if m.name.endswith("candidates.acceptance"))
    assert acceptance.value == 1
    assert acceptance.n == 600


def test_extra_rejections_may_come_from_the_systems_secure_source() -> None:
    class Secure:
        def random(self, size: int, /) -> np.ndarray:
            return np.frombuffer(os.urandom(8 * size), dtype=np.uint64) / 2.0**64

    steps, plan = make_study(0.0, keep_all).steps(), Plan(target=400, released=10)
    one, other = (distill(steps, plan, power=POWER, rng=Secure()) for _ in range(2))
    assert not np.array_equal(one.kept, other.kept)


def restore(images: np.ndarray) -> np.ndarray:
    """Return images in which every one that is bright in a corner shows a patient again."""
    back = images[:, 0, 0, 0] > 0.7
    return np.where(back[:, None, None, None], REAL[0] + 0.01 * images, images)


def test_samples_are_screened_again_after_each_later_stage() -> None:
    later = (Stage("quantization", lambda images: np.round(images, 3)), Stage("decoding", restore))
    study = make_study()
    done = run(study, finish=later)
    names = ["candidates, as drawn", "samples, as drawn"]
    names += ["samples, quantization", "samples, decoding"]
    assert [one.name for one in done.screenings] == names
    drawn, rounded, decoded = done.screenings[1:]
    assert rounded.shown == drawn.shown - drawn.dropped - drawn.by_chance
    assert decoded.shown == rounded.shown - rounded.dropped
    assert decoded.dropped > 0
    assert decoded.kept["north"] == decoded.shown - decoded.dropped == PLAN.released
    assert done.samples is not None
    assert not near(done.samples.image, REAL).any()
    assert len(done.samples.image) == PLAN.released
    np.testing.assert_array_equal(done.samples.image, np.round(done.samples.image, 3))
    # The control: who looks before the last stage alone would release patients.
    blind = run(make_study())
    assert blind.samples is not None
    assert near(restore(blind.samples.image), REAL).any()


def test_candidates_are_screened_again_after_their_stages() -> None:
    study = make_study(0.0)
    done = run(study, prepare=(Stage("decoding", restore),))
    assert [one.dropped > 0 for one in done.screenings[:2]] == [False, True]
    assert not near(study.learned[0], REAL).any()


@pytest.mark.parametrize("kind", ["NaN", "constant", "one short", "twice"])
def test_stage_that_loses_or_spoils_images_is_refused(kind: str) -> None:
    with pytest.raises(DataError, match="screened"):
        run(make_study(), finish=(Stage("resampling", SPOILED[kind]),))


def test_result_shows_no_image() -> None:
    done = run(make_study())
    assert (repr(done), repr(done.samples)) == (f"Distilled({done.outcome!r})", "Batch(40 images)")
