"""Weights that a coordinator gives to all experts to begin with: a local file, named by digest.

They are read once, when the study is offered, and held against its network; nothing is fetched.
"""

from __future__ import annotations

from pathlib import Path

from vitrael.core.digest import digest_bytes
from vitrael.core.errors import UsageError, storage_error
from vitrael.core.protocols import ExpertsProtocol
from vitrael.core.study import Study
from vitrael.core.weights import unpack_tensors
from vitrael.server.objects import ObjectStore


def read_given(home: Path, study: Study, file: Path | None) -> bytes | None:
    """Return the bytes of the weights that a study names, None where they are kept already.

    Raises UsageError for a file where none is named, for one that is missing or another than is
    named; WeightsError for weights of another network.
    """
    protocol = study.protocol
    wanted = protocol.weights if isinstance(protocol, ExpertsProtocol) else None
    if wanted is None or not isinstance(protocol, ExpertsProtocol):
        if file is not None:
            raise UsageError(
                f"the study {protocol.name} begins with no weights that are given",
                fix='leave --weights out, or set protocol.begin = "given" and protocol.weights',
            )
        return None
    if file is None:
        if wanted in ObjectStore(home / "objects"):
            return None
        raise UsageError(
            f"the study {protocol.name} begins with weights that are not here",
            why=f"it names {wanted}",
            fix="give their file: --weights FILE",
        )
    try:
        data = file.read_bytes()
    except OSError as error:
        raise storage_error(f"the file {file}", error) from error
    if digest_bytes(data) != wanted:
        raise UsageError(
            f"{file} does not hold the weights that the study names",
            why=f"its digest is {digest_bytes(data)}",
            fix="give the file of protocol.weights, or name this one there",
        )
    _demand_network(data, protocol)
    return data


def keep_given(home: Path, data: bytes | None) -> None:
    """Keep the weights among the objects of a home, from where tasks take them."""
    if data is not None:
        ObjectStore(home / "objects").put_bytes(data)


def _demand_network(data: bytes, protocol: ExpertsProtocol) -> None:
    from vitrael.core.models.view_expert import (  # noqa: PLC0415 - torch
        build_view_net,
        weights_to_begin_with,
    )

    start = weights_to_begin_with(unpack_tensors(data))
    build_view_net(protocol.expert, 2, seed=protocol.seed, start=start)
