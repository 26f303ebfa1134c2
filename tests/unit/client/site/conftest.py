"""A site's home folder with keys, a consent and a coordinator that signs for it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.factories.cohort import recipe_settings, write_cohort
from tests.factories.site_study import STUDY
from tests.fakes.clock import FakeClock
from vitrael.client.site.consent import describe_cohort, draft_consent, keep_consent
from vitrael.client.site.control import Control
from vitrael.client.site.ingest.summary import summarize
from vitrael.client.site.ingest.told import save_summary
from vitrael.client.site.settings import SiteSettings, load_settings
from vitrael.client.site.steward import Steward, open_cohort
from vitrael.client.site.store import Store
from vitrael.client.site.tasks import SiteContext, TaskResult, TaskRunner
from vitrael.core.errors import EnvelopeError
from vitrael.core.messages import Consent, Parcel, Reply, StageName, Task
from vitrael.core.study import Study, load_study
from vitrael.core.weights import Tensors
from vitrael.privacy.envelope import attachment_digests, make_task_parcel, open_reply_parcel
from vitrael.privacy.journal import Journal, Line, read_journal
from vitrael.privacy.keys import KeyPair, roster_digest, save_public_keys, save_roster


@dataclass(slots=True)
class CountingTask:
    """Adds one to every weight, counts its calls, and can be told to fail."""

    calls: int = 0
    error: BaseException | None = None

    def __call__(
        self, task: Task, inputs: Mapping[str, Tensors], context: SiteContext
    ) -> TaskResult:
        self.calls += 1
        context.report(self.calls, 10)
        if self.error is not None:
            raise self.error
        name = "codec" if task.stage == "codec" else "denoiser"
        tensors = {key: array + 1 for key, array in inputs[name].items()}
        return TaskResult(body={"curve_loss": [0.5]}, tensors={name: tensors}, num_examples=50)


@dataclass(slots=True)
class Home:
    """One site and its coordinator, without any process."""

    path: Path
    study: Study
    coordinator: KeyPair
    keys: KeyPair
    members: dict[str, KeyPair]
    clock: FakeClock = field(default_factory=FakeClock)
    nonces: int = 0
    asked: list[Task] = field(default_factory=list)

    @property
    def settings(self) -> SiteSettings:
        return load_settings(self.path)

    def context(self, **changes: Any) -> SiteContext:
        """Return what a task of a fresh steward may use, but for some fields of it."""
        fields: dict[str, Any] = {
            "settings": self.settings,
            "study": self.study,
            "members": {},
            "consent": b"",
            "keys": self.keys,
            "records": self.path,
            "load_cohort": open_cohort,
            "report": lambda *_: None,
            **changes,
        }
        return SiteContext(**fields)

    def consent(
        self, study: Study | None = None, *, days: float = 90, max_rounds: int | None = None
    ) -> Consent:
        study = study or self.study
        members = {name: keys.public for name, keys in self.members.items()}
        draft = draft_consent(
            study,
            site="north",
            keys=self.keys.public,
            members=members,
            cohort=describe_cohort(self.settings.cohorts / "main"),
            now=self.clock(),
            days=days,
            max_rounds=max_rounds,
        )
        store = Store(self.settings.store, updates=self.settings.updates)
        journal = Journal(self.settings.journal, clock=self.clock, witness=store)
        keep_consent(draft, study, store, members=members, keys=self.keys, journal=journal)
        store.close()
        return draft

    def control(self) -> Control:
        store = Store(self.settings.store, updates=self.settings.updates)
        journal = Journal(self.settings.journal, clock=self.clock, witness=store)
        return Control(store, journal, clock=self.clock)

    def steward(self, tasks: Mapping[StageName, TaskRunner] | None = None) -> Steward:
        """Return a steward; with tasks of its own it trains no weights of the study's."""
        if tasks is None:
            return Steward(self.settings, clock=self.clock)
        return Steward(self.settings, clock=self.clock, tasks=tasks, layouts=None)

    def task(self, attachments: Mapping[str, Tensors] | None = None, **changes: object) -> Task:
        self.nonces += 1
        fields: dict[str, Any] = {
            "protocol": self.study.protocol.digest,
            "roster": roster_digest({name: keys.public for name, keys in self.members.items()}),
            "site": "north",
            "stage": "codec",
            "round": 0,
            "nonce": f"{self.nonces:032x}",
            "issued_utc": self.clock().isoformat(),
            "deadline_s": 60.0,
            "inputs": attachment_digests(weights() if attachments is None else attachments),
            **changes,
        }
        task = Task.model_validate(fields)
        self.asked.append(task)
        return task

    def parcel(
        self,
        task: Task,
        attachments: Mapping[str, Tensors] | None = None,
        *,
        signer: KeyPair | None = None,
    ) -> dict[str, bytes]:
        return make_task_parcel(
            task,
            weights() if attachments is None else attachments,
            coordinator=signer or self.coordinator,
            site=self.keys.public,
        )

    def open(self, parcel: Parcel) -> tuple[Reply, dict[str, Tensors]]:
        """Return what answers one of the tasks that were made here, the newest first."""
        for task in reversed(self.asked):
            with suppress(EnvelopeError):
                opened = open_reply_parcel(
                    parcel, task, coordinator=self.coordinator, site=self.keys.public
                )
                return opened.reply, opened.tensors
        pytest.fail("the parcel answers no task that was made here")

    def lines(self) -> list[Line]:
        return list(read_journal(self.settings.journal))


def weights() -> dict[str, Tensors]:
    return {"codec": {"w": np.arange(6, dtype=np.float32).reshape(2, 3)}}


@pytest.fixture
def attachments() -> dict[str, Tensors]:
    return weights()


@pytest.fixture
def clock() -> FakeClock:
    return FakeClock()


@pytest.fixture
def counting() -> CountingTask:
    return CountingTask()


@pytest.fixture
def study_file(tmp_path: Path) -> Path:
    path = tmp_path / "study.toml"
    path.write_text(STUDY)
    return path


@pytest.fixture
def make_home(tmp_path: Path, study_file: Path) -> Callable[[str], Home]:
    def make(name: str) -> Home:
        path = tmp_path / name
        coordinator = KeyPair.create()
        study = load_study(study_file)
        members = {site: KeyPair.create() for site in study.roster.sites}
        keys = members["north"]
        keys.save(path / "keys")
        (path / "keys" / "split.key").write_bytes(bytes(32))
        (path / "keys" / "split.key").chmod(0o600)
        (path / "site.toml").write_text('name = "north"\n')
        save_public_keys(coordinator.public, path / "coordinator.json")
        save_roster({site: pair.public for site, pair in members.items()}, path / "roster.json")
        data = study.protocol.data
        manifest = write_cohort(
            path / "cohorts" / "main",
            recipe=recipe_settings(data.grid_vox, data.spacing_mm),
            patients=12,
            visits=lambda patient: 2 if patient < 11 else 1,
        )
        save_summary(summarize(manifest), manifest, path / "cohorts" / "main")
        return Home(path, study, coordinator, keys, members)

    return make


@pytest.fixture
def home(make_home: Callable[[str], Home]) -> Home:
    return make_home("north")


@pytest.fixture
def steward(home: Home, counting: CountingTask) -> Steward:
    home.consent()
    return home.steward({"codec": counting, "teacher": counting})
