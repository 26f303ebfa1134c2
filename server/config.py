"""Settings of a coordinator: ``server.toml`` in its home folder, and where the rest lies there."""

from __future__ import annotations

import tomllib
from dataclasses import dataclass
from pathlib import Path
from typing import Self

from pydantic import Field, ValidationError, model_validator

from vitrael.core.configs import Section
from vitrael.core.errors import ConfigError, UsageError
from vitrael.core.study import explain_fault
from vitrael.privacy.enrollment import Address

SERVER_FILE = "server.toml"


class Ports(Section):
    """Where the coordinator's own processes listen: on loopback, behind the reverse proxy."""

    superlink: int = Field(default=8100, ge=1024, le=65_535, description="Flower's interfaces")
    enrollment: int = Field(default=8101, ge=1024, le=65_535, description="enrollment and health")
    metrics: int = Field(default=8102, ge=1024, le=65_535, description="health and metrics")

    @model_validator(mode="after")
    def _one_each(self) -> Self:
        if len({self.superlink, self.enrollment, self.metrics}) < 3:  # noqa: PLR2004 - of them
            msg = "two of them are the same: each process needs a port of its own"
            raise ValueError(msg)
        return self


class OwnTls(Section):
    """A certificate that the operator brings instead of one of the coordinator's authority."""

    certificate: Path
    key: Path
    authority: Path


class ServerDocument(Section):
    """What ``server.toml`` may hold."""

    address: Address
    """``host:port`` at which sites reach the reverse proxy; its certificate names the host."""
    ports: Ports = Ports()
    tls: OwnTls | None = None
    enrollment_days: int = Field(default=365, ge=1, le=3650, description="how long one holds")
    threads: int = Field(default=1, ge=1, description="OMP_NUM_THREADS of every process")


@dataclass(frozen=True, slots=True)
class ServerSettings:
    """A coordinator's document and its home folder."""

    home: Path
    document: ServerDocument

    @property
    def keys(self) -> Path:
        """Folder of the keys that sign tasks."""
        return self.home / "keys"

    @property
    def authority(self) -> Path:
        """Folder of the private authority: ``ca.crt`` and ``ca.key``."""
        return self.home / "authority"

    @property
    def tls(self) -> Path:
        """Folder of what the reverse proxy shows: ``ca.crt``, ``server.pem``, ``server.key``."""
        return self.home / "tls"

    @property
    def database(self) -> Path:
        """SQLite file of sites, invitations and stages."""
        return self.home / "server.sqlite"

    @property
    def journal(self) -> Path:
        """Hash-chained record of what was asked, what came and what the operator did."""
        return self.home / "journal.jsonl"

    @property
    def studies(self) -> Path:
        """Folder of the studies that are offered, one folder each."""
        return self.home / "studies"


def load_server(home: Path) -> ServerSettings:
    """Return the settings of a coordinator's home.

    Raises UsageError for a folder without ``server.toml``, ConfigError that names file, key and
    remedy.
    """
    path = home / SERVER_FILE
    try:
        document = ServerDocument.model_validate(tomllib.loads(path.read_text(encoding="utf-8")))
    except (FileNotFoundError, NotADirectoryError):
        raise UsageError(
            f"{home} is no home of a coordinator",
            why=f"it holds no {SERVER_FILE}",
            fix="run `vitrael server init`, or name the home with --home",
        ) from None
    except OSError as error:
        raise ConfigError(f"{path} cannot be read", why=error.strerror or "") from error
    except ValidationError as error:
        key, why, fix = explain_fault(error)
        raise ConfigError(f"{path}: {key}", why=why, fix=fix) from error
    except ValueError as error:
        raise ConfigError(
            f"{path} is not TOML", why=str(error), fix="mend the line that is named"
        ) from error
    return ServerSettings(home.absolute(), document)
