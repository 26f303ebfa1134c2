"""A demo of experts gives every hospital pictures of its own, in its own words, and no policy."""

from __future__ import annotations

import csv
import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from tests.factories.experts_study import write_study
from tests.factories.federation import STUDY, prepare_in_process
from vitrael.core.data.manifest import read_manifest
from vitrael.core.data.pictures import read_picture_file
from vitrael.core.errors import UsageError
from vitrael.server import demo
from vitrael.server.demo import DemoPlan, prepare_demo, site_home

SITES = ("north", "harbour")
PATIENTS = 6


@pytest.fixture(scope="module")
def patched() -> Iterator[pytest.MonkeyPatch]:
    with pytest.MonkeyPatch.context() as patch:
        prepare_in_process(patch)
        patch.setattr(demo, "_consent", lambda *_: None)
        yield patch


@pytest.fixture(scope="module")
def plan(patched: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory) -> DemoPlan:
    """A plan of two sites, of which one calls a view otherwise."""
    assert patched
    folder = tmp_path_factory.mktemp("experts demo")
    (folder / "asked.toml").write_text(write_study(SITES))
    return DemoPlan(home=folder / "home", study=folder / "asked.toml", patients=PATIENTS)


@pytest.fixture(scope="module")
def said(plan: DemoPlan) -> list[str]:
    """What was told while the homes were prepared."""
    lines: list[str] = []
    assert prepare_demo(plan, tell=lines.append).protocol.name == "tiny-views"
    return lines


def views_of(home: Path, site: str) -> list[str]:
    with (home / "hospitals" / site / "pictures.csv").open(encoding="utf-8") as table:
        return [row["view"] for row in csv.DictReader(table)]


@pytest.mark.usefixtures("said")
def test_each_hospital_has_pictures_in_its_own_words(plan: DemoPlan) -> None:
    north, harbour = (views_of(plan.home, site) for site in SITES)
    assert north == ["A4C", "A2C"] * (PATIENTS // 2)  # it means what the study means
    assert harbour == ["apical 4", "PSAX", "A2C"] * (PATIENTS // 3)


@pytest.mark.usefixtures("said")
def test_hospitals_have_other_pictures_of_the_machine_s_size(plan: DemoPlan) -> None:
    pictures = [
        path for site in SITES for path in sorted((plan.home / "hospitals" / site).glob("*.png"))
    ]
    assert len(pictures) == len({path.read_bytes() for path in pictures}) == 2 * PATIENTS
    edges = {edge for path in pictures for edge in read_picture_file(path).image_HW.shape}
    assert edges == {demo._VIEW_PX}


def test_pictures_are_taken_in_and_counted(plan: DemoPlan, said: list[str]) -> None:
    note = json.loads((plan.home / "prepared.json").read_text())
    assert note["scans"] == {site: {"patients": PATIENTS, "unreadable": 0} for site in SITES}
    for site in SITES:
        manifest = read_manifest(site_home(plan.home, site) / "cohorts" / "main" / "manifest.json")
        assert len({item.subject for item in manifest.items}) == PATIENTS
    assert "drawing pictures of 6 phantom patients for each of 2 sites" in said


@pytest.mark.usefixtures("said")
def test_demos_of_one_study_draw_the_same_pictures(plan: DemoPlan, tmp_path: Path) -> None:
    again = replace(plan, home=tmp_path / "again")
    prepare_demo(again, tell=lambda _: None)

    def drawn(home: Path) -> dict[str, bytes]:
        files = (home / "hospitals").rglob("*.*")
        return {str(path.relative_to(home)): path.read_bytes() for path in files}

    assert drawn(again.home) == drawn(plan.home)
    assert len(drawn(plan.home)) == 2 * (PATIENTS + 1)


def test_policy_is_refused_for_experts_before_anything_is_written(
    plan: DemoPlan, tmp_path: Path
) -> None:
    asked = replace(plan, home=tmp_path / "home", policy="public")
    with pytest.raises(UsageError, match="a study of experts has no policy") as caught:
        prepare_demo(asked, tell=lambda _: None)
    assert "--policy" in caught.value.fix
    assert not asked.home.exists()
    study = tmp_path / "synthesis.toml"  # the control: a synthetic set is judged by one
    study.write_text(STUDY)
    assert b'policy = "public"' in demo._asked_study(replace(asked, study=study))


@pytest.mark.usefixtures("said")
def test_prepared_demo_of_experts_takes_no_policy_either(plan: DemoPlan) -> None:
    with pytest.raises(UsageError, match="another way: --policy would change it"):
        prepare_demo(DemoPlan(home=plan.home, policy="rehearsal"), tell=lambda _: None)
    assert prepare_demo(DemoPlan(home=plan.home), tell=lambda _: None)  # the control
