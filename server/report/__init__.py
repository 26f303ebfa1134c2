"""The report of a study: one self-contained HTML file and its JSON twin."""
