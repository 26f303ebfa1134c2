from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from tests.unit.privacy.test_distill import (
    NONE_BEFORE,
    REAL,
    SITES,
    Batch,
    Copyist,
    Study,
    draws_of,
    kept,
    make_study,
    near,
    patients,
    screen,
)
from vitrael.core.digest import digest_json
from vitrael.core.errors import DataError
from vitrael.core.metrics.intervals import clopper_pearson
from vitrael.core.records import SampleRequest, Samples
from vitrael.core.rng import stream
from vitrael.privacy.audit.arms import (
    RATIO_BAND,
    Arms,
    Comparison,
    compare_arms,
    measure_acceptance,
    random_subset,
    shifted,
)
from vitrael.privacy.audit.power import Tally
from vitrael.privacy.distill import Plan, Round, distill
from vitrael.privacy.evidence import Measurement

_ATTACKER = digest_json("differences")
_MEMBER = digest_json("length")
_HELD_OUT = patients(60, seed=7)
_PLAN = Plan(target=150, released=100, given_before=NONE_BEFORE)


def attack(images: np.ndarray) -> np.ndarray:
    """Return who is alike in the steps from pixel to pixel, which the filter does not look at."""

    def unit(image: np.ndarray) -> np.ndarray:
        step = np.diff(image, axis=3).reshape(len(image), -1)
        step = step - step.mean(1, keepdims=True)
        return np.asarray(step / np.linalg.norm(step, axis=1, keepdims=True))

    return np.asarray((unit(images) @ unit(REAL).T > 0.6).any(1))


def _arms(share: float = 0.4) -> Arms:
    """Return what the three arms draw for the same conditions and seeds."""
    study = make_study(share)
    done = distill(study.steps(), _PLAN)
    drawn = sum(len(one.keep_B) for one in done.candidates)
    subset = random_subset(drawn, _PLAN.target, rng=stream(5, "random filter"))
    blind = replace(done.student, sources=study.steps().draw(0, 0, drawn).image[subset])
    student, count = done.student, 200
    arms = [draws_of(one, seed=6)(0, 0, count).image for one in (study.teacher, blind, student)]
    return Arms(*arms)


def _compare(arms: Arms, **changes: Any) -> Comparison:
    asked: dict[str, Any] = {"held_out": _HELD_OUT, "attacker": _ATTACKER, "members": [_MEMBER]}
    return compare_arms(arms, **{"attack": attack, "rng": stream(8, "pairs"), **asked, **changes})


def _named(*measurements: Measurement) -> dict[str, Measurement]:
    return {one.name: one for one in measurements}


def test_filter_makes_reidentification_fall_and_a_random_filter_does_not() -> None:
    compared = _compare(_arms())
    told = _named(*compared.measurements)
    shares = [told[f"arms.{arm}.reidentified"].value for arm in ("teacher", "random", "student")]
    assert shares[0] == pytest.approx(0.4, abs=0.1)
    assert shares[1] == pytest.approx(0.9 * 0.4, abs=0.1)
    assert compared.verdict == "falls"
    assert compared.student.p < 0.05
    assert compared.student.ratio.high is not None
    assert compared.student.ratio.high < 0.7
    # The control, which must fail: as many candidates, drawn blindly, are of no use.
    assert compared.random_filter.verdict == "does not fall"
    assert compared.random_filter.ratio.value == pytest.approx(0.9, abs=0.2)
    baseline = told["arms.held_out.reidentified"]
    assert baseline.value == 0
    assert baseline.n == len(_HELD_OUT)
    assert baseline.unit == "held-out patients"
    assert told["arms.student.reidentified"].inputs == (_ATTACKER,)


def test_blind_filter_in_place_of_the_filter_does_not_fall() -> None:
    arms = _arms()
    compared = _compare(replace(arms, student=arms.random_filter))
    assert compared.verdict == "does not fall"
    assert compared.reason == ""


def test_fall_that_the_random_filter_shows_too_is_not_the_filters() -> None:
    arms = _arms()
    compared = _compare(replace(arms, random_filter=arms.student))
    assert compared.random_filter.verdict == "falls"
    assert compared.verdict == "not estimable"
    assert "random filter" in compared.reason


def test_teacher_that_copies_nobody_leaves_nothing_to_fall() -> None:
    compared = _compare(_arms(0.0))
    assert compared.verdict == compared.random_filter.verdict == "not estimable"
    assert "strangers" in compared.reason
    assert compared.student.ratio.value is None


