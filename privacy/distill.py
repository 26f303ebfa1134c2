"""Privacy distillation: generate, screen, retrain, over functions that do each step.

The teacher draws candidates, every site says of each whether it comes too close to one of its own
patients, and the student learns from those that all of them kept (Fernandez et al. 2023, arXiv
2306.01322). The student's samples are screened in turn, and again after each later stage, for a
decoder or a resampling can bring back what the screening before it did not see.

It mitigates and proves nothing: what all filters miss, the student learns. So no site counts whose
power certificate does not vouch for its filter, and the proof is the audit's.

Axes: B images of a batch, K conditions, G divisions into subgroups.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Final, Protocol

import numpy as np

from vitrael.core.digest import Digest, digest_bytes
from vitrael.core.errors import DataError, QuorumError
from vitrael.core.interfaces import Generator
from vitrael.core.metrics.intervals import CONFIDENCE
from vitrael.core.weights import Tensors
from vitrael.privacy.audit.arms import measure_acceptance
from vitrael.privacy.audit.power import Tally
from vitrael.privacy.evidence import Measurement

MOST_VOTES: Final = 4.0
"""Votes on candidates that a site gives at most, for each that is wanted."""
EXTRA_REJECTIONS: Final = (0.01, 0.05)
"""Between which the share lies that chance rejects."""


@dataclass(frozen=True, slots=True, repr=False)
class Batch:
    """Images with what was asked for."""

    image: np.ndarray
    """``[B, C, D, H, W]`` or of any other axes behind B."""
    condition_BK: np.ndarray
    subgroup_BG: np.ndarray
    """Names: a column for each division (sex, age band), none of them in two columns."""

    def __repr__(self) -> str:
        """Show no image."""
        return f"Batch({len(self.image)} images)"


class Uniforms(Protocol):
    """A named NumPy generator, or one that draws from the system's secure source."""

    def random(self, size: int, /) -> np.ndarray:
        """Return numbers from [0, 1)."""


Draw = Callable[[int, int], Batch]
"""From the index of the first image and a count to a batch: row i depends on first + i alone."""
Screen = Callable[[np.ndarray], Mapping[str, np.ndarray]]
"""From images to each site's votes, ``[B]`` bool, true for keep; one bit for each, no score."""


@dataclass(frozen=True, slots=True)
class Stage:
    """Something that is done to images before they are used: each is screened again after it."""

    name: str
    make: Callable[[np.ndarray], np.ndarray]
    """From what the stage before made to as many images, in their order, each for itself."""


@dataclass(frozen=True, slots=True)
class Steps:
    """What a study does in each step; stages that are persisted may stand behind them."""

    draw: Draw
    """Of the teacher."""
    screen: Screen
    train: Callable[[np.ndarray, np.ndarray], Generator]
    """From kept images and their conditions to the student, from fresh weights."""
    sample: Callable[[Generator], Draw]
    """From the student to what draws its samples."""
    weights: Callable[[Generator], Mapping[str, Digest]]
    """Digests of the tensors that a student may not share with its teacher."""
    teacher_weights: Mapping[str, Digest]
    prepare: tuple[Stage, ...] = ()
    """What is done to candidates before the student learns from them."""
    finish: tuple[Stage, ...] = ()
    """What is done to the student's samples before they are released."""


