"""A Study: one frozen TOML document, a protocol and a roster, each named by its digest.

The protocol says what is done, the roster who takes part, and ``[performance]`` how fast: only
the last may differ between sites, and it enters no digest. A site that joins later changes the
roster alone, so nobody's consent to the protocol is voided.
"""

from __future__ import annotations

import re
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Final, Literal, Self

from pydantic import AfterValidator, Field, StringConstraints, ValidationError, model_validator

from vitrael.core.configs import (
    BrainLDMConfig,
    Positive,
    ReidEncoderConfig,
    Section,
    SystemConfig,
)
from vitrael.core.digest import Digest, digest_json
from vitrael.core.errors import StudyError
from vitrael.core.rounds import Federation

_NAME_PATTERN: Final = r"^[a-z][a-z0-9-]{0,47}$"
Name = Annotated[str, StringConstraints(pattern=_NAME_PATTERN)]
"""Lower-case letters, digits and hyphens; names of studies and sites."""

COVARIATES = ("age_years", "sex", "ventricle_ml", "brain_ml")
"""What the brain generator is asked for, in the order of its condition vector."""

_KINDS: Final = ("brain_ldm", "reid_encoder")
"""Of systems; a study holds each once."""


class _DisagreementError(StudyError, ValueError):  # a ValueError, which pydantic collects
    """Parts of a section do not agree; ``key``, below the section, is the one to correct."""

    def __init__(self, key: str, why: str) -> None:
        super().__init__(why)
        self.key = key


class CovariateRange(Section):
    """The closed range that is mapped to [0, 1] for the condition vector."""

    low: float
    high: float

    @model_validator(mode="after")
    def _ordered(self) -> Self:
        if not self.low < self.high:
            msg = "low must be below high"
            raise ValueError(msg)
        return self


def parse_digest(value: str) -> Digest:
    """Return a digest in its written form; raise ValueError for anything else."""
    if not re.fullmatch(r"sha256:[0-9a-f]{64}", value):
        msg = "it is not written like a digest, sha256: and 64 digits"
        raise ValueError(msg)
    return Digest(value)


def _license(value: str) -> str:
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9.+-]*", value):
        msg = "it is not written like an SPDX name, such as CC-BY-4.0"
        raise ValueError(msg)
    return value


class Splits(Section):
    """Fractions of a site's patients: T training, F filter, C calibration, A audit, U utility."""

    training_frac: float = Field(gt=0, lt=1)
    filter_frac: float = Field(gt=0, lt=1)
    calibration_frac: float = Field(gt=0, lt=1)
    audit_frac: float = Field(gt=0, lt=1)
    utility_frac: float = Field(gt=0, lt=1)

    @model_validator(mode="after")
    def _sum_to_one(self) -> Self:
        total = sum(getattr(self, name) for name in type(self).model_fields)
        if abs(total - 1) > 1e-9:  # noqa: PLR2004 - rounding of decimal fractions
            msg = f"the five fractions add up to {total:.4g}, not 1"
            raise ValueError(msg)
        return self


class Data(Section):
    """What every site brings its scans to before anything else."""

    recipe: Literal["brain-t1"]
    grid_vox: tuple[Positive, Positive, Positive] = Field(description="D, H, W after the recipe")
    spacing_mm: float = Field(gt=0, description="isotropic")
    covariates: dict[Literal["age_years", "sex", "ventricle_ml", "brain_ml"], CovariateRange]
    splits: Splits

    @model_validator(mode="after")
    def _all_covariates(self) -> Self:
        if missing := set(COVARIATES) - set(self.covariates):
            msg = f"ranges are missing for {', '.join(sorted(missing))}"
            raise ValueError(msg)
        return self


class Distillation(Section):
    """Generate, screen, retrain: how many candidates go down and how many samples come out."""

    candidates: int = Field(ge=8, description="teacher samples sent to the sites")
    released: int = Field(ge=1, description="student samples in the synthetic set")


class Screening(Section):
    """How a site judges candidates; the operating point is frozen before any is seen."""

    enabled: bool = True
    false_match_rate: float = Field(
        default=0.05, gt=0, lt=0.5, description="share of held-out patients that would be dropped"
    )


class Audit(Section):
    """How much evidence is gathered on the student's samples."""

    plants_per_class: int = Field(default=60, ge=1, description="over all sites together")
    confidence: float = Field(default=0.95, gt=0.5, lt=1)


