"""Ingest: from a hospital's files to a Cohort, at the site and for the site alone."""
