"""From a model's files to an engine core that was proven on this machine."""
