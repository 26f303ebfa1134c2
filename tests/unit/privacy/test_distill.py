"""Rounds go on until all that is wanted is kept or the votes are spent, and no smaller way."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import pytest

from vitrael.core.errors import DataError, RefusedError, VitraelError
from vitrael.core.interfaces import Generator
from vitrael.core.protocols import MOST_VOTES
from vitrael.core.records import SampleRequest, Samples
from vitrael.core.rng import stream
from vitrael.privacy.distill import (
    Distilled,
    Draw,
    Plan,
    Round,
    Steps,
    demand_images,
    distill,
    refuse_same_weights,
    weight_digests,
)

NONE_BEFORE = {"candidates": 0, "samples": 0}
PLAN = Plan(target=60, released=40, given_before=NONE_BEFORE)
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


@dataclass(frozen=True)
class Batch:
    image: np.ndarray
    condition_BK: np.ndarray


def draws_of(generator: Generator, *, seed: int) -> Draw[Batch]:
    def draw(_round: int, first: int, count: int) -> Batch:
        condition_BK = (np.arange(first, first + count) % 2)[:, None].astype(float)
        samples = generator.sample(SampleRequest(condition_BK, seed=seed, first=first))
        return Batch(samples.image_BCDHW, condition_BK)

    return draw


def near(images: np.ndarray, gallery: np.ndarray) -> np.ndarray:
    gap = images.reshape(len(images), 1, -1) - gallery.reshape(1, len(gallery), -1)
    return np.asarray((np.linalg.norm(gap, axis=2) < _NEAR).any(1))


def screen(images: np.ndarray) -> np.ndarray:
    keep = [~near(images, gallery) for gallery in SITES.values()]
    return np.asarray(np.logical_and.reduce(keep))


def kept(rounds: tuple[Round[Batch], ...]) -> np.ndarray:
    return np.concatenate([one.drawn.image[one.keep_B] for one in rounds])


@dataclass
class Study:
    """Steps that can be counted."""

    teacher: Generator
    answer: Callable[[np.ndarray], np.ndarray] = screen
    shown: list[tuple[int, int]] = field(default_factory=list)
    learned: list[np.ndarray] = field(default_factory=list)

    def screen(self, number: int, drawn: Batch) -> np.ndarray:
        self.shown.append((number, len(drawn.image)))
        return self.answer(drawn.image)

    def train(self, rounds: tuple[Round[Batch], ...]) -> Copyist:
        self.learned.append(kept(rounds))
        return Copyist(self.learned[-1], 0.9, most_noise=0.05)

    def steps(self, **changes: Any) -> Steps[Batch, Copyist]:
        steps = Steps(
            draw=draws_of(self.teacher, seed=2),
            screen=self.screen,
            train=self.train,
            sample=lambda student: draws_of(student, seed=3),
            rescreen=self.screen,
        )
        return replace(steps, **changes)


def make_study(share: float = 0.4, answer: Callable[[np.ndarray], np.ndarray] = screen) -> Study:
    return Study(Copyist(REAL, share), answer)


def run(study: Study, plan: Plan = PLAN, **changes: Any) -> Distilled[Batch, Copyist]:
    return distill(study.steps(**changes), plan)


def keep_all(images: np.ndarray) -> np.ndarray:
    return np.ones(len(images), dtype=bool)


def test_student_learns_only_from_what_every_site_kept() -> None:
    study = make_study()
    done = run(study)
    (learned,) = study.learned
    assert len(learned) == PLAN.target
    assert not near(learned, REAL).any()
    assert len(kept(done.samples)) == PLAN.released
    assert not near(kept(done.samples), REAL).any()
    # The controls: what was drawn came near to patients of both sites, and learns unfiltered.
    drawn = study.steps().draw(0, 0, 100)
    assert all(near(drawn.image, gallery).mean() > 0.1 for gallery in SITES.values())
    careless = make_study(answer=keep_all)
    run(careless)
    assert near(careless.learned[0], REAL).any()


def test_each_round_draws_what_is_still_missing_and_no_more() -> None:
    study = make_study()
    done = run(study)
    missing, first = PLAN.target, 0
    for number, one in enumerate(done.candidates):
        assert (one.first, len(one.keep_B)) == (first, missing)
        assert study.shown[number] == (number, missing)
        first += missing
        missing -= int(one.keep_B.sum())
    assert (missing, len(done.candidates) > 2) == (0, True)
    assert first < MOST_VOTES * PLAN.target


def test_image_depends_on_its_index_and_on_no_round() -> None:
    done = run(make_study())
    whole = make_study().steps().draw(0, 0, 200)
    for one in done.candidates:
        rows = slice(one.first, one.first + len(one.keep_B))
        np.testing.assert_array_equal(one.drawn.image, whole.image[rows])


@pytest.mark.parametrize("share", [1.0, 0.9])
def test_cap_on_votes_refuses_a_teacher_that_copies(share: float) -> None:
    study = make_study(share)
    with pytest.raises(RefusedError, match=r"of the 60 candidates that it needs were kept"):
        run(study)
    assert study.learned == []
    shown = sum(count for _, count in study.shown)
    assert PLAN.target <= shown <= MOST_VOTES * PLAN.target


def test_nothing_is_asked_that_could_not_suffice() -> None:
    """Of 240 votes for 60, four rounds leave six, and 56 are missing."""
    study = make_study(answer=lambda images: np.arange(len(images)) < 1)
    with pytest.raises(RefusedError, match="4 of the 60 candidates"):
        run(study)
    assert [count for _, count in study.shown] == [60, 59, 58, 57]
    enough = make_study(answer=lambda images: np.arange(len(images)) % 3 < 1)  # the control
    run(enough)
    assert len(enough.learned[0]) == PLAN.target


def test_cap_refuses_a_student_that_copies_patients() -> None:
    with pytest.raises(RefusedError, match="0 of the 40 samples that it needs were kept"):
        run(make_study(), train=lambda _rounds: Copyist(REAL + 0.01, 1.0, 0.05))


@pytest.mark.parametrize(
    "changes",
    [
        {"target": 7},
        {"released": 0},
        {"given_before": {"candidates": 181, "samples": 0}},
        {"given_before": {"candidates": 0, "samples": 121}},
        {"given_before": {"candidates": -1, "samples": 0}},
    ],
)
def test_plan_that_cannot_be_had_is_refused(changes: dict[str, Any]) -> None:
    with pytest.raises(DataError):
        replace(PLAN, **changes)


def test_votes_of_earlier_attempts_count_against_the_cap() -> None:
    study = make_study(1.0)
    with pytest.raises(RefusedError, match="candidates"):
        run(study, replace(PLAN, given_before={"candidates": 180, "samples": 0}))
    assert [count for _, count in study.shown] == [60]
    run(make_study(0.0), replace(PLAN, given_before={"candidates": 180, "samples": 0}))


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
    study = make_study(answer=lambda images: vote(screen(images)))
    with pytest.raises(DataError, match="not one bit for each"):
        run(study)
    assert study.learned == []


SPOILED: dict[str, Any] = {
    "NaN": lambda image: np.concatenate([image[:-1], image[-1:] * np.nan]),
    "infinite": lambda image: np.concatenate([image[:-1], image[-1:] + np.inf]),
    "constant": lambda image: np.concatenate([image[:-1], image[-1:] * 0]),
    "one short": lambda image: image[:-1],
    "twice": lambda image: np.concatenate([image, image]),
}


@pytest.mark.parametrize("kind", SPOILED)
def test_images_that_no_filter_can_judge_are_refused(kind: str) -> None:
    whole = patients(5, seed=4)
    with pytest.raises(DataError):
        demand_images(SPOILED[kind](whole), 5)
    demand_images(whole, 5)  # the control


@pytest.mark.parametrize(
    ("tensors", "kind"),
    [
        ({"sources": REAL}, RefusedError),
        ({"renamed": REAL}, RefusedError),
        ({"sources": REAL.astype(np.float16)}, RefusedError),
        ({"own": patients(3, seed=9), "sources": REAL}, RefusedError),
        ({}, DataError),
        ({"sources": np.zeros((4, 4))}, DataError),
    ],
)
def test_student_with_weights_of_the_teachers_is_refused(
    tensors: dict[str, np.ndarray], kind: type[VitraelError]
) -> None:
    known = {"bias": np.zeros(4), "steps": np.arange(9), "sources": REAL}
    with pytest.raises(kind, match="weights"):
        refuse_same_weights(weight_digests(tensors), weight_digests(known))
    # The control: fresh weights share the constants that all networks begin with.
    fresh = {**known, "sources": patients(40, seed=9)}
    refuse_same_weights(weight_digests(fresh), weight_digests(known))


def test_result_shows_no_image() -> None:
    assert repr(run(make_study(0.0))) == "Distilled(60 of 60 kept, 40 of 40 kept)"
