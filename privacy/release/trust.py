"""Whom a researcher trusts: the sites' public keys, how many must have signed, and who may recall.

A trust file is JSON and comes to the researcher by another way than the release::

    {"threshold": 3,
     "keys": {"harbour": "<64 hex>", "north": "<64 hex>", "valley": "<64 hex>"},
     "recall": "<64 hex>"}
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Self

from pydantic import Field, StrictInt, ValidationError, model_validator

from vitrael.core.configs import Section
from vitrael.core.digest import write_atomically
from vitrael.core.errors import ConfigError
from vitrael.core.protocols import Name
from vitrael.privacy.keys import PublicKeyHex, PublicKeys


class Trust(Section):
    """Ed25519 keys by site, the number of distinct sites that must have signed, the recall key."""

    threshold: StrictInt = Field(ge=1)
    keys: dict[Name, PublicKeyHex] = Field(min_length=1)
    recall: PublicKeyHex
    """The coordinator's; it can end a release, never make one."""

    @model_validator(mode="after")
    def _coherent(self) -> Self:
        if self.threshold > len(self.keys):
            msg = f"threshold is {self.threshold}, but there are only {len(self.keys)} keys"
            raise ValueError(msg)
        if len(set(self.keys.values())) < len(self.keys):
            msg = "two sites have one key, so that one signature would count twice"
            raise ValueError(msg)
        return self


def trust_roster(
    members: Mapping[str, PublicKeys], *, coordinator: PublicKeys, threshold: int
) -> Trust:
    """Return the trust that a study's roster stands for."""
    keys = {name: members[name].signing for name in sorted(members)}
    return Trust(threshold=threshold, keys=keys, recall=coordinator.signing)


def save_trust(trust: Trust, path: Path) -> None:
    """Write a trust file."""
    write_atomically(path, trust.model_dump_json(indent=2).encode() + b"\n")


def load_trust(path: Path) -> Trust:
    """Return the trust of a file; raise ConfigError that names the file, the key and the remedy."""
    fix = "ask the study's coordinator for the trust file"
    try:
        return Trust.model_validate_json(path.read_bytes())
    except OSError as error:
        raise ConfigError(
            f"trust file {path} cannot be read", why=error.strerror or "", fix=fix
        ) from error
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        key = ".".join(str(part) for part in first["loc"]) or "the document"
        raise ConfigError(
            f"trust file {path}: {key}", why=first["msg"].removeprefix("Value error, "), fix=fix
        ) from error
