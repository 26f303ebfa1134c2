"""A site's keys, decisions and journal in one encrypted file, and back; cohorts stay outside."""
