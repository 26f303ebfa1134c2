"""Settings of a site: ``site.toml`` in its home folder, and where everything else lies there.

A site sets its name, how it is reached and reaches the coordinator, when and on what it computes,
what it allows at most, and whether a person looks at all that leaves; what a study computes is the
study's alone. Layout of the home folder::

    site.toml  coordinator.json  authority.pem  keys/      fixed at enrollment
    roster.json  standing.json   studies/                  as the coordinator said last
    keys.next/ keys.old/         backup.json               a rotation; how many backups there were
    cohorts/   records/          updates/                  private, kept, finished
    withdrawn.json  home.lock                              who must not come back
    store.sqlite  journal.jsonl  journal.head.json         what was done and what left
    spool/                                                 in transit
    progress.jsonl  metrics.prom  steward.json  steward.log for the operator
    flower/                                                the courier's

``keys`` holds ``signing.pem``, ``sealing.pem`` and ``split.key``. ``records`` holds what one stage
leaves for a later one and cannot be made again, since a stage is answered once: the filter's
operating point and the digests of the audited images. Of what can be computed again, latents and
the index of each cohort are on disk, below ``cohorts``, and a training in work, below ``training``
in its records; both count as patient data. All else stays in the steward's memory. Only ``spool``
and the operator's files may be cleared by hand.
"""

from __future__ import annotations

import tomllib
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, StringConstraints, ValidationError

from vitrael.client.site.passphrase import read_passphrase
from vitrael.client.site.rotation import settle_rotation
from vitrael.core.configs import Section
from vitrael.core.digest import Digest
from vitrael.core.errors import AuthError, ConfigError, UsageError
from vitrael.core.messages import StageName
from vitrael.core.protocols import Name
from vitrael.core.study import Performance, explain_fault
from vitrael.privacy.enrollment import Address
from vitrael.privacy.keys import KeyPair, Passphrase, read_private

METRICS_FILE = "metrics.prom"

STEWARD_LOCK = "steward.lock"
"""In the home folder: held alone by the steward that runs, shared by what changes cohorts."""


SPLIT_KEY_BYTES = 32
"""What a site draws; a file of another length was cut or changed."""


class Limits(Section):
    """Ceilings that no study can lift."""

    parcel_bytes: int = Field(default=2 << 30, gt=0, description="most bytes of one parcel")
    study_bytes: int | None = Field(
        default=None, gt=0, description="most bytes that leave for one protocol"
    )
    rounds: int | None = Field(default=None, ge=1, description="most rounds of a stage")
    stages: tuple[StageName, ...] | None = None
    """The only stages that are answered; None: all."""
    smallest_roster: int = Field(default=1, ge=1, description="fewest sites of a study")
    epsilon: float | None = Field(
        default=None, ge=0, description="most privacy budget over all studies; 0: no dp study"
    )


class Network(Section):
    """How the courier reaches the coordinator."""

    proxy: str | None = Field(
        default=None,
        pattern=r"^http://[^\s/@]+:[0-9]{1,5}$",
        description="the hospital's HTTPS CONNECT proxy, http://host:port",
    )
    authority: Path | None = None
    """PEM file of the authority by which the hospital inspects TLS; trusted beside the
    coordinator's."""
    node_host: str = Field(
        default="127.0.0.1",
        pattern=r"^[a-z0-9]([a-z0-9.-]{0,61}[a-z0-9])?$",
        description="where the SuperNode listens for its ClientApps; loopback, but for containers",
    )
    node_port: int = Field(default=9094, ge=1024, le=65_535, description="SuperNode, loopback")
    metrics_port: int | None = Field(
        default=None, ge=1024, le=65_535, description="health and metrics, loopback; None: none"
    )


class Schedule(Section):
    """When tasks are begun; outside of it they wait, at most until their deadline.

    One that has begun goes on when the window closes.
    """

    hours: Annotated[
        str, StringConstraints(pattern=r"^([01]\d|2[0-3]):[0-5]\d-([01]\d|2[0-3]):[0-5]\d$")
    ]
    """``20:00-06:00`` in the local time of the machine; may pass midnight."""


class SiteDocument(Section):
    """What ``site.toml`` may hold."""

    name: Name
    performance: Performance | None = None
    """What it does not set is as the study says."""
    limits: Limits = Limits()
    cohort: Name | None = None
    """The cohort that serves studies; needed only where several fit one."""
    address: Address | None = None
    """Where the coordinator is reached; from the invitation."""
    network: Network = Network()
    schedule: Schedule | None = None
    release: Literal["automatic", "manual"] = "automatic"
    """``manual``: nothing leaves before this site's operator has released it."""


