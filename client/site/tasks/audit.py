"""Audit the released samples against the site's own patients, and the filter with planted copies.

Only counts, areas and shares over many patients leave. The audit is made once for a set of
samples: its answers are part of what is told of the patients.
"""

from __future__ import annotations

import json
from collections.abc import Mapping

import numpy as np

from vitrael.client.site.tasks import SiteContext, TaskResult
from vitrael.client.site.tasks.certify import certify
from vitrael.client.site.tasks.filtering import (
    demand_same_codec,
    site_template,
    study_round_trip,
)
from vitrael.client.site.tasks.networks import site_compute
from vitrael.client.site.tasks.screen import choose_filter, commitment_of, decode_images
from vitrael.client.site.tasks.sign_release import AUDITED
from vitrael.core.data.splits import Split
from vitrael.core.digest import digest_bytes, write_atomically
from vitrael.core.errors import DataError
from vitrael.core.messages import Task
from vitrael.core.records import PatientImages
from vitrael.core.rng import stream
from vitrael.core.weights import Tensors
from vitrael.privacy.audit.closeness import (
    Closeness,
    common_visits,
    measure_closeness,
    patient_distances,
    relative_distances,
)
from vitrael.privacy.audit.copies import Copies, count_copies, strict_point
from vitrael.privacy.audit.membership import Membership, attack_scores, measure_membership
from vitrael.privacy.audit.parts import write_audit
from vitrael.privacy.audit.plants import bend_affinely, draw_sources
from vitrael.privacy.leakage import SMALLEST_COUNT
from vitrael.privacy.reid.calibrate import first_visits
from vitrael.privacy.reid.gallery import with_round_trips
from vitrael.privacy.reid.reference import build_reference, registered_similarity
from vitrael.privacy.reid.roles import RoundTrip

_REFERENCE = (Split.FILTER, Split.CALIBRATION, Split.UTILITY)
"""Real patients that are neither attacked nor sealed: they say what is usual."""
_NOISE_FRAC = 0.02
"""Standard deviation, of the intensity range, in the control of the membership attack."""
_PARTS = 4


def run(task: Task, inputs: Mapping[str, Tensors], context: SiteContext) -> TaskResult:  # noqa: ARG001 - every task is called alike
    """Return the site's tally of ``released``; ``codec`` and ``denoiser`` make plants.

    ``commitment`` in it names the operating point of the filter that was shown the plants.

    ``released`` holds the image files of the release, uint8, by their path. Their digests are
    kept: this site will sign no other files. Raises ScanError for a file that is no image, and
    DataError for images of another shape or number than the study's: nothing is told of them.
    """
    device = site_compute(context).device
    files = {name: np.asarray(a, np.uint8).tobytes() for name, a in inputs["released"].items()}
    released = _read_images(files, context)
    demand_same_codec(context, inputs.get("codec"))
    round_trip = study_round_trip(context, inputs.get("codec"))
    audit = SiteAudit(context, released, round_trip, device=device)
    tested = certify(
        context,
        released,
        codec=inputs.get("codec"),
        denoiser=inputs.get("denoiser"),
        told=lambda done, total: context.report(done, _PARTS * total),
    )
    context.report(1, _PARTS)
    copies = audit.count_copies()
    context.report(2, _PARTS)
    closeness = audit.measure_closeness()
    context.report(3, _PARTS)
    membership = audit.measure_membership()
    context.report(_PARTS, _PARTS)
    body = write_audit(
        certificate=tested.certificate,
        fresh=tested.fresh,
        plants_absent=tested.plants_absent,
        copies=copies,
        closeness=closeness,
        membership=membership,
    )
    filter_shown, _ = choose_filter(context)
    body["commitment"] = commitment_of(filter_shown)
    _keep_digests(files, context)
    return TaskResult(body=body, num_examples=len(released))


def _read_images(files: Mapping[str, bytes], context: SiteContext) -> np.ndarray:
    """Return the images of files ``[B, 1, D, H, W]`` in the order of their names."""
    asked = context.study.synthesis.distillation.released
    if len(files) != asked:
        raise DataError(
            "the task brings another number of released images than the study",
            why=f"{len(files)} instead of {asked}",
            fix="send all released images of the study, and no others",
        )
    return decode_images(files, context)


