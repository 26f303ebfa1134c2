from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
import torch

from vitrael.core.errors import DataError
from vitrael.core.models.fusion_learning import SiteOutlook, tell_site
from vitrael.core.models.score_fusion import Readings
from vitrael.core.rng import stream
from vitrael.privacy.audit.expert_attacks import (
    Seen,
    guess_by_likelihood,
    guess_by_match,
    guess_by_nearness,
)
from vitrael.privacy.audit.expert_risk import (
    Inversion,
    areas_by_class,
    measure_inversion,
    measure_members,
)
from vitrael.privacy.evidence import Measurement

EDGE = 8
VIEWS = ("A2C", "A4C")


def read(row_BD: np.ndarray) -> Readings:
    """Return numbers of images as if two experts had seen them."""
    value = torch.from_numpy(row_BD.astype(np.float32))
    half = value.shape[1] // 2
    return Readings(
        dict.fromkeys(("north", "south"), value[:, :2]),
        {"north": value[:, : half - 2], "south": value[:, half:-2]},
        {"north": value[:, half - 2 : half], "south": value[:, -2:]},
    )


def views_of(count: int) -> list[str]:
    return [VIEWS[number % 2] for number in range(count)]


def draw(name: str, count: int, *, first: int = 0, width: int = 60) -> Seen:
    """Return images of patients from ``first`` on, whose numbers hang together; views in turn."""
    rng, shape = stream(7, name), stream(7, "shape").normal(size=(width // 4, width))
    row_BD = rng.normal(size=(count, len(shape))) @ shape + rng.normal(size=(count, width))
    labels = views_of(count)
    row_BD += np.array([4.0 * VIEWS.index(label) for label in labels])[:, None]
    return Seen(read(row_BD), labels, range(first, first + count))


def tell(seen: Seen) -> SiteOutlook:
    return tell_site(seen.readings, seen.labels, seen.patients)


def join(*parts: Seen) -> Seen:
    def both(pick: Callable[[Seen], Readings], field: str) -> dict[str, torch.Tensor]:
        found = [getattr(pick(part), field) for part in parts]
        return {name: torch.cat([one[name] for one in found]) for name in found[0]}

    fields = ("logits", "features", "discrepancy")
    return Seen(
        Readings(*(both(lambda part: part.readings, field) for field in fields)),
        [label for part in parts for label in part.labels],
        [patient for part in parts for patient in part.patients],
    )


def covers(measured: Measurement, wanted: float) -> bool:
    return low(measured) <= wanted <= high(measured)


def value(measured: Measurement) -> float:
    assert measured.value is not None
    return measured.value


def high(measured: Measurement) -> float:
    assert measured.high is not None
    return measured.high


def low(measured: Measurement) -> float:
    assert measured.low is not None
    return measured.low


def pictures(name: str, count: int) -> np.ndarray:
    """Return images of a few smooth shapes, another mixture in each patient, by view."""
    rng, edge = stream(8, name), np.linspace(0, np.pi, EDGE)
    waves = np.stack([np.cos(edge * number) for number in range(4)])
    shapes = np.einsum("ih,jw->ijhw", waves, waves).reshape(16, EDGE, EDGE)[1:]
    own = rng.normal(size=(count, len(shapes)))
    own[:, 0] += np.array([3.0 * VIEWS.index(label) for label in views_of(count)])
    return np.asarray(np.einsum("bs,shw->bhw", own, shapes)[:, None])


def looked_at(image_BCHW: np.ndarray, name: str, *, first: int, holds: bool) -> Seen:
    """Return images as seen by experts that hold them, or that hold noise."""
    flat = image_BCHW.reshape(len(image_BCHW), -1)
    projection = stream(9, "projection").normal(size=(flat.shape[1], 60))
    noise = stream(9, name).normal(size=(len(flat), 60))
    row_BD = flat @ projection + 0.1 * noise if holds else noise
    return Seen(read(row_BD), views_of(len(flat)), range(first, first + len(flat)))


IMAGES = (pictures("known", 60), pictures("strange", 60))


def looks(*, holds: bool) -> tuple[Seen, Seen]:
    return (
        looked_at(IMAGES[0], "known", first=0, holds=holds),
        looked_at(IMAGES[1], "strange", first=100, holds=holds),
    )


def invert(
    told: SiteOutlook | Readings,
    known: Seen,
    strange: Seen,
    *,
    images: tuple[np.ndarray, np.ndarray] = IMAGES,
) -> Inversion:
    rng = stream(1, "bootstrap")
    return measure_inversion(told, known=known, strange=strange, images=images, rng=rng)


KNOWN, STRANGE = draw("known", 60), draw("strange", 60, first=100)


def test_who_holds_what_is_seen_in_every_image_knows_every_patient() -> None:
    (match,) = measure_members(KNOWN.readings, known=KNOWN, strange=STRANGE)
    assert match.value == 1.0
    assert low(match) > 0.9
    assert match.n == 60
    # The control: told of others, nobody is known.
    others = draw("others", 60, first=200)
    (match,) = measure_members(others.readings, known=KNOWN, strange=STRANGE)
    assert match.value == 0.5
    assert covers(match, 0.5)


def test_images_that_look_the_same_to_experts_are_not_told_apart() -> None:
    flat = Seen(read(np.zeros((60, 60))), KNOWN.labels, KNOWN.patients)
    other = Seen(read(-np.zeros((60, 60))), STRANGE.labels, STRANGE.patients)
    (match,) = measure_members(flat.readings, known=flat, strange=other)
    assert match.value == 0.5


def test_means_that_were_told_of_others_know_nobody() -> None:
    others = tell(draw("others", 60, first=200))
    measured = measure_members(others, known=KNOWN, strange=STRANGE)
    assert [one.name for one in measured] == [
        "experts.members_by_nearness",
        "experts.members_by_likelihood",
        "experts.members_under_noise",
    ]
    assert all(covers(one, 0.5) for one in measured)


def test_means_of_few_patients_know_them() -> None:
    known = KNOWN.rows(np.arange(22))
    near, likely, ratio = measure_members(tell(known), known=known, strange=STRANGE)
    assert low(near) > 0.5
    assert low(likely) > 0.6
    assert value(likely) > value(near)
    assert low(ratio) > 0.6
    assert (near.n, likely.n) == (22, 22)
    # The control: of many, each is hardly in the mean.
    many = draw("many", 600, first=1_000)
    near, *_ = measure_members(tell(many), known=many, strange=STRANGE)
    assert covers(near, 0.5)


def test_views_are_compared_only_with_themselves() -> None:
    mostly = np.array([row for row in range(60) if row % 2 or row < 24])
    near, likely, ratio = measure_members(
        tell(draw("others", 60, first=200)), known=KNOWN, strange=STRANGE.rows(mostly)
    )
    assert covers(near, 0.5)
    assert covers(likely, 0.5)
    assert covers(ratio, 0.5)


def test_patient_counts_once_however_many_images() -> None:
    twice = join(KNOWN, KNOWN)
    others = tell(draw("others", 60, first=200))
    once = measure_members(others, known=KNOWN, strange=STRANGE)
    again = measure_members(others, known=twice, strange=join(STRANGE, STRANGE))
    assert once[0] == again[0]
    assert again[1].n == 60


def test_patients_of_two_views_are_not_two_patients() -> None:
    both = replace(KNOWN, patients=[number // 2 for number in range(60)])
    others = tell(draw("others", 60, first=200))
    apart, *_ = measure_members(others, known=KNOWN, strange=STRANGE)
    shared, *_ = measure_members(others, known=both, strange=STRANGE)
    assert shared.value == apart.value
    assert low(shared) < low(apart)
    assert shared.n == 30


@pytest.mark.parametrize("few", ["known", "strange"])
def test_fewer_than_eleven_patients_are_not_measured(few: str) -> None:
    for count, estimable in ((10, False), (11, True)):
        many = (
            np.arange(count if few == "known" else 60),
            np.arange(count if few != "known" else 60),
        )
        known, strange = KNOWN.rows(many[0]), STRANGE.rows(many[1])
        told = tell(KNOWN)
        measured = [
            *measure_members(told, known=known, strange=strange),
            *measure_members(known.readings, known=known, strange=strange),
            *invert(told, known, strange, images=(IMAGES[0][many[0]], IMAGES[1][many[1]])),
        ]
        assert {one.estimable for one in measured} == {estimable}
        assert all(("under 11" in one.reason) is not estimable for one in measured)


def test_view_without_strangers_is_not_passed_over() -> None:
    of_one = STRANGE.rows(STRANGE.rows_of(["A2C"]))
    for told in (tell(KNOWN), KNOWN.readings):
        for one in measure_members(told, known=KNOWN, strange=of_one):
            assert not one.estimable
            assert "nobody" in one.reason


def test_view_that_is_not_told_of_is_not_held_against_the_site() -> None:
    rare = replace(draw("rare", 5, first=300), labels=["PLAX"] * 5)
    known = join(KNOWN, rare)
    without = measure_members(tell(KNOWN), known=KNOWN, strange=STRANGE)
    assert measure_members(tell(known), known=known, strange=STRANGE) == without
    # The control: as published it is told of, and nobody is there to compare it with.
    assert not measure_members(known.readings, known=known, strange=STRANGE)[0].estimable


def test_image_is_rebuilt_from_features_that_hold_it() -> None:
    known, strange = looks(holds=True)
    found = invert(known.readings, known, strange)
    assert value(found.rebuilt) > 0.95
    assert low(found.gain) > 0.2
    assert value(found.gain) == pytest.approx(value(found.rebuilt) - value(found.control))
    assert low(found.detail) > 0.9
    assert found.gain.n == 60


def test_features_of_noise_rebuild_nothing_but_the_mean_image() -> None:
    known, strange = looks(holds=False)
    found = invert(known.readings, known, strange)
    assert high(found.gain) < 0.02
    assert high(found.detail) < 0.1


def test_means_rebuild_little_where_features_rebuild_all() -> None:
    known, strange = looks(holds=True)
    from_features = invert(known.readings, known, strange)
    from_means = invert(tell(known), known, strange)
    assert high(from_means.gain) < low(from_features.gain) / 2
    assert high(from_means.detail) < low(from_features.detail) / 2


def test_image_of_one_gray_counts_as_nothing_rebuilt() -> None:
    known, strange = looks(holds=True)
    gray = np.full_like(IMAGES[0], 0.5)
    found = invert(known.readings, known, strange, images=(gray, IMAGES[1]))
    assert value(found.rebuilt) == pytest.approx(0, abs=1e-6)


def test_large_images_are_shrunk_first() -> None:
    known, strange = looks(holds=True)
    large = [image.repeat(16, axis=2).repeat(16, axis=3) for image in IMAGES]
    assert large[0].shape[2:] == (128, 128)
    found = invert(known.readings, known, strange, images=(large[0], large[1]))
    small = invert(known.readings, known, strange)
    assert value(found.rebuilt) == pytest.approx(value(small.rebuilt), abs=1e-3)


def test_equal_streams_give_equal_bounds() -> None:
    known, strange = looks(holds=True)
    assert invert(tell(known), known, strange) == invert(tell(known), known, strange)


def test_patient_on_both_sides_is_refused() -> None:
    same = replace(STRANGE, patients=range(59, 119))
    told = tell(KNOWN)
    guesses = guess_by_nearness(told, known=KNOWN, strange=same)
    with pytest.raises(DataError, match="both sides"):
        areas_by_class(guesses, known=KNOWN, strange=same)
    with pytest.raises(DataError, match="both sides"):
        measure_members(told, known=KNOWN, strange=same)
    with pytest.raises(DataError, match="both sides"):
        invert(told, KNOWN, same)


def test_other_experts_other_views_and_nan_are_refused() -> None:
    told = tell(KNOWN)
    with pytest.raises(DataError, match="readings of an expert"):
        guess_by_match(replace(KNOWN.readings, features={}), known=KNOWN, strange=STRANGE)
    renamed = Readings({}, {"east": torch.ones(60, 2)}, {"east": torch.ones(60, 2)})
    with pytest.raises(DataError, match="readings of an expert"):
        guess_by_nearness(told, known=KNOWN, strange=replace(STRANGE, readings=renamed))
    narrow = draw("strange", 60, first=100, width=40)
    for guess in (guess_by_nearness, guess_by_likelihood):
        with pytest.raises(DataError, match="not of these experts"):
            guess(told, known=KNOWN, strange=narrow)
    with pytest.raises(DataError, match="not of these experts"):
        invert(told, KNOWN, narrow)
    with pytest.raises(DataError, match="class PLAX"):
        guess_by_nearness(told, known=KNOWN, strange=replace(STRANGE, labels=["PLAX"] * 60))
    spoiled = STRANGE.rows(np.arange(60))
    spoiled.readings.features["north"][3, 2] = torch.nan
    with pytest.raises(DataError, match="not finite"):
        measure_members(told, known=KNOWN, strange=spoiled)


def test_images_and_labels_of_other_readings_are_refused() -> None:
    told = tell(KNOWN)
    with pytest.raises(DataError, match="images are not those"):
        invert(told, KNOWN, STRANGE, images=(IMAGES[0][:59], IMAGES[1]))
    with pytest.raises(DataError, match="four axes"):
        invert(told, KNOWN, STRANGE, images=(IMAGES[0][:, 0], IMAGES[1]))
    with pytest.raises(DataError, match="other sizes"):
        invert(told, KNOWN, STRANGE, images=(IMAGES[0][..., :4], IMAGES[1]))
    with pytest.raises(DataError, match="not of the known"):
        invert(KNOWN.rows(np.arange(59)).readings, KNOWN, STRANGE)
    with pytest.raises(DataError, match="not of the same images"):
        Seen(KNOWN.readings, KNOWN.labels[:59], KNOWN.patients)


def test_what_was_seen_is_not_shown() -> None:
    assert "A4C" not in repr(KNOWN)
    assert "known" not in str(KNOWN)
