"""The engine: one thread that schedules, runs, samples and emits, step by step."""