class Protocol(Section):
    """What is done: everything that a site consents to, except who else takes part."""

    name: Name
    version: int = Field(default=1, ge=1, strict=True)
    purpose: str = Field(min_length=1)
    path: Literal["dp", "empirical"]
    policy: Literal["rehearsal", "public"]
    license: Annotated[str, AfterValidator(_license)] = Field(
        description="SPDX name of the licence of a release, if any"
    )
    seed: int = Field(ge=0)
    data: Data
    systems: tuple[SystemConfig, ...]
    federation: Federation
    distillation: Distillation
    screening: Screening = Screening()
    audit: Audit = Audit()

    @model_validator(mode="after")
    def _systems_complete(self) -> Self:
        kinds = [system.kind for system in self.systems]
        for kind in _KINDS:
            if kinds.count(kind) != 1:
                raise _DisagreementError("systems", f"systems must hold exactly one of kind {kind}")
        generator = self.generator
        if generator.dimensions != len(self.data.grid_vox):
            raise _DisagreementError("systems", "the scans of a study have 3 dimensions")
        if generator.codec.perceptual_weight and generator.codec.perceptual == "medicalnet":
            why = 'a study carries no weights of medicalnet; perceptual must be "gradients"'
            raise _DisagreementError("systems", why)
        levels = max(len(generator.teacher.channels), len(generator.student.channels))
        divisor = generator.codec.downsampling << (levels - 1)
        if any(size % divisor for size in self.data.grid_vox):
            raise _DisagreementError("data.grid_vox", f"every axis must be a multiple of {divisor}")
        critic = generator.codec.critic
        if critic is not None and min(self.data.grid_vox) < critic.least_vox:
            why = f"a critic of {critic.layers} layers needs edges of at least {critic.least_vox}"
            raise _DisagreementError("systems", f"{why} voxels")
        return self

    @property
    def generator(self) -> BrainLDMConfig:
        """The generative system."""
        return next(s for s in self.systems if isinstance(s, BrainLDMConfig))

    @property
    def reid(self) -> ReidEncoderConfig:
        """The re-identification encoder."""
        return next(s for s in self.systems if isinstance(s, ReidEncoderConfig))

    @property
    def digest(self) -> Digest:
        """Name of the protocol by its content."""
        return digest_json(self.model_dump(mode="json"))


class Roster(Section):
    """Who takes part, by name; keys are bound to the names when the study opens."""

    sites: tuple[Name, ...] = Field(min_length=1)
    predecessor: Annotated[Digest, AfterValidator(parse_digest)] | None = Field(
        default=None,
        description="digest of the earlier roster, with its keys, whose finished rounds are kept",
    )

    @model_validator(mode="after")
    def _distinct(self) -> Self:
        twice = sorted({site for site in self.sites if self.sites.count(site) > 1})
        if twice:
            msg = f"two sites have the name {twice[0]}"
            raise ValueError(msg)
        return self


class Performance(Section):
    """Knobs that cannot change what is computed beyond rounding; a site may set its own."""

    device: Literal["cpu", "cuda"] = "cpu"
    threads: int = Field(default=1, ge=1, description="torch threads of a site")
    coordinator_threads: int = Field(default=1, ge=1, description="torch threads of the server")
    bf16: Literal["auto", "off"] = Field(
        default="auto", description="bfloat16 autocast where it is faster than float32"
    )
    vram_frac: float | None = Field(
        default=None, gt=0, le=1, description="most of a GPU's memory for this process; None: all"
    )


class Study(Section):
    """The whole document."""

    protocol: Protocol
    roster: Roster
    performance: Performance = Performance()

    @model_validator(mode="after")
    def _quorum_reachable(self) -> Self:
        if self.protocol.federation.quorum > len(self.roster.sites):
            key = "protocol.federation.quorum"
            raise _DisagreementError(key, "the quorum is larger than the number of sites")
        return self

    @property
    def digest(self) -> Digest:
        """Name of the study: of its protocol, the names on its roster, and what that amends."""
        earlier = [] if self.roster.predecessor is None else [self.roster.predecessor]
        return digest_json([self.protocol.digest, list(self.roster.sites), *earlier])


def load_study(path: Path) -> Study:
    """Return the study of a TOML file.

    Raises StudyError that names file, key and remedy. The ``dp`` path is refused until it exists.
    """
    try:
        data = path.read_bytes()
    except OSError as error:
        raise StudyError(
            f"study {path} cannot be read", why=error.strerror or "", fix="check the path"
        ) from error
    return parse_study(data, label=str(path))


def parse_study(data: bytes, *, label: str) -> Study:
    """Return the study that a TOML document holds; raise StudyError, which calls it ``label``."""
    try:
        document = tomllib.loads(data.decode())
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise StudyError(
            f"study {label} is not TOML", why=str(error), fix="mend the line that is named"
        ) from error
    try:
        study = Study.model_validate(document)
    except ValidationError as error:
        key, why, fix = explain_fault(error)
        raise StudyError(f"study {label}: {key}", why=why, fix=fix) from error
    if study.protocol.path == "dp":
        raise StudyError(
            f'study {label}: protocol.path "dp" is not built yet',
            why="no differentially private training exists in this version",
            fix='set protocol.path = "empirical"',
        )
    return study


