"""The standard library's resource tracker, started off the critical path.

Children must share their parent's tracker: a ``SharedMemory`` that a child makes outlives it. So
its descriptor must exist before the first child; the process at the other end of the pipe, a
Python start, need only exist before anybody waits for it.

As ``ResourceTracker.ensure_running`` in CPython 3.13, ``Lib/multiprocessing/resource_tracker.py``.
"""

from __future__ import annotations

import contextlib
import os
import signal
import sys
from multiprocessing import resource_tracker, spawn
from multiprocessing import util as _util

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

__all__ = ["fd", "start"]

util: Any = _util  # for its private names
_tracker: Any = resource_tracker._resource_tracker

#: The other end of the pipe, until there is a process to read it.
_unread: list[int] = []


def fd() -> int:
    """The descriptor to write to; :meth:`start` must follow soon."""
    with _tracker._lock:
        if _tracker._fd is None:
            reader, _tracker._fd = os.pipe()
            _unread.append(reader)
            return _tracker._fd  # type: ignore[no-any-return]
    running: int = _tracker.getfd()
    return running


def start() -> None:
    """Start the process behind :meth:`fd`, unless it runs."""
    with _tracker._lock:
        if not _unread:
            return
        reader = _unread.pop()
        fds = [reader]
        with contextlib.suppress(Exception):  # there is none, or it is no file
            fds.append(sys.stderr.fileno())
        program = spawn.get_executable()
        code = f"from multiprocessing.resource_tracker import main;main({reader})"
        command = [program, *util._args_from_interpreter_flags(), "-c", code]
        # A ^C while it starts must not end it; later it ignores these by itself.
        signals = {signal.SIGINT, signal.SIGTERM}
        before = signal.pthread_sigmask(signal.SIG_BLOCK, signals)
        try:
            _tracker._pid = util.spawnv_passfds(program, command, fds)
        except BaseException:
            os.close(_tracker._fd)
            _tracker._fd = None
            raise
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)
            os.close(reader)


def _forget() -> None:
    while _unread:  # forked between the two: the parent starts it
        os.close(_unread.pop())


os.register_at_fork(after_in_child=_forget)
