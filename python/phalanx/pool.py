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
no worker can be started  the others go on; ``OSError`` for calls while there is none, which says
                          what is short (docs/shortages.md)
the pool is terminated    ``ValueError`` for calls that wait
========================  =====================================================================
"""

from __future__ import annotations

import contextlib
import functools
import os
import sys
import threading
import warnings
import weakref
from abc import ABCMeta
from multiprocessing import pool as _standard
from multiprocessing import util
from multiprocessing.pool import CLOSE, INIT, RUN, TERMINATE, ThreadPool
from multiprocessing.process import BaseProcess

from . import _budget, _carry, _insides, _log, _phalanx, _pickling, _records, _shortages
from ._insides import Backlog, Unfinished, call_number
from ._phalanx import AsyncResult
from ._terms import asked_of, bounds_of, module_names
from ._worker import Seat, worker
from .context import _own_context

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping
    from types import TracebackType
    from typing import Any, Literal, Self, Unpack

    import numpy as np
    import numpy.typing as npt

    from phalanx._terms import Asked, Callbacks, Kinds, MemoryLimit, Terms
    from phalanx.stats import WorkerStats

__all__ = ["Pool", "ThreadPool"]


# For those who look here.
ExceptionWithTraceback = _standard.ExceptionWithTraceback  # type: ignore[attr-defined]
MaybeEncodingError = _standard.MaybeEncodingError  # type: ignore[attr-defined]
RemoteTraceback = _standard.RemoteTraceback  # type: ignore[attr-defined]
ApplyResult = AsyncResult
MapResult = AsyncResult
IMapIterator = _insides.IMapIterator
IMapUnorderedIterator = _insides.IMapUnorderedIterator

#: Inputs that are read without ever blocking, so that no thread is needed to read them ahead.
_PROMPT = (list, tuple, range, dict, set, frozenset, str, bytes, bytearray)

GRACE = 2  # seconds that a worker has to end after SIGTERM


class Pool(_standard.Pool, metaclass=ABCMeta):
    """A pool of worker processes to which tasks are submitted.

    Args:
        processes: the number of workers; by default ``-X cpu_count`` or ``PYTHON_CPU_COUNT`` if
            given, else as many as can run at a time: the CPUs in the affinity mask, and no more
            than the control groups' quota gives time on, rounded up. In a task of another pool, as
            many as is the share of its worker.
        initializer: called as ``initializer(*initargs)`` in each worker when it starts.
        initargs: see ``initializer``.
        maxtasksperchild: after so many tasks a worker is replaced; by default never. A chunk is
            one task.
        context: how workers are started; by default as ``phalanx.get_context()`` says.
        kill_tree: whether what tasks have started, programs and processes, ends with their worker,
            however that ends: killed, with the pool, or with the parent. A worker then leads a
            process group of its own, which a Ctrl-C in the terminal does not reach; what has left
            it (``start_new_session``) is left alone.
        timeout: seconds that a task may run, counted from the moment a worker begins it. Then
            `TaskTimeout` is raised in the task, and if that does not end it, its worker gets
            SIGTERM after ``grace`` seconds, and SIGKILL after as many again. Other tasks are not
            affected. By default tasks run as long as they like. A call may say otherwise:
            ``timeout=``.
        start_timeout: seconds that a task may wait for that moment, as ``timeout``.
        grace: see ``timeout``.
        retries: a task whose worker died is run again, so often. By default it is begun at most
            once. A call may say otherwise: ``retries=``.
        backoff: seconds between a death and the next try, twice as many after each one more.
        retry_on: exceptions, a class or a tuple of them, that are reason for another try, too, of
            the same number. A call may say otherwise: ``retry_on=``.
        memory_limit: the bytes of memory that a worker may have for itself, without what it shares
            with others by mapping. If it has more, `WorkerMemoryExceeded` is raised in its task,
            as by a timeout, with a grace of a tenth of a second at the most, and the worker is
            replaced. A pair of limits is ``(soft, hard)``, as of `resource.setrlimit`; a worker
            with more than ``soft`` is replaced after its task, which is not ended. ``None`` is no
            limit. Memory is looked at when tasks end, and 20 times a second.
        lifetime: seconds after which a worker is replaced, when its task has ended.
        intensity: so many workers that died are replaced...
        period: ... within so many seconds. After one more, the pool has ended, and what had not is
            told of all those deaths with `SupervisorFailed`. By default workers are replaced for
            ever, unless they die before they are ready. Workers that leave or are killed by the
            pool's own rules do not count.
        threads_per_worker: how many threads libraries such as OpenBLAS, MKL and OpenMP are to start
            in a worker; by default as many as is the worker's share of the processors, unless the
            program has set one of their variables (``OMP_NUM_THREADS``, ...). A library that a
            forked worker has loaded already is told by `threadpoolctl`, where that is installed.
        preload: names of modules that each worker imports before it takes tasks, ahead of the
            initializer; with ``forkserver`` the template imports them, once. A module that cannot
            be imported is a failing initializer. How long starts take: `WorkerStats.startup`.

    Raises:
        ValueError: if ``processes`` or ``maxtasksperchild`` is less than 1, or a time or another
            limit makes no sense.
        TypeError: if ``initializer`` cannot be called, or ``retry_on`` has no exceptions.
        OSError: if memory, descriptors or processes are short.

    Workers end when their parent ends, however that happens.
    """

    #: Until it is made; whoever is told to end in the middle of that has one that never was.
    _state = INIT
    #: Its workers are daemons, and all are started at once; see `phalanx.futures`.
    _daemon = _at_once = True

    def __init__(  # the standard pool's threads and queues are not made
        self,
        processes: int | None = None,
        initializer: Callable[..., object] | None = None,
        initargs: Iterable[Any] = (),
        maxtasksperchild: int | None = None,
        context: Any | None = None,
        *,
        kill_tree: bool = False,
        timeout: float | None = None,
        start_timeout: float | None = None,
        grace: float = 2.0,
        retries: int = 0,
        backoff: float = 0.0,
        retry_on: Kinds = (),
        memory_limit: MemoryLimit | None = None,
        lifetime: float | None = None,
        intensity: int | None = None,
        period: float = 5.0,
        threads_per_worker: int | None = None,
        preload: Iterable[str] = (),
    ) -> None:
        # For __del__ and __repr__, should this fail.
        self._pool: list[BaseProcess] = []
        self._state = INIT
        self._ctx = _own_context(context)
        if processes is None:
            processes = _budget.processors()
        if processes < 1:
            raise ValueError("Number of processes must be at least 1")
        if maxtasksperchild is not None and (
            not isinstance(maxtasksperchild, int) or maxtasksperchild <= 0
        ):
            raise ValueError("maxtasksperchild must be a positive int or None")
        if threads_per_worker is not None and threads_per_worker < 1:
            raise ValueError(f"threads_per_worker must be 1 or more, not {threads_per_worker}")
        if initializer is not None and not callable(initializer):
            raise TypeError("initializer must be a callable")
        self._processes = processes
        # More tasks than the engine can count is no limit.
        self._maxtasksperchild = maxtasksperchild and min(maxtasksperchild, sys.maxsize)
        self._kill_tree = kill_tree
        self._threads = threads_per_worker
        self._preload = module_names(preload)
        for name in self._preload:
            _carry.note_module(name)
        self._initializer = _carry.portable(initializer)
        self._initargs = tuple(initargs)
        self._terms: Terms = {"timeout": timeout, "retries": retries, "retry_on": retry_on}
        asked = asked_of(timeout, start_timeout, retries, backoff, retry_on)
        bounds = bounds_of(memory_limit, lifetime, intensity, period)
        self._engine = _phalanx.Pool(processes, asked, grace, bounds)
        self._way = _pickling.way_of(self)
        self._cache = Unfinished(self._engine)
        self._streams: weakref.WeakSet[_phalanx.IMapIterator] = weakref.WeakSet()
        self._owner = os.getpid()
        try:
            for seat in range(processes if self._at_once else 0):
                process = self._hire(seat)
                if process is None:  # the first initializers have failed meanwhile
                    break
                self._pool.append(process)
            self._helper = threading.Thread(
                target=_run_errands,
                args=(self._engine, weakref.ref(self), self._cache),
                name="phalanx-helper",
                daemon=True,
            )
            with _shortages.told("start a pool's thread"):
                self._helper.start()
        except BaseException:
            self._engine.terminate("the pool could not be started")
            for process in self._pool:
                if process.exitcode is None:
                    process.terminate()
            for process in self._pool:
                process.join()
            raise
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
        self,
        func: Callable[..., Any],
        args: Iterable[Any] = (),
        kwds: Mapping[str, Any] = {},
        **terms: Unpack[Terms],
    ) -> Any:
        """``func(*args, **kwds)``, run by a worker."""
        return self.apply_async(func, args, kwds, **terms).get()

    def apply_async(  # type: ignore[override]
        self,
        func: Callable[..., Any],
        args: Iterable[Any] = (),
        kwds: Mapping[str, Any] = {},
        callback: Callable[[Any], object] | None = None,
        error_callback: Callable[[BaseException], object] | None = None,
        **terms: Unpack[Terms],
    ) -> AsyncResult:
        """As :meth:`apply`, but returns at once.

        One of the callbacks is called, in a thread of the pool, before the result is ready.
        """
        func, asked = self._agreed(func, terms)
        if type(args) is not tuple:
            args = tuple(args)
        if type(kwds) is not dict:
            kwds = dict(kwds)
        if self._way is not None:
            func, args, kwds = _pickling.Call(func), (self._way.pack(func, args, kwds),), {}
        if callback is None and error_callback is None:
            return self._engine.apply(func, args, kwds, self, asked)
        calls = self._expecting(callback, error_callback)
        result = self._engine.apply(func, args, kwds, self, asked, calls)
        return self._announced(calls, result)

    def map(
        self,
        func: Callable[..., Any],
        iterable: Iterable[Any],
        chunksize: int | None = None,
        *,
        star: bool = False,
        **terms: Unpack[Terms],
    ) -> list[Any]:
        """``[func(x) for x in iterable]``, run by the workers, in chunks.

        ``chunksize`` is the number of items that a worker gets at a time; by default it follows
        from the measured time of an item, or is 1 if there is a timeout, which is that of an item.
        If tasks raise, the first exception is raised here when all have ended; a worker's death is
        told at once.

        With ``star``, each item is a row of arguments: a mapping is ``func(**x)``, any other is
        ``func(*x)``.
        """
        return self._map(_starred(func, star), iterable, chunksize, False, terms)

    def starmap(
        self,
        func: Callable[..., Any],
        iterable: Iterable[Iterable[Any]],
        chunksize: int | None = None,
        **terms: Unpack[Terms],
    ) -> list[Any]:
        """As :meth:`map`, for ``func(*x)``."""
        return self._map(func, iterable, chunksize, True, terms)

    def map_async(  # type: ignore[override]
        self,
        func: Callable[..., Any],
        iterable: Iterable[Any],
        chunksize: int | None = None,
        callback: Callable[[Any], object] | None = None,
        error_callback: Callable[[BaseException], object] | None = None,
        *,
        star: bool = False,
        **terms: Unpack[Terms],
    ) -> AsyncResult:
        """As :meth:`map`, but returns at once; callbacks as in :meth:`apply_async`."""
        func = _starred(func, star)
        return self._map_async(func, iterable, chunksize, callback, error_callback, False, terms)

    def starmap_async(  # type: ignore[override]
        self,
        func: Callable[..., Any],
        iterable: Iterable[Iterable[Any]],
        chunksize: int | None = None,
        callback: Callable[[Any], object] | None = None,
        error_callback: Callable[[BaseException], object] | None = None,
        **terms: Unpack[Terms],
    ) -> AsyncResult:
        """As :meth:`starmap`, but returns at once; callbacks as in :meth:`apply_async`."""
        return self._map_async(func, iterable, chunksize, callback, error_callback, True, terms)

    def imap(  # type: ignore[override]
        self,
        func: Callable[..., Any],
        iterable: Iterable[Any],
        chunksize: int = 1,
        *,
        buffersize: int | None = None,
        star: bool = False,
        **terms: Unpack[Terms],
    ) -> _phalanx.IMapIterator:
        """An iterator over ``func(x) for x in iterable``, in order, computed ahead.

        The input is read as results are taken, ``buffersize`` items ahead of them; by default as
        many as keep the workers busy. So an endless input is welcome. An exception of a task, or
        the death of its worker, is raised where its result would be, and the iterator goes on.
        With ``star``, items are rows of arguments, as in :meth:`map`.
        """
        return self._imap(_starred(func, star), iterable, chunksize, buffersize, True, terms)

    def imap_unordered(  # type: ignore[override]
        self,
        func: Callable[..., Any],
        iterable: Iterable[Any],
        chunksize: int = 1,
        *,
        buffersize: int | None = None,
        star: bool = False,
        **terms: Unpack[Terms],
    ) -> _phalanx.IMapIterator:
        """As :meth:`imap`, but results come as they are ready."""
        return self._imap(_starred(func, star), iterable, chunksize, buffersize, False, terms)

    def cancel_all(self) -> int:
        """End all tasks that have not ended, as ``AsyncResult.cancel`` does; say how many."""
        return self._engine.cancel_all()

    def stats(self) -> list[WorkerStats]:
        """What each worker has done and is doing."""
        from phalanx.stats import WorkerStats

        return [WorkerStats(*each) for each in self._engine.stats()]

    def dump_stacks(self, timeout: float = 1.0) -> dict[int, str]:
        """What each worker is doing now: by its pid, the stacks of all its threads.

        No worker is stopped for that; one that cannot say so within ``timeout`` seconds, because it
        is starting or stopped, has ``""``. The text is `faulthandler`'s.
        """
        from phalanx.exceptions import below_worker

        return {pid: below_worker(stacks) for pid, stacks in self._engine.stacks(timeout)}

    @contextlib.contextmanager
    def loan(
        self, shape: int | Iterable[int], dtype: npt.DTypeLike = float
    ) -> Iterator[np.ndarray[Any, Any]]:
        """``with pool.loan(shape, dtype) as a:`` is an array that tasks get without a copy.

        As `numpy.empty`: what is in it is whatever it is. Tasks see it as it is when they look:
        wait for those that have it before you write to it again. Its memory goes back when nobody
        refers to it any more. Slices are copied when they are sent. Errors are those of
        `phalanx.loan`.
        """
        from phalanx.sharing import borrow

        self._check_running()
        yield borrow(self._engine.loan, shape, dtype)

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
        seating = self._engine.prepare(seat, self._kill_tree)
        if seating is None:
            return None
        seat_of_its_own = Seat(seating, _budget.share_of(self._processes), self._threads)
        seat_of_its_own.preload = self._preload
        if self._way is not None:
            seat_of_its_own.answers = self._way.answers
        arguments = (seat_of_its_own, self._initializer, self._initargs, self._maxtasksperchild)
        process = self.Process(self._ctx, target=worker, args=arguments)
        if self._daemon:
            process.name = process.name.replace("Process", "PoolWorker")
        process.daemon = self._daemon
        process._lets_in_interrupts = process._is_tied = True  # type: ignore[attr-defined]
        process.start()
        child = getattr(getattr(process, "_popen", None), "_child", None)
        pid = getattr(process, "pid", None)
        if child is None and isinstance(pid, int):
            child = _phalanx.child_of(pid)  # another library's process
        if child is not None:
            self._engine.seat(seating, child)
        util.debug("added worker")
        _log.debug("%s (pid %s) was started", process.name, pid)
        return process

    def _replace(self, seat: int) -> None:
        """Start a worker where one has gone."""
        gone = self._pool[seat]
        gone.join()
        try:
            self._pool[seat] = self._hire(seat) or gone
        except Exception as error:
            _log.warning("%s cannot be replaced now: %s", gone.name, repr(error))
            self._engine.refused(seat, repr(error), _shortages.is_shortage(error))
            return
        tell = _log.warning if gone.exitcode else _log.debug
        how = _log.exit_in_words(gone.exitcode)
        tell("%s (pid %s) %s; another takes its place", gone.name, gone.pid, how)

    @property
    def _taskqueue(self) -> Backlog:
        return Backlog(self)

    def _repopulate_pool(self) -> None:
        """Start the workers that are missing: the pool does so by itself."""

    def _check_running(self) -> None:
        if self._state != RUN:
            raise ValueError("Pool not running")

    def _expecting(self, callback: object, error_callback: object) -> Callbacks:
        return call_number(), callback, error_callback

    def _announced(self, calls: Callbacks, result: AsyncResult) -> AsyncResult:
        self._cache[calls[0]] = result
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
        terms: Terms,
    ) -> AsyncResult:
        func, items, star, chunk, asked = self._cut(func, iterable, chunksize, star, terms)
        if callback is None and error_callback is None:
            return self._engine.map(func, items, chunk, self, asked, star=star, wait=False)
        calls = self._expecting(callback, error_callback)
        result = self._engine.map(func, items, chunk, self, asked, calls, star=star, wait=False)
        return self._announced(calls, result)

    def _map(
        self,
        func: Callable[..., Any],
        iterable: Iterable[Any],
        chunksize: int | None,
        star: bool,
        terms: Terms,
    ) -> list[Any]:
        func, items, star, chunk, asked = self._cut(func, iterable, chunksize, star, terms)
        result = self._engine.map(func, items, chunk, self, asked, star=star, wait=True)
        return result.get()  # type: ignore[no-any-return]

    def _cut(
        self,
        func: Callable[..., Any],
        iterable: Iterable[Any],
        chunksize: int | None,
        star: bool,
        terms: Terms,
    ) -> tuple[Callable[..., Any], Any, bool, int | None, Asked | None]:
        if chunksize is None and (self._has("timeout", terms) or self._has("retry_on", terms)):
            chunksize = 1  # so that one item is ended, or tried again, and not those beside it
        items: Any = _sliceable(iterable)
        chunk = _chunk(chunksize)
        func, asked = self._agreed(func, terms)
        if self._way is not None:
            pack = self._way.pack
            items = [pack(func, row if star else (row,)) for row in items]
            func, star = _pickling.Call(func), False
        return func, items, star, chunk, asked

    def _has(self, name: Literal["timeout", "retries", "retry_on"], terms: Terms) -> Any:
        asked = terms.get(name) if terms else None
        return self._terms[name] if asked is None else asked

    def _agreed(
        self, func: Callable[..., Any], terms: Terms
    ) -> tuple[Callable[..., Any], Asked | None]:
        """``func``, so that its worker knows which exceptions are reason for another try; and what
        the call asks for, if that is anything.
        """
        if not terms and not self._terms["retry_on"]:
            return func, None
        asked = asked_of(**terms)
        kinds = self._has("retry_on", terms)
        if not kinds or not callable(func):
            return func, asked
        if not self._has("retries", terms):
            if not terms.get("retry_on"):
                return func, asked
            raise ValueError("retry_on is for tasks with retries, and there are none: say retries=")
        return _carry.Retrying(func, kinds), asked

    def _imap(
        self,
        func: Callable[..., Any],
        iterable: Iterable[Any],
        chunksize: int,
        buffersize: int | None,
        ordered: bool,
        terms: Terms,
    ) -> _phalanx.IMapIterator:
        if chunksize < 1:
            raise ValueError(f"Chunksize must be 1+, not {chunksize:n}")
        if buffersize is not None and buffersize < 1:
            raise ValueError(f"buffersize must be 1 or more, not {buffersize}")
        func, asked = self._agreed(func, terms)
        prompt, sized = type(iterable) in _PROMPT, hasattr(iterable, "__len__")
        if self._way is not None:
            prompt = False
            iterable = map(functools.partial(_pack_one, self._way, func), iter(iterable))
            func = _pickling.Call(func)
        stream = self._engine.imap(
            func,
            iterable,
            chunksize,
            self,
            asked,
            prompt=prompt,
            sized=sized,
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
            feeder = threading.Thread(
                target=_feed,
                args=(stream.feeder(), iterator, chunksize),
                name="phalanx-feeder",
                daemon=True,
            )
            try:
                with _shortages.told("read the input of imap"):
                    feeder.start()
            except BaseException:
                stream.stop()
                raise
        return stream

    @classmethod
    def _terminate_pool(
        cls,
        engine: _phalanx.Pool,
        processes: list[BaseProcess],
        helper: threading.Thread,
        streams: weakref.WeakSet[_phalanx.IMapIterator],
    ) -> None:
        util.debug("finalizing pool")
        for stream in list(streams):
            stream.abandon()
        dropped = engine.terminate("Pool not running: the pool was terminated")
        # A program that was ended by an exception has said why.
        if dropped and util.is_exiting() and not hasattr(sys, "last_type"):
            warnings.warn(
                f"the program has ended, and with it {dropped} tasks of a pool of {len(processes)} "
                "workers that had not: close() and join() a pool to wait for its tasks",
                RuntimeWarning,
                stacklevel=99,  # nobody's line is to be shown: the program has no more
            )
        if not engine.wait_ended(GRACE):
            engine.kill()
            engine.wait_ended()
        if threading.current_thread() is not helper:
            helper.join(GRACE)  # a callback of the user's may be blocked
        for process in processes:
            process.join()


# A pool of threads is a pool, to those who ask; its class is the standard library's.
Pool.register(ThreadPool)


def _starred(func: Callable[..., Any], star: bool) -> Callable[..., Any]:
    return _carry.Rows(func) if star and callable(func) else func


def _pack_one(way: _pickling.Way, func: Callable[..., Any], item: Any) -> object:
    return way.pack(func, (item,))


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
        what, number, note = errand
        try:
            if what == "done":
                try:
                    waiting[number].call_back()
                finally:
                    del waiting[number]
            elif note is not None:
                _records.handle(number, note)
            else:
                owner = pool()
                if owner is not None:
                    owner._replace(number)
                del owner
        except BaseException:
            kind, error, trace = sys.exc_info()
            thread = threading.current_thread()
            threading.excepthook(threading.ExceptHookArgs((kind, error, trace, thread)))
    if (why := engine.failure()) is not None:
        _log.error("a pool has ended before its time: %s", why)
