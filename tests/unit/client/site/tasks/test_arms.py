"""Three arms at a site: counts of a planted attack, of nobody's images, and of too few patients."""

from __future__ import annotations

from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, cast

import numpy as np
import pytest

from tests.unit.privacy.audit.test_attacker import people
from vitrael.client.site.checkpoints import forget_checkpoints
from vitrael.client.site.consent_words import describe
from vitrael.client.site.outbox import Outbox
from vitrael.client.site.rules import RULES
from vitrael.client.site.settings import Limits
from vitrael.client.site.tasks import SiteContext, TaskResult, arms
from vitrael.core.data.splits import Split
from vitrael.core.errors import DataError, TaskStopped
from vitrael.core.models.brain_ldm import build_codec
from vitrael.core.study import Study
from vitrael.core.weights import Tensors, module_tensors, pack_tensors
from vitrael.privacy.audit.arm_counts import read_counts
from vitrael.privacy.journal import Journal

if TYPE_CHECKING:
    from tests.unit.client.site.conftest import Home
    from vitrael.core.records import PatientImages

SAMPLES = 24
PATIENTS = {"T": 24, "F": 4, "C": 8, "A": 14, "U": 4}


def compared(study: Study) -> Study:
    """Return the study with arms to compare, on a small grid, with a quick attacker."""
    document = study.model_dump(mode="json")
    protocol = document["protocol"]
    protocol["distillation"] = {"target": 24, "released": SAMPLES, "compare": True}
    protocol["data"] |= {"grid_vox": (24, 24, 24), "spacing_mm": 8.0}
    protocol["screening"]["false_match_rate"] = 0.2
    for system in protocol["systems"]:
        if system["kind"] == "reid_encoder":
            system |= {"channels": (8, 16), "embedding": 16}
            system["training"] |= {"length_images": 32, "batch_images": 8}
    return Study.model_validate(document)


def context_of(home: Home, **patients: int) -> SiteContext:
    """Return a context whose splits hold phantoms, as many as asked."""
    asked = {**PATIENTS, **patients}
    drawn = {split: people(f"split {split.value}", asked[split.value], visits=2) for split in Split}

    def images(split: Split) -> PatientImages:
        return drawn[split]

    context = home.context(records=home.path / "records", load_cohort=lambda *_: cast("Any", None))
    context._cohort = cast("Any", SimpleNamespace(images=images, version="one"))
    return context


@pytest.fixture
def site(home: Home) -> Home:
    home.study = compared(home.study)
    return home


def ask(home: Home, context: SiteContext, brought: Tensors, **beside: Tensors) -> TaskResult:
    inputs = {"arms": brought, **beside}
    return arms.run(home.task(inputs, stage="arms"), inputs, context)


def copies_of(context: SiteContext) -> np.ndarray:
    """Return a scan of each training patient, as a generator that copied it would draw it."""
    scans = context.cohort.images(Split.TRAINING).image_BCDHW[::2]
    noise = np.random.default_rng(5).normal(0, 0.002, scans.shape)
    return np.asarray(scans + noise, np.float16)


def nobody() -> np.ndarray:
    return people("nobody", SAMPLES).image_BCDHW.astype(np.float16)