@dataclass(frozen=True, slots=True)
class Plan:
    """How much is wanted, and what it may cost. Raises DataError for what cannot be had."""

    target: int
    """Kept candidates from which the student learns."""
    released: int
    """The student's samples that are wanted."""
    fewest: int = 8
    """Kept candidates below which no student is trained."""
    batch: int = 64
    """Images that are in memory and under way at a time; no result depends on it."""
    votes_per_target: float = MOST_VOTES
    votes_before: int = 0
    """Votes on candidates that earlier attempts have cost a site; they count against the cap."""
    extra_rejections: float = 0.03
    confidence: float = CONFIDENCE

    def __post_init__(self) -> None:
        least, most = EXTRA_REJECTIONS
        if self.target < self.fewest or min(self.target, self.released, self.batch) < 1:
            raise DataError(
                f"a plan of {self.target} kept candidates cannot be carried out",
                why=f"the student needs {self.fewest}, and there is no batch of none",
            )
        if not least <= self.extra_rejections <= most:
            why = f"below {least:.0%} a hole proves a patient, above {most:.0%} it is waste"
            raise DataError("the share of extra rejections is out of range", why=why)
        allowed = 1 <= self.votes_per_target <= MOST_VOTES and self.votes_before >= 0
        if not allowed or self.cap(self.target) - self.votes_before < self.target:
            raise DataError(
                "the plan needs votes over the cap",
                why=f"a site gives at most {MOST_VOTES:g} votes for each candidate that is wanted",
                fix="start a fresh study, with a teacher that copies less",
            )

    def cap(self, wanted: int) -> int:
        """Return how many images a screening may show to a site, for as many as are wanted."""
        return int(self.votes_per_target * wanted)


@dataclass(frozen=True, slots=True)
class Screening:
    """One screening: the same images shown to every site. Whom chance rejected stands nowhere."""

    name: str
    shown: int
    dropped: int
    """By the vote of one site or more."""
    by_chance: int
    """Kept by all sites and rejected all the same, so that a hole proves nothing."""
    kept: Mapping[str, int]
    """By the vote of each site."""


@dataclass(frozen=True, slots=True, repr=False)
class Distilled:
    """What came of it. Student and samples are there only when all that was wanted is."""

    outcome: str
    student: Generator | None
    samples: Batch | None
    kept: np.ndarray
    """Indices of the kept candidates in the teacher's order, int64."""
    screenings: tuple[Screening, ...]
    measurements: tuple[Measurement, ...]

    def __repr__(self) -> str:
        """Show no image."""
        return f"Distilled({self.outcome!r})"

    @property
    def votes(self) -> dict[str, int]:
        """Return how many bits about its patients each site gave, over all screenings."""
        return dict.fromkeys(self.screenings[0].kept, sum(one.shown for one in self.screenings))


def distill(steps: Steps, plan: Plan, *, power: Mapping[str, bool], rng: Uniforms) -> Distilled:
    """Return the student and its screened samples, or what stopped the study on its way there.

    ``power`` names every site, with whether its certificate shows that its filter catches what it
    must. ``rng`` rejects the extra share: a stream of a public seed can be drawn again by anyone,
    so its seed is a secret one. No more is drawn than is still missing, so that no site votes on
    what nobody needs and equal seeds give equal results in batches of any size.

    Raises DataError, before anything is drawn, for a site without power; then for images that
    cannot be used, votes that are none, and a student with weights of the teacher's; and
    QuorumError where a site does not answer, for what it did not judge is not screened.
    """
    _refuse_powerless(power)
    cap = plan.cap(plan.target) - plan.votes_before
    line = _Line(plan, steps.screen, tuple(power), rng)
    found = line.gather("candidates", steps.draw, steps.prepare, wanted=plan.target, cap=cap)
    kept, screenings, measured = found.index, found.screenings, found.measured
    drawn = screenings[0].shown
    if len(kept) < plan.target:
        outcome = f"too few kept: {len(kept)} of {plan.target} after {drawn} candidates"
        return Distilled(outcome, None, None, kept, screenings, measured)
    student = steps.train(found.batch.image, found.batch.condition_BK)
    del found  # its images make room for the student's
    refuse_same_weights(steps.weights(student), steps.teacher_weights)
    draw, cap = steps.sample(student), plan.cap(plan.released)
    made = line.gather("samples", draw, steps.finish, wanted=plan.released, cap=cap)
    screenings, measured = screenings + made.screenings, measured + made.measured
    count, tried = len(made.index), made.screenings[0].shown
    if count < plan.released:
        outcome = f"too few samples kept: {count} of {plan.released} after {tried}"
        return Distilled(outcome, None, None, kept, screenings, measured)
    outcome = f"{len(kept)} of {drawn} candidates and {count} of {tried} samples were kept"
    return Distilled(outcome, student, made.batch, kept, screenings, measured)


