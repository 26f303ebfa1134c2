from __future__ import annotations

import numpy as np
import pytest

from tests.factories.certificates import make_certificate
from tests.unit.privacy.audit.conftest import closed_gates, make_tally, named
from vitrael.core.digest import digest_json
from vitrael.core.errors import DataError
from vitrael.core.metrics.intervals import Estimate
from vitrael.core.records import PatientImages
from vitrael.core.rng import stream
from vitrael.privacy.audit.closeness import (
    Closeness,
    common_visits,
    measure_closeness,
    patient_distances,
    relative_distances,
)
from vitrael.privacy.audit.copies import Copies, count_copies, strict_point
from vitrael.privacy.audit.membership import Membership, attack_scores, measure_membership
from vitrael.privacy.audit.pooling import (
    audit_measurements,
    conditioning_measurements,
    participation_measurement,
    screening_measurement,
    verification_measurement,
)
from vitrael.privacy.audit.power import Caught, Certificate, Tally, show_to_filter
from vitrael.privacy.audit.tallies import check_planted
from vitrael.privacy.evidence import Evidence
from vitrael.privacy.gates import POLICIES, judge
from vitrael.privacy.reid.roles import keep_all


def _images(patients: int, *, visits: int = 1) -> PatientImages:
    image = stream(1, "images").uniform(0, 1, (patients * visits, 1, 6, 6, 6)).astype(np.float32)
    return PatientImages(
        image,
        np.zeros((len(image), 4), np.float32),
        np.repeat(np.arange(patients), visits),
        np.tile(np.arange(visits), patients),
    )


def test_sixty_plants_of_sixty_certify_ninety_five_percent() -> None:
    power = named(*[make_tally()] * 3)["filter.power.exact"]
    assert (power.n, power.value) == (60, 1.0)
    assert power.low == pytest.approx(0.951, abs=1e-3)


def test_screening_off_has_no_power() -> None:
    shown = show_to_filter({"exact": _images(12).image_BCDHW}, keep_all)
    assert shown == {"exact": Tally(12, 0)}
    assert named(make_tally(0))["filter.power.exact"].value == 0


def test_site_that_keeps_everything_is_refused_however_many_others_do_not() -> None:
    blind = make_tally(certificate=make_certificate(20, 0))
    many = [make_tally()] * 30
    pooled, honest = named(blind, *many), named(*many)
    assert pooled["filter.power.exact"].low is not None
    assert pooled["filter.power.exact"].low > 0.9
    worst = "filter.worst_site_power"
    assert pooled[worst].value == 0
    assert closed_gates(pooled, worst) == [worst]
    assert closed_gates(honest, worst) == []


def test_subgroup_is_pooled_over_the_sites_that_may_tell_of_it() -> None:
    few = make_tally(certificate=make_certificate(subgroups={}))
    measured = named(make_tally(), make_tally(), few)["filter.subgroup_power.female"]
    assert (measured.n, measured.value) == (20, 1.0)
    assert not named(few, few)["filter.subgroup_power.female"].estimable


def test_vote_that_changes_with_what_stands_beside_it_is_refused() -> None:
    changed = make_tally(certificate=make_certificate(mixing=Tally(100, 1)))
    name = "filter.votes_changed"
    assert closed_gates(named(make_tally(), changed), name) == [name]
    assert closed_gates(named(make_tally(), make_tally()), name) == []


def test_site_that_compared_no_plant_with_the_release_is_refused() -> None:
    name = "filter.plants_absent"
    assert closed_gates(named(make_tally(), make_tally(plants_absent=0)), name) == [name]
    assert closed_gates(named(make_tally(), make_tally()), name) == []


@pytest.mark.parametrize(
    ("part", "name"),
    [
        ("copies", "copies.excess_share"),
        ("copies", "copies.control_power"),
        ("closeness", "closeness.training_share"),
        ("membership", "membership.auc"),
    ],
)
def test_one_site_without_a_part_makes_it_not_estimable(part: str, name: str) -> None:
    whole = named(make_tally(), make_tally())
    lacking = named(make_tally(), make_tally(**{part: None}))
    assert whole[name].estimable
    assert not lacking[name].estimable


