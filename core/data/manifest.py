"""The manifest of a Cohort: pseudonyms, visits, covariates, and the shard of every item.

It lies beside the shards and never leaves the site. Errors name an entry by its place in the list.
"""

from __future__ import annotations

import hashlib
import hmac
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Literal, Self

import numpy as np
from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    StringConstraints,
    ValidationError,
    field_validator,
    model_validator,
)

from vitrael.core.data.cache import make_private_folder, shard_name
from vitrael.core.data.recipes import RecipeSettings
from vitrael.core.digest import Digest, canonical_json, digest_json, write_atomically
from vitrael.core.errors import CohortError, ScanError, storage_error
from vitrael.core.geometry import check_affine

MANIFEST_NAME = "manifest.json"

_FACTS = ConfigDict(
    frozen=True, extra="forbid", hide_input_in_errors=True, allow_inf_nan=False, strict=True
)
_PSEUDONYM_DOMAIN = b"vitrael/pseudonym/1\0"

Pseudonym = Annotated[str, StringConstraints(pattern=r"^[a-z0-9][a-z0-9-]{0,63}$")]
Word = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9][A-Za-z0-9 _.+-]{0,63}$")]
"""A label or the name of a covariate: no text that a person typed freely."""

_Rows = tuple[tuple[float, float, float, float], ...]

COVARIATE_BOUNDS: Mapping[str, tuple[float, float]] = {
    "age_years": (0, 130),
    "sex": (0, 1),
    "ventricle_ml": (0, 2000),
    "brain_ml": (0, 5000),
    "lesion_ml": (0, 2000),
    "ef_frac": (0, 1),
    "esv_ml": (0, 2000),
    "edv_ml": (0, 2000),
}
"""Every covariate that an item may have, with the values that are possible."""


def pseudonym_of(subject: str, *, key: bytes) -> str:
    """Return a subject's name at one site: ``p-`` and 16 hexadecimal digits of a keyed hash."""
    code = hmac.new(key, _PSEUDONYM_DOMAIN + subject.encode(), hashlib.sha256).hexdigest()
    return f"p-{code[:16]}"


class Item(BaseModel):
    """One prepared image, clip or set of contrasts of one visit of one patient."""

    model_config = _FACTS

    subject: Pseudonym
    visit: int = Field(ge=0)
    """Rank of the visit in time, from 0."""
    part: int = Field(default=0, ge=0)
    """Which of several images of one visit."""
    shard: str = Field(pattern=r"^[0-9a-f]{2}/[0-9a-f]{64}\.safetensors$")
    """Below the cohort's folder of shards; named by its content."""
    digest: Digest
    """Of the shard's bytes."""
    affine: _Rows = Field(min_length=4, max_length=4, strict=False)
    """Index to world, see ``recipes.Prepared``."""
    unit: Literal["mm", "px"] = "mm"
    frame_s: float | None = Field(default=None, gt=0)
    days: int | None = None
    """Since the patient's first visit; None where no date is known."""
    covariates: Mapping[str, float] = Field(default_factory=dict)
    """Those of ``COVARIATE_BOUNDS`` that are known; sex is 0 female, 1 male."""
    labels: Mapping[Word, Word] = Field(default_factory=dict)
    """Such as ``view`` or ``finding``, as the site's table gives them."""

    @field_validator("digest")
    @classmethod
    def _sha256(cls, digest: Digest) -> Digest:
        name, _, code = digest.partition(":")
        if name != "sha256" or len(code) != 64 or set(code) - set("0123456789abcdef"):  # noqa: PLR2004
            msg = "it must be sha256: and 64 hexadecimal digits"
            raise ValueError(msg)
        return digest

    @field_validator("covariates")
    @classmethod
    def _possible(cls, covariates: Mapping[str, float]) -> Mapping[str, float]:
        for name, value in covariates.items():
            if name not in COVARIATE_BOUNDS:
                msg = "a covariate is unknown"
                raise ValueError(msg)
            low, high = COVARIATE_BOUNDS[name]
            if not low <= value <= high:
                msg = f"{name} is not between {low:g} and {high:g}"
                raise ValueError(msg)
        return covariates

    @field_validator("affine")
    @classmethod
    def _invertible(cls, affine: _Rows) -> _Rows:
        try:
            check_affine(np.array(affine))
        except ScanError:
            msg = "it is no map from index to world"
            raise ValueError(msg) from None
        return affine

    @model_validator(mode="after")
    def _named_by_content(self) -> Self:
        if self.shard != shard_name(self.digest):
            msg = "the shard is not named by its digest"
            raise ValueError(msg)
        return self

    def __repr__(self) -> str:
        """Show nothing of a patient."""
        return "Item(private)"

    __str__ = __repr__


class Manifest(BaseModel):
    """All items of a cohort at one version; no item and no shard comes twice."""

    model_config = _FACTS

    format: Literal["vitrael/manifest/2"] = "vitrael/manifest/2"
    version: int = Field(default=1, ge=1)
    """Counts up with every change of the content."""
    recipe: RecipeSettings
    items: tuple[Item, ...] = Field(default=(), strict=False)
    withdrawn: int = Field(default=0, ge=0)
    """How many patients were taken out so far."""

    @property
    def digest(self) -> Digest:
        """Name of the cohort's version by its content: recipe and items, not how they came in."""
        document = self.model_dump(mode="json", include={"recipe", "items"})
        return digest_json(document)

    @model_validator(mode="after")
    def _distinct(self) -> Self:
        seen: dict[tuple[str, object], int] = {}
        for index, item in enumerate(self.items):
            keys = (
                ("patient, visit and part", (item.subject, item.visit, item.part)),
                ("content", item.digest),
            )
            for kind, value in keys:
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

    Raises CohortError when it is missing or no JSON, when an entry is incomplete or impossible,
    and when a patient, visit and part, or a content comes twice. No value is told.
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
    except (ValueError, RecursionError):  # a wrong encoding, wrong JSON, absurdly deep JSON
        raise CohortError(
            "the manifest of the scans is not JSON", fix="take the scans in again"
        ) from None
    try:
        return Manifest.model_validate_json(json.dumps(document))
    except ValidationError as error:
        # The cause is dropped on purpose: its text could repeat what the file holds.
        raise _explain(error) from None


def write_manifest(manifest: Manifest, path: Path) -> None:
    """Write a manifest for its owner's eyes alone, atomically and in canonical JSON.

    Raises StorageError when the disk refuses.
    """
    try:
        make_private_folder(path.parent)
        write_atomically(path, canonical_json(manifest.model_dump(mode="json")))
    except OSError as error:
        raise storage_error("the manifest of the scans", error) from None


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
