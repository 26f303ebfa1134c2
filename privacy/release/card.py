"""What is written about a release for its readers: the card, and the metadata that tools expect.

BIDS 1.10 (``dataset_description.json``, ``participants.json``), Citation File Format 1.2, and
Croissant 1.0 (``croissant.json``). Everything here is a pure function of the contents.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from datetime import date
from typing import Any, Final

from vitrael.core.protocols import COVARIATES
from vitrael.core.study import Study
from vitrael.privacy.evidence import Evidence, Measurement
from vitrael.privacy.gates import Verdict
from vitrael.privacy.release.manifest import FileEntry, Reference

NOT_FOR_PUBLICATION: Final = "REHEARSAL: NOT FOR PUBLICATION"
BIDS_VERSION: Final = "1.10.0"

_UNITS: Final = {
    "age_years": ("age", "years"),
    "sex": ("sex, from 0 female to 1 male", "1"),
    "ventricle_ml": ("volume of the ventricles", "mL"),
    "brain_ml": ("volume of the brain", "mL"),
}

DRAWN: Final = (
    "Every image was drawn by a generator; the bounds of the audit say how likely one is a copy "
    "of a real scan."
)
"""What may be said of every release: that none is a copy is bounded, and not proven."""

_SCREENED: Final = "were judged at every site against the site's own scans"
_UNSCREENED: Final = "were **not screened**, as the study asks"

_CARD = """# {title}

{mark}{count} synthetic {modality} brain volumes. **{drawn}**

## What is synthetic
Every image and every value in `participants.tsv`. The columns `asked_...` hold what the generator
was asked for, `measured_...` what was then measured on its image; the two differ.

## How it was made
{purpose}

{sites} sites trained together without sharing a scan. A teacher learned from their scans; its
candidates {screening}; a student learned from the
kept candidates alone, and only its samples are here, judged like the candidates. Intensities lie
between 0 and 1 on a grid of {grid} voxels of {spacing:g} mm. The path is `{path}`: the set was
audited, and no differential privacy is claimed.

## What it is not valid for
- Diagnosis, treatment, or any statement about a patient.
- Prevalence, rare findings or subgroups: the sites' patients are not a sample of any population.
- Anatomy below the voxel size, lesions and implants: nothing taught the generator to draw them.
- A claim that no one can be re-identified: the evidence below bounds measured attacks, no others.

## Evidence
Verdict under the policy `{policy}`: **{outcome}**. {reason}.

| measurement | value | interval | n | method |
|---|---|---|---|---|
{evidence}

## Who stands behind it
{participation}

Verify with `vitrael verify DIR --trust FILE`, where FILE holds the keys that you trust, or with
`python verify_release.py DIR FILE`, which needs only the package `cryptography`.

