from __future__ import annotations

import hashlib
import json
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


@pytest.mark.parametrize(("name", "said"), [("T2w.nii.gz", "2 images"), ("AAA.NII.GZ", None)])
def test_image_is_the_one_of_its_subject(release: Path, name: str, said: str | None) -> None:
    manifest = json.loads((release / "manifest.json").read_bytes())
    first = manifest["files"]["sub-syn0001/anat/sub-syn0001_T1w.nii.gz"]
    files = {f"sub-syn0001/anat/sub-syn0001_{name}": first, **manifest["files"]}
    (release / "manifest.json").write_text(json.dumps({**manifest, "files": files}))
    if said is None:
        assert load(release)[0].image_DHW.shape == (6, 5, 4)
    else:
        with pytest.raises(DataError, match=said):
            load(release)[0]


def test_changed_table_is_refused(release: Path) -> None:
    path = release / "participants.tsv"
    cells = path.read_text().splitlines()[1].split("\t")
    path.write_text(path.read_text().replace(cells[4], f"1{cells[4]}", 1))
    with pytest.raises(VerificationError, match=r"participants\.tsv was changed"):
        load(release)


def relist(folder: Path, table: bytes | None) -> None:
    """Give a release another table, or none, that its manifest names."""
    document = json.loads((folder / "manifest.json").read_bytes())
    entry = document["files"].pop("participants.tsv")
    if table is not None:
        (folder / "participants.tsv").write_bytes(table)
        digest = f"sha256:{hashlib.sha256(table).hexdigest()}"
        document["files"]["participants.tsv"] = {**entry, "digest": digest}
    (folder / "manifest.json").write_text(json.dumps(document))


HEAD = b"participant_id\tasked_age_years\n"
TABLES = {
    "bytes that are no text": b"\xff\xfe" + HEAD,
    "nothing": b"",
    "no subject": b"asked_age_years\n44\n",
    "nothing that was asked": b"participant_id\nsub-syn0001\n",
    "no number": HEAD + b"sub-syn0001\told\n",
    "no finite number": HEAD + b"sub-syn0001\tinf\n",
    "a cell too few": HEAD + b"sub-syn0001\n",
    "a cell too many": HEAD + b"sub-syn0001\t44\t45\n",
}


@pytest.mark.parametrize("fault", TABLES)
def test_table_that_cannot_be_used_is_refused(fault: str, release: Path) -> None:
    relist(release, TABLES[fault])
    with pytest.raises(DataError, match=r"participants\.tsv cannot be used"):
        load(release)
    relist(release, HEAD + b"sub-syn0001\t44\n")  # the control
    assert load(release)[0].conditions == {"age_years": 44.0}


def test_manifest_without_the_table_is_refused(release: Path) -> None:
    relist(release, None)
    with pytest.raises(DataError, match=r"the manifest lists no participants\.tsv"):
        load(release)


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
