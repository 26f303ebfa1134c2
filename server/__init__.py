"""The coordinator: runs a study over its sites and keeps what comes of it."""
