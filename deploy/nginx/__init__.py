"""The reverse proxy's configuration, as package data."""
