"""Procedural stand-ins for patients: their truth is known, and nobody's privacy is at stake."""
