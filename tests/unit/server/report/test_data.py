"""Counts of patients become ranges before they enter a report."""

from __future__ import annotations

from pathlib import Path

import pytest
from pydantic import ValidationError

from vitrael.core.study import load_study
from vitrael.privacy.gates import POLICIES
from vitrael.privacy.leakage import BUCKETS, SMALLEST_COUNT, Bucket, bucket_of
from vitrael.server.report.data import (
    ReportData,
    summarize_site,
    summarize_study,
)


@pytest.mark.parametrize(
    ("patients", "bucket"),
    [
        (0, "none"), (1, "fewer than 11"), (10, "fewer than 11"), (11, "11 to 49"),
        (49, "11 to 49"), (50, "50 to 99"), (999, "500 to 999"), (1_000, "1,000 or more"),
    ],
)  # fmt: skip
def test_small_counts_are_suppressed(patients: int, bucket: str) -> None:
    assert bucket_of(patients).name == bucket
    site = summarize_site("north", training_patients=patients, status="took part")
    assert site.training_patients == bucket


def test_smallest_count_that_is_told_is_that_of_the_whole_package() -> None:
    assert bucket_of(SMALLEST_COUNT - 1) != bucket_of(SMALLEST_COUNT)
    assert bucket_of(SMALLEST_COUNT - 1) == bucket_of(1)
    assert bucket_of(1).name == f"fewer than {SMALLEST_COUNT}"


@pytest.mark.parametrize("bucket", BUCKETS)
def test_least_count_of_a_bucket_tells_the_bucket_and_no_more(bucket: Bucket) -> None:
    assert bucket_of(bucket.least) == bucket


def test_exact_count_cannot_enter_a_report(good: ReportData) -> None:
    document = good.sites[0].model_dump()
    type(good.sites[0]).model_validate(document)
    with pytest.raises(ValidationError):
        type(good.sites[0]).model_validate({**document, "training_patients": "137"})


def test_unknown_policy_counts_as_rehearsal(good: ReportData) -> None:
    def under(policy: str) -> ReportData:
        verdict = good.verdict.model_copy(update={"policy": policy})
        return good.model_copy(update={"verdict": verdict})

    assert not under("public").is_rehearsal
    assert under("rehearsal").is_rehearsal
    assert under("of another version").is_rehearsal


def test_study_is_told_as_its_document_says() -> None:
    study = load_study(Path(__file__).parents[4] / "deploy" / "studies" / "brain-demo.toml")
    summary = summarize_study(study)
    assert (summary.study, summary.protocol) == (study.digest, study.protocol.digest)
    assert summary.policy_title == POLICIES[study.protocol.policy].title
    assert summary.rounds["codec"] == study.protocol.generator.codec.training.rounds
    assert summary.grid_vox == study.protocol.data.grid_vox