def test_attacker_who_takes_strangers_for_patients_proves_no_fall() -> None:
    arms, real = _arms(), patients(60, seed=7)

    def wild(images: np.ndarray) -> np.ndarray:
        return attack(images) | (images.mean((1, 2, 3)) > np.median(real.mean((1, 2, 3))))

    found = _compare(arms, attack=wild, held_out=real)
    baseline = _named(*found.measurements)["arms.held_out.reidentified"]
    assert baseline.value == 0.5
    assert found.verdict != "falls"


def test_few_samples_or_few_held_out_patients_are_not_estimable() -> None:
    arms = _arms()
    assert _compare(arms, held_out=_HELD_OUT[:10]).verdict == "not estimable"
    few = Arms(arms.teacher[:10], arms.random_filter[:10], arms.student[:10])
    told = _compare(few)
    assert told.verdict == "not estimable"
    assert "fewer than 11" in told.reason


def test_arm_without_a_hit_still_has_an_upper_bound() -> None:
    arms = _arms()
    compared = _compare(replace(arms, student=patients(200, seed=11)))
    ratio = compared.student.ratio
    assert ratio.value == ratio.low == 0
    assert ratio.high == pytest.approx((1 - 0.05 ** (1 / 200)) / attack(arms.teacher).mean())
    assert compared.verdict == "falls"


