"""Planting: copies are mixed blind into genuine candidates, voted on, parted again, and removed.

How much of a batch is planted must not change a vote: a filter that looks at the batch as a whole
catches plants when they are rare and drowns in them when they are many. So they are shown at two
shares, and the votes on what was in both are compared. Each image is known by the salted digest of
its content in 8 bits, nothing else; the list of what was planted is signed by who planted it, and
nothing on it may be in a release. Plants are rounded to 8 bits before they are shown, so that
their digests outlive every way of storing an image that keeps its intensities to half a 255th.

Axes: B images of a mixture, P plants, G genuine candidates, R released images.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Annotated, Final, Literal

import numpy as np
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from pydantic import Field, ValidationError

from vitrael.core.checks import finite
from vitrael.core.configs import Section
from vitrael.core.digest import Digest, canonical_json, digest_bytes
from vitrael.core.errors import DataError, VerificationError
from vitrael.core.messages import DigestField
from vitrael.privacy.audit.power import Tally
from vitrael.privacy.release.statement import Statement, open_statement, sign_statement

PLANTED: Final = "planted.json"
PLANTED_TYPE: Final = "urn:vitrael:planted:1"
SHARES: Final = (0.01, 0.40)
"""Of plants in a mixture; at both the filter must vote alike."""

_LEVELS: Final = 255
_ALONE: Final[Mapping[str, int]] = MappingProxyType({})

_Salt = Annotated[str, Field(pattern=r"^[0-9a-f]{32}$")]


class PlantList(Section):
    """What was planted, by salted digest; private, since the salt is in it."""

    format: Literal["vitrael-planted/1"] = "vitrael-planted/1"
    salt: _Salt
    """Secret: without it a digest cannot be tried against a scan that somebody has."""
    grid: tuple[int, ...]
    """Shape of one plant, channel first."""
    plants: dict[str, tuple[DigestField, ...]]
    """By class, in the order in which they were made."""

    def __repr__(self) -> str:
        """Show no digest and no salt."""
        return "PlantList(private)"

    __str__ = __repr__

    @property
    def ids(self) -> frozenset[Digest]:
        """Every plant, once."""
        return frozenset(Digest(one) for ids in self.plants.values() for one in ids)

    def to_bytes(self) -> bytes:
        """Return the canonical JSON of the list, whose digest is signed."""
        return canonical_json(self.model_dump(mode="json"))

    @property
    def digest(self) -> Digest:
        """Name of the list by its content; it may be told."""
        return digest_bytes(self.to_bytes())


class Absence(Section):
    """The proof that no plant is in a release: what was compared with what. It may be told."""

    plants: int = Field(ge=1)
    """Distinct images on the list."""
    planted: DigestField
    """Digest of the list."""
    released: int = Field(ge=1)
    """Images of the release that were compared with it."""


@dataclass(frozen=True, slots=True, repr=False, eq=False)
class Mixture:
    """What the filter is shown, and by which names its votes come back."""

    image_BCDHW: np.ndarray
    id_B: tuple[Digest, ...]

    def __repr__(self) -> str:
        """Show no digest: those of plants are of patients' scans."""
        return "Mixture(private)"


@dataclass(frozen=True, slots=True, repr=False, eq=False)
class Planting:
    """Private: one mixture and what is needed to part it again."""

    mixture: Mixture
    planted: Mapping[str, tuple[Digest, ...]]
    """The plants in it by class, groups together."""
    genuine_row_G: np.ndarray
    """Which candidates are in it, rising."""
    genuine_id_G: tuple[Digest, ...]

    def __repr__(self) -> str:
        """Show no digest."""
        return "Planting(private)"


@dataclass(frozen=True, slots=True, repr=False, eq=False)
class PartedVotes:
    """The votes on one mixture, parted: candidates here, plants there."""

    genuine_keep_G: np.ndarray
    """bool, in the order of ``genuine_row_G``."""
    plant_keep: Mapping[str, np.ndarray]
    """bool, by class, groups together."""
    keep_of: Mapping[Digest, bool]
    """Every vote by the image it is on."""

    def __repr__(self) -> str:
        """Show no vote."""
        return "PartedVotes(private)"

    def tallies(self) -> dict[str, Tally]:
        """Return how many plants of each class were shown and dropped."""
        return {name: Tally(len(k), int((~k).sum())) for name, k in self.plant_keep.items()}


def on_levels(image_BCDHW: np.ndarray) -> np.ndarray:
    """Return images rounded to 8 bits, float32 in [0, 1]."""
    return _levels(image_BCDHW).astype(np.float32) / np.float32(_LEVELS)


