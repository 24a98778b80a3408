"""The contexts: one for each start method, and the default one.

As CPython 3.14, ``Lib/multiprocessing/context.py``. Every context is also one of the standard
library's, since other libraries ask; what it does not make itself yet it inherits from there.
"""

from __future__ import annotations

import os
import signal
import sys
from multiprocessing import context as _standard
from multiprocessing import process as _process
from multiprocessing import reduction
from multiprocessing.context import (
    AuthenticationError,
    BufferTooShort,
    ProcessError,
    TimeoutError,
    assert_spawning,
    get_spawning_popen,
    set_spawning_popen,
)

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterable
    from typing import Any, ClassVar, Unpack

    from phalanx._descriptors import Passed
    from phalanx._terms import PoolOptions
    from phalanx.connection import Connection as _Connection
    from phalanx.managers import SyncManager as _SyncManager
    from phalanx.pool import Pool as _Pool
    from phalanx.popen_fork import Popen as _AnyPopen
    from phalanx.queues import JoinableQueue as _JoinableQueue
    from phalanx.queues import Queue as _Queue
    from phalanx.queues import SimpleQueue as _SimpleQueue
    from phalanx.synchronize import Barrier as _Barrier
    from phalanx.synchronize import BoundedSemaphore as _BoundedSemaphore
    from phalanx.synchronize import Condition as _Condition
    from phalanx.synchronize import Event as _Event
    from phalanx.synchronize import Lock as _Lock
    from phalanx.synchronize import OnAbandoned
    from phalanx.synchronize import RLock as _RLock
    from phalanx.synchronize import Semaphore as _Semaphore

__all__ = (
    "AuthenticationError",
    "BaseContext",
    "BufferTooShort",
    "DefaultContext",
    "ForkContext",
    "ForkProcess",
    "ForkServerContext",
    "ForkServerProcess",
    "Process",
    "ProcessError",
    "SpawnContext",
    "SpawnProcess",
    "TimeoutError",
    "assert_spawning",
    "get_spawning_popen",
    "reduction",
    "set_spawning_popen",
)


