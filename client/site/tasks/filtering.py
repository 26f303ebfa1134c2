"""The site's filter between two tasks: what is kept among the records, and how it comes back.

Encoders and operating point are private and stay in the site's records; both are written once, by
the calibration, before any candidate has arrived. They cannot be made again: the salt is random,
and a calibration is answered once.
"""

from __future__ import annotations

import secrets
from collections.abc import Mapping
from pathlib import Path
from typing import Final

import numpy as np
from pydantic import ValidationError

from vitrael.client.site.tasks import SiteContext
from vitrael.client.site.tasks.networks import load_codec, reconstruct_images, site_compute
from vitrael.core.data.splits import Split
from vitrael.core.digest import write_atomically
from vitrael.core.errors import DataError
from vitrael.core.models.reid import Learns, ReidEncoder, build_reid_encoder
from vitrael.core.records import PatientImages
from vitrael.core.weights import (
    Tensors,
    load_weights,
    module_tensors,
    pack_tensors,
    unpack_tensors,
)
from vitrael.privacy.reid.calibrate import OperatingPoint, first_visits
from vitrael.privacy.reid.gallery import Gallery, build_gallery, with_round_trips
from vitrael.privacy.reid.lens import Encoders, fit_lens
from vitrael.privacy.reid.roles import RoundTrip
from vitrael.privacy.reid.screen import Screener
from vitrael.privacy.reid.template import Template, fit_template

LEARNS: Final[tuple[Learns, ...]] = ("visits", "copies")
_WARM = "reid.screener"


def new_salt() -> str:
    """Return the secret that keeps thresholds from being guessed from their commitment."""
    return secrets.token_hex(16)


def save_filter(
    context: SiteContext,
    encoders: Mapping[Learns, ReidEncoder],
    gallery: Gallery,
    point: OperatingPoint,
    *,
    codec: Tensors | None,
) -> None:
    """Write encoders, codec and operating point, the point last, and keep the screener warm."""
    folder = _folder(context)
    if codec is not None:
        write_atomically(folder / "codec.safetensors", pack_tensors(codec))
    for learns, encoder in encoders.items():
        write_atomically(folder / _file_of(learns), pack_tensors(module_tensors(encoder)))
    write_atomically(folder / "operating_point.json", point.model_dump_json().encode())
    context.warm[_WARM] = Screener(gallery, point)


def forget_filter(context: SiteContext) -> None:
    """Remove an operating point that an earlier calibration has left."""
    encoders = [_file_of(learns) for learns in LEARNS]
    for name in ("operating_point.json", "codec.safetensors", *encoders):
        (_folder(context) / name).unlink(missing_ok=True)
    context.warm.pop(_WARM, None)


def study_round_trip(context: SiteContext, codec: Tensors | None) -> RoundTrip | None:
    """Return the autoencoder's round trip over images, or None without its weights."""
    if codec is None:
        return None
    device = site_compute(context).device
    network = load_codec(context, codec, device)

    def round_trip(image_BCDHW: np.ndarray) -> np.ndarray:
        if len(image_BCDHW) == 0:
            return image_BCDHW
        return reconstruct_images(network, np.ascontiguousarray(image_BCDHW), device)

    return round_trip


def site_template(learning: PatientImages, *, device: str) -> Template:
    """Return the template of the first scans of F: whom it is used on has not helped to make it."""
    return fit_template(learning.image_BCDHW[first_visits(learning)], device=device)


def load_screener(context: SiteContext) -> Screener | None:
    """Return the calibrated filter, or None when the site has no operating point."""
    warm = context.warm.get(_WARM)
    if isinstance(warm, Screener):
        return warm
    path = _folder(context) / "operating_point.json"
    if not path.is_file():
        return None
    compute = site_compute(context)
    try:
        point = OperatingPoint.model_validate_json(path.read_bytes())
    except ValidationError:
        raise DataError(  # without the values, which are private
            "the operating point of the filter cannot be used",
            why="another version of the software froze it, or the file was damaged",
            fix="start a fresh study, or restore the records of this site",
        ) from None
    protocol = context.study.synthesis
    encoders: dict[Learns, ReidEncoder] = {}
    for learns in LEARNS:
        encoder = build_reid_encoder(protocol.reid, seed=protocol.seed, learns=learns)
        data = (_folder(context) / _file_of(learns)).read_bytes()
        load_weights(encoder, unpack_tensors(data))
        encoders[learns] = encoder.to(compute.device)
    training = context.cohort.images(Split.TRAINING)
    codec_path = _folder(context) / "codec.safetensors"
    codec = unpack_tensors(codec_path.read_bytes()) if codec_path.is_file() else None
    round_trip = study_round_trip(context, codec)
    learning = context.cohort.images(Split.FILTER)
    lens = fit_lens(
        with_round_trips(learning, round_trip),
        join_encoders(encoders),
        site_template(learning, device=compute.device),
        device=compute.device,
    )
    gallery = build_gallery(with_round_trips(training, round_trip), lens)
    screener = Screener(gallery, point)
    context.warm[_WARM] = screener
    return screener


def join_encoders(encoders: Mapping[Learns, ReidEncoder]) -> Encoders:
    """Return both encoders as the members of the filter that they are."""
    return Encoders(copy=encoders["copies"], patient=encoders["visits"])


def _file_of(learns: Learns) -> str:
    return f"{learns}.safetensors"


def _folder(context: SiteContext) -> Path:
    return context.records / "reid"
