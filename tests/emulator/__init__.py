"""Runs the Metal text that MLX generates on a CPU: one fiber a thread, guarded buffers, poisoned memory."""

from __future__ import annotations

from tests.emulator.capture import capture_text
from tests.emulator.device import Emulator, EmulatorError, run_text

__all__ = ["Emulator", "EmulatorError", "capture_text", "run_text"]
