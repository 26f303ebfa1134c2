"""What a demo prepares: everybody's keys, scans that stay at their site, consents, once."""

from __future__ import annotations

import json
import stat
import subprocess
import sys
import tomllib
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from tests.factories.federation import (
    PATIENTS,
    SITES,
    STUDY,
    prepare_homes,
    prepare_in_process,
)
from vitrael.core.data.manifest import read_manifest
from vitrael.core.errors import CohortError, ProcessError, StorageError, StudyError, UsageError
from vitrael.core.study import Study, load_study
from vitrael.privacy.keys import KeyPair, load_public_keys, load_roster
from vitrael.privacy.release.trust import load_trust
from vitrael.server import demo
from vitrael.server.demo import (
    DemoPlan,
    choose_home,
    demand_prepared,
    prepare_demo,
    site_home,
)
from vitrael.server.demo_run import _unreadable


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return prepare_homes(tmp_path_factory.mktemp("demo"))


@pytest.fixture
def plan(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> DemoPlan:
    prepare_in_process(monkeypatch)
    monkeypatch.setattr(demo, "_consent", lambda *_: None)
    study = tmp_path / "asked.toml"
    study.write_text(STUDY)
    return DemoPlan(home=tmp_path / "home", study=study, patients=2)


def copy_brains(home: Path, scans: Path) -> None:
    """Lay four phantom brains into a folder, a patient each."""
    scans.mkdir()
    files = sorted((home / "hospitals" / "north").rglob("*_ses-1_*.nii.gz"))[:4]
    for number, file in enumerate(files):
        (scans / f"sub-{number}_T1w.nii.gz").write_bytes(file.read_bytes())


def test_everybody_knows_everybody_s_public_keys(home: Path) -> None:
    coordinator = KeyPair.load(home / "keys").public
    members = load_roster(home / "roster.json")
    assert set(members) == set(SITES)
    for site in SITES:
        folder = site_home(home, site)
        assert KeyPair.load(folder / "keys").public == members[site]
        assert load_public_keys(folder / "coordinator.json") == coordinator
        assert load_roster(folder / "roster.json") == members
    trust = load_trust(home / "trust.json")
    assert trust.threshold == len(SITES)
    assert trust.recall == coordinator.signing


def test_every_site_has_its_own_phantoms_and_split_key(home: Path) -> None:
    seen: set[str] = set()
    keys: set[bytes] = set()
    for site in SITES:
        manifest = read_manifest(site_home(home, site) / "cohorts" / "main" / "manifest.json")
        assert len({item.subject for item in manifest.items}) == PATIENTS
        assert {item.visit for item in manifest.items} == {0, 1}
        seen |= {item.digest for item in manifest.items}
        key = site_home(home, site) / "keys" / "split.key"
        assert stat.S_IMODE(key.stat().st_mode) == 0o600
        keys.add(key.read_bytes())
    assert len(seen) == len(SITES) * PATIENTS * 2
    assert len(keys) == len(SITES)


def test_prepared_home_is_left_as_it_is(home: Path) -> None:
    files = [path for path in home.rglob("*") if path.is_file()]
    before = {path: path.stat().st_mtime_ns for path in files}
    same = DemoPlan(home=home, study=home / "study.toml", policy="rehearsal", patients=PATIENTS)
    for plan in (DemoPlan(home=home), same):
        assert prepare_demo(plan, tell=lambda _: None).protocol.name == "tiny"
    assert {path: path.stat().st_mtime_ns for path in files} == before


@pytest.mark.parametrize(
    ("option", "changes"),
    [
        ("--policy", {"policy": "public"}),
        ("--patients", {"patients": PATIENTS + 1}),
        ("--scans", {"scans": Path("elsewhere")}),
        ("--study", {"study": None}),
        ("--policy and --patients", {"policy": "public", "patients": 99}),
    ],
)
def test_prepared_home_is_not_asked_in_silence_for_something_else(
    option: str, changes: dict[str, Any], home: Path, tmp_path: Path
) -> None:
    if "study" in changes:
        changes = {"study": tmp_path / "other.toml"}
        changes["study"].write_text(STUDY.replace("seed = 177", "seed = 178"))
    files = [path for path in home.rglob("*") if path.is_file()]
    before = {path: path.stat().st_mtime_ns for path in files}
    with pytest.raises(UsageError, match=f"another way: {option} would change it"):
        prepare_demo(DemoPlan(home=home, **changes), tell=lambda _: None)
    assert {path: path.stat().st_mtime_ns for path in files} == before


def test_phantoms_are_not_counted_where_scans_are_given(
    plan: DemoPlan, home: Path, tmp_path: Path
) -> None:
    with pytest.raises(UsageError, match="--patients does not go with --scans"):
        prepare_demo(replace(plan, scans=tmp_path), tell=lambda _: None)
    assert not plan.home.exists()
    with pytest.raises(UsageError, match="--patients does not go with --scans"):
        prepare_demo(DemoPlan(home=home, scans=tmp_path, patients=PATIENTS), tell=lambda _: None)


def test_phantom_demos_of_one_study_have_the_same_scans_and_splits(
    plan: DemoPlan, tmp_path: Path
) -> None:
    other = replace(plan, home=tmp_path / "other")
    for each in (plan, other):
        prepare_demo(each, tell=lambda _: None)
    for name in ("cohorts/main/manifest.json", "keys/split.key"):
        one, two = (site_home(h, "north") / name for h in (plan.home, other.home))
        assert one.read_bytes() == two.read_bytes()
    signing = [(h / "keys" / "signing.pem").read_bytes() for h in (plan.home, other.home)]
    assert signing[0] != signing[1]  # the control


def test_real_scans_get_a_random_split_key(plan: DemoPlan) -> None:
    study = load_tiny(plan)
    keys = {demo._split_key(study, "north", phantoms=False) for _ in range(2)}
    assert len(keys) == 2
    phantom = {demo._split_key(study, "north", phantoms=True) for _ in range(2)}
    assert len(phantom) == 1


def load_tiny(plan: DemoPlan) -> Study:
    assert plan.study is not None
    return load_study(plan.study)


def test_policy_of_the_plan_overrules_the_study(plan: DemoPlan) -> None:
    study = prepare_demo(replace(plan, policy="public"), tell=lambda _: None)
    assert study.protocol.policy == "public"
    document = tomllib.loads((plan.home / "study.toml").read_text())
    assert document["protocol"]["policy"] == "public"
    assert load_tiny(plan).protocol.policy == "rehearsal"


def test_preparation_that_stopped_goes_on(plan: DemoPlan, monkeypatch: pytest.MonkeyPatch) -> None:
    def stop(*_: object) -> None:
        raise ProcessError("site north did not consent")

    monkeypatch.setattr(demo, "_consent", stop)
    plan.home.mkdir()  # a home that was there is not ours to remove
    with pytest.raises(ProcessError):
        prepare_demo(plan, tell=lambda _: None)
    keys = KeyPair.load(plan.home / "keys").public
    with pytest.raises(UsageError, match="holds no prepared demo"):
        demand_prepared(plan.home)
    monkeypatch.setattr(demo, "_consent", lambda *_: None)
    prepare_demo(plan, tell=lambda _: None)
    assert KeyPair.load(plan.home / "keys").public == keys
    assert demand_prepared(plan.home).protocol.name == "tiny"
    ready = json.loads((plan.home / "prepared.json").read_text())
    assert ready["scans"]["north"] == {"patients": 2, "unreadable": 0}


def test_preparation_with_real_scans_that_stopped_goes_on(
    plan: DemoPlan, home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stop(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    copy_brains(home, tmp_path / "scans")
    plan = replace(plan, scans=tmp_path / "scans", patients=None)
    plan.home.mkdir()
    with monkeypatch.context() as patch:
        patch.setattr(demo, "_ingest", stop)
        with pytest.raises(KeyboardInterrupt):
            prepare_demo(plan, tell=lambda _: None)
    assert (plan.home / "hospitals" / "north" / "index.csv").exists()
    prepare_demo(plan, tell=lambda _: None)
    ready = json.loads((plan.home / "prepared.json").read_text())
    assert sum(site["patients"] for site in ready["scans"].values()) == 4


@pytest.mark.parametrize("failure", [ProcessError("no"), KeyboardInterrupt()])
def test_new_home_whose_preparation_fails_is_removed(
    failure: BaseException, plan: DemoPlan, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stop(*_: object) -> None:
        raise failure

    monkeypatch.setattr(demo, "_consent", stop)
    (tmp_path / "runs" / "2").mkdir(parents=True)
    for home in (tmp_path / "runs" / "3", tmp_path / "new" / "1"):
        with pytest.raises(type(failure)):
            prepare_demo(replace(plan, home=home), tell=lambda _: None)
    assert [path.name for path in (tmp_path / "runs").iterdir()] == ["2"]
    assert not (tmp_path / "new").exists()
    monkeypatch.setattr(demo, "_consent", lambda *_: None)
    prepare_demo(replace(plan, home=tmp_path / "new" / "1"), tell=lambda _: None)
    assert (tmp_path / "new" / "1" / "prepared.json").exists()  # the control


def test_full_disk_is_told_before_anything_is_written(
    plan: DemoPlan, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(demo, "_FREE_BYTES", 1 << 62)
    with pytest.raises(StorageError, match="MiB free"):
        prepare_demo(plan, tell=lambda _: None)
    assert not plan.home.exists()


def test_wrong_study_is_refused_before_anything_is_written(plan: DemoPlan) -> None:
    assert plan.study is not None
    plan.study.write_text(STUDY.replace("quorum = 2", "quorum = 9"))
    with pytest.raises(StudyError, match="quorum"):
        prepare_demo(plan, tell=lambda _: None)
    plan.study.write_text("[protocol")
    with pytest.raises(StudyError, match="is not TOML"):
        prepare_demo(plan, tell=lambda _: None)
    plan.study.unlink()
    with pytest.raises(StudyError, match="cannot be read"):
        prepare_demo(plan, tell=lambda _: None)
    assert not plan.home.exists()


def test_folder_without_a_usable_scan_is_refused(plan: DemoPlan, tmp_path: Path) -> None:
    empty = tmp_path / "empty"
    empty.mkdir()
    with pytest.raises(CohortError):
        prepare_demo(replace(plan, scans=empty, patients=None), tell=lambda _: None)


def test_images_that_go_to_no_site_are_told_and_counted(
    plan: DemoPlan, home: Path, tmp_path: Path
) -> None:
    copy_brains(home, tmp_path / "scans")
    for name in ("jane.mgz", "jane.nrrd", "smith.nrrd", "IM0001", "notes.txt"):
        (tmp_path / "scans" / name).write_bytes(b"")
    told: list[str] = []
    prepare_demo(replace(plan, scans=tmp_path / "scans", patients=None), tell=told.append)
    assert [line for line in told if line.startswith("no site")] == [
        "no site: 1 left out: the format *.mgz is not read",
        "no site: 2 left out: the format *.nrrd is not read",
        "no site: 1 left out: it may be DICOM, which a demo does not part",
    ]
    assert not any(name in line for line in told for name in ("jane", "smith", "IM0001"))
    assert _unreadable(plan.home) == 3
    assert _unreadable(home) == 0  # the control


def test_covariates_that_are_not_known_are_told(plan: DemoPlan, home: Path, tmp_path: Path) -> None:
    scans = tmp_path / "scans"
    copy_brains(home, scans)
    table = "participant_id\tage\tsex\n" + "".join(f"sub-{n}\t40\tn/a\n" for n in range(4))
    (scans / "participants.tsv").write_text(table)
    told: list[str] = []
    prepare_demo(replace(plan, scans=scans, patients=None), tell=told.append)
    unknown = [line for line in told if "known" in line]
    assert [line for line in unknown if "sex" not in line] == []  # ages are known
    assert len(unknown) == len(SITES)
    assert "site north" in unknown[0]


@pytest.fixture
def program(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A vitrael in which the site ``NO`` of the test refuses."""
    path = tmp_path / "bin" / "vitrael"
    path.parent.mkdir()
    path.write_text('#!/bin/sh\ncase "$*" in *NO*) echo "we say no" >&2; exit 4;; esac\n')
    path.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(path.parent / "python"))
    return path


def refuse(program: Path, site: str) -> None:
    program.write_text(program.read_text().replace("NO", site))


def test_site_that_does_not_consent_is_named(program: Path, home: Path) -> None:
    demo._consent(home, demand_prepared(home))
    refuse(program, SITES[-1])
    with pytest.raises(ProcessError, match="site valley did not consent: we say no"):
        demo._consent(home, demand_prepared(home))


def test_site_that_cannot_take_its_files_in_is_named_with_its_reason_alone(
    program: Path, home: Path
) -> None:
    said = ("reading images: 50%", "reading images: 100%", "Error: the disk is full.")
    lines = "".join(f'echo "{line}" >&2\n' for line in said)
    program.write_text(f"#!/bin/sh\n{lines}exit 1\n")
    folders = {site: home / "hospitals" / site for site in SITES}
    with pytest.raises(ProcessError) as caught:
        demo._ingest(home, folders, tell=lambda _: None)
    assert caught.value.why == "the disk is full."


def test_refusal_of_the_first_site_leaves_no_process_behind(
    program: Path, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    started: list[subprocess.Popen[str]] = []

    class Recorded(subprocess.Popen):  # type: ignore[type-arg]
        def __init__(self, *arguments: Any, **keywords: Any) -> None:
            super().__init__(*arguments, **keywords)
            started.append(self)

    monkeypatch.setattr(subprocess, "Popen", Recorded)
    refuse(program, SITES[0])
    with pytest.raises(ProcessError, match="site north"):
        demo._consent(home, demand_prepared(home))
    ended = [process.returncode is not None for process in started]
    for process in started:
        process.communicate()
    assert ended == [True, True, True]


def test_new_runs_are_counted_and_the_last_is_resumed(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="nothing to resume"):
        choose_home(tmp_path, resume=True)
    assert choose_home(tmp_path, resume=False) == tmp_path / "1"
    for name in ("1", "9", "10", "11", "notes"):
        (tmp_path / name).mkdir()
    with pytest.raises(UsageError, match="nothing to resume"):
        choose_home(tmp_path, resume=True)
    for name in ("1", "9", "10", "notes"):
        (tmp_path / name / "prepared.json").touch()
    assert choose_home(tmp_path, resume=False) == tmp_path / "12"
    assert choose_home(tmp_path, resume=True) == tmp_path / "10"