def test_no_site_is_not_estimable() -> None:
    assert not any(m.estimable for m in audit_measurements([]))


def test_hits_of_all_sites_are_added() -> None:
    parts = (Copies(96, 10, 0, 2.5, 20, 20), Copies(96, 9, 0, 2.5, 20, 15))
    copies = named(*(make_tally(copies=part) for part in parts))
    assert copies["copies.excess_share"].value == pytest.approx(19 / 96)
    assert (copies["copies.control_power"].value, copies["copies.control_power"].n) == (35 / 40, 40)


def test_control_hits_are_scaled_to_the_gallery() -> None:
    assert count_copies(
        np.ones((4, 10)), np.zeros((4, 5)), np.array([[0.95], [0.2]]), 0.9
    ) == Copies(4, 4, 0, 2.0, 2, 1)
    pooled = named(make_tally(copies=Copies(96, 10, 2, 2.5, 20, 20)))["copies.excess_share"]
    assert pooled.value == pytest.approx(5 / 96)


def test_excess_is_each_sites_own() -> None:
    unequal = (Copies(96, 10, 10, 1.0, 20, 20), Copies(96, 5, 0, 5.0, 20, 20))
    excess = named(*(make_tally(copies=part) for part in unequal))["copies.excess_share"]
    assert excess.value == pytest.approx(5 / 96)
    assert excess.high is not None
    assert excess.high > 0.1
    mean_scale = 15 / 96 - 3.0 * 10 / 96
    assert excess.value > mean_scale


def test_equal_scales_are_pooled_as_one_site_would_be() -> None:
    parts = [Copies(96, 10, 4, 2.5, 20, 20), Copies(96, 6, 1, 2.5, 20, 20)]
    two = named(*(make_tally(copies=part) for part in parts))["copies.excess_share"]
    one = named(make_tally(copies=Copies(96, 16, 5, 2.5, 20, 20)))["copies.excess_share"]
    assert (two.value, two.low, two.high) == pytest.approx((one.value, one.low, one.high))


def test_samples_that_copy_patients_of_every_site_are_no_fewer_copies() -> None:
    everywhere = named(*[make_tally(copies=Copies(96, 96, 30, 1.0, 20, 20))] * 3)[
        "copies.excess_share"
    ]
    nowhere = named(*[make_tally(copies=Copies(96, 0, 60, 2.5, 20, 20))] * 3)["copies.excess_share"]
    assert everywhere.value == 1.0
    assert everywhere.low is not None
    assert everywhere.low > 0.5
    assert (nowhere.value, nowhere.low) == (0.0, 0.0)


@pytest.mark.parametrize(
    ("part", "name"),
    [
        ({"certificate": make_certificate(plants={})}, "filter.power.exact"),
        ({"certificate": make_certificate(must=Caught(9.0, 10))}, "filter.worst_site_power"),
        ({"certificate": make_certificate(mixing=Tally(0, 0))}, "filter.votes_changed"),
        ({"certificate": make_certificate(negatives={})}, "filter.negatives.matched"),
        ({"fresh": Tally(0, 0)}, "filter.false_positive_rate"),
    ],
)
def test_site_that_showed_its_filter_nothing_is_not_passed_over(
    part: dict[str, object], name: str
) -> None:
    assert named(make_tally(), make_tally())[name].estimable
    assert not named(make_tally(), make_tally(**part))[name].estimable


def test_filter_that_is_off_is_measured_and_refused() -> None:
    off = named(*[make_tally(0)] * 3)["filter.power.exact"]
    on = named(*[make_tally(20)] * 3)["filter.power.exact"]
    gates = [g for g in POLICIES["rehearsal"].gates if g.measurement == "filter.power.exact"]
    verdict = judge(Evidence(protocol=digest_json("p"), measurements=(off,)), gates)
    assert (off.value, off.n) == (0.0, 60)
    assert verdict.findings[0].outcome == "refused"
    assert judge(Evidence(protocol=digest_json("p"), measurements=(on,)), gates).passed


def test_strict_point_is_above_every_stranger() -> None:
    null = stream(5, "null").uniform(0.2, 0.6, (30, 50))
    point = strict_point(null)
    assert point is not None
    assert point > null.max()
    assert strict_point(null[:11]) is not None
    assert strict_point(null[:10]) is None


