"""Executors of worker processes: ``concurrent.futures`` on phalanx's engine.

As CPython 3.14, ``Lib/concurrent/futures/process.py``. What is different:

- A worker that dies costs the task that it was running. That task's future has `WorkerDied`, which
  is a ``BrokenProcessPool``, too; a new worker is started and the executor goes on.
- ``cancel`` takes back any task that no worker has begun, those that were sent ahead included; it
  will never run. ``running`` is true once a worker has begun it.
- Functions and arguments that cannot be pickled by name go by value, as with `phalanx.Pool`.

Futures are completed, and their callbacks called, by one thread of the executor.
"""

from __future__ import annotations

import itertools
import os
import sys
import threading
import time
import weakref
from concurrent.futures import _base
from concurrent.futures import process as _standard
from concurrent.futures._base import (
    CANCELLED_AND_NOTIFIED,
    FINISHED,
    PENDING,
    RUNNING,
    Future,
)
from concurrent.futures.process import BrokenProcessPool
from functools import partial
from multiprocessing.pool import CLOSE

from . import _carry, _phalanx, _shortages, context, exceptions
from ._budget import processors
from ._worker import Loud
from .pool import Pool, RemoteTraceback

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator
    from typing import Any

    from .context import BaseContext
    from .process import BaseProcess

__all__ = ["BrokenProcessPool", "InitializerFailed", "ProcessPoolExecutor", "WorkerDied"]

_RemoteTraceback: Any = _standard.__dict__["_RemoteTraceback"]  # typeshed does not know it
_process_chunk: Any = _standard.__dict__["_process_chunk"]


class WorkerDied(exceptions.WorkerDied, BrokenProcessPool):
    """`phalanx.WorkerDied`, for those who expect ``BrokenProcessPool``; the executor goes on."""


class InitializerFailed(exceptions.InitializerFailed, BrokenProcessPool):
    """`phalanx.InitializerFailed`, for those who expect ``BrokenProcessPool``."""


class _Future(Future):  # type: ignore[type-arg]
    """A future that makes its lock and its lists when they are asked for.

    Whoever waits for a future, or gives it a callback, asks for its lock first. Most futures are
    completed before that, and then ``futures.rs`` just writes down the result.
    """

    _state = PENDING
    _result = None
    _exception = None
    #: Whoever completes it, until it is completed; and what the engine calls it.
    _engine: _phalanx.Futures | None = None
    _name = 0

    def __init__(self) -> None:
        if not getattr(sys, "_is_gil_enabled", lambda: True)():
            super().__init__()  # what `futures.rs` does is one step only under the GIL

    def __getattr__(self, name: str) -> Any:
        make = _MADE_LATE.get(name)
        if make is None:
            raise AttributeError(f"{type(self).__name__!r} object has no attribute {name!r}")
        return self.__dict__.setdefault(name, make())  # one step: all threads get the same

    def result(self, timeout: float | None = None) -> Any:
        if self._state == FINISHED and self._exception is None:
            return self._result
        self._check()
        return super().result(timeout)

    def exception(self, timeout: float | None = None) -> BaseException | None:
        self._check()
        return super().exception(timeout)

    def cancel(self) -> bool:
        """Cancel the call, unless a worker has begun it: then false is returned."""
        with self._condition:
            if self._state == PENDING:
                engine = self._engine
                if engine is None or not engine.withdraw(self._name):
                    return False
                self._engine = None
                self._state = CANCELLED_AND_NOTIFIED
                for waiter in self._waiters:
                    waiter.add_cancelled(self)
                self._condition.notify_all()
            else:
                return self._state not in (RUNNING, FINISHED)
        self._invoke_callbacks()
        return True

    def running(self) -> bool:
        """Has a worker begun the call, and not ended it?"""
        with self._condition:
            if self._state == PENDING:
                engine = self._engine
                if engine is not None and engine.has_begun(self._name):
                    self._state = RUNNING
            return self._state == RUNNING

    def _check(self) -> None:
        """Raise where this future would be waited for in vain: in a forked child."""
        engine = self._engine
        if engine is not None:
            engine.check()


_MADE_LATE: dict[str, Callable[[], Any]] = {
    "_condition": threading.Condition,
    "_waiters": list,
    "_done_callbacks": list,
}


