"""Text that is burned into pixels: where it may stand, what hides it, and when to refuse.

Nothing here reads text. Ultrasound is cut to the regions that its header calls tissue or flow, or
to a picture that the site names; what lies inside them is not looked at. Where nothing says which
pixels are clean, the object is refused.

Axes: T frames, H rows, W columns. A mask is True where a pixel may be seen.
"""

from __future__ import annotations

import struct
from pathlib import Path
from typing import Final

import numpy as np
from PIL import Image
from pydicom.dataset import Dataset as DicomHeader

from vitrael.core.data.planar import MOST_PIXELS
from vitrael.core.errors import ScanError
from vitrael.privacy.dicom_values import read_words

CLEAN_MODALITIES: Final = frozenset({"CR", "CT", "DX", "MG", "MR", "NM", "PT"})
"""Whose devices seldom write into the pixels; every other one, or none, needs a mask."""
_STORAGE: Final = "1.2.840.10008.5.1.4.1.1."
CLEAN_CLASSES: Final = frozenset(
    _STORAGE + number
    for number in (
        *("1", "1.1", "1.1.1", "1.2", "1.2.1", "13.1.3", "13.1.4", "13.1.5"),  # CR, DX, MG
        *("2", "2.1", "2.2", "4", "4.1", "4.4", "20", "128", "128.1", "130"),  # CT, MR, NM, PT
    )
)
"""SOP classes of their images (PS3.4, B.5): an object of another one is not believed."""
ULTRASOUND_CLASSES: Final = frozenset(_STORAGE + number for number in ("3", "3.1", "6", "6.1"))
SCREEN_CLASSES: Final = _STORAGE + "7"
"""Secondary capture, with its multi-frame kinds below it: a picture of a screen."""
SCREEN_WORDS: Final = ("SCREEN", "SAVE", "CAPTURE", "SNAPSHOT", "DOSE", "REPORT")
"""In a word of the image type: devices store pictures of a screen as images of their own class."""
PICTURE_FORMATS: Final = frozenset({1})
"""Region Spatial Format (0018,6012): 2D. M-mode, spectra, traces and graphics are not."""
PICTURE_DATA: Final = frozenset({1, 2})
"""Region Data Type (0018,6014): tissue and color flow."""
MASK_MODES: Final = frozenset({"1", "L", "P", "RGB", "I", "I;16"})
MOST_MASK_PIXELS: Final = 1 << 26

_PNG: Final = b"\x89PNG\r\n\x1a\n"
_FIX: Final = "name a mask with --pixel-mask"
_DAMAGE: Final = (
    *(ValueError, TypeError, KeyError, EOFError, OSError, OverflowError, AttributeError),
    *(NotImplementedError, struct.error),
)


def region_mask(header: DicomHeader) -> np.ndarray:
    """Return bool [H, W], True inside the 2D tissue and flow regions of an ultrasound header.

    Rectangles of (0018,6011); their last row and column belong to them. What another region
    (a trace, a spectrum, a color bar) covers is hidden even there. A region may end one pixel
    beyond the image and is cut to it. One that covers the image is taken at its word: the mask is
    then True everywhere and hides nothing. Raises ScanError when no such region is listed, when
    any region is empty or begins left of the image or above it, and when one of these lies outside
    the image: the picture was then resized or cut after its regions were written, and they say
    nothing of it.
    """
    try:
        shape = int(header.Rows), int(header.Columns)
        regions = [_region(item) for item in header.get("SequenceOfUltrasoundRegions") or ()]
    except _DAMAGE:
        raise _refuse("the header's list of ultrasound regions is damaged") from None
    if min(shape) < 1 or shape[0] * shape[1] > MOST_PIXELS:
        raise ScanError("the header gives an absurd image size", fix="export it again")
    pictures = [box for is_picture, box in regions if is_picture]
    others = [box for is_picture, box in regions if not is_picture]
    if not pictures:
        raise _refuse("the header lists no region of tissue or flow")
    mask_HW = np.zeros(shape, dtype=bool)
    for top, left, bottom, right in pictures:
        if bottom > shape[0] or right > shape[1]:
            raise _refuse(
                "the header's regions lie outside the image, which was resized or cut after them"
            )
        mask_HW[top : bottom + 1, left : right + 1] = True
    for top, left, bottom, right in others:
        mask_HW[top : bottom + 1, left : right + 1] = False
    if not mask_HW.any():
        raise _refuse("other regions cover all tissue and flow")
    return mask_HW


