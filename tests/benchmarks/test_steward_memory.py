"""How much memory a steward holds between two tasks: a real process, real training, real scans.

The study is that of the demo on its own grid, with one site and short trainings. The limit is the
processes' own memory; weights and latents that are kept warm for the next round come on top.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from tests.factories.cohort import recipe_settings, write_cohort
from vitrael.client.site.consent import describe_cohort, draft_consent, keep_consent
from vitrael.client.site.courier.spool import call_steward
from vitrael.client.site.ingest.summary import summarize
from vitrael.client.site.ingest.told import save_summary
from vitrael.client.site.options import utc_now
from vitrael.client.site.settings import load_settings
from vitrael.client.site.store import Store
from vitrael.core.digest import Digest
from vitrael.core.errors import ProcessError
from vitrael.core.messages import ENVELOPE, MakeParcel, Parcel
from vitrael.core.study import load_study
from vitrael.privacy.envelope import open_task
from vitrael.privacy.journal import Journal
from vitrael.privacy.keys import KeyPair, load_public_keys, save_public_keys, save_roster
from vitrael.server.studies.federated import (
    calibrate_filters,
    collect_consents,
    scale_latents,
    train_codec,
    train_patient_encoder,
    train_teacher,
)
from vitrael.server.studies.run import open_run

MOST_KIB = 700 * 1024
PATIENTS = 100
STEWARD = (sys.executable, "-c", "from vitrael.client.site.cli import site; site()", "run")
SHORTER = {
    'sites = ["north", "harbour", "valley"]': 'sites = ["north"]',
    "quorum = 3": "quorum = 1",
    "length_images = 5_000": "length_images = 400",
    "length_images = 10_000": "length_images = 800",
    "length_images = 3_000": "length_images = 320",
    "warmup_images = 200": "warmup_images = 20",
}


def resident_kib(pid: int) -> int:
    lines = Path(f"/proc/{pid}/status").read_text(encoding="ascii").splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmRSS:"))


@dataclass
class Watched:
    """An exchange with one steward, whose memory is read after each answer."""

    home: Path
    pid: int
    seen: dict[str, int] = field(default_factory=dict)
    """Stage and round -> KiB."""

    def send(
        self, parcels: Mapping[str, MakeParcel], *, deadline_s: float | Mapping[str, float]
    ) -> Iterator[tuple[str, Parcel | str]]:
        assert deadline_s
        coordinator = load_public_keys(self.home / "coordinator.json")
        for site, make in parcels.items():
            parcel = make()
            task = open_task(parcel[ENVELOPE], coordinator)
            yield site, call_steward(self.home, parcel, wait_s=600)
            self.seen[f"{task.stage} {task.round + 1}"] = self._rested()

    def _rested(self) -> int:
        """Return the memory once the steward has heard of something else: then it has rested."""
        with pytest.raises(ProcessError):
            call_steward(self.home, {ENVELOPE: b"nothing"}, wait_s=60)
        return resident_kib(self.pid)


def prepare(folder: Path, document: str) -> tuple[Path, Path]:
    """Return the homes of a coordinator and of its one site, with a cohort and a consent."""
    home, path = folder / "home", folder / "home" / "north"
    path.mkdir(parents=True)
    (home / "study.toml").write_text(document, encoding="utf-8")
    study, keys, coordinator = load_study(home / "study.toml"), KeyPair.create(), KeyPair.create()
    keys.save(path / "keys")
    coordinator.save(home / "keys")
    (path / "keys" / "split.key").write_bytes(bytes(32))
    (path / "keys" / "split.key").chmod(0o600)
    (path / "site.toml").write_text('name = "north"\n', encoding="utf-8")
    save_public_keys(coordinator.public, path / "coordinator.json")
    members = {"north": keys.public}
    for place in (home, path):
        save_roster(members, place / "roster.json")
    data = study.protocol.data
    recipe = recipe_settings(data.grid_vox, data.spacing_mm)
    cohort = path / "cohorts" / "main"
    manifest = write_cohort(cohort, recipe=recipe, patients=PATIENTS, visits=lambda _: 2)
    save_summary(summarize(manifest), manifest, cohort)
    settings = load_settings(path)
    consent = draft_consent(
        study,
        site="north",
        keys=keys.public,
        members=members,
        cohort=describe_cohort(cohort),
        now=utc_now(),
    )
    with closing(Store(settings.store, updates=settings.updates)) as store:
        journal = Journal(settings.journal, clock=utc_now, witness=store)
        keep_consent(consent, study, store, members=members, keys=keys, journal=journal)
    return home, path


@contextmanager
def running(home: Path) -> Iterator[subprocess.Popen[str]]:
    process = subprocess.Popen(
        [*STEWARD, "--home", str(home)],
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    try:
        assert process.stderr is not None
        assert "listens at" in process.stderr.readline()
        yield process
    finally:
        process.kill()
        process.communicate(timeout=60)


@pytest.mark.bench
def test_steward_between_tasks_holds_less_than_700_mib(root: Path, tmp_path: Path) -> None:
    text = (root / "deploy/studies/brain-demo.toml").read_text(encoding="utf-8")
    for long, short in SHORTER.items():
        assert long in text
        text = text.replace(long, short)
    home, site = prepare(tmp_path, text)
    with running(site) as process:
        watched = Watched(site, process.pid)
        print(f"\nat the start: {resident_kib(process.pid) / 1024:.0f} MiB")
        run = open_run(home, watched)
        collect_consents(run)
        codec = train_codec(run)
        codec = Digest(scale_latents(run, codec)["codec"])
        calibrate_filters(run, codec, train_patient_encoder(run, codec))
        train_teacher(run, codec)
        for task, kib in watched.seen.items():
            print(f"after {task}: {kib / 1024:.0f} MiB")
    assert max(watched.seen.values()) <= MOST_KIB
