"""Thin adapters over MONAI's networks.

MONAI imports whatever it could use of a dozen other packages when it is imported itself, whether
or not anybody asks for it. Where these are installed that takes seconds and, for as long as the
process lives, 150 MiB; a steward lives for months. Its networks need none of them.
"""

from __future__ import annotations

import sys
from typing import Final

_NOT_NEEDED: Final = (
    *("ignite", "matplotlib", "mlflow", "pandas", "skimage", "sklearn", "tensorboard"),
    *("torchvision", "transformers", "wandb"),
)


def _import_monai_alone() -> None:
    """Import MONAI as if the packages that are not needed and not yet loaded were not installed."""
    hidden = [name for name in _NOT_NEEDED if name not in sys.modules]
    for name in hidden:
        # Python's own way to forbid an import
        sys.modules[name] = None  # type: ignore[assignment]
    try:
        import monai  # noqa: F401, PLC0415
    finally:
        for name in hidden:
            sys.modules.pop(name, None)


_import_monai_alone()
