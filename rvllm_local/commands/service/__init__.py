"""A server that the system starts at login, and again when it falls."""
