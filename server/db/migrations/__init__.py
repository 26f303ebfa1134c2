"""Alembic revisions of the coordinator's database, one file for each in ``versions``."""
