"""The researcher's end: pull, verify, load. Needs neither torch nor Flower."""

from vitrael.client.researcher.load import load

__all__ = ["load"]
