"""The seam between a model's attention call and the code that reads the arenas."""
