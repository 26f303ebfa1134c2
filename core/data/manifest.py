"""The manifest of a site's scans: pseudonyms, visits, covariates and digests, as one JSON file.

It lies beside the scans and never leaves the site. Errors name an entry by its place in the list.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    StringConstraints,
    ValidationError,
    field_validator,
    model_validator,
)

from vitrael.core.digest import Digest, canonical_json, write_atomically
from vitrael.core.errors import CohortError

MANIFEST_NAME = "manifest.json"

_FACTS = ConfigDict(
    frozen=True, extra="forbid", hide_input_in_errors=True, allow_inf_nan=False, strict=True
)

Pseudonym = Annotated[str, StringConstraints(pattern=r"^[a-z0-9][a-z0-9-]{0,63}$")]


class Item(BaseModel):
    """One scan of one patient."""

    model_config = _FACTS

    subject: Pseudonym
    visit: int = Field(ge=0)
    path: str = Field(min_length=1)
    """Relative to the manifest's folder, with forward slashes."""
    age_years: float = Field(ge=0, le=130)
    sex: float = Field(ge=0, le=1)
    """0 female, 1 male, 0.5 unknown."""
    ventricle_ml: float | None = Field(default=None, ge=0)
    """None: to be measured on the prepared image."""
    brain_ml: float | None = Field(default=None, ge=0)
    digest: Digest
    """Of the file's bytes."""

    @field_validator("path")
    @classmethod
    def _inside(cls, path: str) -> str:
        parts = path.split("/")
        if path.startswith("/") or "\\" in path or "\0" in path or {"", ".", ".."} & set(parts):
            msg = "it must be a relative path that stays in the folder"
            raise ValueError(msg)
        return path

    @field_validator("digest")
    @classmethod
    def _sha256(cls, digest: Digest) -> Digest:
        name, _, code = digest.partition(":")
        if name != "sha256" or len(code) != 64 or set(code) - set("0123456789abcdef"):  # noqa: PLR2004
            msg = "it must be sha256: and 64 hexadecimal digits"
            raise ValueError(msg)
        return digest

    def __repr__(self) -> str:
        """Show nothing of a patient."""
        return "Item(private)"

    __str__ = __repr__


class Manifest(BaseModel):
    """All scans of a site; one entry for each patient and visit, no file twice."""

    model_config = _FACTS

    format: Literal["vitrael/manifest/1"] = "vitrael/manifest/1"
    items: tuple[Item, ...] = Field(min_length=1, strict=False)
    assumed: Mapping[Literal["age_years", "sex"], int] = Field(default_factory=dict)
    """How many entries hold a declared default because the source did not say."""

    @model_validator(mode="after")
    def _distinct(self) -> Self:
        seen: dict[tuple[str, object], int] = {}
        for index, item in enumerate(self.items):
            keys = {
                ("patient and visit", (item.subject, item.visit)),
                ("path", item.path),
                ("file content", item.digest),
            }
            for kind, value in sorted(keys, key=lambda key: key[0]):
                first = seen.setdefault((kind, value), index)
                if first != index:
                    msg = f"entries {first} and {index} have the same {kind}"
                    raise ValueError(msg)
        return self

    def __repr__(self) -> str:
        """Show nothing of a patient, not even how many there are."""
        return "Manifest(private)"

    __str__ = __repr__


def read_manifest(path: Path) -> Manifest:
    """Return the manifest of a file.

    Raises CohortError when it is missing or no JSON, when a covariate is missing or impossible,
    and when a patient and visit, a path or a file's content comes twice. No value is told.
    """
    try:
        text = path.read_text(encoding="utf-8")
        document = json.loads(text)
    except OSError:
        raise CohortError(
            "the manifest of the scans cannot be read",
            why=f"there is no readable {MANIFEST_NAME}",
            fix="take the scans in again",
        ) from None
    except ValueError:  # both a wrong encoding and wrong JSON
        raise CohortError(
            "the manifest of the scans is not JSON", fix="take the scans in again"
        ) from None
    try:
        return Manifest.model_validate_json(json.dumps(document))
    except ValidationError as error:
        # The cause is dropped on purpose: its text could repeat what the file holds.
        raise _explain(error) from None


def write_manifest(manifest: Manifest, path: Path) -> None:
    """Write a manifest, atomically and in canonical JSON."""
    write_atomically(path, canonical_json(manifest.model_dump(mode="json")))


def _explain(error: ValidationError) -> CohortError:
    first = error.errors(include_url=False, include_input=False, include_context=False)[0]
    known = {*Item.model_fields, *Manifest.model_fields}
    place = [part for part in first["loc"] if isinstance(part, int) or part in known]
    where = " ".join("entry" if part == "items" else str(part) for part in place)
    why = {"missing": "it is missing", "extra_forbidden": "a key is unknown"}.get(
        first["type"], first["msg"].removeprefix("Value error, ")
    )
    return CohortError(
        f"the manifest of the scans is wrong at {where}" if where else "the manifest is wrong",
        why=why,
        fix="correct the entry or take the scans in again",
    )
