"""A whole federation in one process: real homes, real stewards, a study that takes seconds."""

from __future__ import annotations

import gc
import json
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import Executor, Future
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.factories.enrollment import enroll_everywhere
from tests.fakes.federation import HandlerExchange, SiteHandler
from vitrael.client.site.consent import describe_cohort, draft_consent, keep_consent
from vitrael.client.site.ingest.pipeline import Choices, ingest_folder
from vitrael.client.site.ingest.places import Home
from vitrael.client.site.settings import load_settings
from vitrael.client.site.steward import Steward
from vitrael.client.site.store import Store
from vitrael.client.site.tasks import (
    TASKS,
    SiteContext,
    TaskResult,
    TaskRunner,
    study_layouts,
)
from vitrael.core.data.recipes import recipe_of_study
from vitrael.core.digest import digest_bytes
from vitrael.core.errors import EXIT_OK, EXIT_PARTIAL
from vitrael.core.messages import ENVELOPE, IN_VOTES, Parcel, StageName, Task
from vitrael.core.study import Study, load_study
from vitrael.core.weights import Tensors
from vitrael.privacy.envelope import open_task
from vitrael.privacy.journal import Journal
from vitrael.privacy.keys import KeyPair, load_public_keys, load_roster
from vitrael.privacy.release.trust import save_trust, trust_roster
from vitrael.server import demo
from vitrael.server.federation.layout import RehearsalLayout
from vitrael.server.offers import demand_enrolled
from vitrael.server.studies.run import StudyRun, open_run

SITES = ("north", "harbour", "valley")
PATIENTS = 14

STUDY = """
[protocol]
name = "tiny"
purpose = "Run every stage in seconds; nothing in it is for publication."
path = "empirical"
policy = "rehearsal"
license = "CC-BY-4.0"
seed = 177

[protocol.data]
recipe = "brain-t1"
grid_vox = [16, 16, 16]
spacing_mm = 12.0
covariates.age_years = { low = 18.0, high = 95.0 }
covariates.sex = { low = 0.0, high = 1.0 }
covariates.ventricle_ml = { low = 0.0, high = 110.0 }
covariates.brain_ml = { low = 800.0, high = 1800.0 }

[protocol.data.splits]
training_frac = 0.35
filter_frac = 0.2
calibration_frac = 0.2
audit_frac = 0.2
utility_frac = 0.05

[[protocol.systems]]
kind = "brain_ldm"

[protocol.systems.codec]
channels = [8, 16]
latent_channels = 2
training = { rounds = 2, length_images = 32, batch_images = 4, learning_rate = 2e-3 }

[protocol.systems.teacher]
channels = [8, 16]
attention_levels = [false, true]
timesteps = 50
sampling_steps = 3
training = { rounds = 2, length_images = 32, batch_images = 8, ema_halflife_images = 8 }

[protocol.systems.student]
channels = [8, 16]
attention_levels = [false, true]
timesteps = 50
sampling_steps = 3
training = { length_images = 32, batch_images = 8 }

[[protocol.systems]]
kind = "reid_encoder"
channels = [4, 8]
embedding = 8
training = { rounds = 2, length_images = 32, batch_images = 8 }

[protocol.federation]
quorum = 2

[protocol.distillation]
target = 16
released = 8

[protocol.screening]
false_match_rate = 0.4

[protocol.audit]
plants_per_class = 6

[roster]
sites = ["north", "harbour", "valley"]

[performance]
threads = 1
coordinator_threads = 1
bf16 = "off"
"""


class Interruption(BaseException):
    """Stands for a process that is killed: nothing of ours catches it."""


def utc_now() -> datetime:
    return datetime.now(UTC)


def prepare_homes(folder: Path, document: str = STUDY, *, patients: int = PATIENTS) -> Path:
    """Return a coordinator's home with its sites below, enrolled, with scans and consents.

    It is ``prepare_demo`` in this process. The seed gives each site patients in every split that
    a filter needs.
    """
    folder.mkdir(parents=True, exist_ok=True)
    study_file = folder / "asked.toml"
    study_file.write_text(document)
    with pytest.MonkeyPatch.context() as patch:
        prepare_in_process(patch)
        plan = demo.DemoPlan(home=folder / "home", study=study_file, patients=patients)
        demo.prepare_demo(plan, tell=lambda _: None)
    return folder / "home"


@contextmanager
def open_sites(home: Path, sites: Iterable[str]) -> Iterator[HandlerExchange]:
    """Yield an exchange to the stewards of prepared homes, all in this process."""
    with ExitStack() as stack:
        stewards = {
            site: stack.enter_context(
                closing(Steward(load_settings(demo.site_home(home, site)), clock=utc_now))
            )
            for site in sites
        }
        yield HandlerExchange({site: steward.answer for site, steward in stewards.items()})


def prepare_in_process(patch: pytest.MonkeyPatch) -> None:
    """Let ``prepare_demo`` start no process: each costs seconds of imports."""
    patch.setattr(demo, "_consent", consent_everywhere)
    patch.setattr(demo, "run_at_sites", ingest_everywhere)
    patch.setattr(demo, "enroll_sites", enroll_in_process)
    patch.setattr(demo, "ProcessPoolExecutor", lambda *_, **__: InProcess())


def enroll_in_process(
    layout: RehearsalLayout, study: Study, *, tell: Callable[[str], None]
) -> None:
    """Do what invitation, join, approval, offer, fetch and start do."""
    document = (layout.home / "study.toml").read_bytes()
    settings = enroll_everywhere(layout.home, study.roster.sites, study=document)
    members = demand_enrolled(settings, study)
    coordinator = KeyPair.load(settings.keys).public
    trust = trust_roster(members, coordinator=coordinator, threshold=len(members))
    save_trust(trust, layout.home / "trust.json")
    tell("enrolled")


