"""DICOM files of any name: headers read in parallel, grouped into series, chosen for the recipe.

A header is read once. What is kept of it, in memory and in the index, holds keyed codes instead
of identifiers, and dates that are shifted for each patient.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import timedelta
from pathlib import Path
from typing import Any

from vitrael.client.site.ingest.index import Index
from vitrael.client.site.ingest.places import code_of
from vitrael.client.site.ingest.pool import Lost, Pool
from vitrael.client.site.ingest.reasons import clause
from vitrael.core.data.dicom.instance import (
    Instance,
    from_record,
    is_dicom,
    read_instance,
    to_record,
)
from vitrael.core.data.dicom.pixels import digest_pixels
from vitrael.core.data.dicom.read import volume_grid
from vitrael.core.data.dicom.series import ONE_SLICE, SeriesPlan, group_series
from vitrael.core.data.manifest import pseudonym_of
from vitrael.core.data.recipes import Recipe
from vitrael.core.data.sources import LeftOut, Source
from vitrael.core.data.walk import FoundFile
from vitrael.core.errors import ScanError
from vitrael.core.geometry import spacing_mm
from vitrael.privacy.deidentify import date_shift_days

NOT_DICOM = "it is no image that is known here"
NO_IMAGE = "the file is no image: it is another kind of DICOM object"
NO_PATIENT = "the header names no patient"
UNREADABLE = "it cannot be opened"
EMPTY = "the file is empty"
ZEROS = "it begins with nothing but zeros, as what is left of a copy that failed"
LOCALIZER = "it is a localizer"
COPY = "it is an exact copy of a slice or clip that is taken"
_PREAMBLE_BYTES = 128
_CHUNK = 64
_MOST_ALONE = 16
"""Slices of one patient that stand alone; more are a volume whose files were torn apart."""
_SEX = {"F": 0.0, "M": 1.0}
_MODALITIES: Mapping[str, frozenset[str]] = {
    "brain-t1": frozenset({"MR"}),
    "brain-lesion": frozenset({"MR"}),
    "echo-apical": frozenset({"US"}),
    "xray-2d": frozenset({"CR", "DX", "MG", "RF", "XA"}),
}
"""Of each recipe that does not take any."""

Header = dict[str, Any]
"""What is kept of a file: ``instance`` and ``subject``, or ``fault``."""
_PASSES = "passes"
"""Marks a fault that another try may not have; it is not kept."""

Plans = Mapping[str, SeriesPlan]
"""How the series of a source are read, by the roles of its images."""


@dataclass(frozen=True, slots=True, repr=False)
class HeaderJob:
    """Some files whose headers are to be read."""

    files: tuple[tuple[str, Path], ...]
    """Code and path of each."""
    key: bytes


@dataclass(slots=True, repr=False)
class DicomFound:
    """What the DICOM files of a folder make."""

    sources: list[tuple[Source, Plans]] = field(default_factory=list)
    left_out: list[LeftOut] = field(default_factory=list)


def find_dicom(
    files: Mapping[str, FoundFile],
    recipe: Recipe,
    *,
    key: bytes,
    index: Index | None,
    withdrawn: frozenset[str],
    workers: int,
    tell: Any,  # noqa: ANN401 - see pipeline.Progress
) -> DicomFound:
    """Return the series that fit a recipe, and every other file with its reason.

    ``files`` are known by their codes. With an index, those of the size and time that it knows are
    not read again; of patients that were withdrawn it gets nothing.
    """
    keeper = None if index is None else _Keeper(index, files, withdrawn)
    headers = _read_headers(files, key=key, keeper=keeper, workers=workers, tell=tell)
    found = DicomFound()
    instances: list[Instance] = []
    paths: list[Path] = []
    for code, file in files.items():
        kept = headers[code]
        if isinstance(kept, str):
            expected = kept in {NOT_DICOM, NO_IMAGE}
            found.left_out.append(LeftOut((file.path,), kept, expected=expected))
            continue
        instances.append(kept)
        paths.append(file.path)

    def content(place: int) -> str:
        return digest_pixels(paths[place], instances[place].stored)

    plans = group_series(instances, content=content)
    for plan in plans:
        copies = tuple(paths[place] for place in plan.copies)
        if copies:
            found.left_out.append(LeftOut(copies, COPY, expected=True))
    fitting = _choose(plans, paths, recipe, found)
    for chosen in _visits(fitting, paths, recipe, found):
        found.sources.append((_source(chosen, paths), chosen))
    return found


def read_headers(job: HeaderJob) -> list[tuple[str, Header]]:
    """Return what is kept of each file's header, by the file's code; runs in a worker."""
    return [(code, _read_header(path, key=job.key)) for code, path in job.files]


def _read_header(path: Path, *, key: bytes) -> Header:
    try:
        return _facts_of(path, key=key)
    except ScanError as error:
        return {"fault": clause(error)}
    except (OSError, MemoryError):
        return {"fault": UNREADABLE, _PASSES: True}
    except Exception as error:  # noqa: BLE001 - one bad file among thousands
        return {"fault": f"the header cannot be read: unexpected {type(error).__name__}"}


def _facts_of(path: Path, *, key: bytes) -> Header:
    with path.open("rb") as file:  # raises where is_dicom would only say no
        start = file.read(_PREAMBLE_BYTES)
    if not start:
        raise ScanError(EMPTY)
    if not is_dicom(path):
        return {"fault": NOT_DICOM if any(start) else ZEROS}
    instance, identity = read_instance(path, code=lambda text: code_of("uid", text, key=key))
    if not identity.subject:
        raise ScanError(NO_PATIENT)
    subject = pseudonym_of(identity.subject, key=key)
    shift = timedelta(days=date_shift_days(identity.subject, key=key))
    taken = None if instance.taken is None else instance.taken + shift
    return {
        "instance": to_record(replace(instance, patient=subject, taken=taken)),
        "subject": subject,
    }


@dataclass(frozen=True, slots=True, repr=False)
class _Keeper:
    """What the index knows of the files, and may."""

    index: Index
    files: Mapping[str, FoundFile]
    withdrawn: frozenset[str]

    def find(self) -> Iterator[tuple[str, Header]]:
        """Yield the headers of files that are as they were."""
        for code, size, mtime_ns, header in self.index.find_headers(list(self.files)):
            if (size, mtime_ns) == (self.files[code].size_bytes, self.files[code].mtime_ns):
                yield code, header

    def save(self, headers: Iterable[tuple[str, Header]]) -> None:
        """Keep headers, but none that another try may read, and none of who was withdrawn."""
        self.index.save_headers(
            {
                "file": code,
                "size": self.files[code].size_bytes,
                "mtime_ns": self.files[code].mtime_ns,
                "header": header,
            }
            for code, header in headers
            if _PASSES not in header and header.get("subject") not in self.withdrawn
        )


def _read_headers(
    files: Mapping[str, FoundFile],
    *,
    key: bytes,
    keeper: _Keeper | None,
    workers: int,
    tell: Any,  # noqa: ANN401 - as above
) -> dict[str, Instance | str]:
    """Return the facts of each file or its fault, by its code; a record takes thrice the memory."""
    headers = {} if keeper is None else {code: _compact(each) for code, each in keeper.find()}
    todo = [(code, file.path) for code, file in files.items() if code not in headers]
    for some in _read_anew(todo, key=key, workers=workers):
        if keeper is not None:
            keeper.save(some)
        headers.update((code, _compact(header)) for code, header in some)
        tell("reading DICOM headers", len(headers), len(files))
    return headers


def _compact(header: Header) -> Instance | str:
    return header.get("fault") or from_record(header["instance"])


def _read_anew(
    todo: Sequence[tuple[str, Path]], *, key: bytes, workers: int
) -> Iterator[list[tuple[str, Header]]]:
    """Yield headers by the codes of their files; where a process was lost, file by file."""
    chunks = [tuple(todo[at : at + _CHUNK]) for at in range(0, len(todo), _CHUNK)]
    alone: list[tuple[str, Path]] = []
    for files, result in _run(chunks, key=key, workers=workers):
        if isinstance(result, Lost):
            alone += files
        else:
            yield result
    for ((code, _),), result in _run([(one,) for one in alone], key=key, workers=workers):
        if isinstance(result, Lost):
            yield [(code, {"fault": result.why, _PASSES: True})]
        else:
            yield result


def _run(
    chunks: Sequence[tuple[tuple[str, Path], ...]], *, key: bytes, workers: int
) -> Iterator[tuple[tuple[tuple[str, Path], ...], list[tuple[str, Header]] | Lost]]:
    pool: Pool[HeaderJob, list[tuple[str, Header]]] = Pool(
        read_headers, processes=min(workers, len(chunks))
    )
    for job, result in pool.run(HeaderJob(files, key) for files in chunks):
        yield job.files, result


def _choose(
    plans: Sequence[SeriesPlan], paths: Sequence[Path], recipe: Recipe, found: DicomFound
) -> list[SeriesPlan]:
    """Return the plans that fit a recipe; note why each of the others does not."""
    chosen = []
    alone = Counter(plan.instances[0].patient for plan in plans if plan.fault == ONE_SLICE)
    for plan in plans:
        files = tuple(paths[place] for place in plan.indices)
        first = plan.instances[0]
        if reason := _other_kind(first, plan, recipe):
            found.left_out.append(LeftOut(files, reason, expected=True))
        elif recipe.takes not in plan.kinds:
            # Every study has localizers or stills: they are told, and nothing is missing.
            is_alone = len(files) == 1 and first.stored.frames == 1
            are_many = plan.fault == ONE_SLICE and alone[first.patient] > _MOST_ALONE
            expected = plan.fault == LOCALIZER or (is_alone and not are_many)
            reason = plan.fault or f"it is a single image, not a {recipe.takes}"
            found.left_out.append(LeftOut(files, reason, expected=expected))
        elif recipe.takes == "volume" and first.contrast is None:
            reason = "its header does not tell whether it is T1, T2 or FLAIR"
            found.left_out.append(LeftOut(files, reason))
        else:
            chosen.append(plan)
    return chosen


def _visits(
    plans: Sequence[SeriesPlan], paths: Sequence[Path], recipe: Recipe, found: DicomFound
) -> Iterator[Plans]:
    """Yield what makes one item: a series each, or all contrasts of a visit together."""
    if len(recipe.images) == 1:
        yield from ({_role(plan, recipe): plan} for plan in plans)
        return
    visits: dict[tuple[str, str], dict[str, SeriesPlan]] = {}
    for plan in sorted(plans, key=_rank):
        first = plan.instances[0]
        visit = visits.setdefault((first.patient, first.dicom_study), {})
        role = _role(plan, recipe)
        if role in visit:
            files = tuple(paths[place] for place in plan.indices)
            found.left_out.append(LeftOut(files, f"its visit has another {role}", expected=True))
        else:
            visit[role] = plan
    for visit in visits.values():
        missing = [role for role in recipe.images if role not in visit]
        if missing:
            files = tuple(paths[i] for plan in visit.values() for i in plan.indices)
            found.left_out.append(LeftOut(files, f"the visit lacks {missing[0]}"))
        else:
            yield visit


def _rank(plan: SeriesPlan) -> tuple[bool, float]:
    """Return what sorts the best of a visit's volumes first: made by the scanner, then fine."""
    is_derived = "ORIGINAL" not in plan.instances[0].places[0].image_type
    if "volume" not in plan.kinds:
        return is_derived, 0.0
    return is_derived, round(max(spacing_mm(volume_grid(plan)[1])), 2)


