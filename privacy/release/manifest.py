"""The manifest of a release: its name, what it was made under, and every file by digest.

The bytes of ``manifest.json`` are the canonical form of their content, so that one content has one
digest and one reading. The manifest lists every file of the release except itself, the signatures
over it, and a recall.
"""

from __future__ import annotations

import json
import re
from typing import Annotated, Final, Literal, NamedTuple, Self

from pydantic import AfterValidator, Field, StrictBool, StrictInt, ValidationError, model_validator

from vitrael.core.configs import Section
from vitrael.core.digest import Digest, digest_bytes
from vitrael.core.errors import UsageError, VerificationError
from vitrael.core.messages import DigestField
from vitrael.core.protocols import Name

MANIFEST: Final = "manifest.json"
RECALLED: Final = "RECALLED.json"
SIGNATURES: Final = "signatures"
REQUIRED: Final = ("evidence.json", "study.toml", "verdict.json")
"""A release without its study, its Evidence and its Verdict is none."""
SIGNED_AS_BYTES: Final = (MANIFEST, *REQUIRED)
"""The files that a site reads before it signs; it knows the others by their digests."""
DOCUMENTS: Final = frozenset(
    {
        *REQUIRED,
        ".bidsignore",
        "CITATION.cff",
        "card.md",
        "croissant.json",
        "dataset_description.json",
        "participants.json",
        "participants.tsv",
        "participation.json",
        "report.html",
    }
)
"""What a release of images holds beside them; a site signs no manifest that names anything else."""

MAX_MANIFEST_BYTES: Final = 64 << 20
MAX_STATEMENT_BYTES: Final = 64 << 10
MAX_PATH_CHARS: Final = 200

_SEGMENT = re.compile(r"\.?[A-Za-z0-9][A-Za-z0-9._-]*", re.ASCII)
_IMAGE = re.compile(r"(sub-syn[0-9]{4,})/anat/\1_[A-Za-z0-9]+\.nii\.gz", re.ASCII)
_REFERENCE = re.compile(r"([a-z][a-z0-9-]{0,47})@([1-9][0-9]{0,8})", re.ASCII)


class Reference(NamedTuple):
    """A release by name and version, written ``brain-demo@1``."""

    name: str
    version: int

    def __str__(self) -> str:
        """Return ``name@version``."""
        return f"{self.name}@{self.version}"


def parse_reference(text: str) -> Reference:
    """Return the release that ``NAME@VERSION`` names; raise UsageError for any other text."""
    match = _REFERENCE.fullmatch(text)
    if match is None:
        raise UsageError(
            f"{text!r} names no release",
            why="a release is named NAME@VERSION",
            fix="write for example brain-demo@1",
        )
    return Reference(match[1], int(match[2]))


def signature_path(site: str) -> str:
    """Return where a site's signature stands in a release."""
    return f"{SIGNATURES}/{site}.dsse.json"


def parent_folders(path: str) -> list[str]:
    """Return the folders that a path lies in, outermost first."""
    parts = path.split("/")
    return ["/".join(parts[:end]) for end in range(1, len(parts))]


def subject_name(number: int) -> str:
    """Return how image ``number``, counted from 1, is called, in the manner of BIDS."""
    return f"sub-syn{number:04d}"


def image_path(number: int, modality: str) -> str:
    """Return where image ``number`` stands in a release."""
    subject = subject_name(number)
    return f"{subject}/anat/{subject}_{modality}.nii.gz"


def is_image_path(path: str) -> bool:
    """Return whether a path is one that ``image_path`` gives."""
    return _IMAGE.fullmatch(path) is not None


def is_safe_path(path: str) -> bool:
    """Return whether a relative path stays in its folder, on every system, and is nobody's else.

    Segments are ASCII letters, digits, ``. _ -``; ``..``, an absolute path, a backslash and the
    places of manifest, signatures and recall are not.
    """
    segments = path.split("/")
    reserved = segments[0].lower() in {MANIFEST, RECALLED.lower(), SIGNATURES}
    return (
        len(path) <= MAX_PATH_CHARS
        and not reserved
        and all(_SEGMENT.fullmatch(segment) for segment in segments)
    )


def _safe(path: str) -> str:
    if not is_safe_path(path):
        msg = f"{ascii(path)[:80]} is no path that a release may hold"
        raise ValueError(msg)
    return path


class FileEntry(Section):
    """One file of a release."""

    digest: DigestField
    size_bytes: StrictInt = Field(ge=0)


class Manifest(Section):
    """What a release is; the sites sign the digest of its bytes."""

    format: Literal["vitrael-release/1"] = "vitrael-release/1"
    name: Name
    version: StrictInt = Field(ge=1)
    protocol: DigestField
    roster: DigestField
    policy: Name
    publishable: StrictBool
    """False: a rehearsal, not for publication."""
    files: dict[Annotated[str, AfterValidator(_safe)], FileEntry]

    @model_validator(mode="after")
    def _files_agree(self) -> Self:
        if missing := [path for path in REQUIRED if path not in self.files]:
            msg = f"{missing[0]} is not listed"
            raise ValueError(msg)
        folded = {path.lower() for path in self.files}
        if len(folded) < len(self.files):
            msg = "two paths differ in capital letters only"
            raise ValueError(msg)
        parents = {parent for path in folded for parent in parent_folders(path)}
        if parents & folded:
            msg = "a path is both a file and a folder"
            raise ValueError(msg)
        return self

    @property
    def reference(self) -> Reference:
        """Name and version."""
        return Reference(self.name, self.version)

    @property
    def size_bytes(self) -> int:
        """All listed files together."""
        return sum(entry.size_bytes for entry in self.files.values())

    def to_bytes(self) -> bytes:
        """Return the one byte string that stands for this manifest."""
        document = self.model_dump(mode="json")
        return json.dumps(document, sort_keys=True, indent=1, allow_nan=False).encode() + b"\n"

    @property
    def digest(self) -> Digest:
        """Name of the release by its content."""
        return digest_bytes(self.to_bytes())


def parse_manifest(data: bytes) -> Manifest:
    """Return the manifest of its bytes.

    Raises VerificationError unless they are well formed, canonical, and every path is safe.
    """
    what, fix = f"{MANIFEST} is not well formed", "get the release again"
    if len(data) > MAX_MANIFEST_BYTES:
        raise VerificationError(what, why="it is too large", fix=fix)
    try:
        manifest = Manifest.model_validate_json(data)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False, include_context=False)[0]
        raise VerificationError(what, why=ascii(first["msg"])[1:-1], fix=fix) from error
    if manifest.to_bytes() != data:
        raise VerificationError(what, why="its bytes are not in canonical form", fix=fix)
    return manifest
