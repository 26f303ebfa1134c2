"""What the coordinator's operator wants of the study that runs: one small file in the home.

``vitrael study start`` and ``stop`` write it and ``vitrael server up`` obeys it, also after it was
itself started again: what is wanted outlives every process.
"""

from __future__ import annotations

from datetime import datetime
from pathlib import Path
from typing import Literal

from pydantic import ValidationError

from vitrael.core.configs import Section
from vitrael.core.digest import Digest, digest_json, write_atomically
from vitrael.core.errors import ConfigError
from vitrael.core.messages import DigestField, UtcField
from vitrael.core.protocols import Name

ORDER = "order.json"


class Order(Section):
    """One wish of the operator."""

    study: Name
    protocol: DigestField
    wanted: Literal["run", "stop"]
    utc: UtcField
    """When it was wished; the same wish at another time is another one."""

    @property
    def digest(self) -> Digest:
        """Name of the wish."""
        return digest_json(self.model_dump(mode="json"))


def give_order(
    home: Path, study: str, *, protocol: Digest, wanted: Literal["run", "stop"], now: datetime
) -> Order:
    """Write what is wanted from now on, and return it."""
    order = Order(study=study, protocol=protocol, wanted=wanted, utc=now.isoformat())
    write_atomically(home / ORDER, order.model_dump_json(indent=1).encode() + b"\n")
    return order


def read_order(home: Path) -> Order | None:
    """Return what is wanted, None when nothing was ever; raise ConfigError for a damaged file."""
    path = home / ORDER
    try:
        return Order.model_validate_json(path.read_bytes())
    except FileNotFoundError:
        return None
    except (ValidationError, OSError) as error:
        raise ConfigError(
            f"{path} cannot be used", why=type(error).__name__, fix="start the study again"
        ) from error
