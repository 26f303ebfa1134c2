from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vitrael.core.digest import digest_bytes
from vitrael.core.errors import UsageError, VerificationError, VitraelError
from vitrael.privacy.evidence import Evidence, counted
from vitrael.privacy.gates import POLICIES, Gate, Verdict, judge
from vitrael.privacy.release import states
from vitrael.privacy.release.manifest import Reference
from vitrael.privacy.release.states import Release, State

MANIFEST = digest_bytes(b"manifest")
NAME = Reference("brain-demo", 1)


def _verdict(*, passes: bool = True, policy: str = "rehearsal") -> Verdict:
    found = counted("screening.done", part=1, whole=1, unit="samples", method="count")
    gate = Gate(
        name="screening",
        measurement="screening.done",
        bound="lower_at_least",
        threshold=1 if passes else 2,
    )
    evidence = Evidence(protocol=MANIFEST, measurements=(found,))
    return judge(evidence, [gate], policy=policy)


def _sign(release: Release, site: str, *, threshold: int = 2) -> Release:
    return states.sign(release, site=site, manifest=MANIFEST, threshold=threshold)


def _gated(*, passes: bool = True) -> Release:
    candidate = states.propose(NAME, POLICIES["rehearsal"])
    return states.gate(candidate, _verdict(passes=passes), manifest=MANIFEST)


def test_steps_in_order_reach_publication() -> None:
    signed = _sign(_sign(_gated(), "north"), "valley")
    assert signed.state is State.SIGNED
    published = states.publish(signed)
    assert published.state is State.PUBLISHED


def test_one_site_counts_once() -> None:
    twice = _sign(_sign(_gated(), "north"), "north")
    assert twice.state is State.GATED
    with pytest.raises(UsageError, match="it is gated, not signed"):
        states.publish(twice)


def test_refused_verdict_is_neither_signed_nor_published() -> None:
    refused = _gated(passes=False)
    with pytest.raises(VerificationError, match="refused by its gates"):
        _sign(refused, "north")
    forced = Release(NAME, "rehearsal", state=State.SIGNED, verdict=refused.verdict)
    with pytest.raises(VerificationError, match="refused by its gates"):
        states.publish(forced)


def test_release_without_a_verdict_is_not_published() -> None:
    forced = Release(NAME, "public", state=State.SIGNED)
    with pytest.raises(VerificationError, match="it has no verdict"):
        states.publish(forced)


def test_signature_over_another_manifest_is_refused() -> None:
    with pytest.raises(VerificationError, match="another manifest"):
        states.sign(_gated(), site="north", manifest=digest_bytes(b"other"), threshold=1)


def test_threshold_of_zero_is_refused() -> None:
    with pytest.raises(UsageError, match="without a signature"):
        _sign(_gated(), "north", threshold=0)


def test_verdict_of_another_policy_is_refused() -> None:
    candidate = states.propose(NAME, POLICIES["public"])
    with pytest.raises(UsageError, match="another policy"):
        states.gate(candidate, _verdict(), manifest=MANIFEST)


STEPS: dict[str, Callable[[Release], Release]] = {
    "gate": lambda release: states.gate(release, _verdict(), manifest=MANIFEST),
    "sign": lambda release: _sign(release, "north", threshold=1),
    "publish": states.publish,
}
ORDER = {
    ("gate", State.CANDIDATE): State.GATED,
    ("sign", State.GATED): State.SIGNED,
    ("sign", State.SIGNED): State.SIGNED,
    ("publish", State.SIGNED): State.PUBLISHED,
}


@given(st.lists(st.sampled_from(sorted(STEPS)), max_size=8))
def test_every_step_out_of_order_is_refused(steps: list[str]) -> None:
    release: Any = states.propose(NAME, POLICIES["rehearsal"])
    for step in steps:
        expected = ORDER.get((step, release.state))
        if expected is None:
            with pytest.raises(VitraelError):
                STEPS[step](release)
        else:
            release = STEPS[step](release)
            assert release.state is expected
