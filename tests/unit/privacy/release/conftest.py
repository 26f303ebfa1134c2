"""Both verifiers, asked about one release."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from vitrael.core.errors import VerificationError
from vitrael.privacy.release.manifest import Reference
from vitrael.privacy.release.trust import Trust
from vitrael.privacy.release.verify import verify_release

Releases = Any  # ReleaseFactory of conftest.py, which no test can import
IMAGE = "sub-syn0001/anat/sub-syn0001_T1w.nii.gz"


@pytest.fixture
def refuse(
    release: Path, releases: Releases, alone: ModuleType
) -> Callable[..., VerificationError]:
    """Return a check that both verifiers refuse the release with one and the same sentence."""

    def check(*, expected: str | None = None) -> VerificationError:
        trust: Trust = releases.trust
        name, version = expected.split("@") if expected else ("", "0")
        asked = Reference(name, int(version)) if expected else None
        with pytest.raises(VerificationError) as library:
            verify_release(release, trust, expected=asked)
        with pytest.raises(alone.RefusedError) as script:
            alone.verify(release, trust.model_dump(), expected=expected)
        assert str(script.value).startswith(library.value.what)
        assert library.value.exit_code == 4
        return library.value

    return check
