"""Start a child as a fork of this process, and what the handles of all children share.

As CPython 3.13, ``Lib/multiprocessing/popen_fork.py``.
"""

from __future__ import annotations

import atexit
import os
import signal
from multiprocessing import util as _util
from multiprocessing.process import BaseProcess

from phalanx import _phalanx

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

__all__ = ["Popen"]

util: Any = _util  # for its private names


class Popen:
    """A started child."""

    method = "fork"

    pid: int
    #: Readable from the child's end on: its pidfd.
    sentinel: int
    _child: _phalanx.Child

    def __init__(self, process_obj: BaseProcess) -> None:
        util._flush_std_streams()
        self.returncode: int | None = None
        self.finalizer = None
        self._launch(process_obj)

    def duplicate_for_child(self, fd: int) -> int:
        """The number that ``fd`` will have in the child."""
        return fd

    def poll(self, flag: int = os.WNOHANG) -> int | None:
        """The exit code, or ``None`` while the child runs."""
        return self.wait(0.0 if flag == os.WNOHANG else None)

    def wait(self, timeout: float | None = None) -> int | None:
        """The exit code, or ``None`` if the child still runs after ``timeout`` seconds."""
        if self.returncode is None:
            if timeout == 0.0:
                self.returncode = self._child.poll()
            else:
                self.returncode = self._child.wait(timeout)
        return self.returncode

    def interrupt(self) -> None:
        """Send SIGINT."""
        self._send_signal(signal.SIGINT)

    def terminate(self) -> None:
        """Send SIGTERM."""
        self._send_signal(signal.SIGTERM)

    def kill(self) -> None:
        """Send SIGKILL."""
        self._send_signal(signal.SIGKILL)

    def close(self) -> None:
        """Let go of the child's pidfd."""
        self._child.close()

    def _send_signal(self, sig: int) -> None:
        if self.returncode is None:
            self._child.send_signal(sig)

    def _watch(self, child: _phalanx.Child) -> None:
        self._child = child
        self.pid = child.pid
        self.sentinel = child.fileno()

    def _launch(self, process_obj: Any) -> None:
        parent_sentinel = _phalanx.self_pidfd()
        code = 1
        pid = os.fork()
        if pid:
            self._watch(_phalanx.child_of(pid))
            return
        try:
            atexit._clear()
            atexit.register(util._exit_function)
            code = process_obj._bootstrap(parent_sentinel=parent_sentinel)
        finally:
            atexit._run_exitfuncs()
            os._exit(code)
