"""The filter and the audit at one site, through the site's own tasks, on brain phantoms.

A leaky study (samples are training scans with a little noise, screening off) and its honest twin
(samples are new people) differ in nothing else.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest

from vitrael.client.site.tasks import SiteContext, audit, calibrate, screen, train_reid
from vitrael.client.site.tasks.certify import PLANTED as PLANTED_FILE
from vitrael.client.site.tasks.certify import certify
from vitrael.client.site.tasks.sign_release import AUDITED
from vitrael.core.data.nifti import encode_nifti
from vitrael.core.data.phantoms.brain import (
    age_anatomy,
    draw_acquisition,
    draw_anatomy,
    render_brain,
)
from vitrael.core.data.scan import Scan
from vitrael.core.data.splits import Split
from vitrael.core.digest import digest_bytes
from vitrael.core.errors import DataError, VerificationError
from vitrael.core.geometry import centered_affine
from vitrael.core.messages import StageName, Task
from vitrael.core.models.reid import build_reid_encoder
from vitrael.core.records import PatientImages
from vitrael.core.rng import stream, stream_seed
from vitrael.core.study import Study, load_study
from vitrael.core.weights import module_tensors
from vitrael.privacy.audit.planting import open_plants
from vitrael.privacy.audit.plants import VOLUME_PLANTS, draw_sources
from vitrael.privacy.audit.pooling import audit_measurements, screening_measurement
from vitrael.privacy.evidence import SUBGROUPS, Measurement
from vitrael.privacy.keys import KeyPair
from vitrael.privacy.leakage import SMALLEST_COUNT, split_plants
from vitrael.privacy.suite import VOLUME_SUITE, must_classes

pytestmark = [
    pytest.mark.federation,  # whole studies
]

_SIZES = {"T": 40, "F": 8, "C": 10, "A": 16, "U": 4}
_RELEASED = 32
_NOTHING = digest_bytes(b"")


def _people(name: str, count: int, grid: tuple[int, int, int], *, visits: int = 1) -> np.ndarray:
    scans = []
    for person in range(count):
        rng = stream(11, "leak", name, person)
        anatomy = draw_anatomy(rng)
        for _ in range(visits):
            scan = render_brain(anatomy, draw_acquisition(rng), grid_vox=grid, spacing_mm=8.0)
            scans.append(np.clip(scan.image_CDHW, 0, 1))
            anatomy = age_anatomy(anatomy, rng, years=1.0)
    return np.stack(scans)


class FakeCohort:
    """Phantoms by split."""

    version = digest_bytes(b"phantoms")

    def __init__(self, grid: tuple[int, int, int], sizes: dict[str, int]) -> None:
        self._parts: dict[Split, PatientImages] = {}
        for split in Split:
            count, visits = sizes[split.value], 2 if split.value in "FC" else 1
            image = _people(split.value, count, grid, visits=visits) if count else None
            rows = count * visits
            self._parts[split] = PatientImages(
                np.zeros((0, 1, *grid), np.float32) if image is None else image,
                np.zeros((rows, 4), np.float32),
                np.repeat(np.arange(count), visits),
                np.tile(np.arange(visits), count),
            )

    def images(self, split: Split) -> PatientImages:
        return self._parts[split]

    def items(self, split: Split) -> list[SimpleNamespace]:
        part = self._parts[split]
        return [
            SimpleNamespace(subject=int(patient), digest=digest_bytes(image.tobytes()))
            for patient, image in zip(part.patient_B, part.image_BCDHW, strict=True)
        ]


def _task(stage: StageName) -> Task:
    return Task(
        protocol=_NOTHING,
        roster=_NOTHING,
        site="north",
        stage=stage,
        round=0,
        nonce="0" * 32,
        issued_utc="2026-01-01T00:00:00+00:00",
        deadline_s=60,
    )


def _study(root: Path, *, screening: bool) -> Study:
    study = load_study(root / "deploy" / "studies" / "brain-demo.toml")
    document = study.model_dump(mode="json")
    document["protocol"]["screening"]["enabled"] = screening
    document["protocol"]["audit"]["plants_per_class"] = 33  # eleven at each of three sites
    document["protocol"]["distillation"] = {"target": _RELEASED, "released": _RELEASED}
    for system in document["protocol"]["systems"]:
        if system["kind"] == "reid_encoder":
            system["training"]["length_images"] = 480
    return Study.model_validate(document)


def _site(study: Study, records: Path, sizes: dict[str, int]) -> SiteContext:
    facts: dict[str, Any] = {
        "settings": SimpleNamespace(
            records_of=lambda **_: records,
            read_split_key=lambda: b"of this site alone, 32 bytes....",
        ),
        "study": study,
        "name": "north",
        "cohort": FakeCohort(study.protocol.data.grid_vox, sizes),
        "records": records,
        "report": lambda _done, _total: None,
        "keys": KeyPair.create(),
        "warm": {},
        "device": "cpu",
        "threads": 1,
        "bf16": "off",
        "vram_frac": None,
    }
    return cast("SiteContext", SimpleNamespace(**facts))


def _calibrated(context: SiteContext) -> Mapping[str, Any]:
    """Return what a site tells that has trained the patient encoder alone."""
    protocol = context.study.synthesis
    start = module_tensors(build_reid_encoder(protocol.reid, seed=protocol.seed, learns="visits"))
    trained = train_reid.run(_task("reid"), {"encoder": start}, context).tensors["encoder"]
    return calibrate.run(_task("calibration"), {"encoder": trained}, context).body


@pytest.fixture(scope="module")
def site(root: Path, tmp_path_factory: pytest.TempPathFactory) -> SiteContext:
    """Return a calibrated site of the honest study."""
    context = _site(_study(root, screening=True), tmp_path_factory.mktemp("site"), _SIZES)
    body = _calibrated(context)
    assert body["estimable"], body["reason"]
    return context


def _audited(context: SiteContext, released: np.ndarray) -> dict[str, Measurement]:
    data = context.study.protocol.data
    affine = centered_affine(data.grid_vox, spacing=data.spacing_mm)
    files = {
        f"{number:03d}.nii.gz": np.frombuffer(
            encode_nifti(Scan(image, affine, "T1w"), dtype="int16", compressed=True), np.uint8
        )
        for number, image in enumerate(released)
    }
    body = audit.run(_task("audit"), {"released": files}, context).body
    return {m.name: m for m in audit_measurements([body])}


@pytest.fixture(scope="module")
def strangers(site: SiteContext) -> np.ndarray:
    return _people("released", _RELEASED, site.study.protocol.data.grid_vox)


@pytest.fixture(scope="module")
def honest(site: SiteContext, strangers: np.ndarray) -> dict[str, Measurement]:
    return _audited(site, strangers)


@pytest.fixture(scope="module")
def leaky(root: Path, site: SiteContext, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """Return the audit of copies of T in the twin study without screening."""
    records = tmp_path_factory.mktemp("leaky")
    context = _site(_study(root, screening=False), records, _SIZES)
    scans = context.cohort.images(Split.TRAINING).image_BCDHW[:_RELEASED]
    copies = np.clip(scans + stream(3, "copies").normal(0, 0.03, scans.shape), 0, 1)
    return _audited(context, copies.astype(np.float32))


PLANTED = tuple(
    name
    for name in must_classes(VOLUME_SUITE)
    if not set(VOLUME_PLANTS[name].needs) & {"round_trip", "renoise", "latent_blend", "memorized"}
)
"""What can be planted without the study's own models."""


