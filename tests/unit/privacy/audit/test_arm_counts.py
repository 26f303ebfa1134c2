"""What sites count of three arms, pooled: no agreement of theirs that nobody sees makes a fall."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from vitrael.core.digest import digest_json
from vitrael.core.errors import DataError
from vitrael.core.metrics.bootstrap import paired_ratio
from vitrael.core.metrics.intervals import clopper_pearson
from vitrael.core.rng import stream
from vitrael.privacy.audit.arm_counts import (
    NAMES,
    ArmCounts,
    count_arms,
    pool_arms,
    read_comparison,
    read_counts,
    write_counts,
)
from vitrael.privacy.audit.arms import Arms, Comparison, compare_arms
from vitrael.privacy.evidence import Measurement

N = 200
ATTACKER, MEMBER = digest_json("attacker"), digest_json("member")


def counts(
    teacher: int = 80,
    random: int = 72,
    student: int = 8,
    *,
    both: tuple[int, int] = (60, 6),
    held_out: tuple[int, int] = (40, 2),
) -> ArmCounts:
    """Return what a site told; ``both`` of random and student, ``held_out`` patients and hits."""
    return ArmCounts(
        samples=N,
        hits={"teacher": teacher, "random": random, "student": student},
        both={"random": both[0], "student": both[1]},
        held_out=held_out[0],
        held_out_hits=held_out[1],
    )


def pool(*sites: ArmCounts | None) -> tuple[Comparison, dict[str, Measurement]]:
    found = pool_arms(sites, rng=stream(3, "pooled"), inputs=(ATTACKER,))
    return found, {one.name: one for one in found.measurements}


def drawn(sizes: dict[str, int]) -> Arms:
    """Return arms of "images" that are 1 where an attacker hits: the first rows of each arm."""
    one, two, three = (
        (np.arange(N) < size).astype(np.float32)[:, None, None, None, None]
        for size in sizes.values()
    )
    return Arms(one, two, three)


def attack(images: np.ndarray) -> np.ndarray:
    return np.asarray(images.reshape(len(images), -1).max(1) > 0.5)


def test_counts_say_what_the_attacker_took_for_a_patient_and_nothing_of_rows() -> None:
    arms = drawn({"teacher": 80, "random": 70, "student": 5})
    strangers = np.zeros((30, 1, 1, 1, 1), np.float32)
    strangers[:2] = 1
    told = count_arms(arms, attack, held_out=strangers, attacker=ATTACKER, members=[MEMBER])
    assert told == ArmCounts(
        N, {"teacher": 80, "random": 70, "student": 5}, {"student": 5, "random": 70}, 30, 2
    )
    with pytest.raises(DataError, match="member of the filter"):
        count_arms(arms, attack, held_out=strangers, attacker=MEMBER, members=[MEMBER])


def test_counts_of_one_site_give_the_comparison_of_its_rows() -> None:
    arms = drawn({"teacher": 80, "random": 70, "student": 5})
    strangers = np.zeros((60, 1, 1, 1, 1), np.float32)
    asked: Any = {"held_out": strangers, "attacker": ATTACKER, "members": [MEMBER]}
    alone = compare_arms(arms, attack, rng=stream(1, "rows"), **asked)
    pooled, told = pool(count_arms(arms, attack, **asked))
    assert pooled.verdict == alone.verdict == "falls"
    assert pooled.student.ratio.value == alone.student.ratio.value
    assert pooled.student.ratio.high == pytest.approx(alone.student.ratio.high or 0, abs=0.03)
    assert [told[m.name].value for m in alone.measurements] == [m.value for m in alone.measurements]


def test_counts_leave_and_are_read_as_they_were() -> None:
    assert read_counts(write_counts(counts()), samples=N) == counts()
    for nothing in ({}, write_counts(None, reason="too few")):
        assert read_counts(nothing, samples=N) is None


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("arms.samples", N + 1),
        ("arms.teacher_hits", N + 1),
        ("arms.student_hits", -1),
        ("arms.random_hits", True),
        ("arms.student_hits", 8.0),
        ("arms.teacher_and_student", 9),  # more than the student's
        ("arms.teacher_and_student", 81),
        ("arms.held_out", 10),
        ("arms.held_out_hits", 41),
    ],
)
def test_counts_that_no_table_has_are_refused(name: str, value: object) -> None:
    tally = write_counts(counts())
    read_counts(tally, samples=N)  # the control
    with pytest.raises(DataError, match="comparison of arms is refused"):
        read_counts({**tally, "counts": {**tally["counts"], name: value}}, samples=N)


def test_rows_that_must_overlap_and_do_not_are_refused() -> None:
    wide = write_counts(counts(teacher=150, student=100, both=(60, 50)))
    read_counts(wide, samples=N)
    with pytest.raises(DataError, match="fit no table"):
        read_counts(
            {**wide, "counts": {**wide["counts"], "arms.teacher_and_student": 49}}, samples=N
        )


def test_fall_at_every_site_is_a_fall_of_all() -> None:
    found, told = pool(counts(), counts(), counts())
    assert found.verdict == "falls"
    assert found.random_filter.verdict == "does not fall"
    assert set(told) == set(NAMES)
    assert told["arms.teacher.reidentified"].value == pytest.approx(0.4)
    assert told["arms.held_out.reidentified"].n == 120
    assert told["arms.student.ratio"].value == pytest.approx(0.1)
    assert told["arms.student.ratio"].n == N
    worst = told["arms.worst_site.ratio"]
    assert worst.value == pytest.approx(0.1)
    assert "Bonferroni" in worst.method
    assert all(one.inputs == (ATTACKER,) for one in found.measurements)
    # The controls: a student like the random filter's, and a random filter like the student's.
    alike = counts(student=72, both=(60, 60))
    assert pool(alike, alike, alike)[0].verdict == "does not fall"
    blind = counts(random=8, both=(6, 6))
    assert pool(blind, blind, blind)[0].verdict == "not estimable"


def test_fall_that_a_random_filter_nearly_shows_is_not_the_filters() -> None:
    nearly = counts(random=60, student=54, both=(60, 54))
    found, _ = pool(nearly)
    assert found.student.verdict == "falls"
    assert found.random_filter.verdict == "does not fall"  # by a little: 0.75 of the teacher's
    assert found.verdict == "not estimable"
    assert "random filter" in found.reason


def test_teacher_known_again_at_no_site_alone_leaves_nothing_to_fall() -> None:
    errs = counts(48, 40, 4, both=(30, 2), held_out=(15, 3))
    poor = counts(8, 8, 2, both=(6, 1), held_out=(400, 8))
    found, told = pool(errs, poor)
    assert told["arms.teacher.reidentified"].low > told["arms.held_out.reidentified"].high
    assert found.verdict == "not estimable"
    assert "at no site" in found.reason


def test_share_of_all_is_bounded_as_if_the_sites_agreed() -> None:
    _, told = pool(counts(), counts(), counts())
    one = told["arms.teacher.reidentified"]
    assert (one.low, one.high) == pytest.approx(clopper_pearson(80, N))


def test_several_sites_of_few_hits_prove_no_more_than_their_agreement_would() -> None:
    few = counts(20, 20, 14, both=(15, 9), held_out=(400, 0))
    joint, alone = pool(few, few, few)[0], pool(few)[0]
    assert joint.student.p == pytest.approx(alone.student.p, abs=0.03)
    # The control: with rows of their own at every site the same counts would prove a fall.
    sizes = [11, 9, 175, 5]
    teacher, student = (np.repeat(hit, sizes) for hit in ([1, 1, 0, 0], [0, 1, 0, 1]))
    rows = np.arange(3 * N)
    apart = paired_ratio(
        np.tile(student, 3), np.tile(teacher, 3), rows, rng=stream(2, "independent")
    )
    assert apart.p < 0.05 < joint.student.p


def test_site_that_falls_less_is_the_worst() -> None:
    weak = counts(student=70, both=(60, 55))
    found, told = pool(counts(), weak, counts())
    assert told["arms.worst_site.ratio"].value == pytest.approx(70 / 80)
    assert found.student.ratio.value == pytest.approx((8 + 70 + 8) / 240)


def test_site_with_nothing_that_could_fall_is_not_the_worst() -> None:
    none = counts(2, 2, 2, both=(0, 0))
    _, told = pool(counts(), none, counts())
    assert told["arms.worst_site.ratio"].value == pytest.approx(0.1)
    _, told = pool(none, none)
    assert "strangers" in told["arms.worst_site.ratio"].reason


def test_site_that_could_not_count_makes_it_not_estimable() -> None:
    for sites in ((counts(), None), (None,), ()):
        found, told = pool(*sites)
        assert found.verdict == "not estimable"
        assert set(told) == set(NAMES)
        assert all(one.value is None for one in found.measurements)


def test_comparison_is_read_back_as_it_was_kept() -> None:
    for found in (pool(counts())[0], pool(None)[0]):
        assert read_comparison({"comparison": found.model_dump(mode="json")}) == found
    assert read_comparison(None) is None