def test_closeness_is_one_half_for_one_population_and_high_for_copies() -> None:
    rng = stream(6, "close")
    training, held_out = rng.uniform(1, 2, (96, 55)), rng.uniform(1, 2, (96, 22))
    fair = measure_closeness(training, held_out, rng=rng)
    training[:60, 0] = 0.1
    unfair = measure_closeness(training, held_out, rng=rng)
    assert fair is not None
    assert unfair is not None
    assert abs(fair.share - 0.5) < 3 * fair.error
    assert unfair.share > 0.6
    assert measure_closeness(training, held_out[:, :11], rng=rng) is not None
    assert measure_closeness(training, held_out[:, :10], rng=rng) is None


def test_average_patients_do_not_decide_closeness() -> None:
    rng = stream(8, "hubs")
    centrality = rng.uniform(0.3, 2, 40)
    near = rng.uniform(1, 2, (96, 40)) * centrality
    reference = rng.uniform(1, 2, (30, 40)) * centrality
    central = np.argsort(centrality)
    training, held_out = central[:20], central[20:]
    raw = measure_closeness(near[:, training], near[:, held_out], rng=rng)
    relative = relative_distances(near, reference)
    fair = measure_closeness(relative[:, training], relative[:, held_out], rng=rng)
    assert raw is not None
    assert fair is not None
    assert raw.share > 0.9
    assert abs(fair.share - 0.5) < 3 * fair.error


def test_distance_is_to_the_nearest_scan_of_a_patient() -> None:
    images = _images(4, visits=2)
    distance = patient_distances(images.image_BCDHW[1:2], images, visits=2)
    assert distance.shape == (1, 4)
    assert distance[0, 0] == pytest.approx(0, abs=1e-3)
    assert patient_distances(images.image_BCDHW[1:2], images, visits=1)[0, 0] > 1
    assert common_visits(images, _images(3)) == 1
    assert common_visits(images, _images(0)) == 0


def test_membership_finds_copies_and_its_placebo_does_not() -> None:
    rng = stream(7, "mia")
    members, others = rng.normal(2, 1, 55), rng.normal(0, 1, 22)
    found = measure_membership(members, others, planted=(members + 1, others), rng=rng)
    assert found is not None
    assert found.attack.value > 0.85
    assert abs(found.placebo.value - 0.5) < 0.25
    assert found.control.value > found.attack.value
    planted = members[:10], others
    assert measure_membership(members[:10], others, planted=planted, rng=rng) is None
    told = measure_membership(members[:11], others, planted=planted, rng=rng)
    assert told is not None


def test_fewer_than_eleven_images_are_shown_to_no_filter() -> None:
    images = _images(11).image_BCDHW
    shown = show_to_filter({"eleven": images, "ten": images[:10], "none": images[:0]}, keep_all)
    assert shown == {"eleven": Tally(11, 0), "ten": Tally(0, 0), "none": Tally(0, 0)}


def test_placebo_depends_on_no_sample() -> None:
    """It checks the machinery: the order of scores is lost in random halves of any leak."""
    rng = stream(7, "mia")
    scores, others = rng.normal(size=40), rng.normal(size=20)
    placebos = []
    for shift in (0, 5):
        members = scores + shift
        found = measure_membership(
            members, others, planted=(members, others), rng=stream(9, "halves")
        )
        assert found is not None
        placebos.append(found.placebo)
    assert placebos[0] == placebos[1]


def test_attack_without_samples_is_refused() -> None:
    with pytest.raises(DataError):
        attack_scores(np.empty((0, 3)), np.ones((5, 3)))


def test_conditioning_and_its_control() -> None:
    rng = stream(8, "cond")
    asked = rng.uniform(5, 100, 96)
    real, control = conditioning_measurements(asked, asked + rng.normal(0, 8, 96), rng=rng)
    assert real.value is not None
    assert control.value is not None
    assert real.value > 0.9
    assert control.value < 0.25
    assert control.high is not None
    assert control.value < control.high < 0.25
    assert control.n == 96
    _, few = conditioning_measurements(asked[:12], asked[:12], rng=rng)
    assert few.high is not None
    assert few.high > 0.25
    constant, _ = conditioning_measurements(asked, np.ones(96), rng=rng)
    assert not constant.estimable


