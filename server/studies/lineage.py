"""What was made with a site's scans: from the ledger's stages to teacher, student and release.

A site is *used* by a stage that it answered with work on its scans; which version of its cohort
that was stands in its answer, or else in the consent under which it was given. What a stage makes
is affected when it used the site, or comes of something that did. A stage of which this page knows
nothing comes of everything before it: it is rather listed too often than missed.
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Literal

from vitrael.core.digest import Digest
from vitrael.core.errors import ConfigError, StorageError, UsageError
from vitrael.core.study import load_study
from vitrael.privacy.release.catalogue import CATALOGUE, Catalogue, parse_catalogue
from vitrael.privacy.release.manifest import Reference, parse_reference
from vitrael.server.db.engine import open_database
from vitrael.server.objects import ObjectStore
from vitrael.server.studies.ledger import Ledger, StageRecord

COMES_OF: Final[Mapping[str, tuple[str, ...]]] = {
    "consent": (),
    "canary": (),
    "codec": (),
    "latents": ("codec",),
    "reid": ("latents",),
    "calibration": ("latents", "reid"),
    "teacher": ("latents",),
    "candidates": ("latents", "teacher"),
    "screening": ("calibration", "candidates"),
    "student": ("latents", "candidates", "screening"),
    "samples": ("latents", "student"),
    "rescreening": ("calibration", "samples"),
    "synthesis": ("samples", "rescreening"),
    "audit": ("latents", "synthesis", "screening", "rescreening"),
    "random student": ("latents", "candidates", "screening"),
    "arm samples": ("latents", "teacher", "student", "random student"),
    "arms": ("latents", "calibration", "arm samples"),
    "gates": ("calibration", "screening", "rescreening", "synthesis", "audit", "arms"),
    "bundle": ("synthesis", "gates"),
    "signing": ("bundle",),
    "publication": ("bundle",),
    "expert": (),
    "outlooks": ("expert",),
    "fusion": ("expert", "outlooks"),
    "averaged": (),
    "relay": (),
    "comparison": ("fusion", "averaged", "relay"),
    "panel": ("expert", "fusion"),
}
"""For each stage those that it takes something from; a round also comes of the rounds before."""

_NO_SCANS: Final = frozenset({"consent", "canary", "signing"})
"""What a site answers to these goes into nothing that is made."""
_MAKES: Final[Mapping[str, tuple[str, str]]] = {
    "codec": ("codec", "codec"),
    "latents": ("codec", "codec"),
    "reid": ("patient encoder", "encoder"),
    "calibration": ("filter", ""),
    "teacher": ("teacher", "denoiser"),
    "candidates": ("candidates", "images"),
    "student": ("student", "denoiser"),
    "samples": ("samples", "images"),
    "random student": ("student", "denoiser"),
    "arm samples": ("samples", "images"),
    "synthesis": ("samples", "samples"),
    "bundle": ("release", "manifest"),
    "fusion": ("fusion", "fusion"),
    "averaged": ("common network", "common"),
    "relay": ("common network", "common"),
    "panel": ("panel", "panel"),
}
"""Stage to what it makes, and the key of its document that names it; "": the document itself."""

ReleaseState = Literal["published", "recalled", "unpublished"]


@dataclass(frozen=True, slots=True)
class Made:
    """One thing that was made with a site's scans, directly or not."""

    kind: str
    """``codec``, ``patient encoder``, ``filter``, ``teacher``, ``candidates``, ``student``,
    ``samples``, ``release``; or ``expert``, ``fusion``, ``common network``, ``panel``."""
    study: str
    """``name@version``, or empty where no document here tells it any more."""
    protocol: Digest
    roster: Digest | Literal[""]
    """Empty for what was made before rosters were written down."""
    stage: str
    round: int
    digest: Digest
    state: str
    """Of a release its ReleaseState; of all else ``recalled`` with its release, else ``kept``."""
    directly: bool
    """Whether the site's own answer is in it, and not only something that came of one."""
    key: Digest
    """Of the stage: by it MLflow knows the run."""


@dataclass(frozen=True, slots=True)
class Lineage:
    """What is affected, and of a site all that is known of its versions."""

    made: tuple[Made, ...]
    versions: tuple[Digest, ...]
    """The versions of the site's cohort that any stage used."""

    @property
    def to_recall(self) -> tuple[Reference, ...]:
        """Return the published releases that are affected and not recalled yet."""
        names = [m.study for m in self.made if (m.kind, m.state) == ("release", "published")]
        return tuple(parse_reference(name) for name in dict.fromkeys(names))


