"""GGUF files: reading them, and what they mean in the terms of mlx-lm."""
