"""Private keys stay private files; public ones have one form."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import (
    BestAvailableEncryption,
    Encoding,
    PrivateFormat,
)

from vitrael.core.digest import write_atomically
from vitrael.core.errors import AuthError, UsageError
from vitrael.privacy.keys import (
    KeyPair,
    fingerprint,
    is_protected,
    load_public_keys,
    load_roster,
    protect_keys,
    read_private,
    roster_digest,
    save_public_keys,
    save_roster,
    unprotect_keys,
)
from vitrael.privacy.sealed_file import is_sealed


def test_saved_keys_are_the_same_keys(tmp_path: Path) -> None:
    keys = KeyPair.create()
    keys.save(tmp_path / "keys")
    assert KeyPair.load(tmp_path / "keys").public == keys.public
    assert KeyPair.create().public != keys.public


def test_private_keys_are_for_their_owner_alone(tmp_path: Path) -> None:
    KeyPair.create().save(tmp_path)
    assert {path.stat().st_mode & 0o777 for path in tmp_path.iterdir()} == {0o600}


def test_key_open_to_others_is_refused(tmp_path: Path) -> None:
    KeyPair.create().save(tmp_path)
    (tmp_path / "signing.pem").chmod(0o640)
    with pytest.raises(AuthError, match=r"640.*chmod 600"):
        KeyPair.load(tmp_path)


def test_key_that_another_program_encrypted_is_told_as_such(tmp_path: Path) -> None:
    KeyPair.create().save(tmp_path)
    path = tmp_path / "signing.pem"
    encrypted = Ed25519PrivateKey.generate().private_bytes(
        Encoding.PEM, PrivateFormat.PKCS8, BestAvailableEncryption(b"a word")
    )
    for data, told in ((encrypted, "encrypted by another program"), (b"text", "no private key in")):
        path.write_bytes(data)
        with pytest.raises(AuthError, match=told):
            KeyPair.load(tmp_path)


def test_key_is_never_replaced(tmp_path: Path) -> None:
    KeyPair.create().save(tmp_path)
    with pytest.raises(AuthError, match="exists already"):
        KeyPair.create().save(tmp_path)


@pytest.mark.parametrize("left", [(), ("signing.pem",), ("signing.pem", "sealing.pem")])
def test_save_that_was_killed_is_done_again_or_was_whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, left: tuple[str, ...]
) -> None:
    def write_some(path: Path, data: bytes) -> None:
        if path.suffix == ".pem" and path.name not in left:
            raise KeyboardInterrupt
        write_atomically(path, data)

    def killed(_path: Path) -> None:
        raise KeyboardInterrupt

    first, second = KeyPair.create(), KeyPair.create()
    with monkeypatch.context() as patch:
        patch.setattr("vitrael.privacy.keys.write_atomically", write_some)
        patch.setattr(Path, "unlink", killed)
        with pytest.raises(KeyboardInterrupt):
            first.save(tmp_path)
    assert {path.name for path in tmp_path.glob("*.pem")} == set(left)
    whole = len(left) == 2
    if whole:
        with pytest.raises(AuthError, match="exists already"):
            second.save(tmp_path)
    else:
        second.save(tmp_path)
    assert KeyPair.load(tmp_path).public == (first if whole else second).public
    assert {path.name for path in tmp_path.iterdir()} == {"signing.pem", "sealing.pem"}


@pytest.mark.parametrize("name", ["signing.pem", "sealing.pem"])
def test_key_whose_other_half_was_lost_is_not_replaced(tmp_path: Path, name: str) -> None:
    KeyPair.create().save(tmp_path)
    (tmp_path / name).unlink()
    with pytest.raises(AuthError, match="exists already"):
        KeyPair.create().save(tmp_path)


def test_missing_damaged_and_swapped_keys_are_refused(tmp_path: Path) -> None:
    with pytest.raises(AuthError, match="cannot be read"):
        KeyPair.load(tmp_path)
    KeyPair.create().save(tmp_path)
    signing, sealing = tmp_path / "signing.pem", tmp_path / "sealing.pem"
    pem = signing.read_bytes()
    signing.write_bytes(sealing.read_bytes())
    with pytest.raises(AuthError, match="another kind"):
        KeyPair.load(tmp_path)
    signing.write_bytes(pem[:40])
    with pytest.raises(AuthError, match="no private key"):
        KeyPair.load(tmp_path)


def test_repr_shows_no_private_key() -> None:
    keys = KeyPair.create()
    assert keys.signing.private_bytes_raw().hex()[:16] not in repr(keys)


def test_public_keys_and_roster_come_back(tmp_path: Path) -> None:
    keys = {name: KeyPair.create().public for name in ("north", "south")}
    save_public_keys(keys["north"], tmp_path / "coordinator.json")
    save_roster(keys, tmp_path / "roster.json")
    assert load_public_keys(tmp_path / "coordinator.json") == keys["north"]
    assert load_roster(tmp_path / "roster.json") == keys


@pytest.mark.parametrize("text", ["{}", '{"signing": "00", "sealing": "00"}', "not JSON"])
def test_file_without_public_keys_is_refused(tmp_path: Path, text: str) -> None:
    path = tmp_path / "coordinator.json"
    path.write_text(text)
    with pytest.raises(AuthError, match="public keys"):
        load_public_keys(path)
    with pytest.raises(AuthError, match="cannot be read"):
        load_roster(tmp_path / "nothing.json")


def test_roster_digest_names_members_and_keys_in_any_order() -> None:
    north, south = KeyPair.create().public, KeyPair.create().public
    digest = roster_digest({"north": north, "south": south})
    assert digest == roster_digest({"south": south, "north": north})
    assert digest != roster_digest({"north": south, "south": north})
    assert digest != roster_digest({"north": north})


def test_fingerprint_is_read_in_groups_and_tells_keys_apart() -> None:
    first, second = KeyPair.create().public.signing, KeyPair.create().public.signing
    assert [len(group) for group in fingerprint(first).split()] == [4] * 16
    assert fingerprint(first) != fingerprint(second)


PHRASE = b"five words are enough here"


def never() -> bytes:
    raise AssertionError("nobody may be asked")


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """A passphrase costs little."""
    monkeypatch.setattr("vitrael.privacy.sealed_file.COST", 1 << 10)


def test_passphrase_of_keys_is_as_dear_to_guess_as_that_of_a_backup(tmp_path: Path) -> None:
    KeyPair.create().save(tmp_path, passphrase=PHRASE)
    headers = [path.read_bytes().split(b"\n")[1] for path in sorted(tmp_path.iterdir())]
    assert [json.loads(header)["cost"] for header in headers] == [1 << 17, 1 << 17]
    assert len({json.loads(header)["salt"] for header in headers}) == 2


def test_file_that_its_group_may_read_is_taken_only_where_that_is_meant(tmp_path: Path) -> None:
    path = tmp_path / "node"
    path.write_bytes(b"secret")
    path.chmod(0o640)
    assert read_private(path, fix="", by_group=True) == b"secret"
    with pytest.raises(AuthError, match=r"640.*chmod 600"):
        read_private(path, fix="")
    for mode in (0o660, 0o650, 0o644, 0o642):
        path.chmod(mode)
        with pytest.raises(AuthError, match=rf"{mode:o}.*chmod 640"):
            read_private(path, fix="", by_group=True)


@pytest.mark.usefixtures("quick")
def test_protected_keys_open_with_their_passphrase_alone(tmp_path: Path) -> None:
    keys = KeyPair.create()
    keys.save(tmp_path, passphrase=PHRASE)
    assert is_protected(tmp_path)
    assert KeyPair.load(tmp_path, passphrase=lambda: PHRASE).public == keys.public
    with pytest.raises(AuthError, match="the passphrase is wrong") as caught:
        KeyPair.load(tmp_path, passphrase=lambda: b"another passphrase")
    assert caught.value.exit_code == 4
    with pytest.raises(AuthError, match="protected by a passphrase: none was given"):
        KeyPair.load(tmp_path)
    for path in tmp_path.iterdir():
        assert path.stat().st_mode & 0o777 == 0o600
        assert keys.signing.private_bytes_raw() not in path.read_bytes()


@pytest.mark.usefixtures("quick")
def test_passphrase_is_asked_for_once_and_only_where_it_is_needed(tmp_path: Path) -> None:
    KeyPair.create().save(tmp_path)
    KeyPair.load(tmp_path, passphrase=never)
    protect_keys(tmp_path, passphrase=PHRASE)
    answers = iter((PHRASE,))
    KeyPair.load(tmp_path, passphrase=lambda: next(answers))
    with pytest.raises(AssertionError):
        KeyPair.load(tmp_path, passphrase=never)


@pytest.mark.usefixtures("quick")
def test_protection_comes_and_goes_with_the_same_keys(tmp_path: Path) -> None:
    keys = KeyPair.create()
    keys.save(tmp_path)
    protect_keys(tmp_path, passphrase=PHRASE)
    with pytest.raises(AuthError, match="passphrase is wrong"):
        unprotect_keys(tmp_path, passphrase=lambda: b"another passphrase")
    assert is_protected(tmp_path)
    unprotect_keys(tmp_path, passphrase=lambda: PHRASE)
    assert not is_protected(tmp_path)
    assert KeyPair.load(tmp_path).public == keys.public


@pytest.mark.usefixtures("quick")
def test_protection_that_was_killed_is_ended_by_the_next(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def write_one(path: Path, data: bytes) -> None:
        if path.name == "sealing.pem":
            raise KeyboardInterrupt
        write_atomically(path, data)

    keys = KeyPair.create()
    keys.save(tmp_path)
    with monkeypatch.context() as patch:
        patch.setattr("vitrael.privacy.keys.write_atomically", write_one)
        with pytest.raises(KeyboardInterrupt):
            protect_keys(tmp_path, passphrase=PHRASE)
    assert KeyPair.load(tmp_path, passphrase=lambda: PHRASE).public == keys.public
    protect_keys(tmp_path, passphrase=PHRASE)
    assert all(is_sealed((tmp_path / name).read_bytes()) for name in ("signing.pem", "sealing.pem"))


def test_short_passphrase_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="too short"):
        KeyPair.create().save(tmp_path, passphrase=b"elevenbytes")
    assert not (tmp_path / "signing.pem").exists()