@dataclass(frozen=True, slots=True)
class SiteSettings:
    """A site's document and its home folder."""

    home: Path
    document: SiteDocument

    @property
    def name(self) -> str:
        """The site's name on every roster."""
        return self.document.name

    @property
    def keys(self) -> Path:
        """Folder of the private keys and of the key that parts patients into splits."""
        return self.home / "keys"

    def load_keys(self, ask: Passphrase | None = None) -> KeyPair:
        """Return the private keys; a rotation that was approved and then cut short is ended first.

        Where they are protected, ``ask`` gives the passphrase, or it comes from where
        ``passphrase`` looks. Raises AuthError when they cannot be used.
        """
        settle_rotation(self.home)
        return KeyPair.load(self.keys, passphrase=ask or (lambda: read_passphrase("keys")))

    def read_split_key(self) -> bytes:
        """Return the secret that parts this site's patients into splits (``keys/split.key``).

        Raises AuthError when it cannot be read, is damaged, or is open to other users.
        """
        return read_split_key(self.keys)

    @property
    def coordinator(self) -> Path:
        """Public keys of the coordinator, fixed at enrollment."""
        return self.home / "coordinator.json"

    @property
    def roster(self) -> Path:
        """Names and public keys of all members, as they were fetched last."""
        return self.home / "roster.json"

    @property
    def studies(self) -> Path:
        """Folder of the studies that the coordinator offers, as they were fetched."""
        return self.home / "studies"

    @property
    def cohorts(self) -> Path:
        """Folder of the cohorts: the private scans as they were taken in."""
        return self.home / "cohorts"

    @property
    def records(self) -> Path:
        """Folder of what later stages need and nothing can make again."""
        return self.home / "records"

    def records_of(self, *, protocol: Digest, roster: Digest) -> Path:
        """Return the folder of the records of one protocol with one roster."""
        names = (name.removeprefix("sha256:")[:16] for name in (protocol, roster))
        return self.records / "-".join(names)

    @property
    def updates(self) -> Path:
        """Folder of the tensors of finished Updates, named by their digests."""
        return self.home / "updates"

    @property
    def inbox(self) -> Path:
        """Folder in which the courier lays parcels."""
        return self.home / "spool" / "in"

    @property
    def outbox(self) -> Path:
        """Folder in which the steward lays sealed replies."""
        return self.home / "spool" / "out"

    @property
    def store(self) -> Path:
        """SQLite file of consents, nonces and finished Updates."""
        return self.home / "store.sqlite"

    @property
    def journal(self) -> Path:
        """Hash-chained record of all that left."""
        return self.home / "journal.jsonl"

    @property
    def metrics(self) -> Path:
        """Counts and seconds of the steward, which the courier shows on a local port."""
        return self.home / METRICS_FILE

    @property
    def progress(self) -> Path:
        """Counts of the task in work, for whoever watches."""
        return self.home / "progress.jsonl"

    @property
    def log(self) -> Path:
        """Details of unexpected errors; stays at the site."""
        return self.home / "steward.log"

    @property
    def steward(self) -> Path:
        """Where the steward that runs now listens."""
        return self.home / "steward.json"


def read_split_key(keys: Path) -> bytes:
    """Return the site's secret for pseudonyms, codes and splits from its folder of keys.

    Raises AuthError when it cannot be read, is open to other users, or is not whole: with an empty
    one everything would work, under names that withdrawn patients do not have.
    """
    fix = (
        "restore keys/split.key from a backup; with another key patients would change their names "
        "and splits, and withdrawn ones would come back"
    )
    key = read_private(keys / "split.key", fix=fix)
    if len(key) != SPLIT_KEY_BYTES:
        raise AuthError(
            "key keys/split.key is damaged",
            why=f"it holds {len(key)} bytes and not {SPLIT_KEY_BYTES}",
            fix=fix,
        )
    return key


def load_settings(
    home: Path,
    *,
    device: Literal["cpu", "cuda"] | None = None,
    threads: int | None = None,
) -> SiteSettings:
    """Return the settings of a home folder; ``device`` and ``threads`` overrule ``site.toml``.

    Raises UsageError for a folder without ``site.toml``, and ConfigError that names file, key and
    remedy.
    """
    path = home / "site.toml"
    try:
        document = SiteDocument.model_validate(tomllib.loads(path.read_text(encoding="utf-8")))
    except (FileNotFoundError, NotADirectoryError):
        raise _explain_missing(home) from None
    except OSError as error:
        raise ConfigError(
            f"{path} cannot be read",
            why=error.strerror or "",
            fix="let this user read it, or name another home with --home",
        ) from error
    except ValidationError as error:
        key, why, fix = explain_fault(error)
        raise ConfigError(f"{path}: {key}", why=why, fix=fix) from error
    except ValueError as error:
        raise ConfigError(
            f"{path} is not TOML", why=str(error), fix="mend the line that is named"
        ) from error
    asked = {"device": device, "threads": threads}
    if overrides := {key: value for key, value in asked.items() if value is not None}:
        own = document.performance or Performance()
        performance = {**own.model_dump(exclude_unset=True), **overrides}
        update = {"performance": Performance.model_validate(performance)}
        document = document.model_copy(update=update)
    return SiteSettings(home.absolute(), document)


def _explain_missing(home: Path) -> UsageError:
    """Return the error for a folder without ``site.toml``, which an intake may have made a home."""
    why = "it holds no site.toml"
    if (home / "keys" / "split.key").exists():
        return UsageError(
            f"the home {home} is not enrolled yet",
            why=why,
            fix="run `vitrael site join FILE` with the coordinator's invitation; scans can be "
            "taken in without it",
        )
    return UsageError(f"{home} is no home of a site", why=why, fix="name the home with --home")
