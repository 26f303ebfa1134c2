"""Someone's folder of NIfTI files, found, parted by subject into sites, and taken in.

For rehearsals on real scans: at a hospital the scans are there already. Subject, session, age and
sex come from an ``index.csv`` (columns ``path`` and ``subject``; of use are ``session``,
``modality``, ``site`` and ``notes`` such as ``age=39;sex=m``), else from BIDS names and a
``participants.tsv``, else the file's name is the subject, where no other folder has a file of that
name and it names no session. Both tables may lie in the folder or in its parent. Messages number
the scans in the order of their sorted paths and never show one.
"""

from __future__ import annotations

import csv
import hashlib
import hmac
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from vitrael.core.data.manifest import MANIFEST_NAME, Item, Manifest, write_manifest
from vitrael.core.data.nifti import read_nifti, write_nifti
from vitrael.core.data.preprocess import prepare_scan
from vitrael.core.data.scan import Scan
from vitrael.core.digest import digest_file
from vitrael.core.errors import CohortError, ScanError
from vitrael.core.study import Data

_ENDINGS = (".nii", ".nii.gz")
_NOT_AN_IMAGE = re.compile(r"mask|label|lesion|dseg|probseg|aseg|aparc|transform|(^|[_-])seg")
_OTHER_SUFFIX = re.compile(
    r"_(T2w|T2star|T2starw|FLAIR|PDw|PD|T1map|T2map|inplaneT[12]|bold|sbref|dwi|epi|asl|cbf|pet"
    r"|angio|phase\w*|magnitude\d?|fieldmap)$",
    re.IGNORECASE,
)
_SUBJECT = re.compile(r"(?:^|[_/-])sub-([A-Za-z0-9]+)")
_SESSION = re.compile(r"(?:^|[_/-])ses-([A-Za-z0-9]+)")
_SEX = {"m": 1.0, "male": 1.0, "1": 1.0, "f": 0.0, "female": 0.0, "0": 0.0}
_SEX_UNKNOWN = 0.5
_PARTITION_DOMAIN = b"vitrael/partition/1\0"
_PSEUDONYM_DOMAIN = b"vitrael/pseudonym/1\0"


@dataclass(frozen=True, slots=True, repr=False)
class FoundScan:
    """One file that may be a scan, with what names and tables say of it; nothing is opened yet."""

    path: Path
    number: int
    """Place among all found, from 1, in the order of the sorted paths."""
    subject: str
    session: str
    age_years: float | None = None
    sex: float | None = None
    site: str | None = None
    """The index's ``site``, else the first folder below the one that was searched."""
    is_named: bool = True
    """Whether the index or a BIDS name tells the subject; otherwise it is the file's name."""

    def __repr__(self) -> str:
        """Show nothing of a patient."""
        return f"FoundScan({self.number})"


@dataclass(frozen=True, slots=True)
class LeftOut:
    """A scan that was not taken in, and why."""

    number: int
    reason: str
    kind: Literal["unreadable", "duplicate"]
    """A duplicate is a second file of one session; leaving it out loses nothing."""


@dataclass(frozen=True, slots=True, repr=False)
class SiteScans:
    """What became of a site's share of the scans."""

    manifest: Manifest
    left_out: tuple[LeftOut, ...]

    @property
    def unreadable(self) -> tuple[LeftOut, ...]:
        """The scans that could not be used: with any, the intake was partial."""
        return tuple(item for item in self.left_out if item.kind == "unreadable")