def _fail(future: _Future, error: BaseException, lost: bool) -> None:
    """Complete a future with an exception: the task's own, or one that tells how it was lost."""
    future._engine = None
    if lost:
        error = _broken(error)
    cause: Any = error.__cause__
    if type(cause) is RemoteTraceback:
        error.__cause__ = _RemoteTraceback(cause.tb)
    future.set_exception(error)


def _broken(error: BaseException) -> BrokenProcessPool:
    """What tells those who expect ``BrokenProcessPool`` the same."""
    broken: BrokenProcessPool
    if isinstance(error, exceptions.WorkerDied):
        more: dict[str, Any] = {"task": error.task, "doing": error._doing, "earlier": error.earlier}
        broken = WorkerDied(error.pid, error.exitcode, **more, stack=error.stack)
    elif isinstance(error, exceptions.InitializerFailed):
        broken = InitializerFailed(*error.args)
    else:
        broken = BrokenProcessPool(*error.args)
    broken.__cause__ = error.__cause__
    return broken


class _Crew(Pool):
    """The workers of an executor, and the thread that completes its futures.

    It lives until the last future is completed, also when nobody has the executor any more.
    """

    _daemon = _at_once = False

    def __init__(
        self,
        size: int,
        context: Any,
        initializer: Callable[..., object] | None,
        initargs: tuple[Any, ...],
        max_tasks: int | None,
    ) -> None:
        self._growing = threading.Lock()
        self._at_once = context.get_start_method(allow_none=False) == "fork"
        if initializer is not None:
            initializer = Loud(_carry.portable(initializer) or initializer)
        super().__init__(size, initializer, initargs, max_tasks, context)
        #: Workers can be added.
        self.small = len(self._pool) < size
        self.futures = _phalanx.Futures(self._engine, _Future, _fail)
        self.thread = threading.Thread(
            target=_complete_futures, args=(self,), name="phalanx-futures", daemon=True
        )
        try:
            with _shortages.told("start an executor's thread"):
                self.thread.start()
        except BaseException:
            self.terminate()
            raise
        _crews.add(self)

    def __del__(self) -> None:
        """Nothing: no executor has to be closed."""

    def grow(self) -> None:
        """Start another worker if there are more tasks than workers."""
        with self._growing:
            if not self.small or self.futures.outstanding() <= len(self._pool):
                return
            try:
                process = self._hire(len(self._pool))
            except Exception as error:
                if self._pool and _shortages.is_shortage(error):
                    return  # those that are there have to do; the next task tries again
                raise
            if process is not None:
                self._pool.append(process)
            self.small = process is not None and len(self._pool) < self._processes

    def _replace(self, seat: int) -> None:
        with self._growing:  # it may have died before it was written down
            super()._replace(seat)

    def finish(self) -> None:
        """Accept no more tasks; all ends after the last."""
        if self._owner == os.getpid():
            self._state = CLOSE
            self.futures.close()

    def cancel(self) -> None:
        """Cancel all that has not begun."""
        for future in self.futures.pending():
            future.cancel()

    def join(self) -> None:
        """Wait for the end: futures are completed, callbacks called, workers gone."""
        for thread in (self.thread, self._helper):
            if thread is not threading.current_thread():
                thread.join()
        self._engine.wait_ended()
        for process in self._pool:
            process.join()


_crews: weakref.WeakSet[_Crew] = weakref.WeakSet()
_interpreter_ends = False


def _taken() -> None:
    """In the place of a function that is on its way to a worker."""


def _complete_futures(crew: _Crew) -> None:
    crew.futures.run()


def _before_the_interpreter_ends() -> None:
    """Wait for what was submitted, as the standard library does."""
    global _interpreter_ends  # noqa: PLW0603
    _interpreter_ends = True
    crews = list(_crews)
    for crew in crews:
        crew.finish()
    for crew in crews:
        crew.join()


threading._register_atexit(_before_the_interpreter_ends)  # type: ignore[attr-defined]
os.register_at_fork(after_in_child=_crews.clear)


