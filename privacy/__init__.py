"""Measuring, deciding and signing: re-identification, audit, gates, releases."""