def find_scans(folder: Path) -> list[FoundScan]:
    """Return the T1-weighted scans below a folder, sorted by path; labels and masks are no scans.

    Raises CohortError when the folder is missing or holds no such file, when a table is damaged,
    and when a file's name does not tell whose scan it is.
    """
    if not folder.is_dir():
        raise CohortError(
            "the folder of scans cannot be read", why="it is not a folder", fix="check the path"
        )
    files = sorted(
        path
        for path in folder.rglob("*")
        if path.name.lower().endswith(_ENDINGS)
        and path.is_file()
        and not any(part.startswith(".") for part in path.relative_to(folder).parts)
    )
    index = _read_index(folder)
    participants = _read_participants(folder)
    found = [
        scan
        for path in files
        if (scan := _describe(path, folder, index=index, participants=participants)) is not None
    ]
    if not found:
        raise CohortError(
            "the folder holds no readable scan",
            why=f"{len(files)} NIfTI files were found, none of them a T1-weighted image",
            fix="give a folder with .nii or .nii.gz files of T1-weighted brains",
        )
    scans = [replace(scan, number=number) for number, scan in enumerate(found, start=1)]
    _demand_subjects(scans)
    return scans


def partition_by_subject(
    found: Sequence[FoundScan], sites: Sequence[str], *, key: bytes
) -> dict[str, list[FoundScan]]:
    """Return the scans of each site: every subject at one site, numbers of subjects balanced.

    When the scans name their sites (the index, or one folder for each site) and these are names
    of the roster, that assignment stands. Otherwise subjects are dealt out in the order of a
    keyed hash.
    Raises CohortError when a subject is named in two sites, when only some scans name a site of
    the roster, and when a site would stay empty.
    """
    named = {scan.site for scan in found} & set(sites)
    if named:
        return _named_partition(found, sites)
    subjects = sorted({scan.subject for scan in found}, key=lambda s: _code(key, s).hex())
    if len(subjects) < len(sites):
        raise CohortError(
            f"{len(subjects)} subjects cannot be parted into {len(sites)} sites",
            fix="give scans of more subjects",
        )
    home = {subject: sites[place % len(sites)] for place, subject in enumerate(subjects)}
    return {site: [scan for scan in found if home[scan.subject] == site] for site in sites}


def write_site_scans(
    found: Sequence[FoundScan], folder: Path, data: Data, *, key: bytes
) -> SiteScans:
    """Copy a site's scans into its folder, in RAS+ order under pseudonyms, and write the manifest.

    Only voxels, geometry, age and sex come along. A pseudonym is a hash keyed by the site's
    ``key``. Each scan is read and prepared once, so that what is taken in can be used; one that
    cannot is left out with its reason, and so is a second file of one subject and session.
    Unknown sex is taken as 0.5 and unknown age as the middle of the study's range, both counted in
    ``manifest.assumed``. Volumes are left to be measured. Raises CohortError when no scan is left.
    """
    intake = _Intake(folder=folder, data=data, key=key, items={}, left_out=[], contents={})
    assumed: dict[Literal["age_years", "sex"], int] = {"age_years": 0, "sex": 0}
    visits = _visits(found)
    for scan in found:
        visit = visits[scan.subject, scan.session]
        item = intake.take(scan, visit=visit)
        if item is not None:
            assumed["age_years"] += scan.age_years is None
            assumed["sex"] += scan.sex is None
    if not intake.items:
        first = intake.left_out[0].reason if intake.left_out else "none was given"
        raise CohortError(
            "the folder holds no readable scan for a site",
            why=f"{len(intake.left_out)} left out, the first because {first}",
            fix="give T1-weighted brain volumes with their geometry",
        )
    manifest = Manifest(
        items=tuple(item for _, item in sorted(intake.items.items())), assumed=assumed
    )
    write_manifest(manifest, folder / MANIFEST_NAME)
    return SiteScans(manifest=manifest, left_out=tuple(intake.left_out))


def pseudonym_of(subject: str, *, key: bytes) -> str:
    """Return a subject's name at one site: ``p-`` and 16 hexadecimal digits of a keyed hash."""
    code = hmac.new(key, _PSEUDONYM_DOMAIN + subject.encode(), hashlib.sha256).hexdigest()
    return f"p-{code[:16]}"


