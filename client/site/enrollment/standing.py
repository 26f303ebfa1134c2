"""How things stand, as the coordinator last said: written down where the site's commands look.

``roster.json`` holds all enrolled sites, ``studies/NAME.toml`` the studies that are offered, and
``standing.json`` the rest. A running steward reads the roster when it starts.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from pydantic import Field, TypeAdapter, ValidationError

from vitrael.client.site.settings import SiteSettings
from vitrael.core.configs import Section
from vitrael.core.digest import Digest, write_atomically
from vitrael.core.errors import AuthError, StudyError
from vitrael.core.messages import DigestField, UtcField
from vitrael.core.protocols import Name
from vitrael.core.study import parse_study
from vitrael.privacy.enrollment import Offer, Standing
from vitrael.privacy.keys import PublicKeys, load_roster, save_roster

Status = Literal["pending", "enrolled", "revoked", "left"]


class LastStanding(Section):
    """What the coordinator said last."""

    status: Status
    expires_utc: UtcField | None = None
    """Until when the enrollment holds."""
    utc: UtcField
    """When it was said, by the coordinator's clock."""
    offers: dict[Name, DigestField] = Field(default_factory=dict)
    """Protocols of the studies that lie in ``studies``."""


@dataclass(frozen=True, slots=True)
class Changes:
    """What is different from before."""

    members_new: tuple[str, ...] = ()
    members_gone: tuple[str, ...] = ()
    members_rekeyed: tuple[str, ...] = ()
    studies_new: tuple[str, ...] = ()
    studies_changed: tuple[str, ...] = ()
    studies_gone: tuple[str, ...] = ()
    refused: Mapping[str, str] = field(default_factory=dict)
    """Offers that were not taken, each with the reason."""

    @property
    def roster(self) -> bool:
        """Whether who takes part, or with which keys, has changed."""
        return bool(self.members_new or self.members_gone or self.members_rekeyed)


def read_last_standing(home: Path) -> LastStanding | None:
    """Return what the coordinator said last, or None before it has said anything.

    Raises AuthError when ``standing.json`` is damaged.
    """
    try:
        return TypeAdapter(LastStanding).validate_json((home / "standing.json").read_bytes())
    except FileNotFoundError:
        return None
    except (OSError, ValidationError) as error:
        raise AuthError(
            "standing.json cannot be read",
            fix="remove it and run `vitrael site fetch`: the coordinator says it again",
        ) from error


def keep_standing(settings: SiteSettings, standing: Standing, *, own: PublicKeys) -> Changes:
    """Write a standing down that was checked; return what is different.

    Roster and studies stay as they are unless the site is enrolled. Raises AuthError when it is,
    but with other keys than its own.
    """
    changes, kept = Changes(), dict[str, Digest]()
    if standing.status == "enrolled":
        if standing.members.get(settings.name) != own:
            raise AuthError(
                f"the coordinator does not list site {settings.name} with its own keys",
                why="nothing was changed here",
                fix="read the fingerprint to the coordinator again, or ask for a rotation",
            )
        before = load_roster(settings.roster) if settings.roster.exists() else {}
        last = read_last_standing(settings.home)
        told = _keep_studies(settings, standing.offers, known=last.offers if last else {})
        changes, kept = _compare(before, standing.members, told), told.kept
        if changes.roster:
            save_roster(standing.members, settings.roster)
    keep_answer(settings.home, standing, offers=kept)
    return changes


def keep_answer(
    home: Path, standing: Standing, *, offers: Mapping[str, Digest] | None = None
) -> None:
    """Write down that the coordinator has answered, and what; ``offers`` lie in ``studies``."""
    now = LastStanding(
        status=standing.status,
        expires_utc=standing.expires_utc,
        utc=standing.utc,
        offers=dict(offers or {}),
    )
    write_atomically(home / "standing.json", now.model_dump_json(indent=2).encode() + b"\n")


@dataclass(slots=True)
class _Studies:
    kept: dict[str, Digest] = field(default_factory=dict)
    new: list[str] = field(default_factory=list)
    changed: list[str] = field(default_factory=list)
    gone: list[str] = field(default_factory=list)
    refused: dict[str, str] = field(default_factory=dict)


def _compare(
    before: Mapping[str, PublicKeys], now: Mapping[str, PublicKeys], studies: _Studies
) -> Changes:
    both = set(now) & set(before)
    return Changes(
        members_new=tuple(sorted(set(now) - set(before))),
        members_gone=tuple(sorted(set(before) - set(now))),
        members_rekeyed=tuple(sorted(name for name in both if now[name] != before[name])),
        studies_new=tuple(studies.new),
        studies_changed=tuple(studies.changed),
        studies_gone=tuple(studies.gone),
        refused=studies.refused,
    )


def _keep_studies(
    settings: SiteSettings, offers: Mapping[str, Offer], *, known: Mapping[str, Digest]
) -> _Studies:
    """Write the studies that are offered and good; remove those that are no longer offered.

    One that cannot be taken leaves what was there before.
    """
    told = _Studies()
    for name, offer in sorted(offers.items()):
        path = settings.studies / f"{name}.toml"
        try:
            _check_offer(name, offer, site=settings.name)
        except StudyError as error:
            told.refused[name] = error.sentence()
            if name in known:
                told.kept[name] = known[name]
            continue
        data = offer.study.encode()
        if not path.exists():
            told.new.append(name)
        elif path.read_bytes() != data:
            told.changed.append(name)
        write_atomically(path, data)
        told.kept[name] = offer.protocol
    for name in sorted(set(known) - set(offers)):
        (settings.studies / f"{name}.toml").unlink(missing_ok=True)
        told.gone.append(name)
    return told


def _check_offer(name: str, offer: Offer, *, site: str) -> None:
    """Raise StudyError unless an offer holds the study that it says, with this site on its list."""
    study = parse_study(offer.study.encode(), label=name)
    if study.protocol.digest != offer.protocol:
        raise StudyError(
            f"study {name} is another one than the coordinator says",
            why="its protocol has another digest",
            fix="install the coordinator's version of vitrael, or ask for the study again",
        )
    if site not in study.roster.sites:
        raise StudyError(
            f"study {name} is not for site {site}",
            why="its roster does not hold the site",
            fix="ask the coordinator to correct the offer",
        )
