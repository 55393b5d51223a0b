"""Measuring: a load generator for any OpenAI-style endpoint, benchmarks of this runtime in process, and comparisons."""
