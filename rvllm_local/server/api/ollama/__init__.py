"""Ollama's API: lines of JSON, models by name and tag, durations in nanoseconds."""
