"""The dialects, a folder each; they share `common`, and none imports another."""
