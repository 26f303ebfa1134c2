"""What a steward gives back between two tasks: it lives for months, a task for minutes."""

from __future__ import annotations

import ctypes
import gc


def give_back_memory() -> None:
    """Return freed memory to the system, where the C library can (glibc; elsewhere nothing).

    The tensors of a task are freed when it ends, but the allocator keeps their pages for the next
    one, in which they lie as they were: up to the peak of the largest task that ever ran.
    """
    gc.collect()
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)
