"""Plants are mixed blind, parted by id, and proven to be absent from a release."""

from __future__ import annotations

import base64
import json

import numpy as np
import pytest

from vitrael.core.data.nifti import decode_nifti, encode_nifti
from vitrael.core.data.scan import Scan
from vitrael.core.digest import canonical_json, digest_json
from vitrael.core.errors import DataError, VerificationError
from vitrael.core.geometry import centered_affine
from vitrael.core.rng import stream
from vitrael.privacy.audit.planting import (
    SHARES,
    PartedVotes,
    PlantList,
    changed_votes,
    content_ids,
    demand_absent,
    list_plants,
    mix_plants,
    on_levels,
    open_plants,
    part_votes,
    remove_plants,
    sign_plants,
)
from vitrael.privacy.audit.power import Tally
from vitrael.privacy.keys import KeyPair

_SALT = "0f" * 16
_GRID = (6, 6, 6)
_GENUINE = 198


@pytest.fixture(scope="module")
def genuine() -> np.ndarray:
    return stream(1, "genuine").uniform(0, 1, (_GENUINE, 1, *_GRID)).astype(np.float32)


@pytest.fixture(scope="module")
def plants() -> dict[str, np.ndarray]:
    scans = stream(2, "scans").uniform(0, 0.9, (80, 1, *_GRID)).astype(np.float32)
    noise = stream(3, "noise").normal(0, 0.02, scans.shape)
    return {"exact": scans, "noise_2": np.clip(scans + noise, 0, 1).astype(np.float32)}


@pytest.fixture(scope="module")
def listed(plants: dict[str, np.ndarray]) -> PlantList:
    return list_plants(plants, salt=_SALT)


def _shown(
    plants: dict[str, np.ndarray], genuine: np.ndarray, share: float, *, each: bool
) -> PartedVotes:
    """Return the votes of a filter on brightness: of a fixed level, or of the batch's own mean."""
    planting = mix_plants(plants, genuine, share=share, salt=_SALT, rng=stream(5, "mix"))
    level = planting.mixture.image_BCDHW.mean((1, 2, 3, 4))
    return part_votes(planting, level > (0.48 if each else level.mean()))


def test_share_of_plants_is_held(plants: dict[str, np.ndarray], genuine: np.ndarray) -> None:
    for share, count, others in ((SHARES[0], 2, 198), (SHARES[1], 132, 198), (0.9, 160, 18)):
        planting = mix_plants(plants, genuine, share=share, salt=_SALT, rng=stream(1, "m"))
        assert sum(map(len, planting.planted.values())) == count
        assert len(planting.genuine_row_G) == others
        assert len(planting.mixture.image_BCDHW) == count + others
        assert count / (count + others) == pytest.approx(share, abs=0.005)


def test_images_of_a_mixture_keep_their_ids_and_no_order_tells_them(
    plants: dict[str, np.ndarray], genuine: np.ndarray
) -> None:
    planting = mix_plants(plants, genuine, share=0.4, salt=_SALT, rng=stream(1, "m"))
    mixture = planting.mixture
    assert content_ids(mixture.image_BCDHW, salt=_SALT) == mixture.id_B
    planted = {one for ids in planting.planted.values() for one in ids}
    places = np.flatnonzero([one in planted for one in mixture.id_B])
    assert abs(places.mean() / len(mixture.id_B) - 0.5) < 0.1
    again = mix_plants(plants, genuine, share=0.4, salt=_SALT, rng=stream(1, "m"))
    assert again.mixture.id_B == mixture.id_B


def test_votes_are_parted_to_their_images(
    plants: dict[str, np.ndarray], genuine: np.ndarray
) -> None:
    planting = mix_plants(plants, genuine, share=0.4, salt=_SALT, rng=stream(1, "m"))
    of = dict(zip(planting.mixture.id_B, planting.mixture.image_BCDHW, strict=True))
    keep = planting.mixture.image_BCDHW.mean((1, 2, 3, 4)) > 0.48
    parted = part_votes(planting, keep)
    chosen = genuine[planting.genuine_row_G]
    assert (parted.genuine_keep_G == (chosen.mean((1, 2, 3, 4)) > 0.48)).all()
    for name, ids in planting.planted.items():
        levels = np.array([of[one].mean() for one in ids])
        assert (parted.plant_keep[name] == (levels > 0.48)).all()
        expected = Tally(len(ids), int((levels <= 0.48).sum()))
        assert parted.tallies()[name] == expected


