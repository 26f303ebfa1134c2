"""Which names of folders tell a class of images: those made of known words, and no others.

``anna`` and ``bert`` may be patients as well. A class becomes a label, which may leave the site,
and a folder of a class is no patient: so a name is never guessed to be one.
"""

from __future__ import annotations

import re

_PARTS = (
    "abdomen abdominal ankle arm bone brain breast chest colon elbow eye face finger foot forearm "
    "hand head heart hip humerus jaw kidney knee leg liver lung lungs muscle neck pelvis prostate "
    "retina rib shoulder skin skull spine teeth thorax thyroid tooth wrist"
)
_KINDS = (
    "angio bmode cr ct cxr doppler dx echo fundus image images mammo mammography mg mr mri oct pet "
    "radiograph scan scans spect ultrasound us x xray xr"
)
_VIEWS = (
    "2ch 4ch a2c a4c ap apical axial coronal frontal lateral left longaxis oblique pa parasternal "
    "plax psax right sagittal shortaxis subcostal"
)
_FINDINGS = (
    "abnormal adenocarcinoma aneurysm arthritis atelectasis bacterial benign bleeding cancer "
    "carcinoma cardiomegaly consolidation cyst demented dementia disease diseased edema effusion "
    "emphysema fibrosis fracture fractured glioma healthy hemorrhage hernia infarct infiltration "
    "inflammation ischemia lesion malignant mass melanoma meningioma metastasis mild moderate "
    "negative nodule nodules normal opacity osteoarthritis pathological pituitary pleural "
    "pneumonia pneumothorax polyp positive scoliosis severe sick stenosis stroke suspicious "
    "tuberculosis tumor tumour ulcer viral"
)
_SPLITS = "control controls dev test testing train training val valid validation"
_NUMBERED = frozenset(
    ["birads", "class", "covid", "grade", "group", "kl", "label", "level", "pirads", "stage"]
)
"""Words that a number of one or two digits may follow."""
_WORDS = _NUMBERED.union(*(words.split() for words in (_PARTS, _KINDS, _VIEWS, _FINDINGS, _SPLITS)))
_JOINTS = frozenset(["and", "no", "non", "not", "of", "other", "very", "with", "without"])
_CAMEL = re.compile(r"(?<=[a-z])(?=[A-Z])|(?<=[A-Z])(?=[A-Z][a-z])")
_PIECE = re.compile(r"\d[a-z]+|[a-z]\d[a-z]|[^\W\d_]+|\d+")


def is_class(folder: str) -> bool:
    """Return whether a folder's name is made of words that tell a class of images.

    ``AbdomenCT``, ``no-fracture``, ``grade 2`` and ``COVID-19`` are; ``anna`` and ``7`` are not.
    """
    pieces = _PIECE.findall(" ".join(_CAMEL.split(folder)).lower())
    words = {piece for piece in pieces if not piece.isdigit()} - _JOINTS
    numbers = [piece for piece in pieces if piece.isdigit()]
    if not words or not words <= _WORDS:
        return False
    is_short = len(numbers) == 1 and len(numbers[0]) <= 2  # noqa: PLR2004
    return not numbers or (is_short and not words.isdisjoint(_NUMBERED))
