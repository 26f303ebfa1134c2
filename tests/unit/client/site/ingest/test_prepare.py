"""One image that the machine cannot hold costs itself; a full disk ends the intake."""

from __future__ import annotations

import errno
from pathlib import Path

import pytest

from tests.factories.intake import BRAIN, write_brain
from vitrael.client.site.ingest import prepare
from vitrael.client.site.ingest.prepare import PrepareJob, prepare_source
from vitrael.core.errors import StorageError


@pytest.fixture
def job(tmp_path: Path) -> PrepareJob:
    path = write_brain(tmp_path / "sub-01_T1w.nii.gz", 1)
    return PrepareJob(
        source="ab",
        kind="nifti",
        images={"T1w": (path,)},
        masks={},
        settings=BRAIN,
        shards=tmp_path / "shards",
    )


def fail_with(error: Exception, monkeypatch: pytest.MonkeyPatch) -> None:
    def read(*_: object) -> None:
        raise error

    monkeypatch.setattr(prepare, "read_input", read)


@pytest.mark.parametrize("error", [MemoryError(), OSError(errno.ENOMEM, "Cannot allocate memory")])
def test_image_that_does_not_fit_into_memory_costs_itself(
    error: Exception, job: PrepareJob, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert prepare_source(job).reason == ""
    fail_with(error, monkeypatch)
    outcome = prepare_source(job)
    assert (outcome.reason, outcome.settled) == ("it does not fit into memory", False)


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EDQUOT])
def test_full_disk_of_temporary_files_ends_the_intake_without_a_path(
    code: int, job: PrepareJob, monkeypatch: pytest.MonkeyPatch
) -> None:
    fail_with(OSError(code, "No space left on device", "/scratch/Amendoeira"), monkeypatch)
    with pytest.raises(StorageError, match="no disk space left") as refusal:
        prepare_source(job)
    assert "Amendoeira" not in refusal.value.sentence()


def test_image_that_is_gone_meanwhile_is_tried_again(
    job: PrepareJob, monkeypatch: pytest.MonkeyPatch
) -> None:
    fail_with(FileNotFoundError(errno.ENOENT, "No such file", "/data/Amendoeira"), monkeypatch)
    outcome = prepare_source(job)
    assert (outcome.reason, outcome.settled) == ("it cannot be opened", False)
