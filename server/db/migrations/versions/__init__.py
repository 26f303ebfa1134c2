"""One file a revision; the newest is ``engine.HEAD``."""
