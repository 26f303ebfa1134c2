"""A site with pictures of its own under a study of experts, without any process."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

import numpy as np
import pytest

from tests.factories.own_views import KEY, VIEWS, experts_study, write_views
from tests.fakes.clock import FakeClock
from vitrael.client.site.outbox import Outbox
from vitrael.client.site.settings import Limits, load_settings
from vitrael.client.site.steward import open_cohort
from vitrael.client.site.store import Finished
from vitrael.client.site.tasks import SiteContext, TaskResult
from vitrael.client.site.tasks.views import KNOWN, read_learnable
from vitrael.core.data.splits import Split
from vitrael.core.messages import StageName, Task
from vitrael.core.models.view_expert import ViewExpert, build_view_net, complete_expert
from vitrael.core.study import Study
from vitrael.core.weights import Tensors
from vitrael.privacy.envelope import attachment_digests
from vitrael.privacy.journal import Journal
from vitrael.privacy.keys import KeyPair, roster_digest

Patients = Mapping[Split, Mapping[str, int]]

OWN: Final = ("A2C", "A4C")
KNOW: Final[Mapping[int, tuple[str, ...]]] = {1: OWN, 2: ("A4C", "PLAX", "PSAX")}
"""Member, counted by name -> what its expert knows; the first, harbour, has none."""


@dataclass(frozen=True)
class Station:
    """The site north, whose scans are written once; every context is that of a fresh steward."""

    home: Path
    study: Study
    keys: Mapping[str, KeyPair]
    told: list[tuple[int, int]] = field(default_factory=list)

    def context(self, study: Study | None = None) -> SiteContext:
        return SiteContext(
            settings=load_settings(self.home),
            study=study or self.study,
            members={name: pair.public for name, pair in self.keys.items()},
            consent=b"",
            keys=self.keys["north"],
            records=self.home / "records",
            load_cohort=open_cohort,
            report=lambda done, total: self.told.append((done, total)),
        )

    def task(
        self,
        stage: StageName,
        inputs: Mapping[str, Tensors] | None = None,
        *,
        round_index: int = 0,
        study: Study | None = None,
    ) -> Task:
        return Task(
            protocol=(study or self.study).protocol.digest,
            roster=roster_digest({name: pair.public for name, pair in self.keys.items()}),
            site="north",
            stage=stage,
            round=round_index,
            nonce="0" * 32,
            issued_utc="2031-05-01T12:00:00+00:00",
            deadline_s=60.0,
            inputs=attachment_digests(inputs or {}),
        )

    def let_out(
        self,
        task: Task,
        result: TaskResult,
        inputs: Mapping[str, Tensors] | None = None,
        *,
        study: Study | None = None,
    ) -> Finished:
        """Return what of a result may leave, by the site's own outbox."""
        outbox = Outbox(
            Journal(self.home / "journal.jsonl", clock=FakeClock()),
            site="north",
            keys=self.keys["north"],
            coordinator=self.keys["harbour"].public,
            limits=Limits(),
        )
        return outbox.check(task, result, inputs or {}, study=study or self.study)

    def experts(self, know: Mapping[int, tuple[str, ...]] = KNOW) -> tuple[ViewExpert, ...]:
        """Return experts of members that have learned nothing, by the places of these."""
        names, config = tuple(sorted(self.keys)), self.study.experts.expert
        images = read_learnable(self.context()).images
        return tuple(
            complete_expert(
                build_view_net(config, len(labels), seed=place + 10),
                images,
                name=names[place],
                labels=labels,
            )
            for place, labels in know.items()
        )

    def bring(self, know: Mapping[int, tuple[str, ...]] = KNOW) -> dict[str, Tensors]:
        """Return these experts as a task brings them."""
        known_NV = np.zeros((len(self.keys), len(VIEWS)), np.uint8)
        inputs: dict[str, Tensors] = {KNOWN: {KNOWN: known_NV}}
        for expert, place in zip(self.experts(know), know, strict=True):
            known_NV[place] = [view in know[place] for view in VIEWS]
            inputs[f"expert-{place}"] = expert.tensors()
        return inputs


MakeStation = Callable[..., Station]


@pytest.fixture(scope="session")
def make_station(tmp_path_factory: pytest.TempPathFactory) -> MakeStation:
    def make(patients: Patients, study: Study | None = None, *, pictures: int = 1) -> Station:
        study, home = study or experts_study(), tmp_path_factory.mktemp("station")
        keys = {name: KeyPair.create() for name in study.roster.sites}
        (home / "keys").mkdir()
        (home / "keys" / "split.key").write_bytes(KEY)
        (home / "keys" / "split.key").chmod(0o600)
        (home / "site.toml").write_text('name = "north"\n')
        write_views(home / "cohorts" / "main", study.experts.data, patients, pictures=pictures)
        return Station(home, study, keys)

    return make


@pytest.fixture(scope="session")
def station(make_station: MakeStation) -> Station:
    """Return a site that learns two views, A2C and A4C, of four; the fewest are eleven patients."""
    return make_station(
        {
            Split.TRAINING: {"A2C": 12, "apical 4": 11, "PLAX": 10},
            Split.CALIBRATION: {"A2C": 6, "apical 4": 5, "PLAX": 3},
            Split.UTILITY: {"A2C": 12, "apical 4": 11, "PSAX": 11, "PLAX": 10},
        }
    )