def test_filter_that_judges_each_image_for_itself_votes_alike_at_both_shares(
    plants: dict[str, np.ndarray], genuine: np.ndarray
) -> None:
    rare, many = (_shown(plants, genuine, share, each=True) for share in SHARES)
    shown, changed = changed_votes(rare, many)
    assert shown == 198 + 2
    assert changed == 0


def test_filter_that_normalizes_a_batch_is_told_by_its_votes(
    plants: dict[str, np.ndarray], genuine: np.ndarray
) -> None:
    rare, many = (_shown(plants, genuine, share, each=False) for share in SHARES)
    shown, changed = changed_votes(rare, many)
    assert shown == 198 + 2
    assert changed > 0.1 * shown


def test_groups_are_shown_whole(genuine: np.ndarray) -> None:
    group = stream(4, "group").uniform(0, 1, (60, 1, *_GRID)).astype(np.float32)
    ids = content_ids(on_levels(group), salt=_SALT)
    planting = mix_plants(
        {"group_20": group, "one": group[:5] ** 2},
        genuine,
        share=0.2,
        salt=_SALT,
        rng=stream(1, "m"),
        group_images={"group_20": 20},
    )
    shown = planting.planted["group_20"]
    assert len(shown) == 40
    groups = [ids[at : at + 20] for at in range(0, 60, 20)]
    assert shown[:20] in groups
    assert shown[20:] in groups


def test_mixtures_that_cannot_be_are_refused(
    plants: dict[str, np.ndarray], genuine: np.ndarray
) -> None:
    rng = stream(1, "m")
    for share in (0.0, 1.0, -0.1, float("nan")):
        with pytest.raises(DataError, match="cannot be plants"):
            mix_plants(plants, genuine, share=share, salt=_SALT, rng=rng)
    with pytest.raises(DataError, match="at least 99 candidates"):
        mix_plants(plants, genuine[:98], share=0.01, salt=_SALT, rng=rng)
    with pytest.raises(DataError, match="no plant fits"):
        mix_plants({"exact": genuine[:0]}, genuine, share=0.4, salt=_SALT, rng=rng)
    with pytest.raises(DataError, match="not finite"):
        mix_plants({"exact": genuine * np.nan}, genuine, share=0.4, salt=_SALT, rng=rng)
    with pytest.raises(DataError, match="nothing to list"):
        list_plants({"exact": genuine[:0]}, salt=_SALT)


def test_candidate_that_is_a_planted_scan_is_refused(
    plants: dict[str, np.ndarray], genuine: np.ndarray
) -> None:
    leaked = np.concatenate([genuine, plants["exact"]])
    with pytest.raises(DataError, match="is a planted image"):
        mix_plants(plants, leaked, share=0.4, salt=_SALT, rng=stream(1, "m"))


def test_votes_of_another_number_or_kind_are_refused(
    plants: dict[str, np.ndarray], genuine: np.ndarray
) -> None:
    planting = mix_plants(plants, genuine, share=0.4, salt=_SALT, rng=stream(1, "m"))
    count = len(planting.mixture.id_B)
    for votes in (np.ones(count - 1, bool), np.ones(count)):
        with pytest.raises(DataError, match="do not go with the images"):
            part_votes(planting, votes)


def test_honest_release_gives_the_proof(listed: PlantList, genuine: np.ndarray) -> None:
    proof = demand_absent(listed, genuine)
    assert (proof.plants, proof.released) == (160, _GENUINE)
    assert proof.planted == listed.digest


def test_one_plant_left_in_a_release_is_refused(
    listed: PlantList, plants: dict[str, np.ndarray], genuine: np.ndarray
) -> None:
    left = np.concatenate([genuine, on_levels(plants["noise_2"][7:8])])
    with pytest.raises(VerificationError, match="1 of its 199 images"):
        demand_absent(listed, left)
    clean = remove_plants(left, listed)
    assert np.array_equal(clean, genuine)
    assert demand_absent(listed, clean).released == _GENUINE