def test_samples_of_one_condition_are_resampled_together() -> None:
    arms = _arms()
    alone = _compare(arms).student.ratio
    joined = _compare(replace(arms, cluster_N=np.arange(200) // 10)).student.ratio
    assert (alone.n, joined.n) == (200, 20)
    assert alone.value == joined.value


def test_member_of_the_filter_is_no_attacker() -> None:
    with pytest.raises(DataError, match="member of the filter"):
        _compare(_arms(), members=[_MEMBER, _ATTACKER])


@pytest.mark.parametrize("arm", ["teacher", "random_filter", "student", "cluster_N"])
def test_arms_that_are_not_paired_are_refused(arm: str) -> None:
    arms = replace(_arms(), cluster_N=np.arange(200))
    with pytest.raises(DataError, match="not paired"):
        _compare(replace(arms, **{arm: getattr(arms, arm)[:-1]}))


def test_attack_that_answers_with_scores_is_refused() -> None:
    with pytest.raises(DataError, match="attack"):
        _compare(_arms(), attack=lambda images: attack(images).astype(float))
    with pytest.raises(DataError, match="attack"):
        _compare(_arms(), attack=lambda images: attack(images)[:-1])


def test_random_subset_draws_each_once_and_no_more_than_there_are() -> None:
    subset = random_subset(100, 40, rng=stream(1, "subset"))
    assert len(np.unique(subset)) == 40
    assert (np.diff(subset) > 0).all()
    assert not np.array_equal(subset, random_subset(100, 40, rng=stream(2, "subset")))
    for wanted in (0, 101):
        with pytest.raises(DataError):
            random_subset(100, wanted, rng=stream(1, "subset"))


def test_arms_show_no_image() -> None:
    assert repr(_arms()) == "Arms(200 samples each)"


def test_acceptance_is_told_by_site_and_by_subgroup() -> None:
    class Unfair(Copyist):
        """Copies women alone."""

        def sample(self, request: SampleRequest) -> Samples:
            some, none = (replace(self, share=s).draw(request) for s in (0.8, 0.0))
            chosen = request.condition_BK[:, 0] > 0.5
            image = np.where(chosen[:, None, None, None], some.image_BCDHW, none.image_BCDHW)
            return Samples(image, request.condition_BK, some.affine)

        def draw(self, request: SampleRequest) -> Samples:
            return Copyist.sample(self, request)

    done = distill(Study(Unfair(REAL, 0.8), screen).steps(), _PLAN)
    told = _told("candidates", done.candidates)
    image = np.concatenate([one.drawn.image for one in done.candidates])
    assert told[""].value == kept(done.candidates).shape[0] / len(image)
    for site, gallery in SITES.items():
        assert told[f".site.{site}"].value == 1 - near(image, gallery).mean()
        assert told[f".site.{site}"].n == len(image)
    women, men = (told[f".subgroup.{name}.ratio"] for name in ("female", "male"))
    assert women.high is not None
    assert women.high < 0.8
    assert men.low is not None
    assert men.low > 1
    # The control: the student's samples favor nobody.
    women = _told("samples", done.samples)[".subgroup.female.ratio"]
    assert women.low is not None
    assert women.high is not None
    assert women.low <= 1 <= women.high


def _told(phase: str, rounds: tuple[Round[Batch], ...]) -> dict[str, Measurement]:
    """Return the acceptance over all rounds of a screening, by what it is of."""
    image = np.concatenate([one.drawn.image for one in rounds])
    asked = np.concatenate([one.drawn.condition_BK for one in rounds])
    passed = np.concatenate([one.keep_B for one in rounds])
    dropped = {site: int(near(image, gallery).sum()) for site, gallery in SITES.items()}
    votes = {site: Tally(len(image), count) for site, count in dropped.items()}
    found = measure_acceptance(phase, passed, np.where(asked == 1, "female", "male"), votes=votes)
    return {m.name.removeprefix(f"distill.{phase}.acceptance"): m for m in found}


def _accepted(counts: dict[str, tuple[int, int]]) -> dict[str, Measurement]:
    """Return the acceptance of subgroups, each given as kept and drawn."""
    passed = np.concatenate([np.arange(n) < kept for kept, n in counts.values()])
    groups = np.concatenate([np.full(n, name) for name, (_, n) in counts.items()])
    votes = {"north": Tally(len(passed), int((~passed).sum()))}
    found = measure_acceptance("candidates", passed, groups[:, None], votes=votes)
    return {m.name.removeprefix("distill.candidates.acceptance"): m for m in found}


def test_subgroup_that_is_dropped_more_often_is_told() -> None:
    told = _accepted({"young": (450, 500), "old": (250, 500)})
    assert told[""].value == told[".site.north"].value == 0.7
    old = told[".subgroup.old.ratio"]
    assert old.value == pytest.approx(0.5 / 0.7)
    assert old.high is not None
    assert old.high < RATIO_BAND[0]
    assert [name.split(".")[-2] for name in shifted(tuple(told.values()))] == ["old", "young"]
    # The control: where both fare alike nothing is told.
    alike = _accepted({"young": (450, 500), "old": (440, 500)})
    assert shifted(tuple(alike.values())) == ()


def test_small_subgroup_is_not_estimable_and_counts_as_shifted() -> None:
    told = _accepted({"young": (450, 500), "old": (10, 10)})
    assert told[".subgroup.old"].value is None
    assert told[".subgroup.old.ratio"].value is None
    assert "distill.candidates.acceptance.subgroup.old.ratio" in shifted(tuple(told.values()))


def test_subgroup_of_which_nothing_was_kept_has_bounds() -> None:
    told = _accepted({"young": (80, 100), "old": (0, 50)})
    gone, rest = told[".subgroup.old.ratio"], told[".subgroup.young.ratio"]
    assert gone.value == gone.low == 0
    assert gone.high is not None
    low, high = (
        clopper_pearson(80, 100, confidence=0.975).low,
        clopper_pearson(0, 50, confidence=0.975).high,
    )
    assert gone.high == pytest.approx(1 / (1 / 3 + 2 / 3 * low / high))
    assert rest.value == rest.high == pytest.approx(1.5)
    whole = _accepted({"all": (40, 50)})[".subgroup.all.ratio"]
    assert (whole.low, whole.value, whole.high) == (1, 1, 1)
    assert _accepted({"young": (0, 50), "old": (0, 50)})[".subgroup.old.ratio"].value is None


@pytest.mark.parametrize(("part", "rest"), [(0.9, 0.9), (0.5, 0.9), (0.97, 0.6)])
def test_bounds_of_a_ratio_hold_as_often_as_they_say(part: float, rest: float) -> None:
    rng, sizes = stream(9, f"ratio {part}"), (60, 240)
    truth = part / np.average([part, rest], weights=sizes)
    below, above = 0, 0
    for _ in range(400):
        kept = [int(rng.binomial(n, p)) for n, p in zip(sizes, (part, rest), strict=True)]
        counts = dict(zip(("a", "b"), zip(kept, sizes, strict=True), strict=True))
        ratio = _accepted(counts)[".subgroup.a.ratio"]
        assert ratio.low is not None
        assert ratio.high is not None
        below += int(truth < ratio.low)
        above += int(truth > ratio.high)
    assert max(below, above) / 400 < 0.075
    assert below + above > 0
