"""``vitrael demo``: make three hospitals on this machine and run a study over them.

Everything a hospital or the coordinator would do by hand is done here, by the same commands:
invitation, join and approval, the scans (phantoms, or NIfTI files parted by patient), the consents.
What follows is the production layout on loopback (``server.rehearsal``).
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import secrets
import shutil
import tomllib
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from importlib.resources import files
from multiprocessing import get_context
from pathlib import Path
from typing import Any, Literal

import tomli_w

from vitrael.core.data.layouts.find import find_sources
from vitrael.core.data.partition import partition_by_subject, write_site_folder
from vitrael.core.data.phantoms.cohorts import write_phantom_files
from vitrael.core.data.phantoms.echo_sites import write_view_files
from vitrael.core.data.recipes import RECIPES
from vitrael.core.data.walk import walk_files
from vitrael.core.digest import write_atomically
from vitrael.core.errors import (
    EXIT_OK,
    EXIT_PARTIAL,
    CohortError,
    ProcessError,
    StorageError,
    UsageError,
)
from vitrael.core.protocols import ExpertsProtocol, SynthesisProtocol
from vitrael.core.study import Study, load_study, parse_study
from vitrael.server.demo_enrollment import enroll_sites, run_at_sites
from vitrael.server.federation.layout import RehearsalLayout, site_home

PHANTOM_PATIENTS = 160
PHANTOM_VISITS = 2
VIEW_PATIENTS = 300
"""Of each site in a study of experts, with one picture each."""
_VIEW_PX = 112
"""Edge of a picture as the machine makes it, before any recipe."""
_FREE_BYTES = 1 << 30
_CONSENT_S = 120
_INGEST_S = 3600
HOSPITALS = "hospitals"
"""Folder of the files as the sites have them, before anything is taken in."""
COHORT = "main"
PREPARED = "prepared.json"
_BUNDLED = "brain-demo.toml"


@dataclass(frozen=True, slots=True)
class DemoPlan:
    """What the demo was asked for."""

    home: Path
    study: Path | None = None
    """None: the study of the demo that comes with the package."""
    scans: Path | None = None
    policy: Literal["rehearsal", "public"] | None = None
    """None: that of the study."""
    patients: int | None = None
    """Phantoms a site; None: ``PHANTOM_PATIENTS`` of them."""
    port: int | None = None
    """First port; None: free ones."""
    nginx: str | None = None
    """The program in front; None: our own stand-in."""


def choose_home(folder: Path, *, resume: bool) -> Path:
    """Return ``folder/N``: when resuming that of the last prepared demo, else a new one."""
    homes = [path for path in folder.glob("*") if path.name.isdecimal()]
    runs = sorted(int(path.name) for path in homes if not resume or (path / PREPARED).exists())
    if resume:
        if not runs:
            raise UsageError(
                f"there is nothing to resume in {folder}", fix="run vitrael demo without --resume"
            )
        return folder.absolute() / str(runs[-1])
    return folder.absolute() / str(runs[-1] + 1 if runs else 1)


def prepare_demo(plan: DemoPlan, *, tell: Callable[[str], None]) -> Study:
    """Make the homes of the coordinator and of every site; return the study.

    A home that is prepared already is left as it is; one that is new is removed again when its
    preparation fails. Raises UsageError for one that was prepared in another way than asked,
    StudyError for a study that cannot be used, StorageError without enough disk, CohortError for
    scans that cannot be used.
    """
    if plan.scans is not None and plan.patients is not None:
        raise UsageError(
            "--patients does not go with --scans",
            why="it counts phantoms, and with --scans there are none",
            fix="leave one of them out",
        )
    if (plan.home / PREPARED).exists():
        return _demand_same(plan)
    _demand_space(plan.home)
    document = _asked_study(plan)
    with _removed_if_new(plan.home):
        plan.home.mkdir(parents=True, exist_ok=True)
        write_atomically(plan.home / "study.toml", document)
        study = load_study(plan.home / "study.toml")
        _enroll(plan, study, tell=tell)
        taken = _take_in(plan, study, tell=tell)
        _consent(plan.home, study)
        note = {**taken, "asked": _asked_scans(plan, study)}
        write_atomically(plan.home / PREPARED, json.dumps(note).encode())
    return study


@contextlib.contextmanager
def _removed_if_new(home: Path) -> Iterator[None]:
    """Remove a home that was not there before when what is done inside fails or is interrupted.

    With it go the folders above it that were made for it alone.
    """
    new = [folder for folder in (home, *home.parents) if not folder.exists()]
    try:
        yield
    except BaseException:
        if new:
            shutil.rmtree(home, ignore_errors=True)
        for folder in new[1:]:
            with contextlib.suppress(OSError):
                folder.rmdir()
        raise


def _asked_study(plan: DemoPlan) -> bytes:
    """Return the study's document with the policy of the plan; raise StudyError if it is wrong."""
    path = plan.study or Path(str(files("vitrael.deploy.studies") / _BUNDLED))
    load_study(path)
    document = tomllib.loads(path.read_text(encoding="utf-8"))
    if plan.scans is not None and document["protocol"].get("aim") == "experts":
        raise UsageError(
            "--scans parts brains, and a study of experts learns from pictures",
            fix="leave --scans out: the demo draws pictures",
        )
    if plan.policy is not None:
        if document["protocol"].get("aim") == "experts":
            raise UsageError(
                "a study of experts has no policy",
                why="nothing of it is released",
                fix="leave --policy out",
            )
        document["protocol"]["policy"] = plan.policy
    return tomli_w.dumps(document).encode()


