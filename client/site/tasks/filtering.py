"""The site's filter between two tasks: what is kept among the records, and how it comes back.

Copy encoder, template and operating point are private and stay with the site. Encoders and point
are written to the site's records once, by the calibration, before any candidate has arrived. They
cannot be made again: the salt is random, and a calibration is answered once. The point names the
weights, scans and way of scoring that it was frozen for, and is of no use with others.
"""

from __future__ import annotations

import secrets
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

import numpy as np
import torch
from pydantic import ValidationError

from vitrael.client.site.tasks import SiteContext
from vitrael.client.site.tasks.networks import (
    encode_images,
    load_codec,
    reconstruct_images,
    site_compute,
)
from vitrael.core.data.splits import Split
from vitrael.core.digest import Digest, digest_bytes, write_atomically
from vitrael.core.errors import DataError
from vitrael.core.messages import Task
from vitrael.core.models.reid import Learns, ReidEncoder, build_reid_encoder
from vitrael.core.records import PatientImages
from vitrael.core.weights import (
    Tensors,
    load_weights,
    module_tensors,
    pack_tensors,
    unpack_tensors,
)
from vitrael.privacy.reid.calibrate import OperatingPoint, first_visits, name_filter
from vitrael.privacy.reid.gallery import Gallery, build_gallery, with_round_trips
from vitrael.privacy.reid.latents import Encode
from vitrael.privacy.reid.lens import Encoders, fit_lens
from vitrael.privacy.reid.roles import RoundTrip
from vitrael.privacy.reid.screen import Screener
from vitrael.privacy.reid.template import Template, fit_template, lay_onto

LEARNS: Final[tuple[Learns, ...]] = ("visits", "copies")
_MADE_OF: Final = (Split.TRAINING, Split.FILTER, Split.CALIBRATION)
"""The gallery, what it is seen through, and who are not in it."""
_WARM = "reid.screener"
_LEARNING = "reid.learning"


@dataclass(frozen=True, slots=True, repr=False)
class Learning:
    """Split F as the encoders learn from it; private."""

    template: Template
    forms: PatientImages
    """The scans, and with a codec those after its round trip."""
    laid: PatientImages
    """The same, laid onto the template."""

    def __repr__(self) -> str:
        """Show nothing of a patient."""
        return "Learning(private)"


def see_learning(task: Task, inputs: Mapping[str, Tensors], context: SiteContext) -> Learning:
    """Return split F as it is learned from; computed once for each codec, and kept warm."""
    key = task.inputs.get("codec", "")
    kept = context.warm.get(_LEARNING)
    if kept is None or kept[0] != key:
        scans = context.cohort.images(Split.FILTER)
        template = site_template(scans, device=site_compute(context).device)
        forms = with_round_trips(scans, study_round_trip(context, inputs.get("codec")))
        kept = key, Learning(template, forms, lay_images(forms, template))
        context.warm[_LEARNING] = kept
    learning: Learning = kept[1]
    return learning


def forget_learning(context: SiteContext) -> None:
    """Let go of split F: nothing learns from it any more."""
    context.warm.pop(_LEARNING, None)


def lay_images(images: PatientImages, template: Template) -> PatientImages:
    """Return images as the encoders see all images."""
    if not len(images):
        return images
    return replace(images, image_BCDHW=lay_onto(images.image_BCDHW, template))


def name_made_with(
    context: SiteContext, encoders: Mapping[Learns, ReidEncoder], codec: Tensors | None
) -> Digest:
    """Return the digest of the weights and scans that this site's filter follows from."""
    weights: dict[str, Tensors] = {
        str(learns): module_tensors(encoder) for learns, encoder in encoders.items()
    }
    if codec is not None:
        weights["codec"] = codec
    scans = {
        split.value: [(item.subject, item.digest) for item in context.cohort.items(split)]
        for split in _MADE_OF
    }
    return name_filter(weights, scans=scans)


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


