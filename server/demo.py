"""``vitrael demo``: make three hospitals on this machine and run a study over them.

Everything a hospital or the coordinator would do by hand is done here: keys and enrolment, the
scans (phantoms, or NIfTI files parted by patient), the consents by the site's own command. What
follows is the production layout on loopback (``server.rehearsal``).
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import secrets
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from importlib.resources import files
from multiprocessing import get_context
from pathlib import Path
from typing import Any, Literal

import tomli_w

from vitrael.core.data.partition import find_scans, partition_by_subject, write_site_scans
from vitrael.core.data.phantoms.cohorts import write_phantom_scans
from vitrael.core.digest import write_atomically
from vitrael.core.errors import ProcessError, StorageError, UsageError
from vitrael.core.study import Study, load_study, parse_study
from vitrael.privacy.keys import KeyPair, save_public_keys, save_roster
from vitrael.privacy.release.trust import save_trust, trust_roster
from vitrael.server.federation.layout import site_home

PHANTOM_PATIENTS = 160
PHANTOM_VISITS = 2
_FREE_BYTES = 1 << 30
_CONSENT_S = 120
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
        _enroll(plan.home, study, phantoms=plan.scans is None)
        counts = _write_scans(plan, study, tell=tell)
        _consent(plan.home, study)
        note = {"scans": counts, "asked": _asked_scans(plan)}
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
    if plan.policy is not None:
        document["protocol"]["policy"] = plan.policy
    return tomli_w.dumps(document).encode()


def _asked_scans(plan: DemoPlan) -> dict[str, str | int]:
    if plan.scans is not None:
        return {"--scans": str(plan.scans.resolve())}
    return {"--patients": plan.patients or PHANTOM_PATIENTS}


def _demand_same(plan: DemoPlan) -> Study:
    """Return the study of a prepared home; raise UsageError when the plan asks for another."""
    study = load_study(plan.home / "study.toml")
    made = json.loads((plan.home / PREPARED).read_bytes()).get("asked", {})
    changed = []
    if plan.policy not in (None, study.protocol.policy):
        changed.append("--policy")
    if plan.study and parse_study(_asked_study(plan), label=str(plan.study)) != study:
        changed.append("--study")
    given = {"--scans": plan.scans, "--patients": plan.patients}
    asked = _asked_scans(plan)
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


def _enroll(home: Path, study: Study, *, phantoms: bool) -> None:
    """Make everybody's keys and tell each party the others' public ones."""
    coordinator = _keys(home / "keys")
    sites = {site: _keys(site_home(home, site) / "keys") for site in study.roster.sites}
    members = {site: keys.public for site, keys in sites.items()}
    save_roster(members, home / "roster.json")
    trust = trust_roster(members, coordinator=coordinator.public, threshold=len(members))
    save_trust(trust, home / "trust.json")
    for site in sites:
        folder = site_home(home, site)
        save_public_keys(coordinator.public, folder / "coordinator.json")
        save_roster(members, folder / "roster.json")
        write_atomically(folder / "site.toml", tomli_w.dumps({"name": site}).encode())
        key = folder / "keys" / "split.key"
        if not key.exists():
            write_atomically(key, _split_key(study, site, phantoms=phantoms))
            key.chmod(0o600)


def _keys(folder: Path) -> KeyPair:
    if (folder / "sealing.pem").exists():
        return KeyPair.load(folder)
    keys = KeyPair.create()
    keys.save(folder)
    return keys


def _split_key(study: Study, site: str, *, phantoms: bool) -> bytes:
    """Return a random key; for phantoms one that follows from the study, so that runs compare."""
    if not phantoms:
        return secrets.token_bytes(32)
    return hashlib.sha256(f"phantom split {study.protocol.seed} {site}".encode()).digest()


def _write_scans(
    plan: DemoPlan, study: Study, *, tell: Callable[[str], None]
) -> Mapping[str, dict[str, Any]]:
    folders = {site: site_home(plan.home, site) / "scans" for site in study.roster.sites}
    if plan.scans is None:
        patients = plan.patients or PHANTOM_PATIENTS
        tell(f"drawing {patients} phantom patients for each of {len(folders)} sites")
        data = study.protocol.data
        with ProcessPoolExecutor(2, mp_context=get_context("spawn")) as pool:
            drawn = [
                pool.submit(
                    write_phantom_scans,
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
        return {site: {"patients": patients, "unreadable": 0} for site in folders}
    return _take_in(plan.scans, study, folders, tell=tell)


def _take_in(
    scans: Path, study: Study, folders: Mapping[str, Path], *, tell: Callable[[str], None]
) -> Mapping[str, dict[str, Any]]:
    found = find_scans(scans)
    key = hashlib.sha256(f"partition {study.protocol.seed}".encode()).digest()
    parted = partition_by_subject(found, study.roster.sites, key=key)
    counts: dict[str, dict[str, Any]] = {}
    for site, folder in folders.items():
        split_key = (folder.parent / "keys" / "split.key").read_bytes()
        taken = write_site_scans(parted[site], folder, study.protocol.data, key=split_key)
        patients = len({item.subject for item in taken.manifest.items})
        counts[site] = {"patients": patients, "unreadable": len(taken.unreadable)}
        tell(f"site {site}: {patients} patients, {len(taken.manifest.items)} scans taken in")
        for covariate, count in taken.manifest.assumed.items():
            if count:
                tell(f"site {site}: {covariate} is not known and was assumed for {count} scans")
        for left in taken.left_out:
            tell(f"site {site}: scan {left.number} left out: {left.reason}")
    return counts


def _consent(home: Path, study: Study) -> None:
    """Have every site's operator say yes, by the command that a hospital would use."""
    program = str(Path(sys.executable).parent / "vitrael")
    asked = {
        site: subprocess.Popen(  # noqa: S603 - our own command
            [
                *(program, "site", "consent", str(home / "study.toml"), "--yes", "--json"),
                *("--home", str(site_home(home, site))),
            ],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for site in study.roster.sites
    }
    refused = {site: why for site, process in asked.items() if (why := _hear(process))}
    if refused:
        site, why = next(iter(refused.items()))
        raise ProcessError(f"site {site} did not consent", why=why)


def _hear(process: subprocess.Popen[str]) -> str:
    """Return why a site does not consent, empty when it does; the process has then ended."""
    try:
        _, said = process.communicate(timeout=_CONSENT_S)
    except subprocess.TimeoutExpired:
        process.kill()
        process.communicate()
        return f"it did not answer within {_CONSENT_S} s"
    return said.strip() or f"exit code {process.returncode}" if process.returncode else ""
