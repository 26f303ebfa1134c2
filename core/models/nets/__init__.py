"""Thin adapters over MONAI's networks."""
