from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from vitrael.client.researcher import load
from vitrael.core.errors import DataError, UsageError, VerificationError

Releases = Any  # ReleaseFactory of tests/unit/conftest.py


def test_samples_are_the_released_ones_with_geometry_and_conditions(
    pristine_release: Path, releases: Releases
) -> None:
    samples = releases.contents().samples
    loaded = load(pristine_release)
    assert len(loaded) == 3
    for (image_DHW, affine, conditions), expected, origin in zip(
        loaded, samples.image_BCDHW, samples.provenance, strict=True
    ):
        assert image_DHW.dtype == np.float32
        np.testing.assert_allclose(image_DHW, expected[0], atol=1e-5)
        np.testing.assert_allclose(affine, samples.affine)
        assert list(conditions) == ["age_years", "sex", "ventricle_ml", "brain_ml"]
        np.testing.assert_allclose(list(conditions.values()), origin.condition, rtol=1e-5)


def test_release_is_a_sequence(pristine_release: Path) -> None:
    loaded = load(str(pristine_release))
    np.testing.assert_array_equal(loaded[-1].image_DHW, loaded[2].image_DHW)
    assert len(loaded[1:]) == 2
    with pytest.raises(IndexError):
        loaded[3]
    assert loaded.measured[0] == {"ventricle_ml": 30.0}
    assert np.isnan(loaded.measured[2]["ventricle_ml"])


def test_release_is_found_by_name_where_pull_leaves_it(
    release: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(release.parent)
    assert len(load("brain-demo@1")) == 3


def test_missing_release_is_told_with_the_remedy() -> None:
    with pytest.raises(UsageError, match="vitrael pull"):
        load("other-demo@1")


def test_changed_image_is_refused_when_it_is_read(release: Path) -> None:
    path = release / "sub-syn0002/anat/sub-syn0002_T1w.nii.gz"
    path.write_bytes(path.read_bytes()[:-1])
    loaded = load(release)
    assert loaded[0].image_DHW.shape == (6, 5, 4)
    with pytest.raises(VerificationError, match=r"sub-syn0002_T1w\.nii\.gz was changed"):
        loaded[1]


def test_recalled_release_is_not_loaded(release: Path, releases: Releases) -> None:
    (release / "RECALLED.json").write_bytes(releases.recall(release))
    with pytest.raises(VerificationError, match="recalled"):
        load(release)


def test_folder_that_is_no_release_is_refused(release: Path) -> None:
    (release / "manifest.json").write_text("{}")
    with pytest.raises(DataError, match="not that of a release"):
        load(release)
    shutil.rmtree(release)
    release.mkdir()
    with pytest.raises(DataError, match=r"manifest\.json cannot be read"):
        load(release)


def test_loading_needs_numpy_and_nibabel_alone(pristine_release: Path) -> None:
    heavy = ("torch", "flwr", "mlflow", "sqlalchemy", "pydantic", "cryptography", "httpx")
    code = (
        "import sys\n"
        "from vitrael.client.researcher import load\n"
        "assert 'nibabel' not in sys.modules\n"
        f"assert len(list(load({str(pristine_release)!r}))) == 3\n"
        f"print([name for name in {heavy!r} if name in sys.modules])\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60
    )
    assert done.stdout == "[]\n"