def _keep_digests(files: Mapping[str, bytes], context: SiteContext) -> None:
    """Write down what was audited, once it is: this site will sign no other images."""
    digests = sorted(digest_bytes(content) for content in files.values())
    write_atomically(context.records / AUDITED, json.dumps(digests).encode())


class SiteAudit:
    """The parts of one audit, over the same private splits."""

    def __init__(
        self,
        context: SiteContext,
        released_BCDHW: np.ndarray,
        round_trip: RoundTrip | None,
        *,
        device: str,
    ) -> None:
        """Take the samples; every part draws from a stream of its own."""
        self.context = context
        self.released = released_BCDHW
        self.round_trip = round_trip
        self.device = device
        self.training = context.cohort.images(Split.TRAINING)
        self.held_out = context.cohort.images(Split.AUDIT)
        self.reference = np.concatenate([_firsts(context.cohort.images(s)) for s in _REFERENCE])
        self.visits = common_visits(self.training, self.held_out)

    def count_copies(self) -> Copies | None:
        """Return the counts of copies, or None with too few patients of any kind.

        The template is that of F, which helped neither side: one of T would make the scans of T
        less like the samples than those of held-out patients are.
        """
        sides = self.training, self.held_out
        learning = self.context.cohort.images(Split.FILTER)
        if min(len(first_visits(side)) for side in sides) < SMALLEST_COUNT or not len(learning):
            return None
        training, held_out = (
            with_round_trips(part, self.round_trip).image_BCDHW
            for part in (self.training, self.held_out)
        )
        template = site_template(learning, device=self.device)
        gallery = build_reference(training, template)
        null = registered_similarity(self.reference, gallery)
        if self.round_trip is not None and len(self.reference):
            smooth = registered_similarity(self.round_trip(self.reference), gallery)
            null = np.maximum(null, smooth)
        point = strict_point(null)
        if point is None:
            return None
        matched, control = (
            registered_similarity(self.released, one)
            for one in (gallery, build_reference(held_out, template))
        )
        planted = registered_similarity(self._disguised_copies(), gallery)
        return count_copies(matched, control, planted, point)

    def measure_closeness(self) -> Closeness | None:
        """Return the share of samples nearer to training patients."""
        if not self.visits or not len(self.reference):
            return None
        training, held_out = (
            relative_distances(
                patient_distances(self.released, part, visits=self.visits),
                patient_distances(self.reference, part, visits=self.visits),
            )
            for part in (self.training, self.held_out)
        )
        return measure_closeness(training, held_out, rng=self._rng("closeness"))

    def measure_membership(self) -> Membership | None:
        """Return the areas of the attack, its placebo and its control."""
        if not self.visits or not len(self.reference):
            return None
        rng = self._rng("membership")
        planted = np.concatenate([self.released, self._noisy_half(rng)])
        members, others, *found = (
            attack_scores(
                patient_distances(samples, part, visits=self.visits),
                patient_distances(self.reference, part, visits=self.visits),
            )
            for samples, part in (
                (self.released, self.training),
                (self.released, self.held_out),
                (planted, self.training),
                (planted, self.held_out),
            )
        )
        return measure_membership(members, others, planted=(found[0], found[1]), rng=rng)

    def _disguised_copies(self) -> np.ndarray:
        """Return a scan of every training patient, bent, and smoothed as a generator's samples."""
        everybody = len(np.unique(self.training.patient_B))
        rng = self._rng("copies")
        sources = draw_sources(self.training, everybody, rng=rng).image_PCDHW
        bent = np.stack([bend_affinely(one[0], rng=rng)[None] for one in sources])
        return bent if self.round_trip is None else self.round_trip(bent)

    def _noisy_half(self, rng: np.random.Generator) -> np.ndarray:
        scans = _firsts(self.training)
        chosen = scans[rng.permutation(len(scans))[: len(scans) // 2]]
        noisy = np.clip(chosen + rng.normal(0, _NOISE_FRAC, chosen.shape), 0, 1)
        return np.asarray(noisy, dtype=np.float32)

    def _rng(self, part: str) -> np.random.Generator:
        return stream(self.context.study.protocol.seed, "audit", part, self.context.name)


def _firsts(images: PatientImages) -> np.ndarray:
    """Return the first scan of each patient."""
    return np.asarray(images.image_BCDHW[first_visits(images)])