def content_ids(image_BCDHW: np.ndarray, *, salt: str) -> tuple[Digest, ...]:
    """Return the salted digest of every image's content in 8 bits; uint8 images are levels."""
    levels = image_BCDHW if image_BCDHW.dtype == np.uint8 else _levels(image_BCDHW)
    head = bytes.fromhex(salt) + canonical_json(list(levels.shape[1:]))
    return tuple(digest_bytes(head + np.ascontiguousarray(one).tobytes()) for one in levels)


def list_plants(plants: Mapping[str, np.ndarray], *, salt: str) -> PlantList:
    """Return the list of all plants of all classes; raise DataError when there is none."""
    grids = {made.shape[1:] for made in plants.values() if len(made)}
    if len(grids) != 1:
        raise DataError(
            "there is nothing to list" if not grids else "the plants lie on several grids",
            fix="give the plants of one audit, at least one",
        )
    ids = {name: content_ids(made, salt=salt) for name, made in sorted(plants.items())}
    return PlantList(salt=salt, grid=grids.pop(), plants=ids)


def mix_plants(
    plants: Mapping[str, np.ndarray],
    genuine_GCDHW: np.ndarray,
    *,
    share: float,
    salt: str,
    rng: np.random.Generator,
    group_images: Mapping[str, int] = _ALONE,
) -> Planting:
    """Return candidates and plants in one random order, of which ``share`` are plants.

    As many plants are drawn, over all classes, as all candidates allow; with too few plants, fewer
    candidates are. With an equal ``rng`` the plants of a smaller share come first in a larger one.
    ``group_images`` names the classes whose plants are in groups of so many, which are shown whole
    or not at all. Candidates stay as they are, plants are rounded to 8 bits.

    Raises DataError for a share outside (0, 1), for too few candidates for it, and for a candidate
    that is a planted image in 8 bits: it would be removed with the plants.
    """
    rows = _choose_plants(plants, len(genuine_GCDHW), share, group_images, rng=rng)
    count = sum(map(len, rows.values()))
    size = min(len(genuine_GCDHW), round(count * (1 - share) / share))
    genuine_row_G = np.sort(rng.permutation(len(genuine_GCDHW))[:size])
    shown = {name: on_levels(plants[name][chosen]) for name, chosen in rows.items()}
    planted = {name: content_ids(made, salt=salt) for name, made in shown.items()}
    genuine = genuine_GCDHW[genuine_row_G]
    genuine_id_G = content_ids(genuine, salt=salt)
    if set(genuine_id_G) & {one for ids in planted.values() for one in ids}:
        raise DataError(
            "a genuine candidate is a planted image, voxel by voxel",
            why="the generator has returned a scan of the gallery, or plants were left among them",
            fix="remove the plants from the candidates; if there are none, refuse the generator",
        )
    images = np.concatenate([genuine, *shown.values()])
    ids = [*genuine_id_G, *(one for group in planted.values() for one in group)]
    order = rng.permutation(len(images))
    mixture = Mixture(images[order], tuple(ids[at] for at in order))
    return Planting(mixture, planted, genuine_row_G, genuine_id_G)


def part_votes(planting: Planting, keep_B: np.ndarray) -> PartedVotes:
    """Return the votes on a mixture, each with the image it is on.

    An image that is in it more than once is kept if all its votes say so. Raises DataError for
    another number of votes than images.
    """
    mixture = planting.mixture
    if keep_B.shape != (len(mixture.id_B),) or keep_B.dtype != np.bool_:
        raise DataError(
            "the votes do not go with the images",
            why=f"{len(mixture.id_B)} yes or no are expected",
            fix="give one vote for each image of the mixture, in its order",
        )
    keep_of: dict[Digest, bool] = {}
    for one, keep in zip(mixture.id_B, keep_B.tolist(), strict=True):
        keep_of[one] = keep_of.get(one, True) and keep
    return PartedVotes(
        genuine_keep_G=_votes_on(planting.genuine_id_G, keep_of),
        plant_keep={name: _votes_on(ids, keep_of) for name, ids in planting.planted.items()},
        keep_of=keep_of,
    )


def changed_votes(first: PartedVotes, second: PartedVotes) -> Tally:
    """Return of how many images both mixtures held the votes differ: none, if each is for itself.

    ``shown`` counts the images that were in both, ``dropped`` those whose vote has changed.
    """
    both = first.keep_of.keys() & second.keep_of.keys()
    return Tally(len(both), sum(first.keep_of[one] != second.keep_of[one] for one in both))