def _first_plant(site: SiteContext) -> np.ndarray:
    """Return the exact copy that this site plants first."""
    share = site.study.synthesis.audit.plants_per_class
    seed = stream_seed(site.study.protocol.seed, "audit", "plants", site.name)
    count = split_plants(share, len(site.study.roster.sites))
    training = site.cohort.images(Split.TRAINING)
    return draw_sources(training, count, rng=stream(seed, "sources")).image_PCDHW[0]


def _unscreened(site: SiteContext, **asked: int) -> SiteContext:
    """Return the site in a study without screening, whose filter keeps everything at no cost."""
    document = site.study.model_dump(mode="json")
    document["protocol"]["screening"]["enabled"] = False
    document["protocol"]["audit"].update(asked)
    study = Study.model_validate(document)
    return cast("SiteContext", SimpleNamespace(**{**vars(site), "study": study}))


def _value(measurement: Measurement) -> float:
    assert measurement.value is not None
    return measurement.value


def test_filter_catches_plants_and_keeps_strangers(
    site: SiteContext, honest: dict[str, Measurement], strangers: np.ndarray
) -> None:
    for kind in PLANTED:
        assert _value(honest[f"filter.power.{kind}"]) >= 0.85, kind
    assert _value(honest["filter.worst_site_power"]) >= 0.9
    assert _value(honest["filter.plants_absent"]) == 1
    result = screen.judge(strangers, site)
    assert result.tensors["votes"]["keep"].mean() > 0.8
    assert screening_measurement([[result.body]]).value == 1.0


