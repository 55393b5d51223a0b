"""Models that read a text and write none: encoders, and decoders that are pooled."""