def test_copies_are_counted_and_strangers_are_not(site: Home) -> None:
    context = context_of(site)
    copied, honest = copies_of(context), nobody()
    half = np.where(np.arange(SAMPLES)[:, None, None, None, None] < SAMPLES // 2, copied, honest)
    result = ask(site, context, {"teacher": copied, "random": half, "student": honest})
    counts = read_counts(result.body, samples=SAMPLES)
    assert counts is not None
    assert counts.hits["teacher"] == SAMPLES
    assert counts.hits["random"] == counts.both["random"] >= SAMPLES // 2
    assert counts.hits["student"] == counts.both["student"] <= 0.4 * SAMPLES  # the control
    assert counts.held_out == PATIENTS["A"]
    assert counts.held_out_hits <= 0.5 * PATIENTS["A"]
    assert (result.tensors, result.num_examples) == ({}, 0)


def test_only_counts_on_the_list_leave(site: Home) -> None:
    context, honest = context_of(site), nobody()
    brought = {"teacher": copies_of(context), "random": honest, "student": honest}
    result = ask(site, context, brought)
    assert result.body["metrics"] == {}
    assert result.body["counts"].keys() == RULES["arms"].labels
    door = Outbox(
        Journal(site.settings.journal, clock=site.clock),
        site="north",
        keys=site.keys,
        coordinator=site.coordinator.public,
        limits=Limits(),
    )
    task = site.task({"arms": brought}, stage="arms")
    assert door.check(task, result, {}, study=site.study).body == result.body


def test_round_trips_of_the_studys_codec_are_known_too(site: Home) -> None:
    codec = module_tensors(build_codec(site.study.synthesis.generator, seed=1))
    context, honest = context_of(site), nobody()
    brought = {"teacher": copies_of(context), "random": honest, "student": honest}
    counts = read_counts(ask(site, context, brought, codec=codec).body, samples=SAMPLES)
    assert counts is not None
    assert counts.hits["teacher"] == SAMPLES


def test_same_task_is_counted_the_same(site: Home) -> None:
    honest = nobody()
    brought = {"teacher": copies_of(context_of(site)), "random": honest, "student": honest}
    one, again = (ask(site, context_of(site), brought).body for _ in range(2))
    assert one == again


def test_attacker_that_was_stopped_learns_nothing_twice(site: Home) -> None:
    honest = nobody()
    brought = {"teacher": copies_of(context_of(site)), "random": honest, "student": honest}
    task = site.task({"arms": brought}, stage="arms")

    def run(*, stop_after: int = 0) -> tuple[list[int], Any]:
        told: list[int] = []

        def report(done: int, total: int) -> None:
            told.append(done)
            if len(told) == stop_after:
                raise TaskStopped("the steward was told to end")

        context = context_of(site)
        context.report = report
        try:
            return told, arms.run(task, {"arms": brought}, context).body
        except TaskStopped:
            return told, None

    whole, body = run()
    forget_checkpoints(site.path / "records")
    assert run(stop_after=2) == (whole[:2], None)
    assert run() == (whole[2:], body)


@pytest.mark.parametrize("few", [{"T": 10}, {"A": 10}, {"F": 1}])
def test_too_few_patients_count_nothing_and_say_so(site: Home, few: dict[str, int]) -> None:
    context, honest = context_of(site, **few), nobody()
    result = ask(site, context, {"teacher": honest, "random": honest, "student": honest})
    assert result.body["estimable"] is False
    assert result.body["counts"] == {}
    assert "under 11" in result.body["reason"]


def test_null_that_is_too_small_for_the_rate_counts_nothing(site: Home) -> None:
    document = site.study.model_dump(mode="json")
    document["protocol"]["screening"]["false_match_rate"] = 0.01
    site.study = Study.model_validate(document)
    honest = nobody()
    result = ask(site, context_of(site), {"teacher": honest, "random": honest, "student": honest})
    assert result.body["estimable"] is False
    assert "operating point" in result.body["reason"]


def test_arms_of_another_number_than_the_studys_are_refused(site: Home) -> None:
    honest = nobody()
    whole = {"teacher": honest, "random": honest, "student": honest}
    for brought in (
        {**whole, "student": honest[:-1]},
        {name: image[:-1] for name, image in whole.items()},
        {"teacher": honest, "random": honest},
        {**whole, "fourth": honest},
    ):
        with pytest.raises(DataError):
            ask(site, context_of(site), brought)


def test_person_who_consents_reads_what_a_comparison_of_arms_tells(home: Home) -> None:
    def words() -> str:
        return describe(home.consent(), home.study, coordinator="c", answered={})

    assert "random filter" not in words()  # the control
    home.study = compared(home.study)
    assert f"of {SAMPLES} samples each of teacher, random filter and student" in words()
    assert "without drops by chance" in words()


def test_member_of_the_filter_attacks_nothing(site: Home) -> None:
    context, honest = context_of(site), nobody()
    brought = {"teacher": honest, "random": honest, "student": honest}
    folder = context.records / "reid"
    folder.mkdir(parents=True)
    attacker = arms._train(
        site.task({"arms": brought}, stage="arms"), context.cohort.images(Split.FILTER), context
    )
    (folder / "copies.safetensors").write_bytes(pack_tensors(module_tensors(attacker)))
    with pytest.raises(DataError, match="member of the filter"):
        ask(site, context, brought)
