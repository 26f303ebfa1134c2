"""Public images, and releases for both ends: made, signed, verified, pulled and loaded.

Imports wait for their use: the unit tests of every room load this file.
"""

from __future__ import annotations

import csv
import importlib.util
import re
import shutil
import tomllib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from types import ModuleType

    from vitrael.privacy.keys import KeyPair
    from vitrael.privacy.release.bundle import Contents
    from vitrael.privacy.release.trust import Trust

SITES = ("harbour", "north", "valley")
STUDY = Path(__file__).resolve().parents[2] / "deploy" / "studies" / "brain-demo.toml"


@dataclass(frozen=True)
class ReleaseFactory:
    """Makes small releases with real keys, real files and real signatures."""

    keys: dict[str, KeyPair]
    coordinator: KeyPair

    @property
    def trust(self) -> Trust:
        """All three sites must sign."""
        return self.trust_of(SITES, threshold=3)

    def trust_of(self, sites: Sequence[str], *, threshold: int) -> Trust:
        from vitrael.privacy.release.trust import trust_roster

        members = {site: self.keys[site].public for site in sites}
        return trust_roster(members, coordinator=self.coordinator.public, threshold=threshold)

    def contents(
        self, *, name: str = "brain-demo", version: int = 1, passes: bool = True, policy: str = ""
    ) -> Contents:
        import numpy as np

        from vitrael.core.data.synthetic import synthetic_set
        from vitrael.core.digest import digest_bytes
        from vitrael.core.geometry import centered_affine
        from vitrael.core.records import Samples
        from vitrael.core.rng import stream
        from vitrael.core.study import Study
        from vitrael.privacy.evidence import Evidence, counted
        from vitrael.privacy.gates import Gate, judge
        from vitrael.privacy.keys import roster_digest
        from vitrael.privacy.release.bundle import Contents
        from vitrael.privacy.release.manifest import Reference

        # A grid that any codec divides: the demo's tuning is not what is tested here.
        text = re.sub(r"(?m)^grid_vox = .*$", "grid_vox = [64, 64, 64]", STUDY.read_text())
        study = Study.model_validate(tomllib.loads(text))
        rng = stream(7, "release", name, version)
        samples = Samples(
            image_BCDHW=rng.random((3, 1, 6, 5, 4), dtype=np.float32),
            condition_BK=rng.random((3, 4), dtype=np.float32),
            affine=centered_affine((6, 5, 4), spacing=8.0),
        )
        measurement = counted("screening.done", part=9, whole=9, unit="samples", method="count")
        evidence = Evidence(protocol=study.protocol.digest, measurements=(measurement,))
        threshold = 1.0 if passes else 2.0
        gate = Gate(
            name="screening",
            measurement="screening.done",
            bound="lower_at_least",
            threshold=threshold,
        )
        kind = policy or "rehearsal"
        return Contents(
            reference=Reference(name, version),
            samples=synthetic_set(
                samples,
                seed=7,
                generator=digest_bytes(b"weights"),
                data=study.protocol.data,
                measured={"ventricle_ml": np.array([30.0, 40.5, np.nan])},
            ),
            study=study,
            study_toml=text.encode(),
            roster=roster_digest({site: pair.public for site, pair in self.keys.items()}),
            evidence=evidence,
            verdict=judge(evidence, [gate], policy=kind, publishable=kind == "public"),
            participation={"stages": {"codec": list(SITES)}},
            code_version="0.1.0",
            report_html=b"<!doctype html><title>report</title>",
        )

    def write(self, folder: Path, contents: Contents | None = None) -> Path:
        """Write a signed release."""
        from vitrael.privacy.release.bundle import write_bundle

        write_bundle(contents or self.contents(), folder)
        self.sign(folder, SITES)
        return folder

    def sign(self, folder: Path, sites: Sequence[str]) -> None:
        """Sign a release folder with the sites' own keys."""
        from vitrael.privacy.release.sign import add_signature, sign_manifest

        manifest = (folder / "manifest.json").read_bytes()
        for site in sites:
            signature = sign_manifest(manifest, self.keys[site].signing, site=site)
            add_signature(folder, signature, site=site)

    def recall(self, folder: Path, *, reason: str = "a copy was found", by: str = "") -> bytes:
        """Return a recall of a release by the coordinator, or by whoever is named."""
        from datetime import UTC, datetime

        from vitrael.privacy.release.recall import sign_recall

        key = self.keys[by] if by else self.coordinator
        manifest = (folder / "manifest.json").read_bytes()
        now = datetime(2025, 3, 1, 12, tzinfo=UTC)
        return sign_recall(manifest, key.signing, reason=reason, now=now)


@pytest.fixture(scope="session")
def data_home(root: Path) -> Path:
    """Return the folder of public images, or skip."""
    folder = root.parent / "shared/data"
    if not (folder / "index.csv").is_file():
        pytest.skip("the public images (shared/data) are not on this machine")
    return folder


@pytest.fixture(scope="session")
def rows(data_home: Path) -> list[dict[str, str]]:
    """Return the lines of the table of all public images."""
    with (data_home / "index.csv").open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


@pytest.fixture(scope="session")
def releases() -> ReleaseFactory:
    from vitrael.privacy.keys import KeyPair

    keys = {site: KeyPair.create() for site in (*SITES, "stranger")}
    return ReleaseFactory(keys, KeyPair.create())


@pytest.fixture(scope="session")
def pristine_release(releases: ReleaseFactory, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A signed release that no test may change."""
    return releases.write(tmp_path_factory.mktemp("pristine") / "brain-demo-1")


@pytest.fixture
def release(pristine_release: Path, tmp_path: Path) -> Path:
    """A signed release of the test's own."""
    return Path(shutil.copytree(pristine_release, tmp_path / "brain-demo-1"))


@pytest.fixture(scope="session")
def alone(root: Path) -> ModuleType:
    """Return deploy/verify_release.py as a module."""
    spec = importlib.util.spec_from_file_location("alone", root / "deploy" / "verify_release.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