License: {license}. Protocol `{protocol}`.
"""


def write_card(
    reference: Reference,
    *,
    study: Study,
    evidence: Evidence,
    verdict: Verdict,
    participation: Mapping[str, Any],  # any JSON object
    count: int,
    modality: str,
    publishable: bool,
) -> str:
    """Return ``card.md``."""
    protocol = study.synthesis
    enabled = protocol.screening.enabled
    return _CARD.format(
        title=f"{reference.name}, version {reference.version}",
        mark="" if publishable else f"**{NOT_FOR_PUBLICATION}**\n\n",
        count=count,
        drawn=DRAWN,
        modality=modality,
        purpose=protocol.purpose,
        sites=len(study.roster.sites),
        grid=" x ".join(map(str, protocol.data.grid_vox)),
        spacing=protocol.data.spacing_mm,
        path=protocol.path,
        screening=_SCREENED if enabled else _UNSCREENED,
        policy=verdict.policy,
        outcome=verdict.outcome,
        reason=verdict.reason,
        evidence="\n".join(map(_evidence_row, evidence.measurements)),
        participation=_participation_lines(participation, study.roster.sites),
        license=protocol.license,
        protocol=protocol.digest,
    )


def describe_bids(title: str, *, license_id: str, code_version: str) -> dict[str, Any]:
    """Return ``dataset_description.json``, a file name and form that BIDS fixes."""
    return {
        "Name": title,
        "BIDSVersion": BIDS_VERSION,
        "DatasetType": "raw",
        "License": license_id,
        "GeneratedBy": [
            {"Name": "vitrael", "Version": code_version, "Description": "Synthetic images"}
        ],
        "HowToAcknowledge": "See CITATION.cff",
    }


def describe_columns(measured: Sequence[str]) -> dict[str, Any]:
    """Return ``participants.json``: the columns of ``participants.tsv`` with their units."""
    columns: dict[str, Any] = {
        "participant_id": {"Description": "synthetic subject; not a person"},
        "sample_index": {"Description": "row of the sample in the request to the generator"},
        "seed": {"Description": "seed of the request"},
        "generator": {"Description": "SHA-256 of the generator's weights"},
    }
    for kind, names in (("asked", COVARIATES), ("measured", measured)):
        for name in names:
            what, unit = _UNITS.get(name, (name, "see the name"))
            columns[f"{kind}_{name}"] = {"Description": f"{what}, {kind}", "Units": unit}
    return columns


def cite(title: str, *, version: int, license_id: str, released: date | None) -> str:
    """Return ``CITATION.cff``; strings are JSON, which is YAML."""
    lines = {
        "cff-version": "1.2.0",
        "message": "If you use this synthetic set, cite it with its version.",
        "type": "dataset",
        "title": title,
        "version": str(version),
        "license": license_id,
    }
    if released is not None:
        lines["date-released"] = released.isoformat()
    text = "".join(f"{key}: {json.dumps(value)}\n" for key, value in lines.items())
    return text + 'authors:\n  - name: "The sites of the study and its coordinator"\n'


def describe_croissant(
    reference: Reference,
    files: Mapping[str, FileEntry],
    *,
    description: str,
    license_id: str,
    released: date | None,
) -> dict[str, Any]:
    """Return ``croissant.json``: every file with its SHA-256, and the table of subjects."""
    distribution = [
        {
            "@type": "cr:FileObject",
            "@id": path,
            "name": path,
            "contentUrl": path,
            "contentSize": f"{entry.size_bytes} B",
            "encodingFormat": _encoding(path),
            "sha256": entry.digest.removeprefix("sha256:"),
        }
        for path, entry in sorted(files.items())
    ]
    document = {
        "@context": _CROISSANT_CONTEXT,
        "@type": "sc:Dataset",
        "conformsTo": "http://mlcommons.org/croissant/1.0",
        "name": reference.name,
        "version": f"{reference.version}.0.0",
        "description": description,
        "license": license_id,
        "creator": {"@type": "sc:Organization", "name": "The sites of the study"},
        "citeAs": "See CITATION.cff",
        "distribution": distribution,
        "recordSet": [_subjects()],
    }
    return document if released is None else {**document, "datePublished": released.isoformat()}


def _subjects() -> dict[str, Any]:
    types = {"participant_id": "sc:Text"} | {f"asked_{name}": "sc:Float" for name in COVARIATES}
    return {
        "@type": "cr:RecordSet",
        "@id": "subjects",
        "name": "subjects",
        "field": [
            {
                "@type": "cr:Field",
                "@id": f"subjects/{column}",
                "name": column,
                "dataType": kind,
                "source": {
                    "fileObject": {"@id": "participants.tsv"},
                    "extract": {"column": column},
                },
            }
            for column, kind in types.items()
        ],
    }


def _encoding(path: str) -> str:
    kinds = {
        ".gz": "application/gzip",
        ".json": "application/json",
        ".tsv": "text/tab-separated-values",
        ".md": "text/markdown",
        ".html": "text/html",
        ".toml": "application/toml",
    }
    return next((kind for end, kind in kinds.items() if path.endswith(end)), "text/plain")


def _evidence_row(measurement: Measurement) -> str:
    if measurement.value is None:
        return f"| {measurement.name} | not estimable: {measurement.reason} | | | |"
    low = "" if measurement.low is None else f"{measurement.low:.4g}"
    high = "" if measurement.high is None else f"{measurement.high:.4g}"
    count = f"{measurement.n} {measurement.unit}".rstrip()
    interval = f"[{low}, {high}]" if low or high else ""
    cells = (measurement.name, f"{measurement.value:.4g}", interval, count, measurement.method)
    return f"| {' | '.join(cells)} |"


def _participation_lines(participation: Mapping[str, Any], sites: Sequence[str]) -> str:
    stages = participation.get("stages")
    lines = [f"Sites on the roster: {', '.join(sites)}."]
    if isinstance(stages, Mapping):
        lines += [f"- {name}: {', '.join(map(str, took))}" for name, took in sorted(stages.items())]
    for what, joint in (("absent", "absent from"), ("outliers", "far from the others in")):
        told = participation.get(what)
        for name, sites_told in sorted(told.items()) if isinstance(told, Mapping) else ():
            named = ", ".join(f"{site} ({why})" for site, why in sites_told.items())
            lines.append(f"- {joint} {name}: {named}")
    return "\n".join(lines)


_CROISSANT_CONTEXT: Final[dict[str, Any]] = {
    "@language": "en",
    "@vocab": "https://schema.org/",
    "citeAs": "cr:citeAs",
    "column": "cr:column",
    "conformsTo": "dct:conformsTo",
    "cr": "http://mlcommons.org/croissant/",
    "rai": "http://mlcommons.org/croissant/RAI/",
    "data": {"@id": "cr:data", "@type": "@json"},
    "dataType": {"@id": "cr:dataType", "@type": "@vocab"},
    "dct": "http://purl.org/dc/terms/",
    "examples": {"@id": "cr:examples", "@type": "@json"},
    "extract": "cr:extract",
    "field": "cr:field",
    "fileProperty": "cr:fileProperty",
    "fileObject": "cr:fileObject",
    "fileSet": "cr:fileSet",
    "format": "cr:format",
    "includes": "cr:includes",
    "isLiveDataset": "cr:isLiveDataset",
    "jsonPath": "cr:jsonPath",
    "key": "cr:key",
    "md5": "cr:md5",
    "parentField": "cr:parentField",
    "path": "cr:path",
    "recordSet": "cr:recordSet",
    "references": "cr:references",
    "regex": "cr:regex",
    "repeated": "cr:repeated",
    "replace": "cr:replace",
    "sc": "https://schema.org/",
    "separator": "cr:separator",
    "source": "cr:source",
    "subField": "cr:subField",
    "transform": "cr:transform",
}
