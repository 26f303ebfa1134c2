"""`vitrael server up` with a ServerApp of the test's own, whose text is in a file."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from vitrael.core.errors import VitraelError
from vitrael.core.logs import configure_logging
from vitrael.server.config import load_server
from vitrael.server.up import Coordinator

parser = argparse.ArgumentParser()
parser.add_argument("server_app", type=Path)
parser.add_argument("--home", type=Path, required=True)
asked = parser.parse_args()
try:
    with configure_logging():
        coordinator = Coordinator(
            load_server(asked.home), server_app=asked.server_app.read_text(), records=False
        )
        sys.exit(coordinator.run())
except VitraelError as error:
    sys.exit(f"Error: {error.sentence()}")