class BaseContext(_standard.BaseContext):
    """What all contexts share."""

    _name: ClassVar[str]

    def Pool(
        self,
        processes: int | None = None,
        initializer: Callable[..., object] | None = None,
        initargs: Iterable[Any] = (),
        maxtasksperchild: int | None = None,
        **options: Unpack[PoolOptions],
    ) -> _Pool:
        """A pool of worker processes; see `phalanx.pool.Pool`."""
        from phalanx import _interrupts

        context = self.get_context()
        with _interrupts.held():
            context._warm_up()
            from phalanx.pool import Pool
        return Pool(processes, initializer, initargs, maxtasksperchild, context=context, **options)

    def Pipe(self, duplex: bool = True) -> tuple[_Connection, _Connection]:
        """Two connected ends; unless ``duplex``, the first receives and the second sends."""
        from phalanx.connection import Pipe

        return Pipe(duplex)

    def Lock(  # type: ignore[override]
        self, *, on_abandoned: OnAbandoned = "warn"
    ) -> _Lock:
        """A lock that is not recursive."""
        from phalanx.synchronize import Lock

        return Lock(ctx=self.get_context(), on_abandoned=on_abandoned)

    def RLock(  # type: ignore[override]
        self, *, on_abandoned: OnAbandoned = "warn"
    ) -> _RLock:
        """A lock that its holder can acquire again."""
        from phalanx.synchronize import RLock

        return RLock(ctx=self.get_context(), on_abandoned=on_abandoned)

    def Semaphore(  # type: ignore[override]
        self, value: int = 1, *, on_abandoned: OnAbandoned = "warn"
    ) -> _Semaphore:
        """A semaphore of ``value`` units."""
        from phalanx.synchronize import Semaphore

        return Semaphore(value, ctx=self.get_context(), on_abandoned=on_abandoned)

    def BoundedSemaphore(  # type: ignore[override]
        self, value: int = 1, *, on_abandoned: OnAbandoned = "warn"
    ) -> _BoundedSemaphore:
        """A semaphore of ``value`` units, and never more."""
        from phalanx.synchronize import BoundedSemaphore

        bounded: _BoundedSemaphore
        bounded = BoundedSemaphore(value, ctx=self.get_context(), on_abandoned=on_abandoned)
        return bounded

    def Condition(self, lock: Any = None) -> _Condition:  # type: ignore[override]
        """A condition variable, with an RLock of its own if none is given."""
        from phalanx.synchronize import Condition

        return Condition(lock, ctx=self.get_context())

    def Event(self) -> _Event:  # type: ignore[override]
        """A flag to wait for."""
        from phalanx.synchronize import Event

        return Event(ctx=self.get_context())

    def Barrier(  # type: ignore[override]
        self,
        parties: int,
        action: Callable[[], object] | None = None,
        timeout: float | None = None,
    ) -> _Barrier:
        """A barrier for ``parties`` processes."""
        from phalanx.synchronize import Barrier

        return Barrier(parties, action, timeout, ctx=self.get_context())

    def Manager(self) -> _SyncManager:
        """A started manager: a server process, and proxies for the objects in it."""
        from phalanx.managers import SyncManager

        manager: _SyncManager = SyncManager(ctx=self.get_context())
        manager.start()
        return manager

    def RawValue(self, typecode_or_type: Any, *args: Any) -> Any:
        """A ctypes object in shared memory."""
        from phalanx.sharedctypes import RawValue

        return RawValue(typecode_or_type, *args)

    def RawArray(self, typecode_or_type: Any, size_or_initializer: Any) -> Any:
        """A ctypes array in shared memory."""
        from phalanx.sharedctypes import RawArray

        return RawArray(typecode_or_type, size_or_initializer)

    def Value(self, typecode_or_type: Any, *args: Any, lock: Any = True) -> Any:
        """A ctypes object in shared memory, with a lock unless ``lock`` is ``False``."""
        from phalanx.sharedctypes import Value

        return Value(typecode_or_type, *args, lock=lock, ctx=self.get_context())

    def Array(self, typecode_or_type: Any, size_or_initializer: Any, *, lock: Any = True) -> Any:
        """A ctypes array in shared memory, with a lock unless ``lock`` is ``False``."""
        from phalanx.sharedctypes import Array

        return Array(typecode_or_type, size_or_initializer, lock=lock, ctx=self.get_context())

    def Queue(self, maxsize: int = 0) -> _Queue:
        """A queue between processes; with ``maxsize`` above 0, of at most so many items."""
        from phalanx.queues import Queue

        return Queue(maxsize, ctx=self.get_context())

    def JoinableQueue(self, maxsize: int = 0) -> _JoinableQueue:
        """A queue that counts the items that are not done yet."""
        from phalanx.queues import JoinableQueue

        return JoinableQueue(maxsize, ctx=self.get_context())

    def SimpleQueue(self) -> _SimpleQueue:
        """A queue between processes with no more than ``put``, ``get``, ``empty``, ``close``."""
        from phalanx.queues import SimpleQueue

        return SimpleQueue(ctx=self.get_context())

    def _warm_up(self) -> None:
        """Import what starts children, and begin what takes a while before the first can start."""

    def freeze_support(self) -> None:
        """In a frozen program that was started to be a child: be one, and exit."""
        if getattr(sys, "frozen", False):
            from phalanx.spawn import freeze_support

            freeze_support()

    def set_executable(self, executable: str) -> None:
        """The program that runs children, instead of ``sys.executable``."""
        from phalanx.spawn import set_executable

        set_executable(executable)

    def set_forkserver_preload(self, module_names: list[str], *, on_error: str = "ignore") -> None:
        """Modules that the template of ``forkserver`` imports before it forks.

        ``on_error`` says what to do when one cannot be imported: ``"ignore"``, ``"warn"``, or
        ``"fail"``, which ends the template (CPython 3.15).
        """
        from phalanx.forkserver import set_forkserver_preload

        set_forkserver_preload(module_names, on_error=on_error)

    def get_context(self, method: str | None = None) -> Any:
        """The context of the start method ``method``; this one by default."""
        if method is None:
            return self
        try:
            return _concrete_contexts[method]
        except KeyError:
            raise ValueError(f"cannot find context for {method!r}") from None

    def get_start_method(self, allow_none: bool = False) -> Any:
        """The name of the start method."""
        return self._name

    def set_start_method(self, method: str | None, force: bool = False) -> None:
        """Only the default context's can be set.

        Raises:
            ValueError: always.
        """
        raise ValueError("cannot set start method of concrete context")


class _BaseProcess(_process.BaseProcess):
    """What the processes of all contexts share."""

    _start_method: ClassVar[str | None] = None
    _popen: _AnyPopen | None
    #: Whoever starts it sees to it that it ends with this process.
    _is_tied = False
    #: What a daemon's child is killed by when the daemon ends.
    _lifeline: Passed | None = None

    def start(self) -> None:
        """Start the process.

        A daemonic process may have children, which CPython's may not: the kernel kills them when it
        ends, if they are there still.
        """
        self._check_closed()
        if self._popen is not None:
            raise AssertionError("cannot start a process twice")
        if self._parent_pid != os.getpid():
            raise AssertionError("can only start a process object created by current process")
        standard: Any = _process
        standard._cleanup()
        if standard.current_process()._config.get("daemon") and not self._is_tied:
            self._popen = self._start_tied()
        else:
            self._popen = self._Popen(self)
        self._sentinel = self._popen.sentinel
        # The target may refer to this object (bpo-30775).
        del self._target, self._args, self._kwargs
        standard._children.add(self)

    def _start_tied(self) -> _AnyPopen:
        from phalanx import _phalanx, _shortages
        from phalanx._descriptors import Passed

        with _shortages.told("make a child's lifeline", "pipe(2)"):
            tie, fd = _phalanx.Tie.make()
        self._lifeline = Passed(fd)
        try:
            popen = self._Popen(self)
        finally:
            os.close(fd)
            self._lifeline = None
        popen._tie = tie
        return popen

    def interrupt(self) -> None:
        """Send SIGINT to the process (CPython 3.14)."""
        self._check_closed()
        if self._popen is None:
            raise AssertionError("can only interrupt a started process")
        self._popen._send_signal(signal.SIGINT)

    def _bootstrap(self, parent_sentinel: int | None = None) -> int:
        if self._start_method is not None:
            _force_start_method(self._start_method)
        if self._lifeline is not None:
            from phalanx import _phalanx

            (fd,) = self._lifeline.take()
            _phalanx.keep_to(fd, False)
            os.close(fd)
        code: int = super()._bootstrap(parent_sentinel=parent_sentinel)  # type: ignore[misc]
        return code

    if TYPE_CHECKING:
        _parent_pid: int
        _sentinel: int
        _target: object
        _args: object
        _kwargs: object

        @staticmethod
        def _Popen(process_obj: _process.BaseProcess) -> _AnyPopen: ...
        def _check_closed(self) -> None: ...