def demand_clean_pixels(
    header: DicomHeader, *, site_mask: np.ndarray | None = None
) -> np.ndarray | None:
    """Return the mask [H, W] that makes an object's pixels clean; None where none is needed.

    The site's mask counts where there is one. Otherwise a picture of a screen, every modality
    outside ``CLEAN_MODALITIES``, none, and an object of another class have nothing to show for
    themselves, except that an ultrasound has regions. It needs a mask even when its header says
    that nothing is burned in: devices say so of images with a name on them. Raises ScanError where
    text cannot be ruled out, where the header says that text is burned in, or anything but NO, and
    no pixel would be hidden, and where the site's mask has another size than the image.
    """
    try:
        shape = int(header.get("Rows") or 0), int(header.get("Columns") or 0)
    except _DAMAGE:
        raise ScanError("the header is damaged", fix="export it again") from None
    modality = "\\".join(read_words(header, "Modality"))
    sop_class = _class_of(header)
    mask_HW = site_mask
    if mask_HW is not None:
        _check_mask(mask_HW, shape)
    elif _is_screen(header, sop_class):
        raise _refuse("it is a picture of a screen")
    elif modality == "US" and sop_class in ULTRASOUND_CLASSES:
        mask_HW = region_mask(header)
    elif modality not in CLEAN_MODALITIES:
        raise _refuse("its modality often has text in it")
    elif sop_class not in CLEAN_CLASSES:
        raise _refuse("its class often has text in it")
    says_burned_in = not {"NO", ""}.issuperset(read_words(header, "BurnedInAnnotation"))
    if says_burned_in and (mask_HW is None or mask_HW.all()):
        raise ScanError(
            "the image has text burned in",
            why="the header says so, and no mask hides a pixel",
            fix=_FIX,
        )
    return mask_HW


def apply_mask(frames_THW: np.ndarray, mask_HW: np.ndarray) -> np.ndarray:
    """Return a copy of frames [T, H, W], or [T, H, W, S] in RGB, that is 0 outside the mask.

    In RGB 0 is black. YBR must be made RGB before: there 0 is green. Raises ScanError when the
    mask has another size.
    """
    if frames_THW.ndim not in {3, 4}:
        raise ScanError("the frames are no pictures over time", fix="export the object again")
    _check_mask(mask_HW, (frames_THW.shape[1], frames_THW.shape[2]))
    masked = frames_THW.copy()
    masked[:, ~mask_HW] = 0
    return masked


def read_site_mask(path: Path) -> np.ndarray:
    """Return the mask bool [H, W] of a PNG file: what is not black may be seen.

    Raises ScanError when the file cannot be read, is no PNG, is too large, has an alpha channel
    (whether a transparent white pixel may be seen is not for us to guess) or hides everything.
    """
    try:
        with path.open("rb") as file:
            preface = file.read(24)
        if not preface.startswith(_PNG):
            raise ScanError("the pixel mask is no PNG picture", fix="save it as PNG")
        width, height = struct.unpack(">II", preface[16:])
        if width * height > MOST_MASK_PIXELS:
            raise ScanError("the pixel mask is too large", fix="make it as large as the image")
        with Image.open(path, formats=("PNG",)) as picture:
            if picture.mode not in MASK_MODES or "transparency" in picture.info:
                raise ScanError("the pixel mask has transparent pixels", fix="save it without them")
            colors = picture.convert("RGB") if picture.mode == "P" else picture
            mask = np.asarray(colors) != 0
    except (OSError, ValueError, SyntaxError, struct.error):
        raise ScanError(
            "the pixel mask cannot be read", fix="check the file named with --pixel-mask"
        ) from None
    mask_HW = mask.any(axis=2) if mask.ndim == 3 else mask  # noqa: PLR2004 - H, W, color
    if not mask_HW.any():
        raise ScanError(
            "the pixel mask hides everything", fix="paint white what may be seen, black the rest"
        )
    return np.ascontiguousarray(mask_HW)


def _region(item: DicomHeader) -> tuple[bool, tuple[int, int, int, int]]:
    """Return whether a region is a 2D picture, and its top, left, bottom and right pixel."""
    is_picture = (
        int(item.RegionSpatialFormat) in PICTURE_FORMATS
        and int(item.RegionDataType) in PICTURE_DATA
    )
    left, top = int(item.RegionLocationMinX0), int(item.RegionLocationMinY0)
    right, bottom = int(item.RegionLocationMaxX1), int(item.RegionLocationMaxY1)
    if top > bottom or left > right:
        raise _refuse("a region of the header is empty")
    if min(top, left) < 0:  # to NumPy it would begin at the other end
        raise _refuse("a region of the header begins outside the image")
    return is_picture, (top, left, bottom, right)


def _class_of(header: DicomHeader) -> str:
    meta = getattr(header, "file_meta", None) or DicomHeader()
    words = read_words(header, "SOPClassUID") or read_words(meta, "MediaStorageSOPClassUID")
    return "\\".join(words)


def _is_screen(header: DicomHeader, sop_class: str) -> bool:
    return (
        sop_class == SCREEN_CLASSES
        or sop_class.startswith(SCREEN_CLASSES + ".")
        or any(read_words(header, "ConversionType"))
        or any(part in word for word in read_words(header, "ImageType") for part in SCREEN_WORDS)
    )


def _check_mask(mask_HW: np.ndarray, shape: tuple[int, int]) -> None:
    if mask_HW.dtype != np.bool_ or mask_HW.shape != shape:
        raise ScanError(
            "the pixel mask does not fit the image",
            why="it has another number of rows or columns",
            fix="name a mask of the same size with --pixel-mask",
        )


def _refuse(why: str) -> ScanError:
    return ScanError("burned-in text cannot be ruled out", why=why, fix=_FIX)
