"""Two versions of the package run side by side, and sites upgrade between two rounds."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.factories.federation import SITES, Federation, Interruption, consent_at, federation
from tests.factories.updates import adding, agree
from tests.fakes.federation import HandlerExchange, SiteHandler
from vitrael.client.site.tasks import TaskRunner
from vitrael.core.digest import Digest, digest_json
from vitrael.core.errors import ConfigError, ConsentError, QuorumError
from vitrael.core.messages import Parcel, StageName
from vitrael.core.study import load_study
from vitrael.server.studies.federated import collect_consents, train_codec
from vitrael.server.studies.participation import record_participation, tell_outcome
from vitrael.server.studies.run import StudyRun

AMOUNTS = {"north": 1.0, "harbour": 2.0, "valley": 6.0}
OLD, NEW = "1.4.0", "2.0.0"
SOFTWARE = 'software = ">=1.4,<3"'


@dataclass
class Installed:
    """What each site and the coordinator have installed; they share this process."""

    home: Path
    versions: dict[str, str] = field(default_factory=lambda: dict.fromkeys(SITES, OLD))
    dependency: dict[str, str] = field(default_factory=lambda: dict.fromkeys(SITES, "1"))
    coordinator: str = OLD
    asked: str = SITES[0]
    """The site whose process is spoken of."""
    computed: Counter[tuple[str, str, int]] = field(default_factory=Counter)
    """Site, stage and round of what was computed, and how often."""

    def version(self) -> str:
        return self.versions[self.asked]

    def lock(self) -> Digest:
        return digest_json([self.version(), self.dependency[self.asked]])

    def consent(self, site: str) -> None:
        self.asked = site
        consent_at(self.home, load_study(self.home / "study.toml"), site)

    @contextmanager
    def federation(self) -> Iterator[Federation]:
        tasks = {site: self._counted(site, own) for site, own in adding(AMOUNTS).items()}
        with federation(self.home, tasks=tasks) as told:
            sites = told.exchange.sites
            told.exchange = HandlerExchange({site: self._at(site, sites[site]) for site in sites})
            yield told

    def _at(self, site: str, handler: SiteHandler) -> SiteHandler:
        def handle(parcel: Parcel) -> Parcel | str:
            self.asked = site
            return handler(parcel)

        return handle

    def _counted(
        self, site: str, tasks: Mapping[StageName, TaskRunner]
    ) -> dict[StageName, TaskRunner]:
        def counted(runner: TaskRunner) -> TaskRunner:
            def run(task: Any, inputs: Any, context: Any) -> Any:
                self.computed[site, task.stage, task.round] += 1
                return runner(task, inputs, context)

            return run

        return {stage: counted(runner) for stage, runner in tasks.items()}


@pytest.fixture
def installed(home: Path, monkeypatch: pytest.MonkeyPatch) -> Installed:
    one = Installed(home)
    monkeypatch.setattr("vitrael.client.site.consent.package_version", one.version)
    monkeypatch.setattr("vitrael.client.site.outbox.package_version", one.version)
    monkeypatch.setattr("vitrael.client.site.consent.lock_digest", one.lock)
    monkeypatch.setattr("vitrael.server.studies.run.package_version", lambda: one.coordinator)
    return one


def train(told: Federation) -> StudyRun:
    run = told.run()
    collect_consents(run)
    train_codec(run)
    return run


def answers(run: StudyRun) -> list[dict[str, str]]:
    """Return for each round of the codec which version of the package answered at each site."""
    rounds = [record for record in run.finished() if record.key.stage == "codec"]
    return [
        {site: told["package_version"] for site, told in record.details["answers"].items()}
        for record in rounds
    ]


def change_of(run: StudyRun) -> float:
    """Return by how much the last two rounds of the codec changed every weight."""
    rounds = [record for record in run.finished() if record.key.stage == "codec"]
    first, *_, last = (
        run.objects.get_tensors(run.objects.get_json(record.output)["codec"])
        for record in rounds
        if record.output
    )
    changes = np.concatenate([(last[name] - first[name]).ravel() for name in first])
    assert np.ptp(changes) < 1e-3
    return float(changes.mean())


def test_two_versions_train_side_by_side_in_one_round(installed: Installed) -> None:
    agree(installed.home, SITES, federation=SOFTWARE, quorum=3)
    installed.versions["valley"] = NEW
    installed.consent("valley")
    with installed.federation() as told:
        run = train(told)
        consents = run.document("consent")
    assert answers(run) == [{"north": OLD, "harbour": OLD, "valley": NEW}] * 3
    assert change_of(run) == pytest.approx(6.0, rel=1e-3)
    assert consents is not None
    versions = {s: c["package_version"] for s, c in consents["consents"].items()}
    assert versions == {"north": OLD, "harbour": OLD, "valley": NEW}


def test_a_site_that_upgrades_takes_no_part_until_its_operator_consents_again(
    installed: Installed,
) -> None:
    agree(installed.home, SITES, federation=SOFTWARE)
    with installed.federation() as told:
        told.interrupt = ("codec", 1, "north")
        with pytest.raises(Interruption):
            train(told)
    installed.coordinator = installed.versions["valley"] = NEW
    with installed.federation() as told:
        told.interrupt = ("codec", 2, "north")
        with pytest.raises(Interruption):
            train(told)
    installed.consent("valley")
    with installed.federation() as told:
        run = train(told)
        assert told.stages() == [("codec", 2)]  # what was finished is not asked for again
        absent, outcome = record_participation(run)["absent"], tell_outcome(run)
    both = {"north": OLD, "harbour": OLD}
    assert answers(run) == [both | {"valley": OLD}, both, both | {"valley": NEW}]
    assert absent == {"codec 2": {"valley": "declined"}}
    assert outcome.sentence.startswith("partial: 2 of 3 (valley: refused: site valley consented to")
    assert f"version {OLD} of the package: version {NEW} is installed" in outcome.sentence


def test_an_upgrade_of_all_between_two_rounds_repeats_nothing(installed: Installed) -> None:
    agree(installed.home, SITES, federation=SOFTWARE, quorum=3)
    with installed.federation() as told:
        told.interrupt = ("codec", 1, "valley")  # the two before it have finished the round
        with pytest.raises(Interruption):
            train(told)
    installed.versions = dict.fromkeys(SITES, NEW)
    with installed.federation() as told, pytest.raises(QuorumError, match="0 of 3") as caught:
        train(told)
    assert all(f"site {site} consented to version {OLD}" in str(caught.value) for site in SITES)
    for site in SITES:
        installed.consent(site)
    with installed.federation() as told:
        run = train(told)
        assert told.stages() == [("codec", 1), ("codec", 2)]
    assert set(installed.computed.values()) == {1}
    assert len(installed.computed) == 9
    assert change_of(run) == pytest.approx(6.0, rel=1e-3)


def test_an_upgraded_dependency_is_refused_like_an_upgraded_package(installed: Installed) -> None:
    agree(installed.home, SITES, federation=SOFTWARE, quorum=3)
    with installed.federation() as told:
        collect_consents(told.run())
    installed.dependency["harbour"] = "2"
    with (
        installed.federation() as told,
        pytest.raises(
            QuorumError, match="site harbour consented to other versions of the installed software"
        ),
    ):
        train(told)
    installed.consent("harbour")
    with installed.federation() as told:
        assert len(answers(train(told))) == 3
    assert set(installed.computed.values()) == {1}


def test_a_version_that_the_study_excludes_is_refused_on_both_sides(
    installed: Installed, monkeypatch: pytest.MonkeyPatch
) -> None:
    agree(installed.home, SITES, federation=SOFTWARE, quorum=3)
    with installed.federation() as told:
        collect_consents(told.run())
    installed.versions["valley"] = "3.0.0"
    with pytest.raises(ConsentError, match=r"version 3\.0\.0 .* at site valley may take no part"):
        installed.consent("valley")
    monkeypatch.setattr("vitrael.client.site.consent.fault_of", lambda *_, **__: None)
    with (  # a site that does not look itself
        installed.federation() as told,
        pytest.raises(QuorumError, match=r"valley: version 3\.0\.0 of the package at valley may"),
    ):
        train(told)
    installed.coordinator = "3.0.0"
    with installed.federation() as told, pytest.raises(ConfigError, match="does not admit"):
        told.run()
