"""Attention on a CPU, through a host view of the arena."""
