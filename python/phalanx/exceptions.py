"""The exceptions that the standard library has no name for."""

from __future__ import annotations

import os
import signal as _signal
from concurrent.futures import CancelledError
from functools import partial
from multiprocessing import ProcessError
from multiprocessing import TimeoutError as _MultiprocessingTimeout
from multiprocessing import pool as _pool
from typing import NamedTuple

from ._log import exit_in_words

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable
    from typing import Any

__all__ = [
    "AbandonedLock",
    "ChildDied",
    "InitializerFailed",
    "RemoteError",
    "SupervisorFailed",
    "TaskCancelled",
    "TaskTimeout",
    "WorkerDied",
    "WorkerMemoryExceeded",
]

_WORKER = os.path.join(os.path.dirname(__file__), "_worker.py")

_MaybeEncodingError: Any = _pool.__dict__["MaybeEncodingError"]  # typeshed does not know it


class WorkerDied(ProcessError, RuntimeError):
    """A worker ended while it ran a task, and that task is lost.

    Attributes:
        pid: the process id that the worker had.
        exitcode: as ``Process.exitcode``: negative for a signal, ``None`` if it is not known.
        signal: the number of the signal that killed it, or ``None``.
        signal_name: the name of that signal, ``"SIGSEGV"``, or ``None``.
        task: the name of the function that it was running, ``"module.name"``, or ``None``.
        earlier: with ``retries``, the deaths of the workers that had run the task before, each a
            pid and an exit code, the oldest first.
        stack: where its threads were, as `faulthandler` writes it, if a crash of its own code ended
            it (SIGSEGV, SIGFPE, SIGABRT, SIGBUS, SIGILL); else ``""``, as it is if the program has
            enabled `faulthandler`, which then writes where it was told to.
    """

    def __init__(  # noqa: PLR0913
        self,
        pid: int,
        exitcode: int | None = None,
        *,
        task: str | None = None,
        doing: str = "running a task",
        earlier: Iterable[tuple[int, int | None]] = (),
        stack: str = "",
    ) -> None:
        self.pid = pid
        self.exitcode = exitcode
        self.task = task
        self.earlier = list(earlier)
        self.stack = stack = below_worker(stack)
        self._doing = doing
        super().__init__(self._message())
        if stack:
            self.add_note(f"it was here when it died:\n{stack}")

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
        deaths = ", ".join(f"{pid} {exit_in_words(code)}" for pid, code in self.earlier)
        history = f"; of the workers that had run it before, {deaths}" if deaths else ""
        return f"worker {self.pid} {how} while {doing}{hint}{history}"

    def __reduce__(self) -> tuple[object, ...]:
        more: dict[str, Any] = {
            "task": self.task,
            "doing": self._doing,
            "earlier": self.earlier,
            "stack": self.stack,
        }
        return partial(type(self), **more), (self.pid, self.exitcode)


def below_worker(stacks: str) -> str:
    """The stacks of a worker's threads without what is ours: below the task, and above it."""
    lines, below = [], False
    for line in stacks.splitlines(keepends=True):
        ours = f'"{_WORKER}"' in line
        handler = ours and line.endswith(" in answer\n")  # it has written this
        below = line.startswith(" ") and (below or (ours and not handler))
        lines += [] if below or handler else [line]
    return "".join(lines)


class _TaskEnded(Exception):
    """A task that was ended before it had ended by itself."""

    def __init__(  # noqa: PLR0913, PLR0917
        self,
        message: str = "",
        limit: float | None = None,
        pid: int | None = None,
        exitcode: int | None = None,
        task: str | None = None,
        stack: str = "",
    ) -> None:
        super().__init__(message)
        self.limit = limit
        self.pid = pid
        self.exitcode = exitcode
        self.task = task
        self.stack = stack = below_worker(stack)
        if task:
            self.add_note(f"the task was `{task}`")
        if stack:
            self.add_note(f"it was here when it was told to end:\n{stack}")

    def __reduce__(self) -> tuple[object, ...]:
        fields = (self.limit, self.pid, self.exitcode, self.task, self.stack)
        return type(self), (str(self), *fields)


class TaskTimeout(_TaskEnded, _MultiprocessingTimeout, TimeoutError):
    """A task ran, or waited, for too long, and was ended.

    In the task it is raised first, where that is; if it goes on all the same its worker gets
    SIGTERM after a grace, and SIGKILL after as long again. Its caller gets one that tells more.

    Attributes:
        limit: the seconds that it had.
        pid: the process id of the worker that ran it; ``None`` if it had not begun.
        exitcode: how that worker ended, if nothing else helped, as ``Process.exitcode``.
        task: the name of the function, ``"module.name"``, or ``None``.
        stack: where all threads of the worker were when it was told to end, as `faulthandler`
            writes it; ``""`` where that is not known.
    """


class TaskCancelled(_TaskEnded, CancelledError):
    """A task was cancelled, and is ended as one whose time is over; see `TaskTimeout`.

    It is a `concurrent.futures.CancelledError`. The attributes are those of `TaskTimeout`, without
    a limit.
    """


class WorkerMemoryExceeded(_TaskEnded, MemoryError):
    """A task was ended because its worker had more memory in use than it may have.

    It is ended as one whose time is over, with a grace of a tenth of a second at the most; see
    `TaskTimeout`. A worker that survives that is replaced.

    Attributes:
        used: the bytes of memory that the worker had in use.
        allowed: the bytes that it may have.
        pid, exitcode, task, stack: as of `TaskTimeout`.
    """

    def __init__(
        self, *args: Any, used: int | None = None, allowed: int | None = None, **more: Any
    ) -> None:
        super().__init__(*args, **more)
        self.used = used
        self.allowed = allowed

    def __reduce__(self) -> tuple[object, ...]:
        _, args = super().__reduce__()
        return partial(type(self), used=self.used, allowed=self.allowed), args


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


class ChildDied(NamedTuple):
    """The death of a child, as its supervisor tells it."""

    #: The child's name.
    name: str
    #: The process id that it had; ``None`` where it could not even be started.
    pid: int | None
    #: As ``Process.exitcode``; ``None`` where it could not be started.
    exitcode: int | None
    #: Its traceback, or why it could not be started; ``""`` where nothing is known.
    traceback: str


class SupervisorFailed(ProcessError, RuntimeError):
    """A supervisor's children died too often, and it has stopped them all.

    Attributes:
        deaths: the deaths within the period, the oldest first, each a `ChildDied`; the last one was
            one too many. Of more than a hundred, the last hundred.
    """

    def __init__(
        self, message: str, deaths: Iterable[tuple[str, int | None, int | None, str]] = ()
    ) -> None:
        super().__init__(message)
        self.deaths = [ChildDied(*death) for death in deaths]

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickle."""
        return type(self), (self.args[0], [tuple(death) for death in self.deaths])


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
        super().__init__(f"process {pid} {exit_in_words(exitcode)} while it held {what}")

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickle."""
        return type(self), (self.pid, self.exitcode, self.what)