def _role(plan: SeriesPlan, recipe: Recipe) -> str:
    return str(plan.instances[0].contrast) if recipe.takes == "volume" else "image"


def _other_kind(first: Instance, plan: SeriesPlan, recipe: Recipe) -> str:
    """Return why a series is none that the recipe is for, or nothing."""
    wanted = _MODALITIES.get(recipe.settings.name)
    if wanted is not None and first.modality not in wanted:
        return f"it is {first.modality}, and the recipe takes {' or '.join(sorted(wanted))}"
    if recipe.takes == "volume":
        if first.contrast is not None and first.contrast not in recipe.images:
            return f"its contrast is {first.contrast}"
        return "a contrast agent was given" if first.agent else ""
    if recipe.takes == "picture" and (len(plan.indices) > 1 or first.stored.frames > 1):
        return "it is a series, and the recipe takes single images"
    return ""


def _source(plans: Plans, paths: Sequence[Path]) -> Source:
    plan = next(iter(plans.values()))
    first = plan.instances[0]
    is_derived, coarsest_mm = _rank(plan)
    covariates: dict[str, float] = {}
    if first.age_years is not None:
        covariates["age_years"] = first.age_years
    if first.sex is not None:
        covariates["sex"] = _SEX[first.sex]
    return Source(
        kind="dicom",
        subject=first.patient,
        session=first.dicom_study,
        part=f"{is_derived:d} {coarsest_mm:.2f} {first.sop}",  # a visit's first is taken
        images={role: tuple(paths[i] for i in plan.indices) for role, plan in plans.items()},
        taken=first.taken,
        covariates=covariates,
    )