@pytest.mark.parametrize("dtype", ["int16", "float32"])
def test_plant_is_known_again_after_it_was_written_and_read(
    listed: PlantList, plants: dict[str, np.ndarray], dtype: str
) -> None:
    image = on_levels(plants["exact"][3:4])
    scan = Scan(image[0], centered_affine(_GRID, spacing=6.0), modality="T1w")
    data = encode_nifti(scan, dtype=dtype, compressed=True)  # type: ignore[arg-type]
    read = decode_nifti(data, label="a released image").image_CDHW[None]
    assert (np.array_equal(read, image)) == (dtype == "float32")
    as_bytes = np.round(image * 255).astype(np.uint8)
    for form in (read, as_bytes, image.astype(np.float16)):
        with pytest.raises(VerificationError, match="planted copies"):
            demand_absent(listed, form)


def test_plant_in_a_mixture_is_the_one_on_the_list(
    listed: PlantList, plants: dict[str, np.ndarray], genuine: np.ndarray
) -> None:
    planting = mix_plants(plants, genuine, share=0.4, salt=_SALT, rng=stream(1, "m"))
    with pytest.raises(VerificationError, match="132 of its 330 images"):
        demand_absent(listed, planting.mixture.image_BCDHW)


def test_absence_that_was_not_looked_for_is_no_proof(
    listed: PlantList, genuine: np.ndarray
) -> None:
    nothing = PlantList(salt=_SALT, grid=(1, *_GRID), plants={})
    for plants, released in (
        (nothing, genuine),
        (listed, genuine[:0]),
        (listed, genuine[:, :, :5]),
    ):
        with pytest.raises(VerificationError, match="cannot be shown"):
            demand_absent(plants, released)
    with pytest.raises(DataError, match="not finite"):
        demand_absent(listed, genuine * np.nan)


def test_salt_hides_what_a_digest_is_of(plants: dict[str, np.ndarray]) -> None:
    scan = plants["exact"][:1]
    assert content_ids(scan, salt=_SALT) != content_ids(scan, salt="00" * 16)
    flat = scan.reshape(1, 1, 6, 36, 1)
    assert content_ids(scan, salt=_SALT) != content_ids(flat, salt=_SALT)


def test_signed_list_verifies_and_a_changed_one_does_not(listed: PlantList) -> None:
    key, other = KeyPair.create(), KeyPair.create()
    signature = sign_plants(listed, key.signing, site="north", protocol=digest_json("p"))
    public, document = key.public.signing, listed.to_bytes()
    assert open_plants(document, signature, public=public) == listed
    content = json.loads(document)
    content["plants"]["exact"].pop()
    shorter = PlantList.model_validate(content).to_bytes()
    for changed in (shorter, document + b" ", document[:-1]):
        with pytest.raises(VerificationError, match="was changed"):
            open_plants(changed, signature, public=public)
    with pytest.raises(VerificationError, match="foreign key"):
        open_plants(document, signature, public=other.public.signing)
    envelope = json.loads(signature)
    said = base64.b64decode(envelope["payload"])
    envelope["payload"] = base64.b64encode(said.replace(b"north", b"south")).decode()
    with pytest.raises(VerificationError, match="does not hold"):
        open_plants(document, canonical_json(envelope), public=public)
    for secret in (listed.salt, *listed.plants["exact"][:3]):
        assert secret.encode() not in said
        assert secret not in repr(listed)


def test_large_list_is_signed_by_its_digest() -> None:
    ids = tuple(digest_json(number) for number in range(20_000))
    plants = PlantList(salt=_SALT, grid=(1, *_GRID), plants={"exact": ids})
    key = KeyPair.create()
    signature = sign_plants(plants, key.signing, site="north", protocol=digest_json("p"))
    assert len(signature) < 2_000 < len(plants.to_bytes())
    assert open_plants(plants.to_bytes(), signature, public=key.public.signing) == plants
