"""Where the KV lives: the arena's arrays, the blocks in them, and who holds which block."""