def remove_plants(image_BCDHW: np.ndarray, plants: PlantList) -> np.ndarray:
    """Return the images that are on no list of plants, in their order."""
    listed = plants.ids
    stays = [one not in listed for one in content_ids(image_BCDHW, salt=plants.salt)]
    return np.asarray(image_BCDHW[np.array(stays, dtype=bool)])


def demand_absent(plants: PlantList, released_RCDHW: np.ndarray) -> Absence:
    """Return the proof that no released image is a planted one.

    The released images are those that are read from the release's own files, in [0, 1] or as
    uint8. Raises VerificationError when one is on the list, and when nothing could be compared: no
    plant, no image, or images on another grid than the plants.
    """
    if not plants.ids or not len(released_RCDHW) or released_RCDHW.shape[1:] != plants.grid:
        raise VerificationError(
            "it cannot be shown that the release holds no planted copy",
            why="there is no plant, no image, or their grids differ",
            fix="compare the images of the release with the plants of its own audit",
        )
    listed = plants.ids
    left = sum(one in listed for one in content_ids(released_RCDHW, salt=plants.salt))
    if left:
        raise VerificationError(
            "the release holds planted copies of patients' scans",
            why=f"{left} of its {len(released_RCDHW)} images are on the list of plants",
            fix="do not publish it; remove the plants from the candidates and make it again",
        )
    return Absence(plants=len(listed), planted=plants.digest, released=len(released_RCDHW))


def sign_plants(plants: PlantList, key: Ed25519PrivateKey, *, site: str, protocol: Digest) -> bytes:
    """Return the site's envelope over the digest of a list; it tells counts and no digest of them.

    The list itself stays at the site.
    """
    counts = {name: len(ids) for name, ids in plants.plants.items()}
    predicate = {"site": site, "protocol": protocol, "plants": counts}
    return sign_statement(Statement(PLANTED, plants.digest, PLANTED_TYPE, predicate), key)


def open_plants(document: bytes, signature: bytes, *, public: str) -> PlantList:
    """Return the list that the holder of ``public`` signed.

    Raises VerificationError when the signature does not hold, and when the list is another one.
    """
    label = "the list of plants"
    statement = open_statement(signature, public=public, kind=PLANTED_TYPE, label=label)
    if digest_bytes(document) != statement.digest:
        raise VerificationError(
            f"{label} was changed",
            why="it is not the one that was signed",
            fix="do not use it; the audit has to be made again",
        )
    try:
        plants = PlantList.model_validate_json(document)
    except ValidationError as error:
        raise VerificationError(f"{label} is not well formed") from error
    if plants.to_bytes() != document:
        raise VerificationError(f"{label} is not in canonical form")
    return plants


def _choose_plants(
    plants: Mapping[str, np.ndarray],
    candidates: int,
    share: float,
    group_images: Mapping[str, int],
    *,
    rng: np.random.Generator,
) -> dict[str, np.ndarray]:
    """Return by class the rows of as many plants as the candidates allow, groups whole."""
    if not 0 < share < 1:
        raise DataError(
            f"{share} of a mixture cannot be plants", fix="give a share between 0 and 1"
        )
    units = [
        (name, range(at, at + group_images.get(name, 1)))
        for name, made in sorted(plants.items())
        for at in range(0, len(made), group_images.get(name, 1))
    ]
    room = int(candidates * share / (1 - share) + 1e-9)
    chosen: dict[str, list[int]] = {}
    for at in rng.permutation(len(units)):
        name, rows = units[at]
        if len(rows) <= room:
            chosen.setdefault(name, []).extend(rows)
            room -= len(rows)
    if not chosen:
        raise DataError(
            f"no plant fits into a mixture of which {share:.0%} are plants",
            why=f"there are {candidates} genuine candidates and {len(units)} plants or groups",
            fix=f"give at least {int(np.ceil((1 - share) / share))} candidates for every plant",
        )
    return {name: np.sort(chosen[name]) for name in sorted(chosen)}


def _levels(image_BCDHW: np.ndarray) -> np.ndarray:
    finite(image_BCDHW=image_BCDHW)
    return np.asarray(np.round(np.clip(image_BCDHW, 0, 1) * _LEVELS), dtype=np.uint8)


def _votes_on(ids: Sequence[Digest], keep_of: Mapping[Digest, bool]) -> np.ndarray:
    return np.array([keep_of[one] for one in ids], dtype=bool)
