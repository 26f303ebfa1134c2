"""A study of experts that takes seconds: three sites with two views each, and tiny networks."""

from __future__ import annotations

import csv
import json
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from sqlalchemy.orm import Session

from tests.factories.federation import (
    SITES,
    Federation,
    consent_everywhere,
    copy_homes,
    federation,
    prepare_in_process,
    utc_now,
)
from tests.factories.updates import answer_as
from vitrael.client.site.ingest.pipeline import Choices, ingest_folder
from vitrael.client.site.ingest.places import Home
from vitrael.core.data.pictures import write_picture
from vitrael.core.data.planar import Picture
from vitrael.core.data.recipes import recipe_of_study
from vitrael.core.digest import Digest
from vitrael.core.messages import Parcel, Task
from vitrael.core.models.panel_folder import load_panel
from vitrael.core.rng import stream
from vitrael.core.study import load_study
from vitrael.privacy.envelope import open_reply_parcel
from vitrael.privacy.keys import KeyPair, roster_digest, save_roster
from vitrael.server import demo
from vitrael.server.db.engine import open_database
from vitrael.server.db.sites import WordRow
from vitrael.server.federation.layout import site_home
from vitrael.server.studies.pipeline import run_study

VIEWS = ("A2C", "A4C", "PLAX", "PSAX")
KNOWN: Mapping[str, tuple[str, ...]] = {
    "north": ("A4C", "A2C"),
    "harbour": ("A4C", "PSAX"),
    "valley": ("PLAX", "PSAX"),
}
"""The views of each site, in the study's words."""
LABELS: Mapping[str, Mapping[str, str]] = {"harbour": {"apical 4": "A4C"}}
"""Site -> its own word -> the study's."""
PATIENTS = 92
"""Of each site, with one picture each: enough for eleven of each view where anything is held."""
EDGE_PX = 24

_PROTOCOL = """
[protocol]
aim = "experts"
name = "tiny-views"
purpose = "Run every stage of a study of experts in seconds."
seed = 41
begin = "{begin}"
told = "{told}"

[protocol.data]
recipe = "image-2d"
edge_px = 24
views = ["A2C", "A4C", "PLAX", "PSAX"]

[protocol.data.splits]
training_frac = 0.4
calibration_frac = 0.2
utility_frac = 0.4

[[protocol.systems]]
kind = "view_expert"
channels = [4, 4, 8, 8]
blocks = [1, 1, 1, 1]
stem_stride = 2
training = {{ length_images = 64, batch_images = 16, learning_rate = 4e-3 }}

[[protocol.systems]]
kind = "score_fusion"
hidden = 4
training = {{ length_images = 256, batch_images = 32, learning_rate = 0.02 }}

[protocol.baselines]
averaged_rounds = {rounds}
in_turn = true

[protocol.federation]
quorum = {quorum}

[performance]
threads = 1
coordinator_threads = 1
bf16 = "off"
"""


def write_study(
    sites: Sequence[str] = SITES,
    *,
    predecessor: Digest | None = None,
    begin: str = "fresh",
    told: str = "means",
    rounds: int = 1,
    quorum: int = 2,
    labels: Mapping[str, Mapping[str, str]] = LABELS,
) -> str:
    """Return the study's document."""
    lines = ["[roster]", f"sites = {_listed(sites)}"]
    if predecessor is not None:
        lines.append(f'predecessor = "{predecessor}"')
    for site, words in labels.items():
        if site in sites:
            lines += [f"[roster.labels.{site}]", *(f'"{w}" = "{v}"' for w, v in words.items())]
    protocol = _PROTOCOL.format(begin=begin, told=told, rounds=rounds, quorum=quorum)
    return protocol + "\n".join(lines) + "\n"


def _listed(names: Sequence[str]) -> str:
    return "[" + ", ".join(f'"{name}"' for name in names) + "]"


