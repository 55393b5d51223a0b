"""The process in which a model's prompts are made: `python -m ...prompt_process FD PARENT`.

A tokenizer and a template are the model's, and may loop, grow or abort in code that
heeds nothing. This process reads them and does no work itself: it forks processes that
do, each for a connection that the parent hands over. What explodes ends with its fork.
"""

from __future__ import annotations

import contextlib
import gc
import importlib
import os
import resource
import signal
import socket
import sys
import traceback
from pathlib import Path

from rvllm_local import host
from rvllm_local.conversation import prompt_frames as frames
from rvllm_local.conversation.model import ConversationModel, detect_style
from rvllm_local.conversation.prompts import Prepared, prepare_chat, prepare_text
from rvllm_local.engine.limits import EngineLimits
from rvllm_local.errors import RvllmError
from rvllm_local.forked_work import limit_memory, limit_time, receive_exactly
from rvllm_local.framing import decode
from rvllm_local.text.read_inputs import encode_inputs
from rvllm_local.text.token_table import TokenTable
from rvllm_local.text.tokenizer_files import read_tokenizer

_IDLE_S = 20.0  # after which a fork that has nothing to do ends
_NO_LIMITS = EngineLimits(0, 0, 0)  # an engine's are known when it is up


def main() -> None:
    """Read the model that the first frame names, then fork until the parent goes."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the terminal's is the parent's
    host.end_with_parent(int(sys.argv[2]))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))  # it would hold prompts
    parent = socket.socket(fileno=int(sys.argv[1]))
    importlib.import_module("rvllm_local.text.template")  # nobody waits for it yet
    load = decode(_received_frame(parent), frames.LOAD)
    limit_memory(load.num_bytes)
    limit_time(load.cpu_s, 0)
    try:
        model = _read(load)
        loaded = frames.Loaded(facts_of(model))
    except Exception as error:
        loaded = frames.Loaded(refused=_refused(error))
    parent.sendall(frames.encode(loaded))
    if loaded.facts is None:
        return
    limit_time(0, 0)
    gc.collect()
    gc.freeze()  # what the forks share is never garbage
    _Forks(parent, model, load.num_bytes).serve()


class _Forks:
    """Forks that work for one parent, and have not been waited for."""

    def __init__(
        self, parent: socket.socket, model: ConversationModel, num_bytes: int
    ) -> None:
        self._parent, self._model, self._num_bytes = parent, model, num_bytes
        self._pids: set[int] = set()

    def serve(self) -> None:
        """Make and end processes as the parent says, until it goes."""
        while True:
            data, descriptors, _, _ = socket.recv_fds(self._parent, 1, 1)
            self._collect()
            if data == frames.NEW:
                self._fork(descriptors[0])
            elif data == frames.END:
                self._end(_received(self._parent, frames.PID.size))
            else:
                return

    def _fork(self, descriptor: int) -> None:
        parent_pid = os.getpid()
        pid = os.fork()
        if pid:
            os.close(descriptor)
            self._pids.add(pid)
            return
        host.end_with_parent(parent_pid)
        self._parent.close()
        limit_memory(self._num_bytes)
        connection = socket.socket(fileno=descriptor)
        with contextlib.suppress(ConnectionError):
            connection.sendall(frames.PID.pack(os.getpid()))
            while True:
                _work(connection, self._model)
        os._exit(0)

    def _end(self, number: bytes) -> None:
        """Kill a process; one that was waited for is none of ours any more."""
        (pid,) = frames.PID.unpack(number)
        if pid in self._pids:
            os.kill(pid, signal.SIGKILL)

    def _collect(self) -> None:
        """Wait for those that have ended."""
        while self._pids:
            pid, _ = os.waitpid(-1, os.WNOHANG)
            if pid == 0:
                return
            self._pids.discard(pid)


def _read(load: frames.Load) -> ConversationModel:
    """The model, with all that is found out but once: the forks shall have it."""
    tokenizer = read_tokenizer(load.files)
    style = detect_style(load.files, tokenizer)
    model = ConversationModel(load.name, tokenizer, style, _NO_LIMITS)
    if tokenizer.chat_template is not None:
        _ = tokenizer.shows_system
        _ = tokenizer.drops_system_after_calls
    _ = tokenizer.spans
    return model


def facts_of(model: ConversationModel) -> frames.TextFacts:
    """What others are told of a model's tokenizer."""
    tokenizer = model.tokenizer
    return frames.TextFacts(
        TokenTable.of(tokenizer),
        tokenizer.vocab_size,
        tokenizer.bos_token_id,
        tokenizer.adds_bos,
        tokenizer.chat_template,
    )


def _work(connection: socket.socket, model: ConversationModel) -> None:
    """Take one piece of work and answer it; ends the process if none comes."""
    connection.settimeout(_IDLE_S)
    head = _received(connection, frames.LENGTH.size)
    connection.settimeout(None)
    body = _received(connection, frames.length_of(head))
    work = decode(body, frames.WORK)
    limit_time(work.cpu_s, work.wall_s)
    try:
        if work.text is not None:
            token_ids = model.tokenizer.encode(
                work.text, special=True, bos=work.with_bos
            )
            done = frames.Done(token_ids=frames.TokenIds.of(token_ids))
        elif work.inputs is not None:
            host.step_back()  # it can be much, and is no stream's
            rows = encode_inputs(model.tokenizer, work.inputs, work.most_tokens)
            done = frames.Done(encoded=tuple(rows))
        else:
            done = frames.Done(_prepared(model, work))
    except Exception as error:
        done = frames.Done(refused=_refused(error))
    except BaseException as error:  # what Rust panics with
        done = frames.Done(refused=_library_failed(type(error).__name__))
    limit_time(0, 0)
    connection.sendall(frames.encode(done))


def _prepared(model: ConversationModel, work: frames.Work) -> Prepared:
    """The prompt of a call, within the limits of the engine that takes it."""
    limited = ConversationModel(
        model.name, model.tokenizer, model.style, work.limits or _NO_LIMITS
    )
    if work.chat is not None:
        return prepare_chat(limited, frames.CHAT_CALL.decode(work.chat))
    return prepare_text(limited, frames.TEXT_CALL.decode(work.text_call or b""))


def _refused(error: Exception) -> frames.Refused:
    """An error as a frame; the text of one that is not ours could quote a prompt."""
    if isinstance(error, RvllmError):
        return frames.Refused.of(error)
    if isinstance(error, MemoryError):
        return _library_failed("too little memory")
    if type(error) is Exception:  # the tokenizers library raises nothing else
        return _library_failed("an error of its library")
    frame = traceback.extract_tb(error.__traceback__)[-1]
    file_and_line = f"{Path(frame.filename).name}:{frame.lineno}"
    return frames.Refused(None, f"{type(error).__name__} at {file_and_line}")


def _library_failed(how: str) -> frames.Refused:
    return frames.Refused(
        "ModelFileError",
        f"the model's tokenizer or chat template failed with {how}; its files may be "
        "damaged, or this text is more than they can take",
    )


def _received_frame(connection: socket.socket) -> bytes:
    head = _received(connection, frames.LENGTH.size)
    return _received(connection, frames.length_of(head))


def _received(connection: socket.socket, count: int) -> bytes:
    try:
        return receive_exactly(connection, count)
    except (ConnectionError, TimeoutError):
        os._exit(0)  # nobody is left to answer, or nobody asks


if __name__ == "__main__":
    main()
