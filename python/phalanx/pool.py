"""Pools of worker processes.

As CPython 3.13, ``Lib/multiprocessing/pool.py``, on phalanx's engine: a worker that dies costs
only the task that it was running, inputs are read lazily, and small tasks are worth sending.

========================  =====================================================================
what happens              what a call sees
========================  =====================================================================
a worker dies             ``WorkerDied`` for its task; others are not affected, a worker is
                          started in its place
a task raises             the exception, with the worker's traceback as ``__cause__``; this holds
                          for ``SystemExit`` and other ``BaseException``, too
a result cannot be sent   ``multiprocessing.pool.MaybeEncodingError``
an exception cannot       ``RemoteError`` with its type, message and traceback
an argument cannot        the pickler's exception, in the caller; a note names the part
the initializer fails     ``InitializerFailed`` for all calls, and the pool is of no more use
the pool is terminated    ``ValueError`` for calls that wait
========================  =====================================================================
"""

from __future__ import annotations

import os
import sys
import threading
import time
import warnings
import weakref
from multiprocessing import pool as _standard
from multiprocessing import util
from multiprocessing.pool import CLOSE, INIT, RUN, TERMINATE, ThreadPool
from multiprocessing.process import BaseProcess, current_process

from . import _carry, _phalanx
from ._phalanx import AsyncResult, IMapIterator
from ._worker import Seat, worker
from .context import _default_context

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping
    from types import TracebackType
    from typing import Any, Self

__all__ = ["Pool", "ThreadPool"]

# For those who look here.
ExceptionWithTraceback = _standard.ExceptionWithTraceback  # type: ignore[attr-defined]
MaybeEncodingError = _standard.MaybeEncodingError  # type: ignore[attr-defined]
RemoteTraceback = _standard.RemoteTraceback  # type: ignore[attr-defined]
ApplyResult = AsyncResult
MapResult = AsyncResult
IMapUnorderedIterator = IMapIterator

#: Inputs that are read without ever blocking, so that no thread is needed to read them ahead.
_PROMPT = (list, tuple, range, dict, set, frozenset, str, bytes, bytearray)

GRACE = 2  # seconds that a worker has to end after SIGTERM
ATTEMPTS = 5  # to start a worker in the place of one that has gone


