"""Start a child as a fork of this process, and what the handles of all children share.

As CPython 3.13, ``Lib/multiprocessing/popen_fork.py``.
"""

from __future__ import annotations

import atexit
import os
import signal
from multiprocessing import util as _util
from multiprocessing.process import BaseProcess

from phalanx import _interrupts, _log, _phalanx, _shortages

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

__all__ = ["Popen"]

util: Any = _util  # for its private names


#: Descriptors that a child's first steps need; one is the parent's own, the child's pidfd.
_FIRST_STEPS = 5


def _reserve(fd: int) -> list[int]:
    """Take places for descriptors: if there are too few, there is to be no child."""
    places: list[int] = []
    try:
        while len(places) < _FIRST_STEPS:
            places.append(os.dup(fd))
    except BaseException:
        _free(places)
        raise
    return places


def _free(places: list[int]) -> None:
    for fd in places:
        os.close(fd)


class Popen:
    """A started child."""

    method = "fork"

    pid: int
    #: Readable from the child's end on: its pidfd.
    sentinel: int
    _child: _phalanx.Child
    #: The child is killed when this is gone, if there is one.
    _tie: _phalanx.Tie | None = None

    def __init__(self, process_obj: BaseProcess) -> None:
        util._flush_std_streams()
        self.returncode: int | None = None
        self.finalizer = None
        try:
            with _shortages.told("start a process", "clone(2)"):
                self._launch(process_obj)
        except BaseException:
            self._undo()
            raise

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
        _log.debug("process %d was started with %s", self.pid, self.method)

    def _undo(self) -> None:
        """Have no child where the caller is told that there is none."""
        child = getattr(self, "_child", None)
        if child is not None:
            child.send_signal(signal.SIGKILL)
            child.wait()

    def _launch(self, process_obj: Any) -> None:
        parent_sentinel = _phalanx.self_pidfd()
        code = 1
        places = _reserve(parent_sentinel)
        blocked = _interrupts.hold()
        try:
            pid = os.fork()
        except BaseException:
            _interrupts.restore(blocked)
            _free(places)
            raise
        if pid:
            _interrupts.restore(blocked)
            _free(places)
            try:
                self._watch(_phalanx.child_of(pid))
            except BaseException:
                os.kill(pid, signal.SIGKILL)
                os.waitpid(pid, 0)
                raise
            return
        try:
            _free(places)
            if signal.SIGINT not in blocked:
                _interrupts.let_in(process_obj)
            atexit._clear()
            atexit.register(util._exit_function)
            code = process_obj._bootstrap(parent_sentinel=parent_sentinel)
        finally:
            atexit._run_exitfuncs()
            os._exit(code)