class ProcessPoolExecutor(_standard.ProcessPoolExecutor):
    """An executor that runs calls in worker processes.

    Args:
        max_workers: the largest number of workers; by default as with `phalanx.Pool`. With the
            start method ``fork`` all are started by the first task, else one whenever there are
            more tasks than workers.
        mp_context: how workers are started; by default as ``phalanx.get_context()`` says.
        initializer: called as ``initializer(*initargs)`` in each worker when it starts.
        initargs: see ``initializer``.
        max_tasks_per_child: after so many tasks a worker is replaced; by default never. Not with
            the start method ``fork``; without ``mp_context`` it means ``spawn``.

    Raises:
        ValueError: if ``max_workers`` or ``max_tasks_per_child`` is less than 1, or the latter
            comes with ``fork``.
        TypeError: if ``initializer`` cannot be called, or ``max_tasks_per_child`` is no integer.
    """

    def __init__(  # the standard executor's queues are not made
        self,
        max_workers: int | None = None,
        mp_context: BaseContext | None = None,
        initializer: Callable[..., object] | None = None,
        initargs: tuple[Any, ...] = (),
        *,
        max_tasks_per_child: int | None = None,
    ) -> None:
        # For what is collected, should this fail.
        self._crew: _Crew | None = None
        if max_workers is not None and max_workers <= 0:
            raise ValueError("max_workers must be greater than 0")
        if initializer is not None and not callable(initializer):
            raise TypeError("initializer must be a callable")
        if mp_context is None:
            method = None if max_tasks_per_child is None else "spawn"
            mp_context = context._default_context.get_context(method)
        if max_tasks_per_child is not None:
            if not isinstance(max_tasks_per_child, int):
                raise TypeError("max_tasks_per_child must be an integer")
            if max_tasks_per_child <= 0:
                raise ValueError("max_tasks_per_child must be >= 1")
            if mp_context.get_start_method(allow_none=False) == "fork":
                raise ValueError(
                    "max_tasks_per_child is incompatible with the 'fork' multiprocessing start"
                    " method; supply a different mp_context."
                )
        self._max_workers = max_workers or processors()
        self._mp_context = mp_context
        self._initializer: Callable[..., object] | None = initializer  # type: ignore[assignment]
        self._initargs = initargs
        self._max_tasks_per_child = max_tasks_per_child
        self._shutdown_lock = threading.Lock()
        self._shutdown_thread = False
        self._unused: weakref.finalize[..., ProcessPoolExecutor] | None = None

    @property
    def _processes(self) -> dict[int, BaseProcess] | None:  # type: ignore[override]
        """The workers by their pids, for those who look here."""
        crew = self._crew
        if crew is None:
            return None if self._shutdown_thread else {}
        return {process.pid: process for process in crew._pool if process.pid is not None}

    @property
    def _pending_work_items(self) -> dict[int, Any]:  # type: ignore[override]
        """The calls that have not ended, for those who count them or want their futures."""
        futures = () if self._crew is None else self._crew.futures.pending()
        return dict(enumerate(_standard._WorkItem(each, _taken, (), {}) for each in futures))

    @property
    def _broken(self) -> str | bool:  # type: ignore[override]
        """Why the executor is of no more use, or false."""
        return self._crew is not None and (self._crew.futures.broken() or False)

    @property
    def _executor_manager_thread(self) -> threading.Thread | None:  # type: ignore[override]
        """The thread that completes the futures."""
        return self._crew.thread if self._crew is not None else None

    def submit(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future[Any]:
        """Have ``fn(*args, **kwargs)`` called by a worker; returns its future.

        Raises:
            BrokenProcessPool: if the workers cannot be started or readied.
            RuntimeError: after `shutdown`, when the interpreter ends, or in a forked child.
        """
        crew = self._crew or self._open()
        try:
            future: Future[Any] = crew.futures.submit(fn, args, kwargs)
        except (ValueError, RuntimeError) as error:
            raise self._refusal(crew, error) from None
        if crew.small:
            try:
                crew.grow()
            except BaseException:
                future.cancel()  # nobody is going to run it, or to get it
                raise
        return future

    def map(
        self,
        fn: Callable[..., Any],
        *iterables: Iterable[Any],
        timeout: float | None = None,
        chunksize: int = 1,
        buffersize: int | None = None,
    ) -> Iterator[Any]:
        """``map(fn, *iterables)``, run by the workers; results come in order.

        Args:
            fn: called with one item of each of ``iterables``.
            timeout: seconds from now in which all results must be there; by default any number.
            chunksize: items that a worker gets at a time.
            buffersize: chunks that are submitted and whose results have not been taken; by
                default all are submitted at once.

        Raises:
            TimeoutError: in ``next``, after ``timeout`` seconds.
        """
        if chunksize < 1:
            raise ValueError("chunksize must be >= 1.")
        if buffersize is not None and not isinstance(buffersize, int):
            raise TypeError("buffersize must be an integer or None")
        if buffersize is not None and buffersize < 1:
            raise ValueError("buffersize must be None or > 0")
        end = None if timeout is None else timeout + time.monotonic()
        calls: Iterator[tuple[Any, ...]] = zip(*iterables, strict=False)
        if chunksize == 1:
            return _results(self, fn, calls, end, buffersize)
        chunks = ((chunk,) for chunk in _batched(calls, chunksize))
        parts = _results(self, partial(_process_chunk, fn), chunks, end, buffersize)
        return itertools.chain.from_iterable(parts)

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        """Accept no more tasks; what was submitted is run to its end.

        Args:
            wait: return when all futures are completed and the workers have left.
            cancel_futures: cancel what no worker has begun.
        """
        with self._shutdown_lock:
            self._shutdown_thread = True
            crew = self._crew
        if crew is None or crew._owner != os.getpid():
            return
        crew.finish()
        if cancel_futures:
            crew.cancel()
        if wait:
            crew.join()
            self._crew = None
            if self._unused is not None:
                self._unused.detach()

    def terminate_workers(self) -> None:
        """End the workers with SIGTERM: what they run gets ``BrokenProcessPool``.

        All other tasks are cancelled.
        """
        self._end_workers("terminate_workers() was called", kill=False)

    def kill_workers(self) -> None:
        """As `terminate_workers`, with SIGKILL."""
        self._end_workers("kill_workers() was called", kill=True)

    # -- inside

    def _open(self) -> _Crew:
        with self._shutdown_lock:
            if self._shutdown_thread:
                raise RuntimeError("cannot schedule new futures after shutdown")
            if _interpreter_ends:
                raise RuntimeError("cannot schedule new futures after interpreter shutdown")
            if self._crew is None:
                self._crew = _Crew(
                    self._max_workers,
                    self._mp_context,
                    self._initializer,
                    self._initargs,
                    self._max_tasks_per_child,
                )
                # An executor that nobody has any more ends after its last task.
                self._unused = weakref.finalize(self, self._crew.finish)
                self._unused.atexit = False
            return self._crew

    def _refusal(self, crew: _Crew, error: Exception) -> Exception:
        """Why nothing can be submitted, in the standard library's words."""
        if crew._owner != os.getpid():
            return RuntimeError(
                f"this executor belongs to process {crew._owner}, from which this one was forked;"
                " make one here"
            )
        if self._shutdown_thread:
            return RuntimeError("cannot schedule new futures after shutdown")
        if _interpreter_ends:
            return RuntimeError("cannot schedule new futures after interpreter shutdown")
        return _broken(error)

    def _end_workers(self, why: str, *, kill: bool) -> None:
        crew = self._crew
        self.shutdown(wait=False, cancel_futures=True)
        if crew is not None:
            crew._engine.terminate(why)
            if kill:
                crew._engine.kill()


def _results(
    executor: ProcessPoolExecutor,
    fn: Callable[..., Any],
    calls: Iterator[tuple[Any, ...]],
    end: float | None,
    buffersize: int | None,
) -> Iterator[Any]:
    """Submit the calls, at once or ``buffersize`` ahead, and give their results in order."""
    futures = [executor.submit(fn, *args) for args in itertools.islice(calls, buffersize)]
    futures.reverse()
    # A generator that nobody exhausts must not keep the executor.
    return _take(weakref.ref(executor), fn, calls if buffersize else None, futures, end)


def _take(
    executor: weakref.ref[ProcessPoolExecutor],
    fn: Callable[..., Any],
    calls: Iterator[tuple[Any, ...]] | None,
    futures: list[Future[Any]],
    end: float | None,
) -> Iterator[Any]:
    try:
        while futures:
            if calls is not None and (owner := executor()) is not None:
                for args in itertools.islice(calls, 1):
                    futures.insert(0, owner.submit(fn, *args))
                del owner
            # No name here for what was taken: a result may be large.
            left = None if end is None else end - time.monotonic()
            yield _base._result_or_cancel(futures.pop(), left)  # type: ignore[attr-defined]
    finally:
        for future in futures:
            future.cancel()


def _batched(items: Iterator[Any], size: int) -> Iterator[tuple[Any, ...]]:
    while batch := tuple(itertools.islice(items, size)):
        yield batch