def explain_fault(error: ValidationError) -> tuple[str, str, str]:
    """Return which key of a document is wrong, why, and what to do; never a value of it.

    What stands in a list is told by its number, counted from 1.
    """
    errors = error.errors(include_url=False, include_input=False)
    # A key that is misspelled is unknown, and often the right one is then missing: tell the cause.
    first = next((e for e in errors if e["type"] == "extra_forbidden"), errors[0])
    key = _key(first) or "the document"
    others = {_key(fault) for fault in errors} - {_key(first)}
    more = f" (and {len(others)} more)" if others else ""
    why, fix = _explain(first, key=key)
    return f"{key}{more}", why, fix


def _explain(fault: Mapping[str, Any], *, key: str) -> tuple[str, str]:
    """Return why and remedy in words for who writes studies; pydantic's are for programmers."""
    kind, context = fault["type"], fault.get("ctx", {})
    choices = str(context.get("expected", "")).replace("'", '"')
    if fault["loc"][-1:] == ("[key]",):
        return "the key is unknown", f"remove {key} or spell it {choices}"
    if kind == "string_pattern_mismatch" and context.get("pattern") != _NAME_PATTERN:
        return "it is not written as it must be", f"write {key} as the documentation shows"
    if kind == "missing" and isinstance(fault["loc"][-1], int):
        kind = "too_few"
    if kind in _NOUNS:
        return f"it is not {_NOUNS[kind]}", f"set {key} to {_NOUNS[kind]}"
    if kind in _REMEDIES:
        why, fix = _REMEDIES[kind]
        return why, fix.format(**{**context, "key": key, "choices": choices})
    return re.sub(r"^Value error, ", "", fault["msg"]).rstrip("."), f"correct {key}"


_NOUNS: Final = {
    **dict.fromkeys(("int_type", "int_parsing", "int_from_float"), "a whole number"),
    **dict.fromkeys(("float_type", "float_parsing"), "a number"),
    "finite_number": "a finite number",
    **dict.fromkeys(("bool_type", "bool_parsing"), "true or false"),
    "string_type": "a text in quotes",
    "tuple_type": "a list",
    **dict.fromkeys(("dict_type", "model_type", "model_attributes_type"), "a table"),
}
"""Pydantic's name of an error -> what the value should have been."""

_REMEDIES: Final = {
    "extra_forbidden": ("the key is unknown", "remove {key} or correct its spelling"),
    "union_tag_not_found": ("the key is missing", f"set {{key}} to one of {', '.join(_KINDS)}"),
    "union_tag_invalid": ("the kind is unknown", f"set {{key}} to one of {', '.join(_KINDS)}"),
    "literal_error": ("that choice does not exist", "set {key} to {choices}"),
    "missing": ("the key is missing", "add {key}"),
    "greater_than": ("the number is too small", "set {key} to more than {gt:g}"),
    "greater_than_equal": ("the number is too small", "set {key} to {ge:g} or more"),
    "less_than": ("the number is too large", "set {key} to less than {lt:g}"),
    "less_than_equal": ("the number is too large", "set {key} to {le:g} or less"),
    "too_short": ("too little stands in the list", "give {key} at least {min_length}"),
    "too_few": ("numbers are missing", "give {key} three numbers"),  # of a grid, the only such list
    "too_long": ("too much stands in the list", "give {key} {max_length} and no more"),
    "string_too_short": ("the text is empty", "write something for {key}"),
    "string_pattern_mismatch": (
        "it is no name as studies have them",
        "write {key} in lower-case letters, digits and hyphens, a letter first, at most 48 of them",
    ),
}
"""Pydantic's name of an error -> why, and what to do with its key and limits."""


def _key(fault: Mapping[str, Any]) -> str:  # as pydantic tells an error
    """Return the key as the document spells it: pydantic puts a system's kind into its path."""
    path = [part for part in fault["loc"] if part != "[key]"]
    if fault["type"] == "missing" and path and isinstance(path[-1], int):
        path.pop()  # a list that is too short is at fault, not what it lacks
    parts: list[str] = []
    for index, part in enumerate(path):
        if isinstance(part, int) and parts:
            parts[-1] += f" (number {part + 1})"
        elif not (part in _KINDS and index and isinstance(path[index - 1], int)):
            parts.append(str(part))
    cause = fault.get("ctx", {}).get("error")
    if isinstance(cause, _DisagreementError):
        parts.append(cause.key)
    elif fault["type"].startswith("union_tag"):
        parts.append("kind")
    return ".".join(parts)
