"""Remembers which models' tokenizers and templates were read within the limits.

A hostile one shall end before memory is taken for its model, so an engine waits until
the process for prompts has read it. What was read once, and has not changed since, is
not waited for: both are started at once. A file that is written or replaced has another
stamp, and proves itself anew.
"""

from __future__ import annotations

from pathlib import Path

import tokenizers

from rvllm_local import __version__
from rvllm_local.models.file_stamps import StampedFiles
from rvllm_local.models.locate import ModelFiles

_FACT = (
    f"its texts were read within limits by {__version__} "
    f"with tokenizers {tokenizers.__version__}"
)


class TextProof:
    """Of a model's files as they are when this is made."""

    def __init__(self, files: ModelFiles) -> None:
        self._files = StampedFiles(files_of(files), files.cache_dir)

    @property
    def is_known(self) -> bool:
        """True if they were read before."""
        return self._files.is_known(_FACT)

    def note(self) -> None:
        """They were read. Failing to note it costs only time."""
        if not self.is_known:
            self._files.note(_FACT)


def files_of(files: ModelFiles) -> list[Path]:
    """All files from which a model's texts and its plan may be read; none if it is gone."""
    if files.kind == "gguf":
        return files.weight_paths()
    try:
        return sorted(files.path.iterdir())
    except OSError:
        return []
