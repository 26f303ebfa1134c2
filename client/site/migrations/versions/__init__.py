"""The store's changes in their order."""