class Pool(_standard.Pool):
    """A pool of worker processes to which tasks are submitted.

    Args:
        processes: the number of workers; by default as many as there are CPUs to use.
        initializer: called as ``initializer(*initargs)`` in each worker when it starts.
        initargs: see ``initializer``.
        maxtasksperchild: after so many tasks a worker is replaced; by default never. A chunk is
            one task.
        context: how workers are started; by default as ``phalanx.get_context()`` says.

    Raises:
        ValueError: if ``processes`` or ``maxtasksperchild`` is less than 1.
        TypeError: if ``initializer`` cannot be called.
        OSError: if memory, descriptors or processes are short.

    Workers end when their parent ends, however that happens.
    """

    def __init__(  # the standard pool's threads and queues are not made
        self,
        processes: int | None = None,
        initializer: Callable[..., object] | None = None,
        initargs: Iterable[Any] = (),
        maxtasksperchild: int | None = None,
        context: Any | None = None,
    ) -> None:
        # For __del__ and __repr__, should this fail.
        self._pool: list[BaseProcess] = []
        self._state = INIT
        self._ctx = _own_context(context)
        if processes is None:
            processes = _cpu_count()
        if processes < 1:
            raise ValueError("Number of processes must be at least 1")
        if maxtasksperchild is not None and (
            not isinstance(maxtasksperchild, int) or maxtasksperchild <= 0
        ):
            raise ValueError("maxtasksperchild must be a positive int or None")
        if initializer is not None and not callable(initializer):
            raise TypeError("initializer must be a callable")
        self._processes = processes
        self._maxtasksperchild = maxtasksperchild
        self._initializer = _carry.portable(initializer)
        self._initargs = tuple(initargs)
        self._engine = _phalanx.Pool(processes)
        self._waiting: dict[int, AsyncResult] = {}
        self._tokens = 0
        self._streams: weakref.WeakSet[IMapIterator] = weakref.WeakSet()
        self._owner = os.getpid()
        try:
            for seat in range(processes):
                process = self._hire(seat)
                if process is None:  # the first initializers have failed meanwhile
                    break
                self._pool.append(process)
        except BaseException:
            self._engine.terminate("the pool could not be started")
            for process in self._pool:
                if process.exitcode is None:
                    process.terminate()
            for process in self._pool:
                process.join()
            raise
        self._helper = threading.Thread(
            target=_run_errands,
            args=(self._engine, weakref.ref(self), self._waiting),
            name="phalanx-helper",
            daemon=True,
        )
        self._helper.start()
        self._terminate = util.Finalize(
            self,
            self._terminate_pool,
            args=(self._engine, self._pool, self._helper, self._streams),
            exitpriority=15,
        )
        self._state = RUN

    def __del__(self) -> None:
        if self._state == RUN and getattr(self, "_owner", 0) == os.getpid():
            warnings.warn(
                f"unclosed running multiprocessing pool {self!r}",
                ResourceWarning,
                stacklevel=2,
                source=self,
            )

    def __repr__(self) -> str:
        cls = type(self)
        return (
            f"<{cls.__module__}.{cls.__qualname__} state={self._state} pool_size={len(self._pool)}>"
        )

    def __reduce__(self) -> Any:
        raise NotImplementedError("pool objects cannot be passed between processes or pickled")

    def __enter__(self) -> Self:
        self._check_running()
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc_val: BaseException | None,
        exc_tb: TracebackType | None,
    ) -> None:
        self.terminate()

    # -- calls

    def apply(
        self, func: Callable[..., Any], args: Iterable[Any] = (), kwds: Mapping[str, Any] = {}
    ) -> Any:
        """``func(*args, **kwds)``, run by a worker."""
        return self.apply_async(func, args, kwds).get()

    def apply_async(  # type: ignore[override]
        self,
        func: Callable[..., Any],
        args: Iterable[Any] = (),
        kwds: Mapping[str, Any] = {},
        callback: Callable[[Any], object] | None = None,
        error_callback: Callable[[BaseException], object] | None = None,
    ) -> AsyncResult:
        """As :meth:`apply`, but returns at once.

        One of the callbacks is called, in a thread of the pool, before the result is ready.
        """
        if type(args) is not tuple:
            args = tuple(args)
        if type(kwds) is not dict:
            kwds = dict(kwds)
        if callback is None and error_callback is None:
            return self._engine.apply(func, args, kwds, (self, None))
        extras, token = self._expecting(callback, error_callback)
        result = self._engine.apply(func, args, kwds, extras)
        return self._announced(token, result)

    def map(
        self,
        func: Callable[[Any], Any],
        iterable: Iterable[Any],
        chunksize: int | None = None,
    ) -> list[Any]:
        """``[func(x) for x in iterable]``, run by the workers, in chunks.

        ``chunksize`` is the number of items that a worker gets at a time; by default it follows
        from the measured time of an item. If tasks raise, the first exception is raised here
        when all have ended; a worker's death is told at once.
        """
        items = _sliceable(iterable)
        chunk, extras = _chunk(chunksize), (self, None)
        return self._engine.map(func, items, chunk, extras, star=False, wait=True).get()  # type: ignore[no-any-return]

    def starmap(
        self,
        func: Callable[..., Any],
        iterable: Iterable[Iterable[Any]],
        chunksize: int | None = None,
    ) -> list[Any]:
        """As :meth:`map`, for ``func(*x)``."""
        items = _sliceable(iterable)
        chunk, extras = _chunk(chunksize), (self, None)
        return self._engine.map(func, items, chunk, extras, star=True, wait=True).get()  # type: ignore[no-any-return]

    def map_async(  # type: ignore[override]
        self,
        func: Callable[[Any], Any],
        iterable: Iterable[Any],
        chunksize: int | None = None,
        callback: Callable[[Any], object] | None = None,
        error_callback: Callable[[BaseException], object] | None = None,
    ) -> AsyncResult:
        """As :meth:`map`, but returns at once; callbacks as in :meth:`apply_async`."""
        return self._map_async(func, iterable, chunksize, callback, error_callback, False)

    def starmap_async(  # type: ignore[override]
        self,
        func: Callable[..., Any],
        iterable: Iterable[Iterable[Any]],
        chunksize: int | None = None,
        callback: Callable[[Any], object] | None = None,
        error_callback: Callable[[BaseException], object] | None = None,
    ) -> AsyncResult:
        """As :meth:`starmap`, but returns at once; callbacks as in :meth:`apply_async`."""
        return self._map_async(func, iterable, chunksize, callback, error_callback, True)

    def imap(  # type: ignore[override]
        self,
        func: Callable[[Any], Any],
        iterable: Iterable[Any],
        chunksize: int = 1,
        *,
        buffersize: int | None = None,
    ) -> IMapIterator:
        """An iterator over ``func(x) for x in iterable``, in order, computed ahead.

        The input is read as results are taken, ``buffersize`` items ahead of them; by default as
        many as keep the workers busy. So an endless input is welcome. An exception of a task, or
        the death of its worker, is raised where its result would be, and the iterator goes on.
        """
        return self._imap(func, iterable, chunksize, buffersize, True)

    def imap_unordered(  # type: ignore[override]
        self,
        func: Callable[[Any], Any],
        iterable: Iterable[Any],
        chunksize: int = 1,
        *,
        buffersize: int | None = None,
    ) -> IMapIterator:
        """As :meth:`imap`, but results come as they are ready."""
        return self._imap(func, iterable, chunksize, buffersize, False)

    # -- the end

    def close(self) -> None:
        """Accept no more tasks; the workers leave when all have ended."""
        util.debug("closing pool")
        if self._state == RUN:
            self._state = CLOSE
            self._engine.close()

    def terminate(self) -> None:
        """End all workers now, whatever they are doing."""
        util.debug("terminating pool")
        self._state = TERMINATE
        self._terminate()

    def join(self) -> None:
        """Wait for the workers to leave, after :meth:`close` or :meth:`terminate`.

        Inputs of ``imap`` that nobody has begun to take results of, or that have a length, are
        read to their end first; others are read no further.
        """
        util.debug("joining pool")
        if self._state == RUN:
            raise ValueError("Pool is still running")
        if self._state not in (CLOSE, TERMINATE):
            raise ValueError("In unknown state")
        for stream in list(self._streams):
            if stream.reading() and not stream.drain():
                stream.stop()
        self._engine.wait_ended()
        if threading.current_thread() is not self._helper:
            self._helper.join()
        for process in self._pool:
            process.join()

    # -- inside

    @staticmethod
    def Process(ctx: Any, *args: Any, **kwds: Any) -> BaseProcess:  # type: ignore[override]
        """Make a worker's process; a subclass may make another."""
        process: BaseProcess = ctx.Process(*args, **kwds)
        return process

    def _hire(self, seat: int) -> BaseProcess | None:
        """Start a worker, unless the pool has ended."""
        seating = self._engine.prepare(seat)
        if seating is None:
            return None
        arguments = (Seat(seating), self._initializer, self._initargs, self._maxtasksperchild)
        process = self.Process(self._ctx, target=worker, args=arguments)
        process.name = process.name.replace("Process", "PoolWorker")
        process.daemon = True
        # A pool's worker is a daemon and may have a pool itself: its workers end with it.
        config = current_process()._config  # type: ignore[attr-defined]
        daemon = config.pop("daemon", None)
        try:
            process.start()
        finally:
            if daemon is not None:
                config["daemon"] = daemon
        child = getattr(getattr(process, "_popen", None), "_child", None)
        pid = getattr(process, "pid", None)
        if child is None and isinstance(pid, int):
            child = _phalanx.child_of(pid)  # another library's process
        if child is not None:
            self._engine.seat(seating, child)
        util.debug("added worker")
        return process

    def _replace(self, seat: int) -> None:
        """Start a worker where one has gone."""
        self._pool[seat].join()
        for attempt in range(1, ATTEMPTS + 1):
            try:
                self._pool[seat] = self._hire(seat) or self._pool[seat]
                return
            except Exception as error:
                if attempt == ATTEMPTS:
                    self._engine.terminate(f"no worker can be started: {error!r}")
                    raise
                time.sleep(0.1 * attempt)

    def _repopulate_pool(self) -> None:
        """Start the workers that are missing: the pool does so by itself."""

    def _check_running(self) -> None:
        if self._state != RUN:
            raise ValueError("Pool not running")

    def _expecting(self, callback: object, error_callback: object) -> tuple[Any, int]:
        self._tokens += 1
        return (self, (self._tokens, callback, error_callback)), self._tokens

    def _announced(self, token: int, result: AsyncResult) -> AsyncResult:
        self._waiting[token] = result
        result.announce()
        return result

    def _map_async(
        self,
        func: Callable[..., Any],
        iterable: Iterable[Any],
        chunksize: int | None,
        callback: Callable[[Any], object] | None,
        error_callback: Callable[[BaseException], object] | None,
        star: bool,
    ) -> AsyncResult:
        items, chunk = _sliceable(iterable), _chunk(chunksize)
        if callback is None and error_callback is None:
            return self._engine.map(func, items, chunk, (self, None), star=star, wait=False)
        extras, token = self._expecting(callback, error_callback)
        result = self._engine.map(func, items, chunk, extras, star=star, wait=False)
        return self._announced(token, result)

    def _imap(
        self,
        func: Callable[[Any], Any],
        iterable: Iterable[Any],
        chunksize: int,
        buffersize: int | None,
        ordered: bool,
    ) -> IMapIterator:
        if chunksize < 1:
            raise ValueError(f"Chunksize must be 1+, not {chunksize:n}")
        if buffersize is not None and buffersize < 1:
            raise ValueError(f"buffersize must be 1 or more, not {buffersize}")
        prompt = type(iterable) in _PROMPT
        stream = self._engine.imap(
            func,
            iterable,
            chunksize,
            self,
            prompt=prompt,
            sized=hasattr(iterable, "__len__"),
            buffer=buffersize,
            ordered=ordered,
        )
        self._streams.add(stream)
        if not prompt:
            try:
                iterator = iter(iterable)
            except TypeError:
                stream.stop()
                raise
            threading.Thread(
                target=_feed,
                args=(stream.feeder(), iterator, chunksize),
                name="phalanx-feeder",
                daemon=True,
            ).start()
        return stream

    @classmethod
    def _terminate_pool(
        cls,
        engine: _phalanx.Pool,
        processes: list[BaseProcess],
        helper: threading.Thread,
        streams: weakref.WeakSet[IMapIterator],
    ) -> None:
        util.debug("finalizing pool")
        for stream in list(streams):
            stream.stop()
        engine.terminate("Pool not running: the pool was terminated")
        if not engine.wait_ended(GRACE):
            engine.kill()
            engine.wait_ended()
        if threading.current_thread() is not helper:
            helper.join(GRACE)  # a callback of the user's may be blocked
        for process in processes:
            process.join()