class Process(_BaseProcess):
    """A process that starts by the default context's method."""

    @staticmethod
    def _Popen(process_obj: _process.BaseProcess) -> _AnyPopen:
        popen: _AnyPopen = _default_context.get_context().Process._Popen(process_obj)
        return popen

    @staticmethod
    def _after_fork() -> None:
        _default_context.get_context().Process._after_fork()


class ForkProcess(_BaseProcess):
    """A process that is a fork of this one."""

    _start_method = "fork"

    @staticmethod
    def _Popen(process_obj: _process.BaseProcess) -> _AnyPopen:
        from phalanx.popen_fork import Popen

        return Popen(process_obj)


class SpawnProcess(_BaseProcess):
    """A process in a fresh interpreter."""

    _start_method = "spawn"

    @staticmethod
    def _Popen(process_obj: _process.BaseProcess) -> _AnyPopen:
        from phalanx.popen_spawn_posix import Popen

        return Popen(process_obj)

    @staticmethod
    def _after_fork() -> None:
        pass  # nothing was forked


class ForkServerProcess(_BaseProcess):
    """A process that is a fork of the template process."""

    _start_method = "forkserver"

    @staticmethod
    def _Popen(process_obj: _process.BaseProcess) -> _AnyPopen:
        from phalanx.popen_forkserver import Popen

        return Popen(process_obj)


class ForkContext(BaseContext):
    """Children are forks of this process."""

    _name = "fork"
    Process = ForkProcess

    def _warm_up(self) -> None:
        __import__("phalanx.popen_fork")


class SpawnContext(BaseContext):
    """Children are fresh interpreters."""

    _name = "spawn"
    Process = SpawnProcess

    def _warm_up(self) -> None:
        __import__("phalanx.popen_spawn_posix")


class ForkServerContext(BaseContext):
    """Children are forks of a template: a warm process with one thread."""

    _name = "forkserver"
    Process = ForkServerProcess

    def _warm_up(self) -> None:
        from phalanx.forkserver import ensure_running

        ensure_running()
        __import__("phalanx.popen_forkserver")


class DefaultContext(BaseContext):
    """The context that the package's own functions use. Its method can be set once."""

    Process = Process

    def __init__(self, context: BaseContext) -> None:
        self._default_context = context
        self._actual_context: BaseContext | None = None

    def get_context(self, method: str | None = None) -> Any:
        """The context of the start method ``method``; the one in use by default."""
        if method is not None:
            return super().get_context(method)
        if self._actual_context is None:
            self._actual_context = self._default_context
        return self._actual_context

    def set_start_method(self, method: str | None, force: bool = False) -> None:
        """Choose the start method; with ``force`` again, or, as ``None``, not at all.

        Raises:
            RuntimeError: it has been set, or used, before.
        """
        if self._actual_context is not None and not force:
            raise RuntimeError("context has already been set")
        if method is None and force:
            self._actual_context = None
            return
        self._actual_context = self.get_context(method)

    def get_start_method(self, allow_none: bool = False) -> Any:
        """The name of the start method; with ``allow_none``, ``None`` while it is not settled."""
        if self._actual_context is None and allow_none:
            return None
        return self.get_context()._name

    def get_all_start_methods(self) -> list[str]:
        """The names of the start methods, the default first."""
        default = self._default_context._name
        return [default, *(method for method in _concrete_contexts if method != default)]


_concrete_contexts: dict[str, BaseContext] = {
    "fork": ForkContext(),
    "spawn": SpawnContext(),
    "forkserver": ForkServerContext(),
}

# The running Python's own default: "fork" before 3.14, "forkserver" since.
_default_context = DefaultContext(
    _concrete_contexts[_standard._default_context._default_context._name]  # type: ignore[attr-defined]
)


def _own_context(context: Any | None) -> Any:
    """The context to start processes with: ours where the standard library's own was given."""
    if context is None:
        return _default_context.get_context()
    if type(context).__module__ == "multiprocessing.context":
        return _default_context.get_context(context.get_start_method())
    return context


def _force_start_method(method: str) -> None:
    _default_context._actual_context = _concrete_contexts[method]
