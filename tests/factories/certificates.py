"""Power certificates, made up."""

from __future__ import annotations

from vitrael.privacy.audit.power import Caught, Certificate, Tally
from vitrael.privacy.evidence import NEGATIVE_KINDS, SUBGROUPS
from vitrael.privacy.suite import VOLUME_SUITE


def make_certificate(shown: int = 20, dropped: int = 20, **parts: object) -> Certificate:
    """Return the certificate of a filter that drops so many of the plants of every class."""
    half = shown // 2
    facts: dict[str, object] = {
        "plants": dict.fromkeys(VOLUME_SUITE, Tally(shown, dropped)),
        "negatives": dict.fromkeys(NEGATIVE_KINDS, Tally(shown, 0)),
        "mixing": Tally(100 + shown, 0),
        "must": Caught(float(dropped), shown),
        "subgroups": {name: Caught(half * dropped / max(shown, 1), half) for name in SUBGROUPS},
    }
    return Certificate(**{**facts, **parts})  # type: ignore[arg-type]