def test_class_that_could_not_be_planted_is_not_estimable(honest: dict[str, Measurement]) -> None:
    for kind in set(VOLUME_SUITE) - set(PLANTED):
        assert not honest[f"filter.power.{kind}"].estimable, kind


def test_filter_that_is_off_catches_nothing(leaky: dict[str, Measurement]) -> None:
    assert _value(leaky["filter.power.exact"]) == 0


def test_leak_is_found_and_its_twin_is_not(
    honest: dict[str, Measurement], leaky: dict[str, Measurement]
) -> None:
    assert _value(honest["copies.excess_share"]) < 0.1
    assert leaky["copies.excess_share"].low is not None
    assert leaky["copies.excess_share"].low > 0.5
    assert leaky["membership.auc"].low is not None
    assert leaky["membership.auc"].low > 0.7
    assert _value(honest["membership.auc"]) < 0.7
    assert _value(leaky["closeness.training_share"]) > 0.8
    assert _value(leaky["membership.placebo_gap"]) < 0.25


def test_filter_survives_a_restart_of_the_steward(site: SiteContext, strangers: np.ndarray) -> None:
    warm = screen.judge(strangers, site)
    site.warm.clear()
    cold = screen.judge(strangers, site)
    assert (warm.tensors["votes"]["keep"] == cold.tensors["votes"]["keep"]).all()


def test_too_few_patients_leave_candidates_unscreened(
    root: Path, tmp_path: Path, strangers: np.ndarray
) -> None:
    few = {"T": 6, "F": 2, "C": 1, "A": 2, "U": 1}
    context = _site(_study(root, screening=True), tmp_path, few)
    body = _calibrated(context)
    assert not body["estimable"]
    result = screen.judge(strangers, context)
    assert result.tensors["votes"]["keep"].all()
    assert not result.body["estimable"]
    assert not any(m.estimable for m in _audited(context, strangers).values())


@pytest.mark.usefixtures("honest")  # an audit has left its record
@pytest.mark.parametrize("change", [-1, 1])
def test_other_number_of_released_images_is_refused_and_nothing_is_told(
    site: SiteContext, strangers: np.ndarray, change: int
) -> None:
    wrong = np.concatenate([strangers, strangers])[: _RELEASED + change]
    before = (site.records / AUDITED).read_bytes()
    with pytest.raises(DataError, match=f"{_RELEASED + change} instead of {_RELEASED}"):
        _audited(site, wrong)
    assert (site.records / AUDITED).read_bytes() == before


