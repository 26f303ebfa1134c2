"""The two outer ends: the hospital site and the researcher."""
