"""The courier's SuperNode: ``flower-supernode`` that looks for messages more often.

Flower 1.41 lets a SuperNode that found no message sleep for a fixed 3 s, and one that waits for
its courier's answer look twice a second; no setting changes it, and a study of twenty messages
would spend its minute there. Here the same program sleeps half a second and a tenth. Should a
later Flower keep its time elsewhere, this is plain ``flower-supernode``.
"""

from __future__ import annotations

import sys
import time
from types import SimpleNamespace
from typing import Any

from flwr.supernode import start_client_internal
from flwr.supernode.cli import flower_supernode

LONGEST_SLEEP_S = 0.5


def shorten_sleep(seconds: float) -> None:
    """Sleep a fifth of what is asked, at most ``LONGEST_SLEEP_S``."""
    time.sleep(min(seconds / 5, LONGEST_SLEEP_S))


def look_often() -> bool:
    """Make this process's SuperNode sleep less; say whether there was something to change."""
    if getattr(start_client_internal, "time", None) is not time:
        return False
    patched: Any = start_client_internal
    patched.time = SimpleNamespace(**{**vars(time), "sleep": shorten_sleep})
    return True


def main() -> None:
    """Run the SuperNode on this process's command line."""
    look_often()
    sys.argv[0] = "flower-supernode"
    flower_supernode()


if __name__ == "__main__":
    main()