def test_planted_strangers_are_no_positive_control(
    site: SiteContext, strangers: np.ndarray, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Both groups meet the enlarged set: copies of people in neither are near to neither."""
    people = _people("planted strangers", 20, site.study.protocol.data.grid_vox)
    judged = audit.SiteAudit(site, strangers, None, device="cpu")
    copied = judged.measure_membership()
    monkeypatch.setattr(judged, "_noisy_half", lambda _rng: people)
    unrelated = judged.measure_membership()
    assert copied is not None
    assert unrelated is not None
    assert copied.control.value > 0.7
    assert abs(unrelated.control.value - unrelated.attack.value) < 0.02


class FewerSealed:
    """The same cohort with fewer sealed patients."""

    def __init__(self, cohort: Any, sealed: int) -> None:
        self._cohort, self._sealed = cohort, sealed

    def images(self, split: Split) -> PatientImages:
        images: PatientImages = self._cohort.images(split)
        if split is not Split.AUDIT:
            return images
        rows = images.patient_B < self._sealed
        return PatientImages(
            images.image_BCDHW[rows],
            images.condition_BK[rows],
            images.patient_B[rows],
            images.visit_B[rows],
        )


@pytest.mark.parametrize("sealed", [10, 11])
def test_nothing_is_told_of_fewer_than_eleven_sealed_patients(
    site: SiteContext, strangers: np.ndarray, sealed: int
) -> None:
    about_others = {"filter.worst_site_power", "filter.votes_changed", "filter.plants_absent"}
    about_others |= {f"filter.subgroup_power.{name}" for name in SUBGROUPS}
    about_others |= {"filter.negatives.template"}
    few = FewerSealed(site.cohort, sealed)
    parts = {**vars(_unscreened(site)), "cohort": few}
    context = cast("SiteContext", SimpleNamespace(**parts))
    about_sealed = {
        name: m.estimable
        for name, m in _audited(context, strangers).items()
        if name not in about_others and not name.startswith("filter.power.")
    }
    assert set(about_sealed.values()) == {sealed >= SMALLEST_COUNT}


def test_each_site_plants_at_least_as_many_as_may_be_told(
    site: SiteContext, strangers: np.ndarray
) -> None:
    context = _unscreened(site, plants_per_class=3)
    tested = certify(context, strangers, codec=None, denoiser=None, told=lambda *_: None)
    shown = {kind: tally.shown for kind, tally in tested.certificate.plants.items()}
    assert shown == {kind: 11 if kind in PLANTED else 0 for kind in must_classes(VOLUME_SUITE)}


def test_release_with_a_planted_copy_in_it_is_refused(
    site: SiteContext, strangers: np.ndarray
) -> None:
    context = _unscreened(site)  # what is planted does not depend on who judges it
    clean = certify(context, strangers, codec=None, denoiser=None, told=lambda *_: None)
    assert clean.plants_absent > 100
    with_plant = strangers.copy()
    with_plant[3] = _first_plant(site)
    with pytest.raises(VerificationError, match="planted copies"):
        certify(context, with_plant, codec=None, denoiser=None, told=lambda *_: None)


def test_signed_list_of_plants_stays_at_the_site(
    site: SiteContext, honest: dict[str, Measurement]
) -> None:
    assert honest["filter.plants_absent"].estimable
    listed, signature = (
        (site.records / f"{PLANTED_FILE}.{kind}").read_bytes() for kind in ("json", "sig")
    )
    plants = open_plants(listed, signature, public=site.keys.public.signing)
    assert len(plants.ids) > 100
    with pytest.raises(VerificationError, match="was changed"):
        open_plants(listed + b" ", signature, public=site.keys.public.signing)


def test_nobody_to_learn_from_is_no_error(root: Path, tmp_path: Path) -> None:
    few = {"T": 3, "F": 0, "C": 0, "A": 0, "U": 0}
    context = _site(_study(root, screening=True), tmp_path, few)
    assert not _calibrated(context)["estimable"]
