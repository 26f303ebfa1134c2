"""TLS files and node keys of the processes on one machine, for what is built on Flower here."""

from __future__ import annotations

from vitrael.privacy.loopback_tls import TlsFiles, create_secret, create_tls
from vitrael.privacy.node_keys import create_node_key, load_node_key

__all__ = ["TlsFiles", "create_node_key", "create_secret", "create_tls", "load_node_key"]