def test_screening_is_done_when_every_site_judged_every_candidate() -> None:
    done = {"estimable": True, "counts": {"candidates": 192}, "metrics": {}}
    undone = {**done, "estimable": False}
    whole = screening_measurement([[done, done]])
    assert (whole.value, whole.n) == (1.0, 192)
    for other in (undone, {}):
        assert screening_measurement([[done, other]]).value == 0.0
    fewer = {**done, "counts": {"candidates": 48}}
    assert screening_measurement([[done, fewer]]).value == 0.25
    for nobody in ([], [[]], [[{}, {}]]):
        assert not screening_measurement(nobody).estimable


def test_screening_is_done_over_all_rounds_of_all_screenings() -> None:
    first = {"estimable": True, "counts": {"candidates": 90}, "metrics": {}}
    last = {**first, "counts": {"candidates": 10}}
    both = screening_measurement([[first, first], [last, last]])
    assert (both.value, both.n) == (1.0, 100)
    assert screening_measurement([[first, first], [last, {}]]).value == 0.9
    assert screening_measurement([[first, {}], [{}, last]]).value == 0.0


def test_verification_counts_patients_as_trials() -> None:
    tally = {"metrics": {"verification.wins": 11.0}, "counts": {"verification.patients": 11}}
    measured = verification_measurement([tally] * 3)
    assert (measured.value, measured.n) == (1.0, 33)
    assert measured.low == pytest.approx(0.913, abs=1e-3)
    lacking: dict[str, object] = {"metrics": {}, "counts": {}}
    assert not verification_measurement([lacking]).estimable
    assert not verification_measurement([]).estimable


@pytest.mark.parametrize("patients", [None, 0])
def test_one_site_without_calibration_pairs_leaves_verification_open(patients: int | None) -> None:
    tally = {"metrics": {"verification.wins": 11.0}, "counts": {"verification.patients": 11}}
    counts = {} if patients is None else {"verification.patients": patients}
    lacking = {"metrics": {"verification.wins": 0.0}, "counts": counts}
    assert verification_measurement([tally, tally]).estimable
    assert not verification_measurement([tally, lacking]).estimable


def test_areas_stay_within_their_bounds() -> None:
    sure = Estimate(1.0, 0.06)
    told = named(
        make_tally(
            closeness=Closeness(0.01, 0.06, 22), membership=Membership(sure, sure, sure, 55, 22)
        )
    )
    assert told["closeness.training_share"].low == 0
    assert told["membership.auc"].high == 1
    assert told["membership.auc"].low == pytest.approx(1 - 1.645 * 0.06, abs=1e-3)


def test_site_in_the_model_that_did_not_judge_is_seen() -> None:
    sites = ("north", "harbour", "valley")
    seen = participation_measurement(contributed=sites, judged=sites[:2])
    assert (seen.value, seen.low, seen.n) == (pytest.approx(2 / 3), pytest.approx(2 / 3), 3)


def test_site_that_judged_and_is_not_in_the_model_counts_for_nothing() -> None:
    sites = ("north", "harbour", "valley")
    assert participation_measurement(contributed=sites[:2], judged=sites).value == 1
    assert participation_measurement(contributed=(), judged=sites).value is None


@pytest.mark.parametrize(
    "part",
    [
        make_certificate(21, 21),
        make_certificate(20, 20, must=Caught(30.0, 30)),
        make_certificate(20, 20, plants={"flip_x": Tally(10_000_000, 10_000_000)}),
        make_certificate(20, 20, plants={"memorized": Tally(101, 101)}),
    ],
)
def test_site_that_tells_of_more_plants_than_were_asked_cannot_pay_for_others(
    part: Certificate,
) -> None:
    check_planted(make_tally(), planned=20)
    fair = make_certificate(20, 20, plants={"memorized": Tally(72, 60)})
    check_planted(make_tally(certificate=fair), planned=20)
    with pytest.raises(DataError, match="out of range"):
        check_planted(make_tally(certificate=part), planned=20)