def study_encode(context: SiteContext, codec: Tensors | None) -> Encode | None:
    """Return the codec's scaled latents of images, or None without its weights."""
    if codec is None:
        return None
    device = site_compute(context).device
    network = load_codec(context, codec, device)

    def encode(image_BCDHW: np.ndarray) -> np.ndarray:
        image = torch.from_numpy(np.array(image_BCDHW, dtype=np.float32, order="C"))
        means = encode_images(network, image, device)
        return np.asarray(network.scale(means.to(device)).detach().cpu().numpy())

    return encode


def demand_same_codec(context: SiteContext, codec: Tensors | None) -> None:
    """Raise DataError for another codec than the one that the filter was calibrated with.

    What a filter is tested with, and what is usual among scans, follows from it.
    """
    path = _folder(context) / "codec.safetensors"
    if path.is_file() and (codec is None or path.read_bytes() != pack_tensors(codec)):
        raise DataError(
            "the task brings another codec than the one of the calibration",
            why="copies would be planted, and the usual told, by another model than the study's",
            fix="let the coordinator send the codec that the study has trained",
        )


def site_template(learning: PatientImages, *, device: str) -> Template:
    """Return the template of the first scans of F: whom it is used on has not helped to make it."""
    return fit_template(learning.image_BCDHW[first_visits(learning)], device=device)


def load_screener(context: SiteContext) -> Screener | None:
    """Return the calibrated filter, or None when the site has no operating point.

    Raises DataError for a point of another version, and for one that was frozen with other
    encoders, another codec, other scans or scores: its threshold says nothing of these.
    """
    warm = context.warm.get(_WARM)
    if isinstance(warm, Screener):
        return warm
    path = _folder(context) / "operating_point.json"
    if not path.is_file():
        return None
    point, device = _read_point(path), site_compute(context).device
    encoders = _read_encoders(context, device)
    codec_path = _folder(context) / "codec.safetensors"
    codec = unpack_tensors(codec_path.read_bytes()) if codec_path.is_file() else None
    if point.made_with != name_made_with(context, encoders, codec):
        raise DataError(
            "the operating point of the filter is that of another filter",
            why="encoders, codec, scans or the way of scoring have changed since it was frozen",
            fix="restore records, cohort and version of this site, or start a fresh study",
        )
    training = context.cohort.images(Split.TRAINING)
    round_trip = study_round_trip(context, codec)
    learning = context.cohort.images(Split.FILTER)
    lens = fit_lens(
        with_round_trips(learning, round_trip),
        join_encoders(encoders),
        site_template(learning, device=device),
        encode=study_encode(context, codec),
        device=device,
    )
    gallery = build_gallery(with_round_trips(training, round_trip), lens)
    screener = Screener(gallery, point)
    context.warm[_WARM] = screener
    return screener


def _read_point(path: Path) -> OperatingPoint:
    try:
        return OperatingPoint.model_validate_json(path.read_bytes())
    except ValidationError:
        raise DataError(  # without the values, which are private
            "the operating point of the filter cannot be used",
            why="another version of the software froze it, or the file was damaged",
            fix="start a fresh study, or restore the records of this site",
        ) from None


def _read_encoders(context: SiteContext, device: str) -> dict[Learns, ReidEncoder]:
    protocol = context.study.synthesis
    encoders: dict[Learns, ReidEncoder] = {}
    for learns in LEARNS:
        encoder = build_reid_encoder(protocol.reid, seed=protocol.seed, learns=learns)
        data = (_folder(context) / _file_of(learns)).read_bytes()
        load_weights(encoder, unpack_tensors(data))
        encoders[learns] = encoder.to(device)
    return encoders


def name_members(context: SiteContext) -> tuple[Digest, ...]:
    """Return the digests of the encoders of this site's filter; none where there is no filter."""
    paths = [_folder(context) / _file_of(learns) for learns in LEARNS]
    return tuple(digest_bytes(path.read_bytes()) for path in paths if path.is_file())


def join_encoders(encoders: Mapping[Learns, ReidEncoder]) -> Encoders:
    """Return both encoders as the members of the filter that they are."""
    return Encoders(copy=encoders["copies"], patient=encoders["visits"])


def _file_of(learns: Learns) -> str:
    return f"{learns}.safetensors"


def _folder(context: SiteContext) -> Path:
    return context.records / "reid"