def _asked_scans(plan: DemoPlan, study: Study) -> dict[str, str | int]:
    """Return what a plan asks to be taken in, with what is usual for its kind of study."""
    usual = VIEW_PATIENTS if isinstance(study.protocol, ExpertsProtocol) else PHANTOM_PATIENTS
    if plan.scans is not None:
        return {"--scans": str(plan.scans.resolve())}
    return {"--patients": plan.patients or usual}


def _demand_same(plan: DemoPlan) -> Study:
    """Return the study of a prepared home; raise UsageError when the plan asks for another."""
    study = load_study(plan.home / "study.toml")
    made = json.loads((plan.home / PREPARED).read_bytes()).get("asked", {})
    changed = []
    policy = study.protocol.policy if isinstance(study.protocol, SynthesisProtocol) else None
    if plan.policy not in (None, policy):
        changed.append("--policy")
    if plan.study and parse_study(_asked_study(plan), label=str(plan.study)) != study:
        changed.append("--study")
    given = {"--scans": plan.scans, "--patients": plan.patients}
    asked = _asked_scans(plan, study)
    changed += [name for name in given if given[name] and asked.get(name) != made.get(name)]
    if changed:
        raise UsageError(
            f"{plan.home} is prepared in another way",
            why=f"{' and '.join(changed)} would change it, and its sites have consented to it",
            fix="leave that out to go on with it, or choose another --home",
        )
    return study


def demand_prepared(home: Path) -> Study:
    """Return the study of a home that a demo has prepared; raise UsageError for any other."""
    if not (home / PREPARED).exists():
        raise UsageError(f"{home} holds no prepared demo", fix="run vitrael demo without --resume")
    return load_study(home / "study.toml")


def _demand_space(home: Path) -> None:
    existing = next(folder for folder in (home, *home.parents) if folder.exists())
    free = shutil.disk_usage(existing).free
    if free < _FREE_BYTES:
        raise StorageError(
            f"{existing} has {free >> 20} MiB free",
            why=f"a demo needs {_FREE_BYTES >> 20} MiB",
            fix="free some space or choose another --home",
        )


def _enroll(plan: DemoPlan, study: Study, *, tell: Callable[[str], None]) -> None:
    """Let every site join with keys that it makes itself; its split key is its own too.

    For phantoms that one follows from the study, so that runs compare.
    """
    for site in study.roster.sites:
        key = site_home(plan.home, site) / "keys" / "split.key"
        if not key.exists():
            key.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            write_atomically(key, _split_key(study, site, phantoms=plan.scans is None))
            key.chmod(0o600)
    enroll_sites(demo_layout(plan.home, study, port=plan.port, nginx=plan.nginx), study, tell=tell)


def demo_layout(
    home: Path, study: Study, *, port: int | None, nginx: str | None
) -> RehearsalLayout:
    """Return who takes part in a demo and where."""
    return RehearsalLayout(
        home=home,
        sites=study.roster.sites,
        port=port,
        nginx=nginx,
        threads=study.performance.threads,
    )


def _split_key(study: Study, site: str, *, phantoms: bool) -> bytes:
    """Return a random key; for phantoms one that follows from the study, so that runs compare."""
    if not phantoms:
        return secrets.token_bytes(32)
    return hashlib.sha256(f"phantom split {study.protocol.seed} {site}".encode()).digest()


def _take_in(plan: DemoPlan, study: Study, *, tell: Callable[[str], None]) -> dict[str, Any]:
    """Give every site a folder of files, and let the site's own command take it in.

    Returned are ``scans``, the counts of each site, and ``unparted``: how many images are at none.
    """
    folders = {site: plan.home / HOSPITALS / site for site in study.roster.sites}
    unparted = 0
    if plan.scans is None:
        _draw_phantoms(plan, study, folders, tell=tell)
    else:
        unparted = _part_scans(plan.scans, study, folders, tell=tell)
    return {"scans": _ingest(plan.home, folders, tell=tell), "unparted": unparted}