def prepare_views(
    folder: Path,
    document: str = "",
    *,
    known: Mapping[str, Sequence[str]] = KNOWN,
    patients: Mapping[str, int] | None = None,
) -> Path:
    """Return a coordinator's home with its sites below, enrolled, with pictures and consents.

    ``known`` are the words that a site writes into its table, ``patients`` how many it has.
    """
    folder.mkdir(parents=True, exist_ok=True)
    study_file = folder / "asked.toml"
    study_file.write_text(document or write_study())
    with pytest.MonkeyPatch.context() as patch:
        prepare_in_process(patch)
        write = partial(_write_pictures, known=known, counts=patients or {})
        patch.setattr(demo, "write_view_files", write)
        plan = demo.DemoPlan(home=folder / "home", study=study_file, patients=PATIENTS)
        demo.prepare_demo(plan, tell=lambda _: None)
    return folder / "home"


def _write_pictures(
    folder: Path,
    *,
    seed: int,
    site: int,
    words: Mapping[str, str],
    patients: int,
    edge_px: int,
    known: Mapping[str, Sequence[str]],
    counts: Mapping[str, int],
) -> int:
    """Do what ``write_view_files`` does, with gratings for hearts."""
    del edge_px
    name, rng = SITES[site], stream(seed, "pictures", site)
    views = known[name]
    folder.mkdir(parents=True, exist_ok=True)
    rows = [("file", "patient_id", "view")]
    for patient in range(counts.get(name, patients)):
        view = views[patient % len(views)]
        file = f"picture-{patient + 1:04d}.png"
        image_HW = draw_grating(view, rng, gain=1 - 0.2 * site)
        write_picture(
            Picture(image_HW * 255, spacing_mm=None, modality="US"), folder / file, window=(0, 255)
        )
        rows.append((file, f"patient-{patient + 1:04d}", words.get(view, view)))
    with (folder / "pictures.csv").open("w", newline="", encoding="utf-8") as table:
        csv.writer(table).writerows(rows)
    return len(rows) - 1


def draw_grating(view: str, rng: np.random.Generator, *, gain: float = 1.0) -> np.ndarray:
    """Return a picture float32 ``[H, W]`` in [0, 1]: stripes whose direction tells the view."""
    place = VIEWS.index(view) if view in VIEWS else len(VIEWS)
    y_HW, x_HW = np.mgrid[:EDGE_PX, :EDGE_PX] / EDGE_PX
    angle = np.pi * place / 5
    wave_HW = np.cos(18 * (x_HW * np.cos(angle) + y_HW * np.sin(angle)) + rng.uniform(0, 6))
    noise_HW = rng.normal(0, 0.08, wave_HW.shape)
    image_HW: np.ndarray = np.clip(gain * (0.5 + 0.35 * wave_HW) + noise_HW, 0, 1)
    return image_HW.astype(np.float32)


def agree_views(home: Path, document: str) -> Digest:
    """Let a study be that of prepared homes, and its sites consent to it; return its roster."""
    (home / "study.toml").write_text(document)
    study = load_study(home / "study.toml")
    members = {
        site: KeyPair.load(site_home(home, site) / "keys").public for site in study.roster.sites
    }
    save_roster(members, home / "roster.json")
    for site in members:
        save_roster(members, site_home(home, site) / "roster.json")
    consent_everywhere(home, study)
    return roster_digest(members)


@dataclass
class Sent:
    """What a site sent, to be changed: tensors of the one attachment, and the body."""

    tensors: dict[str, np.ndarray]
    body: dict[str, Any]


def send_instead(told: Federation, site: str, stage: str, change: Callable[[Sent], object]) -> None:
    """Let a site sign something else in a stage, which its outbox would never have let out."""

    def spoil(task: Task, parcel: Parcel) -> Parcel:
        if task.stage != stage:
            return parcel
        run = told.run()
        opened = open_reply_parcel(parcel, task, coordinator=run.keys, site=run.members[site])
        ((name, tensors),) = opened.tensors.items()
        copies = {key: np.array(array) for key, array in tensors.items()}
        sent = Sent(copies, dict(opened.reply.body))
        change(sent)
        examples = opened.reply.num_examples
        return answer_as(told, task, {name: sent.tensors}, body=sent.body, examples=examples)

    told.spoil[site] = spoil


