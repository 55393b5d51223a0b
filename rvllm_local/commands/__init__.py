"""The verbs of `rvllm`, a file each; `cli` imports one only when it runs."""