@dataclass(frozen=True, slots=True)
class _Course:
    """What was finished of one protocol with one roster."""

    records: tuple[StageRecord, ...]
    documents: Mapping[int, Mapping[str, Any]]
    """By the record's id; empty for one that is damaged or gone."""
    versions: Mapping[tuple[int, str], Digest]
    """Record and site to the version of the site's cohort that was used."""


def trace_site(home: Path, site: str, *, cohort_version: Digest | None = None) -> Lineage:
    """Return what the ledger of a home says was made with a site, or with one version of its scans.

    An answer whose version is not known counts for every version. Raises UsageError for a folder
    that holds no ledger.
    """
    if not (home / "server.sqlite").is_file():
        raise UsageError(
            f"{home} is no home of a coordinator",
            why="it holds no server.sqlite",
            fix="name the coordinator's home with --home",
        )
    courses = _read_courses(home)
    catalogue, names = _read_catalogue(home), _read_names(home)
    made: list[Made] = []
    versions: list[Digest] = []
    for course in courses:
        used = [(r, course.versions.get((r.id, site))) for r in _used(course.records, site)]
        versions += [version for _, version in used if version is not None]
        direct = {r.id for r, v in used if cohort_version is None or v in (None, cohort_version)}
        began = _begun_with(course, site, cohort_version=cohort_version)
        study, manifest = _release_of(course, names)
        state = _state_of(catalogue, study, manifest=manifest)
        for record in _affected(course.records, direct | began):
            for kind, digest in _describe(record, course.documents[record.id], site):
                told: str = state if kind == "release" or state == "recalled" else "kept"
                made.append(
                    Made(
                        kind=kind,
                        study=study,
                        protocol=record.key.protocol,
                        roster=record.details.get("roster", ""),
                        stage=record.key.stage,
                        round=record.key.round,
                        digest=digest,
                        state=told,
                        directly=record.id in direct,
                        key=record.key.digest,
                    )
                )
    return Lineage(tuple(made), tuple(dict.fromkeys(versions)))


def stages_of_release(home: Path, manifest: Digest) -> tuple[StageRecord, ...]:
    """Return the finished stages of the study and roster whose bundle has this manifest."""
    for course in _read_courses(home):
        made = (course.documents[r.id].get("manifest") for r in course.records)
        if manifest in made:
            return course.records
    return ()


def parse_version(text: str) -> Digest:
    """Return the digest that names a cohort's version; UsageError for any other text."""
    if not re.fullmatch(r"sha256:[0-9a-f]{64}", text):
        raise UsageError(
            f"{text!r} names no version of a cohort",
            why="it must be sha256: and 64 hexadecimal digits",
            fix="take it from what `vitrael site withdraw` said, or leave it out",
        )
    return Digest(text)


def _used(records: Iterable[StageRecord], site: str) -> list[StageRecord]:
    return [r for r in records if site in r.participants and r.key.stage not in _NO_SCANS]


def _begun_with(course: _Course, site: str, *, cohort_version: Digest | None) -> set[int]:
    """Return the records of experts that began with a site's weights, which may itself be gone."""
    return {
        record.id
        for record in course.records
        if (document := course.documents[record.id])
        and record.key.stage == "expert"
        and _descendants(document, site)
        and (
            document.get("first") != site
            or cohort_version in (None, document.get("first_cohort") or cohort_version)
        )
    }


def _descendants(document: Mapping[str, Any], site: str) -> list[str]:
    """Return whose experts began with that of a site, or with one that did."""
    start: Mapping[str, str] = document.get("start", {})
    if document.get("first") == site:
        return [one for one in document["experts"] if one != site]
    found = [site]
    for one in found:
        found += [
            later for later, with_whom in start.items() if with_whom == one and later not in found
        ]
    return [one for one in found[1:] if one in document["experts"]]


def _affected(records: Iterable[StageRecord], direct: set[int]) -> list[StageRecord]:
    """Return the records that used the site or come of one that did, in the order of the stages."""
    order = {stage: place for place, stage in enumerate(COMES_OF)}
    last = len(order)
    found: list[StageRecord] = []
    stages: set[str] = set()
    for record in sorted(records, key=lambda r: (order.get(r.key.stage, last), r.key.round, r.id)):
        sources = COMES_OF.get(record.key.stage)
        comes_of = stages if sources is None else stages.intersection({*sources, record.key.stage})
        if record.id in direct or comes_of:
            found.append(record)
            stages.add(record.key.stage)
    return found


