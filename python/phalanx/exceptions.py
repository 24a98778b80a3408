"""The exceptions that the standard library has no name for."""

from __future__ import annotations

import signal as _signal
from multiprocessing import ProcessError
from multiprocessing import pool as _pool

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

__all__ = ["AbandonedLock", "InitializerFailed", "RemoteError", "WorkerDied"]

_MaybeEncodingError: Any = _pool.__dict__["MaybeEncodingError"]  # typeshed does not know it


class WorkerDied(ProcessError, RuntimeError):
    """A worker ended while it ran a task, and that task is lost.

    Attributes:
        pid: the process id that the worker had.
        exitcode: as ``Process.exitcode``: negative for a signal, ``None`` if it is not known.
        signal: the number of the signal that killed it, or ``None``.
        signal_name: the name of that signal, ``"SIGSEGV"``, or ``None``.
        task: the name of the function that it was running, ``"module.name"``, or ``None``.
    """

    def __init__(
        self,
        pid: int,
        exitcode: int | None = None,
        *,
        task: str | None = None,
        doing: str = "running a task",
    ) -> None:
        self.pid = pid
        self.exitcode = exitcode
        self.task = task
        self._doing = doing
        super().__init__(self._message())

    @property
    def signal(self) -> int | None:
        """The number of the signal that killed the worker, or ``None``."""
        return -self.exitcode if self.exitcode is not None and self.exitcode < 0 else None

    @property
    def signal_name(self) -> str | None:
        """The name of the signal that killed the worker, or ``None``."""
        if self.signal is None:
            return None
        try:
            return _signal.Signals(self.signal).name
        except ValueError:
            return f"signal {self.signal}"

    def _message(self) -> str:
        if self.signal is not None:
            how = f"was killed by {self.signal_name}"
        elif self.exitcode is not None:
            how = f"exited with code {self.exitcode}"
        else:
            how = "died"
        doing = f"running `{self.task}`" if self.task else self._doing
        hint = ""
        if self.signal == _signal.SIGKILL:
            hint = " (perhaps by the kernel's out-of-memory killer: see dmesg)"
        return f"worker {self.pid} {how} while {doing}{hint}"

    def __reduce__(self) -> tuple[object, ...]:
        return _rebuild_worker_died, (type(self), self.pid, self.exitcode, self.task, self._doing)


def _rebuild_worker_died(
    cls: type[WorkerDied], pid: int, exitcode: int | None, task: str | None, doing: str
) -> WorkerDied:
    return cls(pid, exitcode, task=task, doing=doing)


class RemoteError(_MaybeEncodingError):  # type: ignore[misc]
    """An exception or a result of a task that could not be carried over from its worker.

    Attributes:
        type_name: the name of its type, ``"module.name"``.
        message: ``str()`` of it, or what went wrong in sending it.
        traceback: the worker's traceback as text, or ``""``.
    """

    def __init__(self, type_name: str, message: str, traceback: str = "") -> None:
        super().__init__(message, type_name)
        self.type_name = type_name
        self.message = message
        self.traceback = traceback
        self.args = (type_name, message, traceback)

    def __str__(self) -> str:
        return f"{self.type_name}: {self.message}"


class InitializerFailed(RuntimeError):
    """The initializer of a pool's workers failed, so the pool can run nothing."""


class AbandonedLock(ProcessError, RuntimeWarning):
    """A process ended while it held a lock or a unit of a semaphore, which somebody else has now.

    What the lock protects may be half changed. As a warning it is given to whoever has acquired
    the lock next; with ``on_abandoned="raise"`` it is an exception, and the lock is free again.

    Attributes:
        pid: the process id that the holder had.
        exitcode: as ``Process.exitcode``; ``None`` where it could not be learned.
    """

    def __init__(self, pid: int, exitcode: int | None = None, what: str = "a lock") -> None:
        self.pid = pid
        self.exitcode = exitcode
        self.what = what
        super().__init__(f"process {pid} {_ended(exitcode)} while it held {what}")

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickle."""
        return type(self), (self.pid, self.exitcode, self.what)


def _ended(exitcode: int | None) -> str:
    if exitcode is None:
        return "ended"
    if exitcode >= 0:
        return f"exited with code {exitcode}"
    try:
        return f"was killed by {_signal.Signals(-exitcode).name}"
    except ValueError:
        return f"was killed by signal {-exitcode}"