def _draw_phantoms(
    plan: DemoPlan, study: Study, folders: Mapping[str, Path], *, tell: Callable[[str], None]
) -> None:
    if isinstance(study.protocol, ExpertsProtocol):
        _draw_phantom_views(plan, study, study.protocol, folders, tell=tell)
        return
    patients = plan.patients or PHANTOM_PATIENTS
    tell(f"drawing {patients} phantom patients for each of {len(folders)} sites")
    data = study.synthesis.data
    with ProcessPoolExecutor(2, mp_context=get_context("spawn")) as pool:
        drawn = [
            pool.submit(
                write_phantom_files,
                folder,
                seed=study.protocol.seed,
                site=site,
                patients=patients,
                visits=PHANTOM_VISITS,
                grid_vox=data.grid_vox,
                spacing_mm=data.spacing_mm,
            )
            for site, folder in folders.items()
        ]
        for future in drawn:
            future.result()


def _draw_phantom_views(
    plan: DemoPlan,
    study: Study,
    protocol: ExpertsProtocol,
    folders: Mapping[str, Path],
    *,
    tell: Callable[[str], None],
) -> None:
    """Write each site's pictures, labelled in its own words where the study maps these."""
    patients = plan.patients or VIEW_PATIENTS
    if protocol.data.recipe != "image-2d":
        raise UsageError(
            f"a demo draws no pictures for the recipe {protocol.data.recipe}",
            why="it has phantom stills, and the recipe takes clips",
            fix="name a study of the recipe image-2d",
        )
    tell(f"drawing pictures of {patients} phantom patients for each of {len(folders)} sites")
    views = protocol.data.views
    with ProcessPoolExecutor(2, mp_context=get_context("spawn")) as pool:
        drawn = []
        for place, (site, folder) in enumerate(folders.items()):
            own = {view: word for word, view in study.roster.labels.get(site, {}).items()}
            drawn.append(
                pool.submit(
                    write_view_files,
                    folder,
                    seed=protocol.seed,
                    site=place,
                    words={view: own.get(view, view) for view in views},
                    patients=patients,
                    edge_px=_VIEW_PX,
                )
            )
        for future in drawn:
            future.result()


def _part_scans(
    scans: Path, study: Study, folders: Mapping[str, Path], *, tell: Callable[[str], None]
) -> int:
    """Part a folder's files among the sites; return how many images go to none, and tell why."""
    recipe = RECIPES[study.protocol.data.recipe]
    found = find_sources(scans, walk_files(scans), recipe=recipe)
    if not found.sources:
        raise CohortError(
            "the folder holds no readable scan",
            why=f"nothing in it fits the recipe {recipe.settings.name}",
            fix="give a folder with .nii or .nii.gz files of T1-weighted brains",
        )
    key = hashlib.sha256(f"partition {study.protocol.seed}".encode()).digest()
    parted = partition_by_subject(found.sources, study.roster.sites, key=key)
    for site, folder in folders.items():
        write_site_folder(parted[site], folder)
    reasons = Counter(left.reason for left in found.left_out if not left.expected)
    for reason, count in sorted(reasons.items()):
        tell(f"no site: {count} left out: {reason}")
    if found.rest:  # a site's intake opens them; who parts a folder goes by names and tables alone
        tell(f"no site: {len(found.rest)} left out: it may be DICOM, which a demo does not part")
    return reasons.total()


def _ingest(
    home: Path, folders: Mapping[str, Path], *, tell: Callable[[str], None]
) -> Mapping[str, dict[str, Any]]:
    """Run ``vitrael site ingest`` at every site; return how many patients each has."""
    tell("taking the files in at every site, as a hospital would: vitrael site ingest")
    study = str(home / "study.toml")
    common = ("--study", study, "--cohort", COHORT, "--workers", "1", "--json")
    heard = run_at_sites(
        home,
        {site: ("ingest", str(folder), *common) for site, folder in folders.items()},
        timeout_s=_INGEST_S,
    )
    counts: dict[str, dict[str, Any]] = {}
    for site, (code, said, why) in heard.items():
        if code not in {EXIT_OK, EXIT_PARTIAL}:
            raise ProcessError(f"site {site} could not take its files in", why=why)
        report = json.loads(said)
        left_out = [group for group in report["left_out"] if not group["expected"]]
        unreadable = sum(group["groups"] for group in left_out)
        counts[site] = {"patients": report["patients"], "unreadable": unreadable}
        tell(f"site {site}: {report['patients']} patients, {report['items']} scans taken in")
        for group in left_out:
            tell(f"site {site}: {group['groups']} left out: {group['reason']}")
        for finding in report["findings"]:
            if finding["check"] == "missing-covariates":
                tell(f"site {site}: {finding['sentence']}")
    return counts


def _consent(home: Path, study: Study) -> None:
    """Have every site's operator say yes, by the command that a hospital would use."""
    command = ("consent", study.protocol.name, "--yes", "--json")
    asked = dict.fromkeys(study.roster.sites, command)
    heard = run_at_sites(home, asked, timeout_s=_CONSENT_S)
    for site, (code, _, why) in heard.items():
        if code != EXIT_OK:
            raise ProcessError(f"site {site} did not consent", why=why)
