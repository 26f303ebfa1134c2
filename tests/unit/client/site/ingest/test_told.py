"""What leaves of a cohort, told once, binds what leaves later: no difference tells of few."""

from __future__ import annotations

import stat
from pathlib import Path

import pytest

from tests.factories.cohort import write_cohort
from vitrael.client.site.ingest import places
from vitrael.client.site.ingest import told as told_list
from vitrael.client.site.ingest.summary import CohortSummary, summarize
from vitrael.client.site.ingest.told import (
    SUMMARY_NAME,
    TOLD_NAME,
    read_summary,
    save_summary,
    tell_summary,
)
from vitrael.core.data.manifest import Item, Manifest
from vitrael.core.errors import CohortError, ConsentError, StorageError


@pytest.fixture
def manifest(tmp_path: Path) -> Manifest:
    return write_cohort(tmp_path / "made", patients=40)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "cohorts" / "main"


def without(manifest: Manifest, count: int) -> Manifest:
    return Manifest(recipe=manifest.recipe, items=manifest.items[count:])


def save(manifest: Manifest, folder: Path) -> CohortSummary:
    return save_summary(summarize(manifest), manifest, folder)


def tell(folder: Path) -> CohortSummary:
    summary = read_summary(folder)
    return tell_summary(folder, patients=summary.patients, images=summary.images)


def test_counts_that_never_left_are_replaced_at_once(manifest: Manifest, folder: Path) -> None:
    assert save(manifest, folder).patients == 40
    assert save(without(manifest, 1), folder).patients == 39
    assert tell(folder).patients == 39


@pytest.mark.parametrize(("gone", "told"), [(0, 40), (1, 40), (10, 40), (11, 29), (20, 20)])
def test_a_few_more_or_fewer_patients_are_not_told(
    manifest: Manifest, folder: Path, gone: int, told: int
) -> None:
    save(manifest, folder)
    tell(folder)
    later = without(manifest, gone)
    assert save(later, folder).patients == told
    assert tell(folder).patients == told
    assert (read_summary(folder).cohort == later.digest) == (told == 40 - gone)


def test_few_changes_add_up_until_they_may_be_told(manifest: Manifest, folder: Path) -> None:
    save(manifest, folder)
    for gone, told in ((5, 40), (10, 40), (11, 29)):
        tell(folder)
        assert save(without(manifest, gone), folder).patients == told


def test_newcomers_of_whom_few_are_of_one_sex_do_not_tell_it(
    manifest: Manifest, folder: Path
) -> None:
    """Three women come among twenty patients: the table of sexes before and after is not told."""

    def sexed(items: tuple[Item, ...], women: int) -> tuple[Item, ...]:
        return tuple(
            item.model_copy(update={"covariates": {"sex": float(place >= women)}})
            for place, item in enumerate(items)
        )

    first, others = manifest.items[:20], manifest.items[20:]
    before = Manifest(recipe=manifest.recipe, items=(*sexed(first, 0), *sexed(others, 20)))
    save(Manifest(recipe=manifest.recipe, items=before.items[20:]), folder)
    assert [group.patients for group in tell(folder).sex] == [0, 20, 0]
    later = Manifest(recipe=manifest.recipe, items=(*sexed(first, 3), *before.items[20:]))
    assert [group.patients for group in summarize(later).sex] == [0, 23, 17]
    told = save(later, folder)
    assert (told.patients, [group.patients for group in told.sex]) == (40, [40])


def test_two_cohorts_of_the_same_patients_cannot_be_subtracted(
    manifest: Manifest, folder: Path
) -> None:
    second = folder.parent / "second"
    save(manifest, folder)
    save(without(manifest, 3), second)
    tell(folder)
    assert read_summary(second).patients is None
    silent = tell(second)
    assert (silent.patients, silent.sex, silent.findings) == (None, [], {})
    assert save(without(manifest, 11), second).patients == 29


def test_control_cohorts_of_other_patients_do_not_bind_each_other(
    manifest: Manifest, folder: Path
) -> None:
    save(without(manifest, 20), folder)
    tell(folder)
    others = Manifest(recipe=manifest.recipe, items=manifest.items[:17])
    assert save(others, folder.parent / "second").patients == 17


@pytest.mark.parametrize(("first", "told"), [(11, 29), (10, None)])
def test_a_crowd_in_each_that_the_other_lacks_hides_the_difference(
    manifest: Manifest, folder: Path, first: int, told: int | None
) -> None:
    """Both share patients, and their numbers differ by 3."""
    count = 40 - first
    save(Manifest(recipe=manifest.recipe, items=manifest.items[: count - 3]), folder)
    tell(folder)
    others = Manifest(recipe=manifest.recipe, items=manifest.items[first:])
    assert save(others, folder.parent / "second").patients == told


def test_cohort_that_was_removed_still_binds_the_next(manifest: Manifest, folder: Path) -> None:
    save(manifest, folder)
    tell(folder)
    (folder / SUMMARY_NAME).unlink()
    assert save(without(manifest, 1), folder).patients == 40


def test_consent_that_names_other_counts_is_refused(manifest: Manifest, folder: Path) -> None:
    save(manifest, folder)
    with pytest.raises(ConsentError, match="changed since the consent"):
        tell_summary(folder, patients=43, images=40)
    assert not (folder.parent / TOLD_NAME).exists()
    assert tell_summary(folder, patients=None, images=None).patients == 40
    save(without(manifest, 15), folder)
    assert tell_summary(folder, patients=40, images=40).patients == 25  # 40 were told before


def test_what_is_told_twice_is_noted_once(manifest: Manifest, folder: Path) -> None:
    save(manifest, folder)
    tell(folder)
    noted = (folder.parent / TOLD_NAME).read_bytes()
    tell(folder)
    assert (folder.parent / TOLD_NAME).read_bytes() == noted


def test_counts_and_list_are_for_the_site_alone(manifest: Manifest, folder: Path) -> None:
    save(manifest, folder)
    tell(folder)
    for path in (folder / SUMMARY_NAME, folder.parent / TOLD_NAME, folder.parent / "told.lock"):
        assert stat.S_IMODE(path.stat().st_mode) == 0o600


@pytest.mark.parametrize("name", [SUMMARY_NAME, TOLD_NAME])
def test_changed_summary_or_list_is_refused(manifest: Manifest, folder: Path, name: str) -> None:
    with pytest.raises(CohortError, match="cannot be used"):
        read_summary(folder)
    save(manifest, folder)
    tell(folder)
    path = folder / name if name == SUMMARY_NAME else folder.parent / name
    path.write_text(path.read_text().replace('"patients":40', '"patients":7'))
    with pytest.raises(CohortError, match="changed by hand"):
        read_summary(folder)


def test_list_that_is_never_let_go_is_told(
    manifest: Manifest, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(places, "_PATIENCE_S", 0.0)
    save(manifest, folder)
    with (
        told_list._lock(folder.parent),
        pytest.raises(StorageError, match="is held by another"),
    ):
        tell(folder)
    assert not (folder.parent / TOLD_NAME).exists()
    assert tell(folder).patients == 40
