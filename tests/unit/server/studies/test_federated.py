"""Consents, averages and sums over the sites: what was signed, weighted, pooled."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest

from tests.factories.federation import SITES, Federation, federation
from tests.unit.server.studies.conftest import Ended
from vitrael.client.site.tasks import TaskResult, TaskRunner
from vitrael.core.digest import Digest
from vitrael.core.errors import QuorumError
from vitrael.core.messages import Parcel, Reply, Task
from vitrael.core.metrics.moments import moments_of
from vitrael.core.weights import Tensors
from vitrael.privacy.envelope import attachment_digests, make_reply_parcel, open_reply_parcel
from vitrael.privacy.keys import KeyPair
from vitrael.privacy.leakage import SMALLEST_COUNT
from vitrael.server.demo import site_home
from vitrael.server.studies.federated import (
    collect_consents,
    scale_latents,
    train_codec,
)

Documents = Callable[[Path], dict[str, Any]]


def add(amount: float, *, examples: int) -> TaskRunner:
    """Return a codec task that adds a number to every weight and learns nothing."""

    def run(_task: Task, inputs: Mapping[str, Tensors], _context: object) -> TaskResult:
        tensors = {
            name: (array + amount).astype(array.dtype) for name, array in inputs["codec"].items()
        }
        body = {"curve_images": [4], "curve_loss": [amount]}
        return TaskResult(body=body, tensors={"codec": tensors}, num_examples=examples)

    return run


def answer_with(
    told: Federation,
    site: str,
    tensors: Mapping[str, Tensors],
    *,
    body: Mapping[str, Any] | None = None,
) -> None:
    """Let a site sign a reply that its own outbox would never have let out."""
    keys = KeyPair.load(site_home(told.home, site) / "keys")

    def spoil(task: Task, _parcel: Parcel) -> Parcel:
        reply = Reply(
            **task.model_dump(include={"protocol", "roster", "site", "stage", "round", "nonce"}),
            status="done",
            num_examples=5,
            body=dict(body or {}),
            outputs=attachment_digests(tensors),
        )
        return make_reply_parcel(reply, tensors, site=keys, coordinator=told.run().keys.public)

    told.spoil[site] = spoil


ADDING: dict[str, Mapping[Any, TaskRunner]] = {
    "north": {"codec": add(1.0, examples=1)},
    "harbour": {"codec": add(2.0, examples=2)},
    "valley": {"codec": add(4.0, examples=5)},
}


def test_consents_are_of_this_protocol_and_this_roster(
    finished: Ended, documents: Documents
) -> None:
    consents = documents(finished.home)["consent 1"]["consents"]
    with federation(finished.home) as told:
        run = told.run()
    assert tuple(sorted(consents)) == tuple(sorted(SITES))
    for site, consent in consents.items():
        assert consent["site"] == site
        assert (consent["protocol"], consent["roster"]) == (run.study.protocol.digest, run.roster)


def test_run_does_not_begin_without_the_consent_of_every_named_site(home: Path) -> None:
    with federation(home) as told:
        told.spoil["valley"] = lambda *_: "the line is cut"
        with pytest.raises(QuorumError, match="2 of 3 sites answered, 3 are needed: valley: the"):
            collect_consents(told.run())
        del told.spoil["valley"]  # the control
        assert set(collect_consents(told.run())["consents"]) == set(SITES)


def test_round_is_the_mean_weighted_by_examples(home: Path, documents: Documents) -> None:
    with federation(home, tasks=ADDING) as told:
        end = told.run().objects.get_tensors(train_codec(told.run()))
        rounds = [documents(home)[f"codec {number + 1}"]["codec"] for number in range(2)]
        middle = told.run().objects.get_tensors(Digest(rounds[0]))
    step = (1 * 1.0 + 2 * 2.0 + 5 * 4.0) / 8
    for name, array in end.items():
        np.testing.assert_allclose(array - middle[name], step, rtol=1e-5)


def test_curves_are_kept_for_each_site(home: Path) -> None:
    with federation(home, tasks=ADDING) as told:
        train_codec(told.run())
        history = told.run().ledger.history(told.run().study.protocol.digest)
    assert history[0].details["curves"] == {
        site: {"images": [4], "loss": [loss]}
        for site, loss in zip(SITES, (1.0, 2.0, 4.0), strict=True)
    }


def with_first(value: float) -> Callable[[dict[str, np.ndarray]], dict[str, np.ndarray]]:
    def spoil(weights: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        name = min(weights)
        return {**weights, name: np.full_like(weights[name], value)}

    return spoil


GOOD_CURVE = {"curve_images": [4], "curve_loss": [0.5]}
BAD_UPDATES: dict[str, tuple[Callable[[Any], Any], dict[str, Any]]] = {
    "not a number": (with_first(np.nan), GOOD_CURVE),
    "infinite": (with_first(np.inf), GOOD_CURVE),
    "a tensor short": (lambda weights: dict(list(weights.items())[1:]), GOOD_CURVE),
    "curve without places": (dict, {"curve_loss": [0.5]}),
    "curve of text": (dict, {"curve_loss": ["low"], "curve_images": [4]}),
    "curve of nan": (dict, {"curve_loss": ["nan"], "curve_images": [4]}),
    "curve of truth": (dict, {"curve_loss": [True], "curve_images": [4]}),
    "curve that cannot be drawn": (dict, {"curve_loss": [1e308, -1e308], "curve_images": [4, 8]}),
    "curve without end": (dict, {f"curve_{name}": [1] * 201 for name in ("loss", "images")}),
}


def answer_with_codec(told: Federation, site: str, spoil: Callable[[Any], Any], body: Any) -> None:
    """Let a site sign the codec that came, spoiled."""

    def answer(task: Task, parcel: Parcel) -> Parcel:
        keys, public = told.run().keys, told.run().members[site]
        tensors = open_reply_parcel(parcel, task, coordinator=keys, site=public).tensors
        answer_with(told, site, {"codec": spoil(tensors["codec"])}, body=body)
        spoiled = told.spoil[site](task, parcel)
        told.spoil[site] = answer
        return cast("Parcel", spoiled)

    told.spoil[site] = answer


@pytest.mark.parametrize("bad", [None, *BAD_UPDATES])
def test_update_that_cannot_be_used_is_left_out_by_name(bad: str | None, home: Path) -> None:
    spoil, body = BAD_UPDATES[bad] if bad else (dict, GOOD_CURVE)
    with federation(home, tasks=ADDING) as told:
        answer_with_codec(told, "harbour", spoil, body)
        end = told.run().objects.get_tensors(train_codec(told.run()))
        history = told.run().ledger.history(told.run().study.protocol.digest)
    took_part = ("north", "valley") if bad else SITES
    assert [record.participants for record in history] == [took_part] * 2
    assert list(history[0].details.get("absent", [])) == (["harbour"] if bad else [])
    assert all(np.isfinite(array).all() for array in end.values())


def tell_moments(**changed: np.ndarray) -> dict[str, np.ndarray]:
    """Return the moments that a site may send, some of them changed."""
    rng = np.random.default_rng(3)
    widths = {"latent": 2, "condition": 4, "ceiling": 2}
    sums = {name: moments_of(rng.normal(size=(99, width))) for name, width in widths.items()}
    sent = {f"{name}.{part}": array for name, m in sums.items() for part, array in m.items()}
    return {**sent, **{name.replace("_", "."): array for name, array in changed.items()}}


BAD_MOMENTS = {
    "count alone": {"latent.count": np.ones(1)},
    "another width": tell_moments(latent_sum=np.zeros(3), latent_square=np.eye(3)),
    "count below zero": tell_moments(latent_count=np.array([-9.0])),
    "variance below zero": tell_moments(latent_square=np.eye(2) * 1e-9),
    "one too many": tell_moments(more_count=np.ones(1)),
}


@pytest.mark.parametrize("bad", [None, *BAD_MOMENTS])
def test_moments_that_cannot_be_pooled_are_left_out_by_name(bad: str | None, home: Path) -> None:
    from vitrael.core.models.brain_ldm import build_codec
    from vitrael.core.weights import module_tensors

    pairs = np.random.default_rng(5).normal(size=(30, 2))
    tasks = {site: {"latents": moments(pairs=pairs)} for site in SITES}
    with federation(home, tasks=tasks) as told:
        answer_with(told, "harbour", {"moments": BAD_MOMENTS[bad] if bad else tell_moments()})
        run = told.run()
        codec = module_tensors(build_codec(run.study.protocol.generator, seed=1))
        document = scale_latents(run, run.objects.put_tensors(codec))
        record = run.ledger.history(run.study.protocol.digest)[-1]
        scaled = run.objects.get_tensors(document["codec"])
    assert record.participants == (("north", "valley") if bad else SITES)
    assert record.details.get("kinds") == ({"harbour": "unusable"} if bad else None)
    assert (scaled["latent_std"] > 0.5).all()


def test_latents_have_zero_mean_and_unit_variance_after_scaling(
    finished: Ended, documents: Documents
) -> None:
    import torch

    from vitrael.client.site.settings import load_settings
    from vitrael.client.site.steward import open_cohort
    from vitrael.core.data.splits import Split
    from vitrael.core.models.brain_ldm import build_codec
    from vitrael.core.weights import load_weights

    with federation(finished.home) as told:
        run = told.run()
    codec = build_codec(run.study.protocol.generator, seed=0)
    load_weights(codec, run.objects.get_tensors(documents(run.home)["latents 1"]["codec"]))
    cohorts = [open_cohort(load_settings(site_home(run.home, s)), run.study) for s in SITES]
    image = np.concatenate([c.images(Split.TRAINING).image_BCDHW for c in cohorts])
    with torch.no_grad():
        latent = codec.encode(torch.from_numpy(image))
        plain, _ = codec.posterior(torch.from_numpy(image))
    assert latent.mean(dim=(0, 2, 3, 4)).abs().max() < 1e-3
    assert (latent.std(dim=(0, 2, 3, 4)) - 1).abs().max() < 1e-3
    assert (plain.std(dim=(0, 2, 3, 4)) - 1).abs().max() > 0.05  # the control


def test_pooled_condition_is_that_of_first_visits_but_for_those_of_audit_and_utility(
    finished: Ended, documents: Documents
) -> None:
    from vitrael.client.site.settings import load_settings
    from vitrael.client.site.steward import open_cohort
    from vitrael.core.data.splits import Split

    with federation(finished.home) as told:
        run = told.run()
    rows = []
    for site in SITES:
        cohort = open_cohort(load_settings(site_home(run.home, site)), run.study)
        parts = [cohort.images(split) for split in set(Split) - {Split.AUDIT, Split.UTILITY}]
        firsts = [part.condition_BK[part.visit_B == 0].astype(np.float64) for part in parts]
        if sum(map(len, firsts)) >= SMALLEST_COUNT:
            rows += firsts
    assert len(rows) > len(parts)  # more than one site told
    condition = documents(run.home)["latents 1"]["condition"]
    np.testing.assert_allclose(condition["mean"], np.concatenate(rows).mean(0), atol=1e-6)
    expected = np.cov(np.concatenate(rows).T, bias=True)
    np.testing.assert_allclose(condition["covariance"], expected, atol=1e-6)


def moments(*, pairs: np.ndarray) -> TaskRunner:
    """Return a latents task that tells these volumes before and after the codec."""

    def run(_task: Task, _inputs: object, _context: object) -> TaskResult:
        rng = np.random.default_rng(3)
        sums = {
            "latent": moments_of(rng.normal(size=(99, 2))),
            "condition": moments_of(np.zeros((0, 4))),
            "ceiling": moments_of(pairs),
        }
        tensors = {f"{n}.{part}": array for n, m in sums.items() for part, array in m.items()}
        return TaskResult(tensors={"moments": tensors}, num_examples=9)

    return run


def scale_with(home: Path, pairs: np.ndarray) -> dict[str, Any]:
    tasks = {site: {**ADDING[site], "latents": moments(pairs=pairs)} for site in SITES}
    with federation(home, tasks=tasks) as told:
        return scale_latents(told.run(), train_codec(told.run()))


def test_sums_that_no_site_told_are_none_and_not_zero(home: Path) -> None:
    document = scale_with(home, np.zeros((0, 2)))
    assert document["condition"] is None
    assert document["ceiling"] == {"r": None, "n": 0}


def test_ceiling_is_the_correlation_over_all_sites(home: Path) -> None:
    pairs = np.random.default_rng(5).normal(size=(30, 2)) @ np.array([[1.0, 0.8], [0, 0.6]])
    ceiling = scale_with(home, pairs)["ceiling"]
    assert ceiling["n"] == 90
    assert ceiling["r"] == pytest.approx(np.corrcoef(pairs.T)[0, 1])


def test_codec_that_loses_every_ventricle_has_no_ceiling(home: Path) -> None:
    volumes = np.random.default_rng(5).uniform(10, 90, 30)
    ceiling = scale_with(home, np.stack([volumes, np.zeros(30)], axis=1))["ceiling"]
    assert ceiling == {"r": None, "n": 90}


def test_each_site_commits_to_its_operating_point(finished: Ended, documents: Documents) -> None:
    told = documents(finished.home)["calibration 1"]["sites"]
    assert all(body["estimable"] for body in told.values())
    assert all(str(body["commitment"]).startswith("sha256:") for body in told.values())


def test_thresholds_do_not_leave_a_site(finished: Ended, documents: Documents) -> None:
    for body in documents(finished.home)["calibration 1"]["sites"].values():
        assert set(body) == {"estimable", "reason", "commitment", "metrics", "counts"}
        assert set(body["metrics"]) == {"verification.wins"}
