"""The bundle: one folder that holds a release, whole or not at all.

::

    sub-syn0001/anat/sub-syn0001_T1w.nii.gz ...   the images, laid out as in BIDS
    participants.tsv  participants.json           asked and measured, sample by sample
    dataset_description.json  .bidsignore         what BIDS tools expect
    card.md  CITATION.cff  croissant.json  report.html
    study.toml  evidence.json  verdict.json  participation.json
    manifest.json                                 every file above with digest and size
    signatures/<site>.dsse.json                   added by the sites

Equal contents give equal bytes, and so one manifest digest.
"""

from __future__ import annotations

import csv
import io
import json
import math
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import date
from pathlib import Path
from typing import Any, Final

from vitrael.core.data.nifti import encode_nifti
from vitrael.core.data.synthetic import SyntheticSet
from vitrael.core.digest import Digest, digest_file
from vitrael.core.errors import StorageError
from vitrael.core.protocols import COVARIATES
from vitrael.core.study import Study
from vitrael.privacy.evidence import Evidence
from vitrael.privacy.gates import Verdict
from vitrael.privacy.release import card
from vitrael.privacy.release.manifest import (
    MANIFEST,
    FileEntry,
    Manifest,
    Reference,
    image_path,
    subject_name,
)

_NOT_BIDS: Final = (
    "card.md",
    "croissant.json",
    "evidence.json",
    "manifest.json",
    "participation.json",
    "RECALLED.json",
    "report.html",
    "signatures/",
    "study.toml",
    "verdict.json",
)


@dataclass(frozen=True, slots=True)
class Contents:
    """All that goes into a bundle; nothing of it is private."""

    reference: Reference
    samples: SyntheticSet
    study: Study
    study_toml: bytes
    roster: Digest
    """Digest of the sites' names and keys, from ``privacy.keys.roster_digest``."""
    evidence: Evidence
    verdict: Verdict
    participation: Mapping[str, Any]
    """A JSON object; ``stages`` in it maps each stage to the sites that took part."""
    code_version: str
    released: date | None = None
    report_html: bytes | None = None


def write_bundle(contents: Contents, folder: Path) -> Manifest:
    """Write a bundle without signatures and return its manifest.

    ``folder`` appears whole or not at all. When it is there already with the same manifest, nothing
    is done; with another one, StorageError.
    """
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent, prefix=f".{folder.name}-") as name:
        workshop = Path(name) / "bundle"
        workshop.mkdir()
        manifest = _fill(workshop, contents)
        if folder.exists():
            _demand_same(folder, manifest)
        else:
            workshop.rename(folder)
    return manifest


def image_files(samples: SyntheticSet) -> dict[str, bytes]:
    """Return every image file of the release by its path: what is audited is what is released."""
    return {
        path: encode_nifti(scan, dtype="int16", compressed=True)
        for path, scan in zip(_image_paths(samples), samples.scans(), strict=True)
    }


def _fill(folder: Path, contents: Contents) -> Manifest:
    for path, data in image_files(contents.samples).items():
        target = folder / path
        target.parent.mkdir(parents=True)
        target.write_bytes(data)
    for path, data in _documents(contents).items():
        (folder / path).write_bytes(data)
    (folder / "croissant.json").write_bytes(_croissant(contents, _entries(folder)))
    manifest = Manifest(
        name=contents.reference.name,
        version=contents.reference.version,
        protocol=contents.study.protocol.digest,
        roster=contents.roster,
        policy=contents.verdict.policy,
        publishable=contents.verdict.publishable,
        files=_entries(folder),
    )
    (folder / MANIFEST).write_bytes(manifest.to_bytes())
    for item in folder.rglob("*"):
        item.chmod(0o755 if item.is_dir() else 0o644)  # public, whatever the umask
    return manifest


def _documents(contents: Contents) -> dict[str, bytes]:
    title = _title(contents)
    text = card.write_card(
        contents.reference,
        study=contents.study,
        evidence=contents.evidence,
        verdict=contents.verdict,
        participation=contents.participation,
        count=len(contents.samples),
        modality=contents.samples.modality,
        publishable=contents.verdict.publishable,
    )
    bids = card.describe_bids(
        title, license_id=contents.study.synthesis.license, code_version=contents.code_version
    )
    citation = card.cite(
        title,
        version=contents.reference.version,
        license_id=contents.study.synthesis.license,
        released=contents.released,
    )
    documents = {
        ".bidsignore": "".join(f"{path}\n" for path in _NOT_BIDS).encode(),
        "CITATION.cff": citation.encode(),
        "card.md": text.encode(),
        "dataset_description.json": _json(bids),
        "evidence.json": _json(contents.evidence.model_dump(mode="json")),
        "participants.json": _json(card.describe_columns(sorted(contents.samples.measured))),
        "participants.tsv": _participants(contents.samples).encode(),
        "participation.json": _json(dict(contents.participation)),
        "study.toml": contents.study_toml,
        "verdict.json": _json(contents.verdict.model_dump(mode="json")),
    }
    if contents.report_html is not None:
        documents["report.html"] = contents.report_html
    return documents


def _croissant(contents: Contents, files: Mapping[str, FileEntry]) -> bytes:
    return _json(
        card.describe_croissant(
            contents.reference,
            files,
            description=f"{_title(contents)}. {card.DRAWN}",
            license_id=contents.study.synthesis.license,
            released=contents.released,
        )
    )


def _title(contents: Contents) -> str:
    mark = "" if contents.verdict.publishable else f" ({card.NOT_FOR_PUBLICATION})"
    return f"{contents.reference.name}: synthetic {contents.samples.modality} brain volumes{mark}"


def _image_paths(samples: SyntheticSet) -> Iterator[str]:
    for number in range(1, len(samples) + 1):
        yield image_path(number, samples.modality)


def _participants(samples: SyntheticSet) -> str:
    measured = sorted(samples.measured)
    text = io.StringIO()
    table = csv.writer(text, delimiter="\t", lineterminator="\n")
    asked = [f"asked_{name}" for name in COVARIATES]
    found = [f"measured_{name}" for name in measured]
    table.writerow(["participant_id", "sample_index", "seed", "generator", *asked, *found])
    for row, origin in enumerate(samples.provenance):
        values = [*origin.condition, *(float(samples.measured[name][row]) for name in measured)]
        cells = [f"{value:.6g}" if math.isfinite(value) else "n/a" for value in values]
        table.writerow([subject_name(row + 1), origin.index, origin.seed, origin.generator, *cells])
    return text.getvalue()


def _entries(folder: Path) -> dict[str, FileEntry]:
    return {
        path.relative_to(folder).as_posix(): FileEntry(
            digest=digest_file(path), size_bytes=path.stat().st_size
        )
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def _json(document: Mapping[str, Any]) -> bytes:
    text = json.dumps(document, sort_keys=True, indent=1, ensure_ascii=False, allow_nan=False)
    return text.encode() + b"\n"


def _demand_same(folder: Path, manifest: Manifest) -> None:
    try:
        same = (folder / MANIFEST).read_bytes() == manifest.to_bytes()
    except OSError:
        same = False
    if not same:
        raise StorageError(
            f"{folder} holds something else already",
            why="a release is never written over",
            fix="choose another folder, or a new version",
        )
