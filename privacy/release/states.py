"""The states of a release, without I/O.

::

    candidate --gate--> gated --sign--> signed --publish--> published

Ordering rules:

1. A candidate is gated once: its manifest and its Verdict are fixed.
2. Only a release whose Verdict is a pass is signed, and only the manifest that was gated.
3. It is signed when enough distinct sites have signed; one site counts once.
4. Only a signed release is published.

A recall is no state here: it is a signed notice beside what is published (``recall.py``).
A step out of order raises UsageError; what the Verdict or the signatures forbid, VerificationError.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from enum import StrEnum

from vitrael.core.digest import Digest
from vitrael.core.errors import UsageError, VerificationError
from vitrael.privacy.gates import Policy, Verdict
from vitrael.privacy.release.manifest import Reference


class State(StrEnum):
    """Where a release stands."""

    CANDIDATE = "candidate"
    GATED = "gated"
    SIGNED = "signed"
    PUBLISHED = "published"


@dataclass(frozen=True, slots=True)
class Release:
    """One release in one state; every step returns a new one."""

    reference: Reference
    policy: str
    state: State = State.CANDIDATE
    manifest: Digest | None = None
    verdict: Verdict | None = None
    signed_by: frozenset[str] = frozenset()


def propose(reference: Reference, policy: Policy) -> Release:
    """Return a candidate under a policy."""
    return Release(reference, policy=policy.name)


def gate(release: Release, verdict: Verdict, *, manifest: Digest) -> Release:
    """Return the release with its verdict, pass or refuse, on exactly this manifest."""
    _demand(release, State.CANDIDATE, step="gated")
    if verdict.policy != release.policy:
        raise UsageError(
            f"the verdict on {release.reference} is of another policy",
            why=f"{verdict.policy!r} judged, the release is under {release.policy!r}",
            fix="judge the evidence under the study's policy",
        )
    return replace(release, state=State.GATED, verdict=verdict, manifest=manifest)


def sign(release: Release, *, site: str, manifest: Digest, threshold: int) -> Release:
    """Return the release with a site's verified signature; ``signed`` once enough sites have."""
    _demand(release, State.GATED, State.SIGNED, step="signed")
    _demand_pass(release)
    if manifest != release.manifest:
        raise VerificationError(
            f"{site} signed another manifest than the gates judged",
            why="the candidate was changed after its verdict",
            fix="gate it again, then have it signed again",
        )
    if threshold < 1:
        raise UsageError("a threshold below 1 would publish without a signature")
    signed_by = release.signed_by | {site}
    state = State.SIGNED if len(signed_by) >= threshold else State.GATED
    return replace(release, state=state, signed_by=signed_by)


def publish(release: Release) -> Release:
    """Return the release as published."""
    _demand(release, State.SIGNED, step="published")
    _demand_pass(release)
    return replace(release, state=State.PUBLISHED)


def _demand(release: Release, *states: State, step: str) -> None:
    if release.state not in states:
        raise UsageError(
            f"{release.reference} cannot be {step}",
            why=f"it is {release.state}, not {' or '.join(states)}",
            fix="take the steps in their order: gate, sign, publish",
        )


def _demand_pass(release: Release) -> None:
    if release.verdict is None or not release.verdict.passed:
        why = "it has no verdict" if release.verdict is None else release.verdict.reason
        raise VerificationError(
            f"{release.reference} was refused by its gates",
            why=why,
            fix="change the study; a refused release is neither signed nor published",
        )
