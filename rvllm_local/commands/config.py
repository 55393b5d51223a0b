"""`rvllm config`: the merged configuration."""

from __future__ import annotations

import os

from rvllm_local.config import config_path, load_config
from rvllm_local.options import option_table


def config() -> int:
    """Print every key with its value, and where the file is looked for."""
    merged = load_config()
    print(f"# {config_path(os.environ)}")
    print(f"model = {merged.model}")
    for name in option_table():
        value = getattr(merged.options, name)
        if value is None:
            value = "(automatic)"
        print(f"{name} = {value}")
    return 0
