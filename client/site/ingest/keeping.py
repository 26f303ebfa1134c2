"""What the cohorts of a site take up, and what of it may go."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from collections.abc import Set as AbstractSet
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from datetime import datetime
from typing import Any

from vitrael.client.site.ingest.places import BEGUN, CohortPlace, Home, only_one
from vitrael.core.data.manifest import Manifest
from vitrael.core.data.retention import CacheEntry, Removed, gc_cache, list_cache, purge_items
from vitrael.core.digest import Digest

_MIB = 1 << 20
_CODE_LETTERS = 64
"""Of a digest, with which the names of shards and latents begin."""


@dataclass(frozen=True, slots=True)
class CacheSummary:
    """One cohort on this disk: counts and sizes."""

    name: str
    recipe: str
    """Empty, as the digest is, where no intake has ended yet; the version is then 0."""
    version: int
    digest: str
    patients: int
    items: int
    image_bytes: int
    latent_bytes: int
    orphan_bytes: int
    """Of files that no item of the present version needs."""

    def document(self) -> dict[str, Any]:
        """Return the summary as JSON values."""
        return asdict(self)

    def line(self) -> str:
        """Return the summary for reading."""
        parts = {
            "images": self.image_bytes,
            "latents": self.latent_bytes,
            "to clear": self.orphan_bytes,
        }
        sizes = ", ".join(f"{size / _MIB:.1f} MiB {what}" for what, size in parts.items())
        held = f"{self.recipe}, version {self.version}: {self.items} items"
        if not self.version:
            return f"{self.name}  no intake has ended yet; {sizes}"
        return f"{self.name}  {held} of {self.patients} patients; {sizes}"


def describe_caches(home: Home, *, now: datetime) -> list[CacheSummary]:
    """Return all cohorts of a site with what they take up; nothing is changed.

    One whose first intake has not ended is there when it has written an image.
    """
    every = [_describe(name, place, now=now) for name, place in home.cohorts().items()]
    return [cohort for cohort in every if cohort.version or cohort.orphan_bytes]


def sweep_caches(home: Home, *, now: datetime, older_than_days: float, dry_run: bool) -> Removed:
    """Remove latents and what no item needs, if it is old enough; return how much that is."""
    total = Removed()
    for place in home.cohorts().values():
        with only_one(place):
            total += gc_cache(
                place.folder,
                now=now,
                keep=_needed(place.read()),
                older_than_days=older_than_days,
                dry_run=dry_run,
            )
    return total


def sweep_orphans(place: CohortPlace, *, keep: AbstractSet[Digest]) -> Removed:
    """Remove all shards and latents but those to keep, and what was begun and not ended.

    For whoever may call ``remove_begun``.
    """
    kept = {digest.removeprefix("sha256:") for digest in keep}
    held = {
        path.name[:_CODE_LETTERS]
        for folder in (place.shards, place.latents)
        for path in folder.glob("*/*.safetensors")
    }
    remove_begun(place)
    return purge_items(place.folder, [Digest(f"sha256:{code}") for code in sorted(held - kept)])


def remove_begun(place: CohortPlace) -> None:
    """Remove what a killed command began to write in a cohort's folder and did not end.

    For whoever holds the cohort's lock, and the home against a steward: nobody else writes there.
    """
    begun = [*place.folder.glob(BEGUN)]
    for folder in (place.shards, place.latents):
        begun += folder.glob(f"*/{BEGUN}")
    for path in begun:
        path.unlink(missing_ok=True)


@contextmanager
def leave_nothing_begun(place: CohortPlace) -> Iterator[None]:
    """Remove what was begun and not ended, both earlier and in what is done meanwhile."""
    remove_begun(place)
    try:
        yield
    finally:
        remove_begun(place)


def _describe(name: str, place: CohortPlace, *, now: datetime) -> CacheSummary:
    manifest = place.read()
    entries = list_cache(place.folder, now=now, keep=_needed(manifest))
    items = manifest.items if manifest else ()
    return CacheSummary(
        name=name,
        recipe=manifest.recipe.name if manifest else "",
        version=manifest.version if manifest else 0,
        digest=manifest.digest if manifest else "",
        patients=len({item.subject for item in items}),
        items=len(items),
        image_bytes=_sum(e for e in entries if e.kind == "shard" and e.in_use).size_bytes,
        latent_bytes=_sum(e for e in entries if e.kind == "latent").size_bytes,
        orphan_bytes=_sum(e for e in entries if e.kind != "latent" and not e.in_use).size_bytes,
    )


def _needed(manifest: Manifest | None) -> set[Digest]:
    return {item.digest for item in manifest.items} if manifest else set()


def _sum(entries: Iterable[CacheEntry]) -> Removed:
    total = Removed()
    for entry in entries:
        total += Removed(1, entry.size_bytes)
    return total
