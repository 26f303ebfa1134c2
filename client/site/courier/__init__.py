"""The courier: it has the network and nothing to tell. It imports neither torch nor site data."""