def ingest_everywhere(
    home: Path, commands: Mapping[str, tuple[str, ...]], *, timeout_s: float
) -> dict[str, tuple[int, str, str]]:
    """Do what ``vitrael site ingest FOLDER --study FILE ...`` does at every site."""
    assert timeout_s > 0
    answers = {}
    for site, (name, folder, option, study, *_) in commands.items():
        assert (name, option) == ("ingest", "--study")
        data = load_study(Path(study)).protocol.data
        report = ingest_folder(
            Path(folder),
            Home(demo.site_home(home, site)),
            demo.COHORT,
            choices=Choices(settings=recipe_of_study(data), splits=data.splits, workers=0),
            tell=lambda *_: None,
            now=utc_now(),
        )
        code = EXIT_PARTIAL if report.is_partial else EXIT_OK
        answers[site] = (code, json.dumps(report.document(paths=False)), "")
    return answers


class InProcess(Executor):
    """Does at once what it is given: a process pool costs seconds of imports."""

    def submit(self, work: Any, /, *args: Any, **keywords: Any) -> Any:
        done: Future[Any] = Future()
        done.set_result(work(*args, **keywords))
        return done


def consent_everywhere(home: Path, study: Study) -> None:
    """Give every site's consent."""
    for site in study.roster.sites:
        consent_at(home, study, site)


def consent_at(home: Path, study: Study, site: str) -> None:
    """Give the consent of one site."""
    settings = load_settings(demo.site_home(home, site))
    keys = KeyPair.load(settings.keys)
    members = load_roster(settings.roster)
    consent = draft_consent(
        study,
        site=settings.name,
        keys=keys.public,
        members=members,
        cohort=describe_cohort(settings.cohorts / demo.COHORT),
        now=utc_now(),
    )
    with closing(Store(settings.store, updates=settings.updates)) as store:
        journal = Journal(settings.journal, clock=utc_now, witness=store)
        keep_consent(consent, study, store, members=members, keys=keys, journal=journal)


def copy_homes(home: Path, folder: Path) -> Path:
    """Return a copy of a coordinator's home, its sites included.

    Databases that nobody refers to are closed first: SQLite takes its side files away when the last
    connection closes, and the garbage collector would do that in the midst of the copy.
    """
    gc.collect()
    return Path(shutil.copytree(home, folder / "home"))


@dataclass
class Federation:
    """An exchange over the stewards of a home, which writes down what it carries."""

    home: Path
    exchange: HandlerExchange
    seen: list[Task] = field(default_factory=list)
    """Every task that reached a steward, in order."""
    spoil: dict[str, Callable[[Task, Parcel], Parcel | str]] = field(default_factory=dict)
    """What is done to a site's replies on their way."""
    interrupt: tuple[str, int, str] | None = None
    """Stage, round and site at which the coordinator's process dies."""

    def run(self) -> StudyRun:
        """Return the study's run, to do single stages with."""
        return open_run(self.home, self.exchange)

    def stages(self) -> list[tuple[str, int]]:
        """Return stage and round of what reached the stewards, each once."""
        return list(dict.fromkeys((task.stage, task.round) for task in self.seen))


def vote_as_told(stage: StageName, *, dropped: int) -> TaskRunner:
    """Return a screening that judges for real, and whose one no is then put where it is told.

    Encoders that learned for a second from a handful of phantoms drop all or nothing. In the first
    round of a screening the site drops one image, and nothing in the others.
    """

    def run(task: Task, inputs: Mapping[str, Tensors], context: SiteContext) -> TaskResult:
        from vitrael.client.site.tasks import screen

        result = TASKS[stage](task, inputs, context)
        if not result.body["estimable"]:
            return result
        keep = np.ones(result.num_examples, np.uint8)
        keep[dropped if task.round == 0 else []] = 0
        files = [array.tobytes() for _, array in sorted(inputs.get("samples", {}).items())]
        kept = [digest_bytes(data) for data, vote in zip(files, keep, strict=False) if vote]
        screen.note_round(task, context, kept=kept)
        return replace(result, tensors={"votes": {"keep": keep}})

    return run


@contextmanager
def federation(
    home: Path, *, tasks: Mapping[str, Mapping[StageName, TaskRunner]] | None = None
) -> Iterator[Federation]:
    """Open the stewards of a home; ``tasks`` replaces what a site does in a stage.

    Of the first candidates and samples north drops the first, harbour the second, valley the third.
    """
    coordinator = load_public_keys(demo.site_home(home, SITES[0]) / "coordinator.json")
    with ExitStack() as stack:
        sites: dict[str, SiteHandler] = {}
        told = Federation(home, HandlerExchange(sites))
        for place, site in enumerate(SITES):
            settings = load_settings(demo.site_home(home, site))
            own: dict[Any, TaskRunner] = {**TASKS}
            for stage in IN_VOTES:
                own[stage] = vote_as_told(stage, dropped=place)
            own.update((tasks or {}).get(site, {}))
            opened = Steward(
                settings, clock=utc_now, tasks=own, layouts=None if tasks else study_layouts
            )
            steward = stack.enter_context(closing(opened))

            def handle(parcel: Parcel, site: str = site, steward: Steward = steward) -> Any:
                task = open_task(parcel[ENVELOPE], coordinator)
                if (task.stage, task.round, site) == told.interrupt:
                    raise Interruption
                told.seen.append(task)
                reply = steward.answer(parcel)
                return told.spoil[site](task, reply) if site in told.spoil else reply

            sites[site] = handle
        yield told
