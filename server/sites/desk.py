"""The enrollment desk: takes what sites send, signed, and answers with their standing, signed."""

from __future__ import annotations

from collections.abc import Callable
from datetime import datetime
from typing import Self

from vitrael.core.errors import AuthError, EnvelopeError
from vitrael.privacy.enrollment import SiteWord, Standing
from vitrael.privacy.envelope import claimed_sender, open_word, peek_join, sign_enrollment
from vitrael.privacy.keys import KeyPair
from vitrael.server.config import ServerSettings
from vitrael.server.settings import utc_now
from vitrael.server.sites.offers import read_offers
from vitrael.server.sites.records import Enrollment
from vitrael.server.sites.registry import Registry
from vitrael.server.sites.requests import check_node


class Desk:
    """What answers at the coordinator's enrollment address, whoever brings it there."""

    def __init__(
        self, settings: ServerSettings, *, clock: Callable[[], datetime] = utc_now
    ) -> None:
        """Open registry and keys of the home; raise AuthError or StorageError when it cannot."""
        self._settings = settings
        self._key = KeyPair.load(settings.keys)
        self._registry = Registry(settings, clock=clock)

    def __enter__(self) -> Self:
        """Return itself."""
        return self

    def __exit__(self, *_: object) -> None:
        """Close the registry."""
        self.close()

    def close(self) -> None:
        """Close the registry."""
        self._registry.close()

    def join(self, data: bytes) -> bytes:
        """Return the standing of a site whose join request now waits for approval.

        Raises AuthError that says what does not hold: form, signature, node key, token, clock, or
        keys that were brought before.
        """
        request = peek_join(data)
        check_node(request)
        enrollment = self._registry.receive(request)
        return self._answer(enrollment, nonce=request.token[:32])

    def word(self, data: bytes) -> bytes:
        """Return the standing of a site after its word was heard.

        A site that is not enrolled learns its own status and nothing else. Raises AuthError for an
        unknown site, a signature of another key, a word of another time or one heard before.
        """
        enrollment, word = self._open(data)
        if word.kind == "standing" and enrollment.status == "enrolled":
            self._demand_unexpired(enrollment)
        return self._answer(self._registry.hear(enrollment, word), nonce=word.nonce)

    def _open(self, data: bytes) -> tuple[Enrollment, SiteWord]:
        """Return the enrollment whose key signed a word: one that holds, or the site's last."""
        site = claimed_sender(data)
        known = self._registry.enrollments(site)
        if not known:
            raise AuthError(
                f"site {site} is unknown here", fix="ask the coordinator for an invitation"
            )
        current = [one for one in known if one.status in ("pending", "enrolled")] or known[-1:]
        failure: EnvelopeError | None = None
        for enrollment in reversed(known):
            try:
                word = open_word(data, enrollment.keys)
            except EnvelopeError as error:
                failure = failure or error
                continue
            if enrollment not in current:
                raise AuthError(
                    f"these keys of site {site} do not hold any more",
                    why="newer ones have taken their place",
                    fix="use the newer keys, or ask the coordinator for an invitation",
                )
            return enrollment, word
        assert failure is not None  # noqa: S101 - there was at least one enrollment
        raise failure

    def _demand_unexpired(self, enrollment: Enrollment) -> None:
        if not enrollment.holds(self._registry.now()):
            raise AuthError(
                f"the enrollment of site {enrollment.site} has expired",
                why=f"it held until {enrollment.expires_utc:%Y-%m-%d %H:%M} UTC",
                fix="ask the coordinator to run "
                f"`vitrael server sites rotate {enrollment.site}`, then run `vitrael site rotate "
                "FILE`",
            )

    def _answer(self, enrollment: Enrollment, *, nonce: str) -> bytes:
        now, site = self._registry.now(), enrollment.site
        holds = enrollment.holds(now)
        standing = Standing(
            site=site,
            status="revoked" if enrollment.status == "replaced" else enrollment.status,
            members=self._registry.members() if holds else {},
            offers=read_offers(self._settings.studies, site=site) if holds else {},
            expires_utc=None if enrollment.expires_utc is None else _iso(enrollment.expires_utc),
            nonce=nonce,
            utc=_iso(now),
        )
        return sign_enrollment(standing, self._key)


def _iso(moment: datetime) -> str:
    return moment.isoformat(timespec="seconds")