@dataclass(frozen=True, slots=True, repr=False)
class _Intake:
    """The state of taking one site's scans in."""

    folder: Path
    data: Data
    key: bytes
    items: dict[tuple[str, int], Item]
    left_out: list[LeftOut]
    contents: dict[str, int]

    def take(self, found: FoundScan, *, visit: int) -> Item | None:
        """Write one scan and return its entry, or note why it is left out."""
        pseudonym = pseudonym_of(found.subject, key=self.key)
        if (pseudonym, visit) in self.items:
            self._leave(found, "its session has another file already", kind="duplicate")
            return None
        try:
            scan = self._read(found)
        except ScanError as error:
            why = f"{error.what}: {error.why}" if error.why else error.what
            self._leave(found, why, kind="unreadable")
            return None
        name = f"{pseudonym}_v{visit}_{scan.modality}.nii.gz"
        write_nifti(scan, self.folder / name)
        digest = digest_file(self.folder / name)
        if digest in self.contents:
            (self.folder / name).unlink()
            why = f"it is the same image as scan {self.contents[digest]}"
            self._leave(found, why, kind="duplicate")
            return None
        self.contents[digest] = found.number
        ages = self.data.covariates["age_years"]
        item = Item(
            subject=pseudonym,
            visit=visit,
            path=name,
            age_years=(ages.low + ages.high) / 2 if found.age_years is None else found.age_years,
            sex=_SEX_UNKNOWN if found.sex is None else found.sex,
            digest=digest,
        )
        self.items[pseudonym, visit] = item
        return item

    def _read(self, found: FoundScan) -> Scan:
        scan = read_nifti(found.path, label=f"scan {found.number}")
        prepare_scan(scan, self.data)
        return scan

    def _leave(
        self, found: FoundScan, reason: str, *, kind: Literal["unreadable", "duplicate"]
    ) -> None:
        self.left_out.append(LeftOut(number=found.number, reason=reason, kind=kind))


def _visits(found: Sequence[FoundScan]) -> dict[tuple[str, str], int]:
    """Return the rank of each subject's sessions; numbers sort as numbers."""

    def in_time(session: str) -> tuple[int, int, str]:
        return (0, int(session), "") if session.isdecimal() else (1, 0, session)

    visits: dict[tuple[str, str], int] = {}
    for subject in {scan.subject for scan in found}:
        sessions = {scan.session for scan in found if scan.subject == subject}
        for rank, session in enumerate(sorted(sessions, key=in_time)):
            visits[subject, session] = rank
    return visits


def _named_partition(
    found: Sequence[FoundScan], sites: Sequence[str]
) -> dict[str, list[FoundScan]]:
    parted: dict[str, list[FoundScan]] = {site: [] for site in sites}
    home: dict[str, str] = {}
    for scan in found:
        if scan.site not in parted:
            raise CohortError(
                f"scan {scan.number} belongs to no site of the roster",
                why="other scans name theirs by index or folder",
                fix="put every scan into the folder of its site, or name no site at all",
            )
        first = home.setdefault(scan.subject, scan.site)
        if first != scan.site:
            raise CohortError(
                "a subject is in two sites",
                why=f"scan {scan.number} is at {scan.site}, an earlier one at {first}",
                fix="keep all scans of a subject at one site",
            )
        parted[scan.site].append(scan)
    empty = [site for site, scans in parted.items() if not scans]
    if empty:
        raise CohortError(f"site {empty[0]} has no scan", fix="give every site of the roster scans")
    return parted


def _code(key: bytes, subject: str) -> bytes:
    return hmac.new(key, _PARTITION_DOMAIN + subject.encode(), hashlib.sha256).digest()


