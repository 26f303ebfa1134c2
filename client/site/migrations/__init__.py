"""Alembic's folder for the site's store; ``versions`` holds one module a change."""
