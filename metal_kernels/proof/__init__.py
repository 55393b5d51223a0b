"""Proves the kernels wherever they can run: variants, a float64 oracle, checks, and bandwidth beside a plain copy."""
