"""The `rvllm` command: parses the command line, runs a verb, gives the exit status."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from rvllm_local.commands.interrupting import end_interrupted
from rvllm_local.commands.streams import drop_output, open_closed_streams
from rvllm_local.commands.verbs import VERBS, parse
from rvllm_local.early_signals import give_interrupts_back
from rvllm_local.errors import DownloadError, EngineError, RvllmError

_FAILED, _BAD_INPUT = 1, 2
_FAILURES = (EngineError, DownloadError, OSError)


def main(argv: Sequence[str] | None = None) -> int:
    """Run one verb and return the exit status: 0, 1 for a failure, 2 for bad input.

    Ctrl-C ends the process with 130.
    """
    give_interrupts_back()
    open_closed_streams()
    words = sys.argv[1:] if argv is None else argv
    arguments = parse(words)
    try:
        status = VERBS[arguments.verb].run(arguments)
        sys.stdout.flush()  # here, where a closed pipe is handled
        return status
    except KeyboardInterrupt:
        end_interrupted()
    except BrokenPipeError:  # whoever read our output has gone
        drop_output()
        return 0
    except (RvllmError, OSError) as error:
        print(f"rvllm: error: {error}", file=sys.stderr)
        return _FAILED if isinstance(error, _FAILURES) else _BAD_INPUT


if __name__ == "__main__":
    sys.exit(main())
