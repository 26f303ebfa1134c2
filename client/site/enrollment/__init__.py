"""How a site joins a federation, asks how things stand, and changes its keys."""
