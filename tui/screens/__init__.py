"""The chat's dialogs."""
