"""Two summaries of a cohort never tell of few patients by their difference."""

from __future__ import annotations

import stat
from pathlib import Path

import pytest

from tests.factories.cohort import write_cohort
from vitrael.client.site.ingest.summary import summarize
from vitrael.client.site.ingest.told import SUMMARY_NAME, read_summary, save_summary
from vitrael.core.data.manifest import Manifest
from vitrael.core.errors import CohortError


@pytest.fixture
def manifest(tmp_path: Path) -> Manifest:
    return write_cohort(tmp_path / "made", patients=40)


def without(manifest: Manifest, count: int) -> Manifest:
    return Manifest(recipe=manifest.recipe, items=manifest.items[count:])


@pytest.mark.parametrize(("gone", "told"), [(0, 40), (1, 40), (10, 40), (11, 29), (20, 20)])
def test_a_few_more_or_fewer_patients_are_not_told(
    manifest: Manifest, tmp_path: Path, gone: int, told: int
) -> None:
    assert save_summary(summarize(manifest), manifest, tmp_path)
    later = without(manifest, gone)
    assert save_summary(summarize(later), later, tmp_path) == (told == 40 - gone)
    assert read_summary(tmp_path).patients == told
    assert (read_summary(tmp_path).cohort == later.digest) == (told == 40 - gone)


def test_few_changes_add_up_until_they_may_be_told(manifest: Manifest, tmp_path: Path) -> None:
    save_summary(summarize(manifest), manifest, tmp_path)
    for gone in (5, 10, 11):
        later = without(manifest, gone)
        save_summary(summarize(later), later, tmp_path)
    assert read_summary(tmp_path).patients == 29


def test_summary_is_for_the_site_alone(manifest: Manifest, tmp_path: Path) -> None:
    save_summary(summarize(manifest), manifest, tmp_path)
    assert stat.S_IMODE((tmp_path / SUMMARY_NAME).stat().st_mode) == 0o600


def test_changed_or_missing_summary_is_refused(manifest: Manifest, tmp_path: Path) -> None:
    with pytest.raises(CohortError, match="cannot be used"):
        read_summary(tmp_path)
    save_summary(summarize(manifest), manifest, tmp_path)
    path = tmp_path / SUMMARY_NAME
    path.write_text(path.read_text().replace('"patients":40', '"patients":7'))
    with pytest.raises(CohortError, match="changed by hand"):
        read_summary(tmp_path)
