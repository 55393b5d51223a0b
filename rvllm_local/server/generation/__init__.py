"""One generation for one request: from a call to a stream of typed pieces."""
