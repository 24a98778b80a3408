"""Queues between processes, in memory that they share.

As CPython 3.14, ``Lib/multiprocessing/queues.py``; ``put_many`` and ``get_many`` are ours. There is
no thread that feeds a pipe: when ``put`` returns, the item is in the queue, for every process, and
stays there when its process ends. So an object that cannot be pickled raises in ``put``, items
of all processes come in the order of their puts, ``qsize``, ``empty`` and ``full`` are exact at the
instant of the call, and the end of a process never waits for readers.

What a wrong argument gets:

=============================================  =====================================================
``put`` of what cannot be pickled              what the pickler raises; nothing was put
``timeout`` that is not a number               TypeError; ValueError for NaN
negative ``timeout``                           as 0: one try
``put`` or ``get`` after ``close``             ValueError (`SimpleQueue`: OSError)
``empty`` after ``put`` and ``close``          OSError
``get_many`` of less than one                  ValueError; OverflowError below 0
``task_done`` more often than ``put``          ValueError
``join_thread`` before ``close``               AssertionError
pickling while no process is being started     RuntimeError
more items than there is memory for            OSError (ENOMEM, ENOSPC); nothing was put
=============================================  =====================================================

What a death at any instruction (SIGKILL) leaves:

=============================================  =====================================================
of one who puts                                the item, whole, or nothing of it
of one who gets                                the item, or it is gone with its process; no other is
of one who waits                               nothing
of the process that made the queue             the queue, with all items, while anybody has it
of one who got an item and owes ``task_done``  a count that stays: ``join`` waits until another one
                                               calls ``task_done`` in its place
of the last process that has the queue         nothing: its memory has no name
=============================================  =====================================================

Whoever waits behind one who died inside an operation goes on within 100 ms.

A queue takes as much memory as its items, and keeps some of it for the next: 8 MiB, or twice the
largest item, up to 256 MiB. Each smaller item lets go of 64 KiB of that, and all but 8 MiB goes
back to the system when a ``get`` has waited for a second in vain. While items of more than 2 MiB
lie in it that others are taking, ``put`` without a timeout waits a moment: for no longer than new
memory would take.
"""

from __future__ import annotations

import os
import threading
from collections import deque
from multiprocessing import context as _context
from multiprocessing import queues as _standard
from multiprocessing import reduction
from multiprocessing.util import debug

from phalanx import _phalanx

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any, Self

__all__ = ["JoinableQueue", "Queue", "SimpleQueue"]


def _detach(dup: Any) -> int:
    fd: int = dup.detach()
    return fd


class _End:
    """One end of a queue, for those who know that it was a pipe's: `_reader`, `_writer`.

    Both stand for the queue itself, so closing one here changes nothing for others, and `fileno`
    is readable while there is an item.
    """

    def __init__(self, queue: Queue | SimpleQueue) -> None:
        self._queue = queue
        self._is_closed = False

    @property
    def closed(self) -> bool:
        """Was it, or its queue, closed in this process?"""
        return self._is_closed or self._queue._closed

    def close(self) -> None:
        """Let this process not use it any more."""
        self._is_closed = True

    def _check(self) -> None:
        if self._is_closed:
            raise OSError("handle is closed")

    def fileno(self) -> int:
        """A descriptor to poll; never to read from."""
        self._check()
        return self._queue._watch()


class _Reader(_End):
    """Where the items come out."""

    readable = True
    writable = False

    def poll(self, timeout: float | None = 0.0) -> bool:
        """Is there an item, or will be within ``timeout`` seconds?"""
        self._check()
        return self._queue._poll(timeout)

    def recv(self) -> Any:
        """Take the first item."""
        self._check()
        return self._queue._take()

    def recv_bytes(self, maxlength: int | None = None) -> bytes:
        """The pickle of the first item, which is taken."""
        return bytes(reduction.ForkingPickler.dumps(self.recv()))


class _Writer(_End):
    """Where the items go in."""

    readable = False
    writable = True

    def send(self, obj: Any) -> None:
        """Put an item."""
        self.send_bytes(reduction.ForkingPickler.dumps(obj))

    def send_bytes(self, buf: Any, offset: int = 0, size: int | None = None) -> None:
        """Put an item by its pickle."""
        self._check()
        end = None if size is None else offset + size
        self._queue._put_pickle(bytes(memoryview(buf)[offset:end]))


class _Ends:
    """What others have found inside of a queue, made when somebody asks for it."""

    def __getattr__(self, name: str) -> Any:
        make = _PRIVATE.get(name)
        if make is None:
            raise AttributeError(f"{type(self).__name__!r} object has no attribute {name!r}")
        made = make(self)
        setattr(self, name, made)
        return made


class _Debts:
    """What `JoinableQueue.join` waits for, for those who wait in a way of their own.

    It is both ``_unfinished_tasks``, a semaphore, and ``_cond``, which is notified of its zero.
    """

    def __init__(self, queue: JoinableQueue) -> None:
        self._queue = queue

    @property
    def _semlock(self) -> Self:
        return self

    def get_value(self) -> int:
        """The items that were put, less the calls of ``task_done``."""
        return self._queue._unfinished()

    _get_value = get_value

    def _is_zero(self) -> bool:
        return self.get_value() == 0

    def __enter__(self) -> bool:
        return True

    def __exit__(self, *_: object) -> None:
        pass

    def wait(self, timeout: float | None = None) -> bool:
        """Wait until there are none; false after ``timeout`` seconds."""
        return self._queue._join(timeout)


