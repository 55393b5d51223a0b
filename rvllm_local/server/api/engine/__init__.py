"""The engine's own routes: its state, explanations, and token ids in and out."""
