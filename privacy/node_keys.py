"""The key by which Flower knows a site's SuperNode: P-384, private half in OpenSSH form.

It opens nothing: tasks and tensors are bound to the other keys of a site (``privacy.keys``).
"""

from __future__ import annotations

from pathlib import Path

from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.hashes import SHA384
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
    load_pem_public_key,
    load_ssh_private_key,
    load_ssh_public_key,
)

from vitrael.core.digest import write_atomically
from vitrael.core.errors import AuthError

_RESTORE = "restore it from a backup, or have the site's keys rotated"


def create_node_key(path: Path) -> bytes:
    """Return the public half of a node key, ``path`` and ``path.pub`` made if missing.

    The bytes are the PEM SubjectPublicKeyInfo by which Flower's SuperLink knows a node.
    """
    if not path.exists():
        key = ec.generate_private_key(ec.SECP384R1())
        pem = key.private_bytes(Encoding.PEM, PrivateFormat.OpenSSH, NoEncryption())
        write_atomically(path, pem)  # its temporary file is 0600 from the start
        path.chmod(0o600)
    public = load_node_key(path).public_key()
    write_atomically(
        path.with_name(path.name + ".pub"),
        public.public_bytes(Encoding.OpenSSH, PublicFormat.OpenSSH),
    )
    return public.public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)


def load_node_key(path: Path) -> ec.EllipticCurvePrivateKey:
    """Return a site's private node key; raise AuthError when the file holds none.

    The error names file and folder and not where they lie: a site may send the sentence.
    """
    name = f"{path.parent.name}/{path.name}"
    try:
        key = load_ssh_private_key(_read(path), None)
    except (ValueError, UnsupportedAlgorithm) as error:
        raise AuthError(f"{name} is no node key", fix=_RESTORE) from error
    if not isinstance(key, ec.EllipticCurvePrivateKey) or not isinstance(key.curve, ec.SECP384R1):
        raise AuthError(f"{name} is no node key", why="it is not on the curve P-384", fix=_RESTORE)
    return key


def load_node_public(path: Path) -> str:
    """Return the public half of a node key in PEM, as ``create_node_key`` wrote it beside it.

    The private half may belong to another user. Raises AuthError when the file holds none.
    """
    public_path = path.with_name(path.name + ".pub")
    try:
        key = load_ssh_public_key(_read(public_path))
    except (ValueError, UnsupportedAlgorithm) as error:
        name = f"{path.parent.name}/{public_path.name}"
        raise AuthError(f"{name} is no public node key", fix=_RESTORE) from error
    return key.public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo).decode()


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        fix = _RESTORE
        if isinstance(error, PermissionError):
            fix = "with the users of deploy/systemd run `systemd-tmpfiles --create`"
        name = f"{path.parent.name}/{path.name}"
        raise AuthError(f"{name} cannot be read", why=error.strerror or "", fix=fix) from error


def prove_node(key: ec.EllipticCurvePrivateKey, statement: bytes) -> str:
    """Return a node key's signature over a statement, in hexadecimal digits: ECDSA, SHA-384."""
    return key.sign(statement, ec.ECDSA(SHA384())).hex()


def check_node_proof(public_pem: str, statement: bytes, proof: str) -> None:
    """Raise AuthError unless the private half of a public P-384 key signed the statement."""
    try:
        public = load_pem_public_key(public_pem.encode())
        if not isinstance(public, ec.EllipticCurvePublicKey) or not isinstance(
            public.curve, ec.SECP384R1
        ):
            raise AuthError("the node key is not on the curve P-384", fix="make the keys again")
        public.verify(bytes.fromhex(proof), statement, ec.ECDSA(SHA384()))
    except (ValueError, UnsupportedAlgorithm, InvalidSignature) as error:
        raise AuthError(
            "the node key's proof does not hold",
            why="who sent it does not hold the private half",
            fix="make the keys again",
        ) from error