# The locks are not the queue's, which needs nobody to take them, but somebody may want to.
_PRIVATE: dict[str, Callable[[Any], Any]] = {
    "_reader": _Reader,
    "_writer": _Writer,
    "_rlock": lambda _queue: threading.Lock(),
    "_wlock": lambda _queue: threading.Lock(),
    "_sem": lambda queue: threading.BoundedSemaphore(queue._maxsize),
    "_notempty": lambda _queue: threading.Condition(threading.Lock()),
    "_buffer": lambda _queue: deque(),
    "_opid": lambda _queue: os.getpid(),
}


def _state(queue: Queue | SimpleQueue) -> tuple[Any, Any]:
    _context.assert_spawning(queue)
    memory, event = queue._descriptors()
    return reduction.DupFd(memory), reduction.DupFd(event)


def _set_state(queue: Queue | SimpleQueue, state: tuple[Any, Any]) -> None:
    memory, event = (_detach(dup) for dup in state)
    try:
        queue._open(memory, event)
    finally:
        os.close(memory)
        os.close(event)


#: Methods that only make sense together with a pipe, its locks, and the thread that feeds it.
_INSIDES = frozenset({"__getstate__", "__setstate__", "_feed", "_reset", "_start_thread"})


class _Kind(type):
    """The type of our queues: who overrides the insides of CPython's gets these as base.

    Other libraries have queues that work on the pipe inside of ``multiprocessing``'s (loky's, and
    so joblib's). After `phalanx.install` that name means our queue, which has no pipe.
    """

    def __new__(
        cls, name: str, bases: tuple[type, ...], namespace: dict[str, Any], **kwds: Any
    ) -> Any:
        if namespace.get("__module__") != __name__ and _INSIDES & namespace.keys():
            bases = tuple(each._standard if isinstance(each, _Kind) else each for each in bases)
            return type(name, bases, namespace, **kwds)
        return super().__new__(cls, name, bases, namespace, **kwds)

    #: CPython's class of that name.
    _standard: type


class Queue(
    _phalanx.Queue,
    _Ends,
    _standard.Queue,  # type: ignore[type-arg]
    metaclass=_Kind,
):
    """A first-in first-out queue for any number of processes and threads.

    Args:
        maxsize: the most items that there can be; 0 or less is as many as there is memory for.
        ctx: the context that it belongs to, as in the standard library; nothing depends on it.

    Raises:
        OSError: if there are no descriptors left (it has two), or no address space.
    """

    # Set by `concurrent.futures`.
    _ignore_epipe = False
    _thread = None
    _joincancelled = False

    def __init__(self, maxsize: int = 0, *, ctx: Any) -> None:
        self._create(max(maxsize, 0))

    def __getstate__(self) -> Any:
        return _state(self)

    def __setstate__(self, state: Any) -> None:
        _set_state(self, state)

    def join_thread(self) -> None:
        """After `close`: nothing is left to be waited for, as `put` has put it.

        Raises:
            AssertionError: before `close`.
        """
        debug("Queue.join_thread()")
        if not self._closed:
            raise AssertionError(f"Queue {self!r} not closed")

    def cancel_join_thread(self) -> None:
        """Promise not to wait in `join_thread`, which does not in any case; no item is lost."""
        debug("Queue.cancel_join_thread()")
        self._joincancelled = True

    def _terminate_broken(self) -> None:
        self.close()

    def _start_thread(self) -> None:
        pass

    def _after_fork(self) -> None:
        pass

    @staticmethod
    def _on_queue_feeder_error(e: BaseException, obj: Any) -> None:
        """For subclasses: told of an object that cannot be pickled, instead of ``put`` raising."""
        raise e

    def _unwritable(self, error: BaseException, obj: Any) -> None:
        hook: Callable[[BaseException, Any], None] = self._on_queue_feeder_error
        if hook is Queue._on_queue_feeder_error:
            raise error
        hook(error, obj)


class JoinableQueue(Queue, _standard.JoinableQueue):  # type: ignore[type-arg]
    """A queue that counts its unfinished tasks: the items put, less the calls of `task_done`."""

    def __init__(self, maxsize: int = 0, *, ctx: Any) -> None:
        Queue.__init__(self, maxsize, ctx=ctx)

    def __getstate__(self) -> Any:
        return Queue.__getstate__(self)

    def __setstate__(self, state: Any) -> None:
        Queue.__setstate__(self, state)

    put = Queue.put

    @property
    def _unfinished_tasks(self) -> _Debts:
        return _Debts(self)

    _cond = _unfinished_tasks

    def task_done(self) -> None:
        """One of the items is dealt with.

        Raises:
            ValueError: if all of them were before.
        """
        if not self._done():
            raise ValueError("task_done() called too many times")

    def join(self) -> None:
        """Wait until all items were dealt with."""
        self._join()


class SimpleQueue(
    _phalanx.SimpleQueue,
    _Ends,
    _standard.SimpleQueue,  # type: ignore[type-arg]
    metaclass=_Kind,
):
    """A queue without a bound and with few methods: ``put``, ``get``, ``empty``, ``close``.

    Args:
        ctx: the context that it belongs to, as in the standard library; nothing depends on it.

    Raises:
        OSError: if there are no descriptors left (it has two), or no address space.
    """

    def __init__(self, *, ctx: Any) -> None:
        self._create()

    def __getstate__(self) -> Any:
        return _state(self)

    def __setstate__(self, state: Any) -> None:
        _set_state(self, state)


Queue._standard = _standard.Queue
JoinableQueue._standard = _standard.JoinableQueue
SimpleQueue._standard = _standard.SimpleQueue
