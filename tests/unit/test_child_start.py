"""A process that is started ahead goes to the first who needs one."""

from __future__ import annotations

import os
import sys

from rvllm_local.child_start import (
    Spare,
    child_environment,
    start_child,
    take_or_start,
)

# Says on its connection that it has started, then waits for a word or the end.
ECHO = (
    sys.executable,
    "-c",
    "import socket, sys; c = socket.socket(fileno=int(sys.argv[1]));"
    " c.sendall(b'up'); c.sendall(c.recv(9))",
)
MISSING = ("/nowhere/python",)


def test_the_first_gets_the_spare_process_and_the_next_a_new_one() -> None:
    spare = Spare(ECHO)
    first, ours = take_or_start(spare, MISSING)
    second, other = take_or_start(spare, ECHO)
    for process, connection in ((first, ours), (second, other)):
        with connection:
            assert connection.recv(2, 0x100) == b"up"  # MSG_WAITALL
            connection.sendall(b"hello")
            assert connection.recv(9) == b"hello"
        assert process.wait(60) == 0
    assert first.pid != second.pid
    assert spare.take() is None


def test_a_spare_process_that_has_ended_is_not_given_out() -> None:
    spare = Spare((sys.executable, "-c", "pass"), keeps_errors=True)
    assert spare._started is not None
    spare._started[0].wait(60)
    assert spare.take() is None


def test_closing_ends_what_nobody_took() -> None:
    spare = Spare(ECHO, keeps_errors=True)
    assert spare._started is not None
    process = spare._started[0]
    spare.close()
    assert process.returncode is not None
    assert spare.take() is None
    spare.close()


def test_a_spare_that_cannot_be_started_is_none() -> None:
    assert Spare(MISSING).take() is None


def test_a_child_sees_settings_and_no_keys() -> None:
    seen = child_environment(
        {"PATH": "/bin", "RVLLM_API_KEY": "secret", "RVLLM_BLAS": "x", "OTHER": "1"}
    )
    assert seen == {"PATH": "/bin", "RVLLM_BLAS": "x"}


def test_a_child_has_a_group_of_its_own_in_its_parents_session() -> None:
    """Linux weighs priorities within a session: between two they count for nothing."""
    process, connection = start_child(ECHO)
    with connection:
        assert os.getpgid(process.pid) == process.pid
        assert os.getsid(process.pid) == os.getsid(0)
    process.wait(60)