def weight_digests(tensors: Tensors) -> dict[str, Digest]:
    """Return the digest of every tensor that was learned, in half precision.

    Weights that were stored so have it too. Whole numbers and constants, which fresh networks
    share, are left out.
    """
    digests = {}
    with np.errstate(over="ignore"):
        for name, tensor in tensors.items():
            half = np.ascontiguousarray(tensor, dtype=np.float16)
            if np.issubdtype(tensor.dtype, np.floating) and (half != half.flat[:1]).any():
                digests[name] = digest_bytes(f"{tensor.shape}".encode() + half.tobytes())
    return digests


def refuse_same_weights(student: Mapping[str, Digest], teacher: Mapping[str, Digest]) -> None:
    """Raise DataError where a tensor of the student's is the teacher's, or there is none at all."""
    if not student or not teacher:
        raise DataError("the student's weights cannot be told from the teacher's")
    known = set(teacher.values())
    if same := sorted(name for name, digest in student.items() if digest in known):
        raise DataError(
            "the student's weights are the teacher's",
            why=f"{len(same)} of its {len(student)} tensors, {same[0]} the first",
            fix="train the student from fresh weights, on kept candidates alone",
        )


def _refuse_powerless(power: Mapping[str, bool]) -> None:
    """Raise DataError unless there are sites, and each has power."""
    powerless = [site for site, vouched in power.items() if vouched is not True]
    if powerless or not power:
        raise DataError(
            "the study is refused",
            why=f"no certificate vouches for the filter of {', '.join(powerless) or 'any site'}",
            fix="calibrate the filter again, with more patients, and certify it",
        )


@dataclass(frozen=True, slots=True)
class _Gathered:
    """What came through all screenings, and how all fared."""

    batch: Batch
    index: np.ndarray
    screenings: tuple[Screening, ...]
    measured: tuple[Measurement, ...]


@dataclass(frozen=True, slots=True)
class _Line:
    """Where images are drawn, and screened time and again, until enough are left."""

    plan: Plan
    screen: Screen
    sites: tuple[str, ...]
    rng: Uniforms

    def gather(
        self, phase: str, draw: Draw, later: tuple[Stage, ...], *, wanted: int, cap: int
    ) -> _Gathered:
        """Return as many images as are wanted, or those that were left when the cap was spent."""
        stages = (Stage("as drawn", lambda images: images), *later)
        counts = [_Counts(f"{phase}, {s.name}", dict.fromkeys(self.sites, 0)) for s in stages]
        store, first = _Store(wanted), 0
        while store.found < wanted and first < cap:
            count = min(self.plan.batch, wanted - store.found, cap - first)
            batch = draw(first, count)
            _check_asked(batch, count)
            spared_B = self.rng.random(count) >= self.plan.extra_rejections
            images, alive, passed_B = batch.image, np.arange(count), np.ones(count, dtype=bool)
            for stage, tally in zip(stages, counts, strict=True):
                images = stage.make(images)
                keep = tally.judge(images, len(alive), screen=self.screen)
                passed_B[alive] = keep
                stays = keep & spared_B[alive]
                tally.by_chance += int((keep & ~stays).sum())
                images, alive = images[stays], alive[stays]
                if not len(alive):
                    break
            store.add(images, batch, alive, first=first)
            store.fates.append((batch.subgroup_BG, passed_B, spared_B))
            first += count
        return store.close(counts, phase=phase, confidence=self.plan.confidence)