def _describe(
    record: StageRecord, document: Mapping[str, Any], site: str
) -> list[tuple[str, Digest]]:
    """Return what a stage made with a site, and its digest; nothing for one that only judges.

    Of experts the site made its own alone, unless the others began with its weights.
    """
    stage = record.key.stage
    if record.output is None:
        return []
    if stage == "expert" and document:
        experts = document["experts"]
        own = [experts.get(one) for one in (site, *_descendants(document, site))]
        return [("expert", Digest(each["weights"])) for each in own if each]
    if stage in COMES_OF and stage not in {*_MAKES, "expert"}:
        return []
    kind, key = _MAKES.get(stage, (stage, ""))
    return [(kind, Digest(str(document.get(key) or record.output)))]


def _read_courses(home: Path) -> list[_Course]:
    ledger, objects = Ledger(open_database(home / "server.sqlite")), ObjectStore(home / "objects")
    courses = []
    for protocol in ledger.protocols():
        finished = [r for r in ledger.history(protocol) if r.status == "finished"]
        documents = {r.id: _read_document(objects, r.output) for r in finished}
        rosters = {str(r.details.get("roster", "")) for r in finished}
        versions = _find_versions(finished, documents)
        for roster in sorted(rosters):
            own = tuple(r for r in finished if r.details.get("roster", "") == roster)
            courses.append(_Course(own, documents, versions))
    return courses


def _read_document(objects: ObjectStore, output: Digest | None) -> Mapping[str, Any]:
    """Return a stage's document; what is damaged tells nothing, and counts for everything."""
    with contextlib.suppress(StorageError):
        found = objects.get_json(output) if output else {}
        return found if isinstance(found, dict) else {}
    return {}


def _find_versions(
    records: Iterable[StageRecord], documents: Mapping[int, Mapping[str, Any]]
) -> dict[tuple[int, str], Digest]:
    """Return which version each answer used: as the answer says, or as the consent in force said.

    Work that was kept from an earlier roster was given under the consents of that one.
    """
    every = list(records)
    consents: dict[str, Mapping[str, Any]] = {}
    for record in every:
        if record.key.stage == "consent":
            given = documents[record.id].get("consents", {})
            consents[str(record.details.get("roster", ""))] = given
    versions: dict[tuple[int, str], Digest] = {}
    for record in every:
        given = consents.get(_worked_with(record, every), {})
        answers: Mapping[str, Any] = record.details.get("answers", {})
        for site in record.participants:
            expert = documents[record.id].get("experts", {}).get(site, {})
            kept = expert.get("cohort") if isinstance(expert, dict) else None
            told = answers.get(site, {}).get("cohort") or kept or _consented(given.get(site, {}))
            if told:
                versions[record.id, site] = Digest(str(told))
    return versions


def _consented(consent: Mapping[str, Any]) -> object:
    cohort = consent.get("cohort")
    return cohort.get("digest") if isinstance(cohort, dict) else None


def _worked_with(record: StageRecord, records: Iterable[StageRecord]) -> str:
    """Return the roster under which a record's work was really done."""
    seen = set()
    while (earlier := record.details.get("kept_from")) and record.id not in seen:
        seen.add(record.id)
        same = (record.key.stage, record.key.round, record.output, earlier)
        record = next(
            (
                r
                for r in records
                if (r.key.stage, r.key.round, r.output, r.details.get("roster")) == same
            ),
            record,
        )
    return str(record.details.get("kept_from") or record.details.get("roster", ""))


def _release_of(course: _Course, names: Mapping[Digest, str]) -> tuple[str, str]:
    """Return ``name@version`` and the manifest's digest; each empty where nothing tells it."""
    for record in course.records:
        if record.key.stage == "bundle" and (document := course.documents[record.id]):
            return str(document["release"]), str(document["manifest"])
    return names.get(course.records[0].key.protocol, ""), ""


def _read_names(home: Path) -> dict[Digest, str]:
    names = {}
    for path in (*sorted(home.glob("studies/*/study.toml")), home / "study.toml"):
        with contextlib.suppress(ConfigError):  # it names nothing; whoever runs it is told
            protocol = load_study(path).protocol
            names[protocol.digest] = f"{protocol.name}@{protocol.version}"
    return names


def _read_catalogue(home: Path) -> Catalogue:
    path = home / "catalogue" / CATALOGUE
    try:
        return parse_catalogue(path.read_bytes())
    except FileNotFoundError:
        return Catalogue(releases={})
    except (OSError, ValueError) as error:
        raise StorageError(
            "the catalogue cannot be read",
            why="catalogue.json is damaged",
            fix="publish or recall a release: it is then written again from what is published",
        ) from error


def _state_of(catalogue: Catalogue, study: str, *, manifest: str) -> ReleaseState:
    entry = catalogue.find(parse_reference(study)) if study else None
    if entry is None or manifest not in {"", entry.manifest}:
        return "unpublished"
    return "recalled" if entry.recalled else "published"
