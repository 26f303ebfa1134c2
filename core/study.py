"""A Study: one frozen TOML document, a protocol and a roster, each named by its digest.

The protocol (``core.protocols``) says what is done, the roster who takes part, and
``[performance]`` how fast: only the last may differ between sites, and it enters no digest. A site
that joins later changes the roster alone, so nobody's consent to the protocol is voided.
"""

from __future__ import annotations

import re
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Final, Literal, Self

from pydantic import AfterValidator, Field, ValidationError, model_validator

from vitrael.core.configs import Section
from vitrael.core.digest import Digest, digest_json
from vitrael.core.errors import StudyError
from vitrael.core.protocols import (
    KINDS,
    NAME_PATTERN,
    DisagreementError,
    ExpertsProtocol,
    Name,
    Protocol,
    SynthesisProtocol,
    ViewName,
    parse_digest,
)


class Roster(Section):
    """Who takes part, by name; keys are bound to the names when the study opens."""

    sites: tuple[Name, ...] = Field(min_length=1)
    predecessor: Annotated[Digest, AfterValidator(parse_digest)] | None = Field(
        default=None,
        description="digest of the earlier roster, with its keys, whose finished rounds are kept",
    )
    labels: dict[Name, dict[ViewName, ViewName]] = Field(
        default_factory=dict,
        description="site -> its own word for a view -> the protocol's, where they differ",
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
            raise DisagreementError(key, "the quorum is larger than the number of sites")
        return self

    @model_validator(mode="after")
    def _labels_mapped(self) -> Self:
        labels = self.roster.labels
        if isinstance(self.protocol, ExpertsProtocol) and "fusion" in self.roster.sites:
            why = "no site can be called fusion, as what is made of the experts"
            raise DisagreementError("roster.sites", why)
        if strangers := sorted(set(labels) - set(self.roster.sites)):
            raise DisagreementError("roster.labels", f"{strangers[0]} is not on the roster")
        views = self.protocol.data.views if isinstance(self.protocol, ExpertsProtocol) else ()
        for site, words in labels.items():
            if unknown := sorted(set(words.values()) - set(views)):
                why = f"{unknown[0]} is no view of protocol.data.views"
                raise DisagreementError(f"roster.labels.{site}", why)
        return self

    @property
    def synthesis(self) -> SynthesisProtocol:
        """The protocol of a synthetic set; StudyError where the study is of experts."""
        if isinstance(self.protocol, SynthesisProtocol):
            return self.protocol
        raise StudyError(
            f"the study {self.protocol.name} makes no synthetic set",
            why="it trains experts of views",
            fix="give a study that has no aim, or that of synthesis",
        )

    @property
    def experts(self) -> ExpertsProtocol:
        """The protocol of experts; StudyError where the study is of a synthetic set."""
        if isinstance(self.protocol, ExpertsProtocol):
            return self.protocol
        raise StudyError(
            f"the study {self.protocol.name} trains no experts",
            why="it makes a synthetic set",
            fix='give a study with protocol.aim = "experts"',
        )

    @property
    def digest(self) -> Digest:
        """Name of the study: of its protocol, of who takes part, and of what that amends."""
        earlier = [] if self.roster.predecessor is None else [self.roster.predecessor]
        words = [self.roster.labels] if self.roster.labels else []
        return digest_json([self.protocol.digest, list(self.roster.sites), *earlier, *words])


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
    if kind == "string_pattern_mismatch" and context.get("pattern") != NAME_PATTERN:
        return "it is not written as it must be", f"write {key} as the documentation shows"
    if kind == "missing" and isinstance(fault["loc"][-1], int):
        kind = "too_few"
    if kind in _NOUNS:
        return f"it is not {_NOUNS[kind]}", f"set {key} to {_NOUNS[kind]}"
    if kind in _REMEDIES:
        why, fix = _REMEDIES[kind]
        words = {"key": key, "choices": choices, "tags": _tags(fault["loc"])}
        return why, fix.format(**{**context, **words, "numbers": _NUMBERS.get(key, "four")})
    return re.sub(r"^Value error, ", "", fault["msg"]).rstrip("."), f"correct {key}"


def _tags(place: tuple[str | int, ...]) -> str:
    """Return what a kind may be at a place of the document, or the aims."""
    aim = str(place[1]) if len(place) > 1 else ""
    return ", ".join(KINDS.get(aim, tuple(KINDS)))


_NUMBERS: Final = {"protocol.data.grid_vox": "three"}
"""How many stand in a list of so many; of the stages of a view expert there are four."""

_SYSTEMS: Final = frozenset(kind for kinds in KINDS.values() for kind in kinds)

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
    "union_tag_not_found": ("the key is missing", "set {key} to one of {tags}"),
    "union_tag_invalid": ("the kind is unknown", "set {key} to one of {tags}"),
    "literal_error": ("that choice does not exist", "set {key} to {choices}"),
    "missing": ("the key is missing", "add {key}"),
    "greater_than": ("the number is too small", "set {key} to more than {gt:g}"),
    "greater_than_equal": ("the number is too small", "set {key} to {ge:g} or more"),
    "less_than": ("the number is too large", "set {key} to less than {lt:g}"),
    "less_than_equal": ("the number is too large", "set {key} to {le:g} or less"),
    "too_short": ("too little stands in the list", "give {key} at least {min_length}"),
    "too_few": ("numbers are missing", "give {key} {numbers} numbers"),
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
    if path[:1] == ["protocol"] and path[1:2] in ([aim] for aim in KINDS):
        del path[1]
    if fault["type"] == "missing" and path and isinstance(path[-1], int):
        path.pop()  # a list that is too short is at fault, not what it lacks
    parts: list[str] = []
    for index, part in enumerate(path):
        if isinstance(part, int) and parts:
            parts[-1] += f" (number {part + 1})"
        elif not (part in _SYSTEMS and index and isinstance(path[index - 1], int)):
            parts.append(str(part))
    cause = fault.get("ctx", {}).get("error")
    if isinstance(cause, DisagreementError):
        parts.append(cause.key)
    elif fault["type"].startswith("union_tag"):
        parts.append("aim" if parts == ["protocol"] else "kind")
    return ".".join(parts)