def _describe(
    path: Path,
    folder: Path,
    *,
    index: Mapping[Path, Mapping[str, str]],
    participants: Mapping[str, Mapping[str, str]],
) -> FoundScan | None:
    """Return what is known of a file, or None when it is no T1-weighted image."""
    stem = re.sub(r"\.nii(\.gz)?$", "", path.name, flags=re.IGNORECASE)
    inside = path.relative_to(folder)
    row = index.get(path.resolve(), {})
    modality = row.get("modality", "")
    if modality:
        if not re.fullmatch(r"(MR-)?T1w?", modality, re.IGNORECASE):
            return None
    elif _NOT_AN_IMAGE.search(stem.lower()) or _OTHER_SUFFIX.search(stem):
        return None
    named = _SUBJECT.search(inside.as_posix())
    subject = row.get("subject") or (f"sub-{named[1]}" if named else stem)
    visited = _SESSION.search(inside.as_posix())
    session = row.get("session") or (visited[1] if visited else "1")
    notes = dict(part.split("=", 1) for part in row.get("notes", "").split(";") if "=" in part)
    tables = (participants.get(subject, {}), notes, row)
    facts = {name: text for table in tables for name, text in table.items() if text}
    return FoundScan(
        path=path,
        number=0,
        subject=subject,
        session=session,
        age_years=_age(facts.get("age", "")),
        sex=_SEX.get((facts.get("sex") or facts.get("gender") or "").strip().lower()),
        site=row.get("site") or (inside.parts[0] if len(inside.parts) > 1 else None),
        is_named=bool(row.get("subject") or named),
    )


def _demand_subjects(found: Sequence[FoundScan]) -> None:
    """Raise CohortError where a file's name alone would merge patients, or split one in two."""
    fix = "list every scan with its subject in index.csv, or give the files BIDS names: sub-01_T1w"
    first: dict[str, FoundScan] = {}
    for scan in found:
        other = first.setdefault(scan.subject, scan)
        if scan.path.parent != other.path.parent and not (scan.is_named and other.is_named):
            raise CohortError(
                f"it is not clear whose scan number {scan.number} is",
                why=f"scan {other.number}, in another folder, has the same file name, "
                "and nothing else tells their subjects",
                fix=fix,
            )
        if not scan.is_named and _SESSION.search(scan.subject):
            raise CohortError(
                f"it is not clear whose scan number {scan.number} is",
                why="its file name tells a session and no subject",
                fix=fix,
            )


def _age(text: str) -> float | None:
    try:
        age_years = float(text)
    except ValueError:
        return None
    return age_years if 0 <= age_years <= 130 else None  # noqa: PLR2004 - NaN fails as well


def _read_index(folder: Path) -> dict[Path, dict[str, str]]:
    rows: dict[Path, dict[str, str]] = {}
    for home in (folder.resolve().parent, folder.resolve()):
        for row in _read_table(home / "index.csv", delimiter=",", needs=("path", "subject")):
            rows[(home / row["path"]).resolve()] = row
    return rows


def _read_participants(folder: Path) -> dict[str, dict[str, str]]:
    rows: dict[str, dict[str, str]] = {}
    for home in (folder.resolve().parent, folder.resolve()):
        table = home / "participants.tsv"
        for row in _read_table(table, delimiter="\t", needs=("participant_id",)):
            name = row["participant_id"]
            rows[name if name.startswith("sub-") else f"sub-{name}"] = row
    return rows


def _read_table(path: Path, *, delimiter: str, needs: tuple[str, ...]) -> list[dict[str, str]]:
    """Return the rows of a table with lower-case keys; none when it is not ours to read."""
    if not path.is_file():
        return []
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            raw = list(csv.DictReader(file, delimiter=delimiter))
    except (OSError, UnicodeDecodeError, csv.Error):
        raise CohortError(
            f"{path.name} beside the scans cannot be read", fix="mend the table or remove it"
        ) from None
    rows = [
        {
            str(key).strip().lower(): value.strip()
            for key, value in row.items()
            if key is not None and isinstance(value, str)
        }
        for row in raw
    ]
    return [row for row in rows if all(row.get(need) for need in needs)]
