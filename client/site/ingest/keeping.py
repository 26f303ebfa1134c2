"""What the cohorts of a site take up, and what of it may go."""

from __future__ import annotations

from collections.abc import Iterator
from collections.abc import Set as AbstractSet
from dataclasses import asdict, dataclass
from datetime import datetime
from typing import Any

from vitrael.client.site.ingest.places import CohortPlace, Home, only_one
from vitrael.core.data.manifest import Manifest, read_manifest
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
    version: int
    digest: Digest
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
        held = f"{self.items} items of {self.patients} patients"
        return f"{self.name}  {self.recipe}, version {self.version}: {held}; {sizes}"


def describe_caches(home: Home, *, now: datetime) -> list[CacheSummary]:
    """Return all cohorts of a site with what they take up; nothing is changed."""
    return [
        _describe(name, read_manifest(place.manifest), place, now=now)
        for name, place in home.cohorts().items()
    ]


def sweep_caches(home: Home, *, now: datetime, older_than_days: float, dry_run: bool) -> Removed:
    """Remove latents and what no item needs, if it is old enough; return how much that is."""
    total = Removed()
    for place in home.cohorts().values():
        with only_one(place):
            needed = _needed(read_manifest(place.manifest))
            if dry_run:
                entries = list_cache(place.folder, now=now, keep=needed)
                total += _sum(e for e in entries if not e.in_use and e.age_days > older_than_days)
            else:
                total += gc_cache(
                    place.folder, now=now, keep=needed, older_than_days=older_than_days
                )
    return total


def sweep_orphans(place: CohortPlace, *, keep: AbstractSet[Digest]) -> Removed:
    """Remove all shards and latents but those to keep, and shards that were begun and not ended.

    For whoever holds the cohort's lock: nobody else writes shards.
    """
    kept = {digest.removeprefix("sha256:") for digest in keep}
    held = {
        path.name[:_CODE_LETTERS]
        for folder in (place.shards, place.latents)
        for path in folder.glob("*/*.safetensors")
    }
    for begun in place.shards.glob("*/.partial-*"):
        begun.unlink(missing_ok=True)
    return purge_items(place.folder, [Digest(f"sha256:{code}") for code in sorted(held - kept)])


def _describe(name: str, manifest: Manifest, place: CohortPlace, *, now: datetime) -> CacheSummary:
    entries = list_cache(place.folder, now=now, keep=_needed(manifest))
    return CacheSummary(
        name=name,
        recipe=manifest.recipe.name,
        version=manifest.version,
        digest=manifest.digest,
        patients=len({item.subject for item in manifest.items}),
        items=len(manifest.items),
        image_bytes=_sum(e for e in entries if e.kind == "shard" and e.in_use).size_bytes,
        latent_bytes=_sum(e for e in entries if e.kind == "latent").size_bytes,
        orphan_bytes=_sum(e for e in entries if e.kind != "latent" and not e.in_use).size_bytes,
    )


def _needed(manifest: Manifest) -> set[Digest]:
    return {item.digest for item in manifest.items}


def _sum(entries: Iterator[CacheEntry]) -> Removed:
    total = Removed()
    for entry in entries:
        total += Removed(1, entry.size_bytes)
    return total