@dataclass(frozen=True)
class Ended:
    """What a run left: its home, its exit code, and the tasks that reached the stewards."""

    home: Path
    code: int
    seen: tuple[Task, ...]

    def asked(self, *stages: str) -> list[tuple[str, str]]:
        """Return stage and site of what was asked in some stages, in order."""
        return [(task.stage, task.site) for task in self.seen if task.stage in stages]

    def brought(self, stage: str) -> dict[str, set[str]]:
        """Return what the tasks of a stage brought to each site."""
        return {task.site: set(task.inputs) for task in self.seen if task.stage == stage}


def go_on(home: Path, *, spoil: Mapping[str, Callable[..., Any]] | None = None) -> Ended:
    """Start a home's study, and run what is left of it."""
    with federation(home) as told:
        told.spoil.update(spoil or {})
        code = run_study(home, told.exchange)
        return Ended(home, code, tuple(told.seen))


@cache
def share_ready(base: Path) -> Path:
    """Return homes in which nothing has run; nobody may open them."""
    return copy_homes(prepare_views(base / "tiny views"), base / "tiny views closed")


@cache
def share_done(base: Path) -> tuple[Ended, Path]:
    """Return a study that ran undisturbed, and a copy of its homes that nobody may open."""
    done = go_on(copy_closed(share_ready(base), base / "tiny views done"))
    return done, copy_homes(done.home, base / "tiny views done and closed")


def copy_closed(home: Path, folder: Path) -> Path:
    """Return a copy of homes that nobody has opened since they were copied themselves."""
    return Path(shutil.copytree(home, folder / "home"))


def withdraw(home: Path, site: str) -> None:
    """Let a site's word reach the coordinator: it takes back its yes to the home's study."""
    protocol, now = load_study(home / "study.toml").protocol.digest, utc_now()
    engine = open_database(home / "server.sqlite")
    with Session(engine) as session, session.begin():
        word = WordRow(site=site, nonce="0" * 32, kind="withdraw", protocol=protocol, reason="")
        word.said_utc = word.received_utc = now
        session.add(word)
    engine.dispose()


def take_in(home: Path, site: str, words: Sequence[str], *, patients: int) -> None:
    """Let a site have other pictures than it was prepared with."""
    own, study = Home(site_home(home, site)), load_study(home / "study.toml")
    folder, data = home / "hospitals" / f"{site} again", study.protocol.data
    place = SITES.index(site)
    known = {site: tuple(words)}
    _write_pictures(
        folder, seed=7, site=place, words={}, patients=patients, edge_px=0, known=known, counts={}
    )
    shutil.rmtree(site_home(home, site) / "cohorts")
    choices = Choices(settings=recipe_of_study(data), splits=data.splits, workers=0)
    ingest_folder(folder, own, demo.COHORT, choices=choices, tell=lambda *_: None, now=utc_now())


def outcome(home: Path) -> dict[str, Any]:
    document: dict[str, Any] = json.loads((home / "outcome.json").read_text())
    return document


def panel_digest(home: Path) -> Digest:
    return load_panel(Path(outcome(home)["panel"])).document.digest


def document(home: Path, stage: str) -> dict[str, Any]:
    """Return what a stage left with the roster that the home has now."""
    with federation(home) as told:
        return told.run().document(stage) or {}


def cut(*stages: str) -> Callable[..., Any]:
    """Return a line that is cut in some stages."""
    return lambda task, reply: "its line is cut" if task.stage in stages else reply


def objects(home: Path) -> dict[str, bytes]:
    files = (path for path in (home / "objects").rglob("*") if path.is_file())
    return {f"sha256:{path.parent.name}{path.name}": path.read_bytes() for path in files}


def lose(home: Path, digest: Digest) -> None:
    name = digest.removeprefix("sha256:")
    (home / "objects" / name[:2] / name[2:]).unlink()


def learned_at(home: Path) -> list[str]:
    """Return every line of progress that a site has written."""
    return [
        line
        for site in SITES
        for line in (site_home(home, site) / "progress.jsonl").read_text().splitlines()
    ]


def lose_document(home: Path, stage: str) -> None:
    """Take away the document that a stage left with the roster that the home has now."""
    with federation(home) as told:
        outputs = [r.output for r in told.run().finished() if r.key.stage == stage and r.output]
    lose(home, outputs[-1])
