"""Grammars that hold an answer to a format: from JSON schemas, regular expressions and tools to token masks."""
