"""The pipeline's own records tell what used a site; a recall reaches the student in MLflow too."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from tests.unit.server.studies.conftest import ARM_STAGES, Ended
from vitrael.core import cli
from vitrael.core.data.manifest import read_manifest
from vitrael.core.digest import Digest, digest_bytes
from vitrael.core.errors import StorageError, UsageError
from vitrael.privacy.release.manifest import Reference
from vitrael.server.db.engine import open_database
from vitrael.server.demo import COHORT, site_home
from vitrael.server.objects import ObjectStore
from vitrael.server.registry import Registry
from vitrael.server.settings import utc_now
from vitrael.server.studies.ledger import Ledger
from vitrael.server.studies.lineage import COMES_OF, trace_site
from vitrael.server.studies.recalling import draft_recall, recall_releases
from vitrael.server.studies.recording import Recorder

pytestmark = [
    pytest.mark.filterwarnings(
        # MLflow's own query on SQLAlchemy 2.1
        "ignore:The ``noload`` loader strategy:sqlalchemy.exc.SADeprecationWarning"
    ),
]

Documents = Callable[[Path], dict[str, Any]]
RELEASE = Reference("tiny", 1)


@pytest.fixture
def recorded(finished_home: Path) -> Iterator[Recorder]:
    """The released study's homes, with the study in MLflow."""
    before = dict(os.environ)
    recorder = Recorder(finished_home)
    recorder.catch_up()
    yield recorder
    os.environ.clear()
    os.environ.update(before)


def version_of(home: Path, site: str) -> Digest:
    return read_manifest(site_home(home, site) / "cohorts" / COHORT / "manifest.json").digest


def test_pipeline_has_no_stage_whose_sources_are_not_known(
    finished: Ended, documents: Documents
) -> None:
    stages = {name.rpartition(" ")[0] for name in documents(finished.home)}
    of_experts = {"expert", "outlooks", "fusion", "panel", "averaged", "relay", "comparison"}
    assert stages == COMES_OF.keys() - of_experts - {*ARM_STAGES}
    assert COMES_OF.keys() >= of_experts


def test_released_study_is_traced_to_each_of_its_sites(finished: Ended) -> None:
    lineage = trace_site(finished.home, "north")
    kinds = ["codec"] * 3 + ["patient encoder"] * 2 + ["filter"] + ["teacher"] * 2
    kinds += ["candidates"] * 2 + ["student"] + ["samples"] * 3 + ["release"]
    assert [made.kind for made in lineage.made] == kinds
    objects = ObjectStore(finished.home / "objects")
    for made in lineage.made[:-1]:
        assert objects.get_bytes(made.digest), made.kind
    assert lineage.made[-1].state == "published"
    assert lineage.to_recall == (RELEASE,)
    assert trace_site(finished.home, "stranger").made == ()


def test_version_is_the_one_that_the_site_consented_with(finished: Ended) -> None:
    north, valley = (version_of(finished.home, site) for site in ("north", "valley"))
    assert trace_site(finished.home, "north").versions == (north,)
    ledger = Ledger(open_database(finished.home / "server.sqlite"))
    (protocol,) = ledger.protocols()
    told = [record.details.get("answers", {}) for record in ledger.history(protocol)]
    named = {answers["north"]["cohort"] for answers in told if "north" in answers}
    assert named == {None, north}, "consents and canaries name it in another way, or not at all"
    assert trace_site(finished.home, "north", cohort_version=north).to_recall == (RELEASE,)
    assert trace_site(finished.home, "north", cohort_version=valley).made == ()


def test_recall_of_what_is_affected_is_told_in_mlflow(
    recorded: Recorder, capsys: pytest.CaptureFixture[str]
) -> None:
    home = recorded.home
    assert recorded.registry.aliases(recorded.model) == {"released": 1}
    words = ["release", "recall", "--affected-by", "north", "--home", str(home)]
    assert cli.run([*words, "--reason", "a patient withdrew", "--yes"]) == 0
    assert capsys.readouterr().out == "tiny@1 is recalled: a patient withdrew\n"
    assert recorded.registry.aliases(recorded.model) == {"recalled": 1}
    made = trace_site(home, "valley").made
    assert {m.state for m in made} == {"recalled"}


def test_recall_of_which_mlflow_was_not_told_is_told_by_the_next_call(
    recorded: Recorder, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(_: Path) -> Registry:
        raise StorageError("the MLflow store cannot be opened")

    home = recorded.home
    words = ["release", "recall", "--affected-by", "north", "--home", str(home)]
    words += ["--reason", "a patient withdrew", "--yes"]
    with monkeypatch.context() as patch:
        patch.setattr(Registry, "open", broken)
        assert cli.run(words) == 1
    assert len(list(home.rglob("RECALLED.json"))) == 1
    assert recorded.registry.aliases(recorded.model) == {"released": 1}
    assert cli.run(words) == 0  # and recalls nothing: it is done
    assert recorded.registry.aliases(recorded.model) == {"recalled": 1}


def test_student_of_a_later_release_keeps_its_alias(recorded: Recorder) -> None:
    home, registry = recorded.home, recorded.registry
    student = next(
        r
        for r in recorded.ledger.history(recorded.study.protocol.digest)
        if r.key.stage == "student"
    )
    later = replace(recorded._run(student, {}), key=digest_bytes(b"later"))
    version = registry.register_student(
        recorded.experiment, later, model=recorded.model, weights=b"w", config=b"{}"
    )
    registry.move_alias(recorded.model, version, to="released")
    assert registry.aliases(recorded.model) == {"released": 2}
    recall_releases(home, [RELEASE], reason="a site withdrew", now=utc_now())
    assert registry.aliases(recorded.model) == {"released": 2, "recalled": 1}


def test_recall_that_stands_is_not_made_again(finished_home: Path) -> None:
    recall_releases(finished_home, [RELEASE], reason="a site withdrew", now=utc_now())
    with pytest.raises(StorageError, match="is recalled already"):
        recall_releases(finished_home, [RELEASE], reason="another", now=utc_now())


def test_draft_of_a_recall_publishes_nothing(finished_home: Path) -> None:
    assert draft_recall(finished_home, RELEASE, reason="a site withdrew", now=utc_now())
    assert list(finished_home.rglob("RECALLED.json")) == []
    with pytest.raises(UsageError, match="is not in"):
        draft_recall(finished_home, Reference("tiny", 2), reason="none", now=utc_now())