def _own_context(context: Any | None) -> Any:
    """The context to start workers with: ours where the standard library's own was given."""
    if context is None:
        return _default_context.get_context()
    if type(context).__module__ == "multiprocessing.context":
        return _default_context.get_context(context.get_start_method())
    return context


def _cpu_count() -> int:
    count = getattr(os, "process_cpu_count", None)
    if count is not None:
        return count() or 1
    try:
        return len(os.sched_getaffinity(0))
    except OSError:
        return os.cpu_count() or 1


def _chunk(chunksize: int | None) -> int | None:
    if chunksize is not None and chunksize < 1:
        raise ValueError(f"chunksize must be 1 or more, not {chunksize}")
    return chunksize


def _sliceable(iterable: Iterable[Any]) -> list[Any] | tuple[Any, ...] | range:
    if isinstance(iterable, list | tuple | range):
        return iterable
    return list(iterable)


def _feed(feeder: _phalanx.Feeder, iterator: Iterable[Any], chunksize: int) -> None:
    """Read an input that may block; in a thread of its own."""
    chunk: list[Any] = []
    try:
        for item in iterator:
            chunk.append(item)
            if len(chunk) == chunksize:
                if not feeder.put(chunk):
                    return
                chunk = []
        if chunk:
            feeder.put(chunk)
    except BaseException as error:
        # Without this frame, which knows the feeder, which is going to know the error.
        trace = error.__traceback__
        feeder.end(error.with_traceback(trace and trace.tb_next))
    else:
        feeder.end()


def _run_errands(
    engine: _phalanx.Pool, pool: weakref.ref[Pool], waiting: dict[int, AsyncResult]
) -> None:
    """Do what the engine asks of Python, until the pool has ended."""
    while (errand := engine.errand()) is not None:
        what, number = errand
        try:
            if what == "done":
                waiting.pop(number).call_back()
            else:
                owner = pool()
                if owner is not None:
                    owner._replace(number)
                del owner
        except BaseException:
            kind, error, trace = sys.exc_info()
            thread = threading.current_thread()
            threading.excepthook(threading.ExceptHookArgs((kind, error, trace, thread)))