@dataclass(slots=True)
class _Counts:
    """A screening while it goes on."""

    name: str
    kept: dict[str, int]
    shown: int = 0
    dropped: int = 0
    by_chance: int = 0
    form: tuple[tuple[int, ...], str] | None = None

    def judge(self, images: np.ndarray, count: int, *, screen: Screen) -> np.ndarray:
        """Return ``[B]`` bool: what every site keeps. Images are checked before they are shown."""
        form = (images.shape[1:], str(images.dtype))
        self.form = self.form or form
        if len(images) != count or form != self.form:
            raise DataError(
                f"what is to be screened are not {count} images of one shape and type",
                why="each stage makes one of each image that it is handed",
            )
        flat = images.reshape(count, -1)
        if not np.isfinite(flat).all() or (flat.min(1) == flat.max(1)).any():
            raise DataError(
                "an image to be screened is constant or holds NaN or infinity",
                fix="look at the generator; no filter can judge such an image",
            )
        votes = _ask_sites(images, screen, tuple(self.kept))
        keep = np.ones(count, dtype=bool)
        for site, vote in votes.items():
            self.kept[site] += int(np.sum(vote))
            keep &= vote
        self.shown += count
        self.dropped += int((~keep).sum())
        return keep


@dataclass(slots=True)
class _Store:
    """Room for what was kept: each image is held once, and the dropped ones not at all."""

    wanted: int
    image: np.ndarray | None = None
    found: int = 0
    index: list[np.ndarray] = field(default_factory=list)
    condition: list[np.ndarray] = field(default_factory=list)
    fates: list[tuple[np.ndarray, np.ndarray, np.ndarray]] = field(default_factory=list)
    """Of all that were drawn: their subgroups, whether sites kept them, whether chance did."""

    def add(self, images: np.ndarray, batch: Batch, alive: np.ndarray, *, first: int) -> None:
        if len(alive):
            if self.image is None:
                self.image = np.empty((self.wanted, *images.shape[1:]), dtype=images.dtype)
            self.image[self.found : self.found + len(alive)] = images
        self.index.append(first + alive)
        self.condition.append(batch.condition_BK[alive])
        self.found += len(alive)

    def close(self, counts: list[_Counts], *, phase: str, confidence: float) -> _Gathered:
        index = np.concatenate(self.index)
        subgroup_KG, passed_K, spared_K = map(np.concatenate, zip(*self.fates, strict=True))
        image = np.empty(0) if self.image is None else self.image[: self.found]
        first = counts[0]
        return _Gathered(
            batch=Batch(image, np.concatenate(self.condition), subgroup_KG[index]),
            index=index,
            screenings=tuple(
                Screening(c.name, c.shown, c.dropped, c.by_chance, c.kept) for c in counts
            ),
            measured=measure_acceptance(
                phase,
                passed_K[spared_K],
                subgroup_KG[spared_K],
                votes={site: Tally(first.shown, first.shown - n) for site, n in first.kept.items()},
                confidence=confidence,
            ),
        )


def _check_asked(batch: Batch, count: int) -> None:
    """Raise DataError unless every image of a batch comes with what was asked for it."""
    rows = (len(batch.image), len(batch.condition_BK), len(batch.subgroup_BG))
    axes = (batch.condition_BK.ndim, batch.subgroup_BG.ndim)
    if rows != (count,) * 3 or axes != (2, 2) or not np.isfinite(batch.condition_BK).all():
        raise DataError(
            f"a batch of {count} images was asked for and something else was drawn",
            why="each image comes with finite conditions and the names of its subgroups",
        )


def _ask_sites(images: np.ndarray, screen: Screen, sites: tuple[str, ...]) -> dict[str, np.ndarray]:
    """Return every site's votes."""
    votes = screen(images)
    silent = [site for site in sites if votes.get(site) is None or not np.size(votes[site])]
    if silent:
        raise QuorumError(
            f"the images are not screened: {', '.join(silent)} did not vote",
            absences=dict.fromkeys(silent, "no votes"),
        )
    for site, vote in votes.items():
        bits = np.asarray(vote)
        if site not in sites or bits.dtype != np.bool_ or bits.shape != (len(images),):
            raise DataError(
                f"the votes of {site} are refused",
                why=f"a site of the study gives one bit for each of the {len(images)} images",
                fix="run the same package version everywhere",
            )
    return dict(votes)
