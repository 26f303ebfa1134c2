"""Privacy distillation: generate, screen, retrain, over functions that do each step.

The teacher draws candidates, every site says of each whether it comes too close to one of its own
patients, and the student learns from those that all of them kept (Fernandez et al. 2023, arXiv
2306.01322). The student's samples are screened in turn, as they will be released.

It draws in rounds, each of as many images as are still missing, until all that is wanted is kept or
the votes that a site gives are spent; a round is named by its number, so that whoever persists the
steps goes on from the last one that was finished. A small share is rejected by chance, at the site
and so that nobody else can tell it from a vote: see ``client.site.tasks.screen``.

It mitigates and proves nothing: what all filters miss, the student learns. The proof is the
audit's, with the filters' power certificate among it, and it is the gates that refuse.

Axes: B images of a round.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Final, Generic, Literal, TypeVar

import numpy as np

from vitrael.core.digest import Digest, digest_bytes
from vitrael.core.errors import DataError, RefusedError
from vitrael.core.protocols import MOST_VOTES
from vitrael.core.weights import Tensors

FEWEST: Final = 8
"""Kept candidates below which no student is trained."""

Drawn = TypeVar("Drawn")
"""What a round draws: images, or the document that names them."""
Student = TypeVar("Student")
Draw = Callable[[int, int, int], Drawn]
"""From a round, the index of its first image and a count: row i depends on first + i alone."""
Screen = Callable[[int, Drawn], np.ndarray]
"""From a round and what it drew to ``[B]`` bool: what every site keeps; no score."""
Phase = Literal["candidates", "samples"]


@dataclass(frozen=True, slots=True)
class Plan:
    """How much is wanted. Raises DataError for what cannot be had."""

    target: int
    """Kept candidates from which the student learns."""
    released: int
    """The student's samples that are wanted."""
    given_before: Mapping[Phase, int]
    """Votes that earlier attempts have cost a site; they count against the cap."""

    def __post_init__(self) -> None:
        if self.target < FEWEST or self.released < 1 or min(self.given_before.values()) < 0:
            raise DataError(
                f"a plan of {self.target} kept candidates cannot be carried out",
                why=f"the student needs {FEWEST}, and there is no release of nothing",
            )
        for phase in ("candidates", "samples"):
            if self.votes_left(phase) < self.wanted(phase):
                raise DataError(
                    "the plan needs votes over the cap",
                    why=f"a site gives at most {MOST_VOTES} votes for each image that is wanted, "
                    f"and gave {self.given_before[phase]} on {phase} before",
                    fix="start a fresh study, with a teacher that copies less",
                )

    def wanted(self, phase: Phase) -> int:
        """Return how many images are to be kept."""
        return self.target if phase == "candidates" else self.released

    def votes_left(self, phase: Phase) -> int:
        """Return how many images may still be shown to a site."""
        return MOST_VOTES * self.wanted(phase) - self.given_before[phase]


@dataclass(frozen=True, slots=True)
class Round(Generic[Drawn]):
    """Images that were drawn and shown to every site together."""

    first: int
    """Index of the first among all that are drawn."""
    drawn: Drawn
    keep_B: np.ndarray
    """bool: what every site kept."""


@dataclass(frozen=True, slots=True)
class Steps(Generic[Drawn, Student]):
    """What a study does in each step; stages that are persisted may stand behind them."""

    draw: Draw[Drawn]
    """Of the teacher."""
    screen: Screen[Drawn]
    train: Callable[[tuple[Round[Drawn], ...]], Student]
    """From the kept candidates to the student, from fresh weights."""
    sample: Callable[[Student], Draw[Drawn]]
    """From the student to what draws its samples."""
    rescreen: Screen[Drawn]
    """Of samples, as they will be released."""


@dataclass(frozen=True, slots=True, repr=False)
class Distilled(Generic[Drawn, Student]):
    """What came of it: a student of as many candidates, and as many samples, as were wanted."""

    student: Student
    candidates: tuple[Round[Drawn], ...]
    samples: tuple[Round[Drawn], ...]

    def __repr__(self) -> str:
        """Show no image."""
        return f"Distilled({kept_of(self.candidates)}, {kept_of(self.samples)})"


def distill(steps: Steps[Drawn, Student], plan: Plan) -> Distilled[Drawn, Student]:
    """Return the student and its kept samples.

    No more is drawn than is still missing, so that no site votes on what nobody needs. Raises
    RefusedError, which says how many were kept, as soon as what is wanted cannot be had any more
    with the votes that are left: no student is trained on fewer, and no smaller set is released.
    """
    candidates = gather("candidates", steps.draw, steps.screen, plan)
    student = steps.train(candidates)
    samples = gather("samples", steps.sample(student), steps.rescreen, plan)
    return Distilled(student, candidates, samples)


def gather(
    phase: Phase, draw: Draw[Drawn], screen: Screen[Drawn], plan: Plan
) -> tuple[Round[Drawn], ...]:
    """Return the rounds in which exactly as many images were kept as are wanted."""
    rounds: list[Round[Drawn]] = []
    found, first = 0, 0
    while missing := plan.wanted(phase) - found:
        if missing > plan.votes_left(phase) - first:
            raise RefusedError(
                f"the study is refused: {found} of the {plan.wanted(phase)} {phase} that it needs "
                f"were kept of {first}",
                why=f"a site gives at most {MOST_VOTES} votes for each image that is wanted, and "
                "those that are left cannot keep as many as are missing",
                fix="train the teacher for less long or with more patients, in a fresh study",
            )
        drawn = draw(len(rounds), first, missing)
        keep_B = np.asarray(screen(len(rounds), drawn))
        if keep_B.shape != (missing,) or keep_B.dtype != np.bool_:
            raise DataError(f"there is not one bit for each of the {missing} {phase}")
        rounds.append(Round(first, drawn, keep_B))
        found += int(keep_B.sum())
        first += missing
    return tuple(rounds)


def kept_of(rounds: tuple[Round[Drawn], ...]) -> str:
    """Return how many images were kept of how many, in words."""
    kept, drawn = (sum(int(n) for n in part) for part in zip(*map(_count, rounds), strict=True))
    return f"{kept} of {drawn} kept"


def _count(one: Round[Drawn]) -> tuple[int, int]:
    return int(one.keep_B.sum()), len(one.keep_B)


def demand_images(image: np.ndarray, count: int) -> None:
    """Raise DataError unless there are ``count`` images, none constant or with NaN or infinity."""
    if len(image) != count:
        raise DataError(f"{count} images were asked for and {len(image)} were drawn")
    flat = image.reshape(count, -1)
    if not np.isfinite(flat).all() or (flat.min(axis=1) == flat.max(axis=1)).any():
        raise DataError(
            "an image to be screened is constant or holds NaN or infinity",
            why="no filter can judge such an image",
            fix="look at the generator: train it for longer, or with a lower learning rate",
        )


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
    """Raise RefusedError where a tensor of the student's is the teacher's, DataError without any.

    A whole number or a constant is no tensor that was learned.
    """
    if not student or not teacher:
        raise DataError("the student's weights cannot be told from the teacher's")
    known = set(teacher.values())
    if same := sorted(name for name, digest in student.items() if digest in known):
        raise RefusedError(
            "the student's weights are the teacher's",
            why=f"{len(same)} of its {len(student)} tensors, {same[0]} the first",
            fix="train the student from fresh weights, on kept candidates alone",
        )
