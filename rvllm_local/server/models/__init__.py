"""The models that a server holds: loaded once, shared, unloaded."""
