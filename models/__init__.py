"""What a model is: catalogue names, downloads, file formats, and mlx-lm's definitions of the families.

Nothing here knows of requests, KV blocks or text; importing the package loads nothing heavy.
"""
