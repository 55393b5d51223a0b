"""Remembers what a model's plan was, so that a start need not make it again.

Everything that it depends on is in the note's subject: the files, the options, the code,
the libraries, and the machine's memory. The engine plans anew before it takes memory;
a note only tells the server early what room to keep.
"""

from __future__ import annotations

import importlib.metadata
import os
from collections.abc import Iterator
from pathlib import Path

import msgspec

import rvllm_local
from rvllm_local import host
from rvllm_local.errors import RvllmError
from rvllm_local.models.file_stamps import Stamp, file_stamp
from rvllm_local.models.locate import ModelFiles
from rvllm_local.models.startup_notes import read_note, settings_of, write_note
from rvllm_local.options import EngineOptions
from rvllm_local.server.models.inspection_frames import Planned
from rvllm_local.server.prompts.proven import files_of

_PLANNING = ("memory", "engine/startup")  # folders of code
_SETTINGS = ("MLX_", "RVLLM_")  # beginnings of environment variables' names


class PlanNote:
    """The note of one model under some options; made before its files are read.

    There is none where a GPU may be, whose memory the server cannot ask for, nor where
    other files than the model's say what it takes.
    """

    def __init__(self, files: ModelFiles, options: EngineOptions) -> None:
        self._cache_dir = files.cache_dir
        self._subject: str | None = None
        is_alone = options.ranks == 1 and not options.adapters
        if is_alone and not options.drafts_by_model and not host.may_have_gpu():
            self._subject = _subject(files, options)

    def read(self) -> Planned | None:
        """The plan, if it was noted."""
        if self._subject is None:
            return None
        try:
            note = read_note(self._subject, self._cache_dir)
            return msgspec.convert(note, Planned)
        except (msgspec.ValidationError, RvllmError):
            return None

    def write(self, planned: Planned) -> None:
        """Note a plan that fits. Failing to costs only time."""
        if self._subject is not None:
            value = msgspec.to_builtins(planned)
            write_note(self._subject, value, self._cache_dir)


def _subject(files: ModelFiles, options: EngineOptions) -> str | None:
    """All that a plan depends on; None for a model that is gone."""
    stamps = [file_stamp(path) for path in files_of(files) if path.is_file()]
    if not stamps:
        return None
    parts = [
        files.kind,
        stamps,
        options,
        rvllm_local.__version__,
        importlib.metadata.version("mlx"),
        list(_code()),
        os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"),
        settings_of(_SETTINGS),
    ]
    return f"plan {parts!r}"


def _code() -> Iterator[Stamp]:
    """The code that plans."""
    root = Path(rvllm_local.__file__).parent
    for folder in _PLANNING:
        for path in sorted((root / folder).glob("*.py")):
            yield file_stamp(path)
