"""What an invitation adds to ``site.toml``; what the operator wrote there stays as it is."""

from __future__ import annotations

import re
import tomllib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import tomli_w
from pydantic import ValidationError

from vitrael.client.site.settings import SiteDocument
from vitrael.core.errors import ConfigError
from vitrael.core.study import explain_fault


@dataclass(frozen=True, slots=True)
class Entries:
    """What ``site.toml`` must say for a site to reach its coordinator."""

    name: str
    address: str
    proxy: str | None
    authority: Path | None

    def tables(self) -> tuple[dict[str, str], dict[str, str]]:
        """Return the keys of the document and those of its ``[network]``."""
        network = {"proxy": self.proxy, "authority": self.authority and str(self.authority)}
        return (
            {"name": self.name, "address": self.address},
            {key: value for key, value in network.items() if value},
        )


def plan_document(path: Path, entries: Entries) -> str | None:
    """Return what ``site.toml`` is to hold, or None where it says all that already.

    Keys that are missing are added. Raises ConfigError for one that says something else, and for a
    document that would not be valid.
    """
    try:
        text = path.read_text(encoding="utf-8") if path.exists() else ""
        present = tomllib.loads(text)
    except OSError as error:
        raise ConfigError(
            f"{path} cannot be read",
            why=error.strerror or "",
            fix="let this user read it, or name another home with --home",
        ) from error
    except ValueError as error:
        raise ConfigError(f"{path} is not TOML", why=str(error), fix="mend the line") from error
    top, network = entries.tables()
    own = present.get("network", {})
    missing = _missing(present, top, path=path, prefix="")
    lacking = _missing(own if isinstance(own, dict) else {}, network, path=path, prefix="network.")
    planned = _insert(text, missing, lacking)
    wanted = {**present, **missing}
    if lacking:
        wanted["network"] = {**own, **lacking}
    _demand_valid(planned, wanted, path=path)
    return planned if planned != text else None


def _missing(
    present: dict[str, Any], wanted: dict[str, str], *, path: Path, prefix: str
) -> dict[str, str]:
    for key, value in wanted.items():
        if present.get(key, value) != value:
            raise ConfigError(
                f"{path.name} says otherwise: {prefix}{key}",
                why=f'it has "{present[key]}", and this command "{value}"',
                fix=f"correct {prefix}{key} in {path.name} if it is to change, then run it again",
            )
    return {key: value for key, value in wanted.items() if key not in present}


def _insert(text: str, top: dict[str, str], network: dict[str, str]) -> str:
    """Return a document with more keys: those of a table after its first line."""
    if network and (header := re.search(r"(?m)^\[network\][ \t]*(#.*)?$", text)):
        text = f"{text[: header.end()]}\n{tomli_w.dumps(network).rstrip()}{text[header.end() :]}"
    elif network:
        text = f"{text.rstrip()}\n\n{tomli_w.dumps({'network': network})}"
    return tomli_w.dumps(top) + text if top else text


def _demand_valid(text: str, wanted: dict[str, Any], *, path: Path) -> None:
    try:
        document = tomllib.loads(text)
    except ValueError:
        document = {}
    if document != wanted:
        raise ConfigError(
            f"{path.name} cannot be added to",
            why="its [network] is written in a form of its own",
            fix="write it as a table with a line for each key",
        )
    try:
        SiteDocument.model_validate(document)
    except ValidationError as error:
        key, why, fix = explain_fault(error)
        raise ConfigError(f"{path.name}: {key}", why=why, fix=fix) from error
