"""Rounds without training: sites that add numbers, sign what they like, join and agree later."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tests.factories.federation import STUDY, consent_everywhere
from vitrael.client.site.tasks import TaskResult, TaskRunner
from vitrael.core.digest import Digest
from vitrael.core.messages import Parcel, Reply, Task
from vitrael.core.study import load_study
from vitrael.core.weights import Tensors
from vitrael.privacy.envelope import attachment_digests, make_reply_parcel
from vitrael.privacy.keys import KeyPair, PublicKeys, roster_digest, save_roster
from vitrael.server.demo import site_home

if TYPE_CHECKING:
    from tests.factories.federation import Federation

PARTS = {"codec": "codec", "teacher": "denoiser"}
"""Stage to the attachment that holds the weights."""


def add(amount: float, *, examples: int = 4) -> TaskRunner:
    """Return a training that adds a number to every weight and learns nothing."""

    def run(task: Task, inputs: Mapping[str, Tensors], _context: object) -> TaskResult:
        part = PARTS[task.stage]
        tensors = {n: (array + amount).astype(array.dtype) for n, array in inputs[part].items()}
        body = {"curve_images": [4], "curve_loss": [amount]}
        return TaskResult(body=body, tensors={part: tensors}, num_examples=examples)

    return run


def tell_speed(_task: Task, _inputs: object, _context: object) -> TaskResult:
    """Answer the canary of a site that trains a thousand images a second."""
    each = (("images", 8), ("s", 0.008))
    speeds = {f"{stage}_{unit}": x for stage in (*PARTS, "reid") for unit, x in each}
    return TaskResult(body=speeds)


def adding(amounts: Mapping[str, float]) -> dict[str, Mapping[Any, TaskRunner]]:
    """Return the tasks of sites of which each adds its own number in every round."""
    return {
        site: {"canary": tell_speed, "codec": add(amount), "teacher": add(amount)}
        for site, amount in amounts.items()
    }


def answer_as(
    told: Federation,
    task: Task,
    tensors: Mapping[str, Tensors],
    *,
    body: Mapping[str, Any] | None = None,
    examples: int = 4,
) -> Parcel:
    """Return a reply that the site signs itself, and that its outbox would never have let out."""
    keys = KeyPair.load(site_home(told.home, task.site) / "keys")
    reply = Reply(
        **task.model_dump(include={"protocol", "roster", "site", "stage", "round", "nonce"}),
        status="done",
        num_examples=examples,
        body=dict(body or {}),
        outputs=attachment_digests(tensors),
    )
    return make_reply_parcel(reply, tensors, site=keys, coordinator=told.run().keys.public)


def agree(
    home: Path,
    sites: Sequence[str],
    *,
    predecessor: Digest | None = None,
    federation: str = "",
    quorum: int = 2,
) -> Digest:
    """Let these sites be the roster of a study whose codec has three rounds, and consent to it.

    Returned is the roster's digest. ``federation`` are lines of that section of the study.
    """
    amended = "" if predecessor is None else f'predecessor = "{predecessor}"\n'
    names = ", ".join(f'"{site}"' for site in sites)
    document = STUDY.replace("rounds = 2, length_images = 32, batch_images = 4", _THREE)
    document = document.replace(
        'sites = ["north", "harbour", "valley"]', f"sites = [{names}]\n{amended}"
    )
    document = document.replace("quorum = 2\n", f"quorum = {quorum}\n{federation}\n")
    (home / "study.toml").write_text(document)
    members = {site: _public(home, site) for site in sites}
    save_roster(members, home / "roster.json")
    for site in sites:
        save_roster(members, site_home(home, site) / "roster.json")
    consent_everywhere(home, load_study(home / "study.toml"))
    return roster_digest(members)


_THREE = "rounds = 3, length_images = 30, batch_images = 4"


def _public(home: Path, site: str) -> PublicKeys:
    return KeyPair.load(site_home(home, site) / "keys").public
