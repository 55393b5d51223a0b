"""Holds generated Metal text to Metal's rules on address spaces, which g++ cannot see.

clang's C++ for OpenCL refuses a pointer into one address space where another is named,
casts included. Only the syntax is checked; nothing runs.
"""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

SHIM = Path(__file__).with_name("strict_shim.h")
CLANG = shutil.which("clang")
FLAGS = ("-x", "clcpp", "-cl-std=clc++", "-fsyntax-only", "-w", "-include", str(SHIM))


def address_space_errors(text: str) -> list[str]:
    """What clang refuses in the text, one line an error. Needs clang."""
    assert CLANG is not None, "clang is not installed"
    source = re.sub(r"#include <metal_\w+>", "", text)
    source = re.sub(r"\[\[kernel\]\]", "kernel", source)
    source = re.sub(r"\s*\[\[\w+(\(\d+\))?\]\]", "", source)
    done = subprocess.run(
        [CLANG, *FLAGS, "-"],
        input=source,
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )
    errors = [line for line in done.stderr.splitlines() if "error:" in line]
    if done.returncode and not errors:
        raise AssertionError(done.stderr[:2000])
    return errors
