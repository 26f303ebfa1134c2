"""One training loop, and what it minimizes."""
