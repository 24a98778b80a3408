"""Pools of subclasses that pickle in a way of their own.

`multiprocessing.pool.Pool` sends tasks and results through two queues. A subclass that overrides
``_setup_queues`` has queues of its own, whose picklers may have reducers that no other has: so does
joblib's, whose arrays stay in files that the workers map. Our pools have no such queues; what these
would have written is caught instead, and travels as all else does.
"""

from __future__ import annotations

import pickle
import threading
from multiprocessing import pool as _standard
from multiprocessing.reduction import ForkingPickler

from . import _carry

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping
    from typing import Any

__all__ = ["Call", "Way", "answer_by", "way_of"]


class _Catcher:
    """A connection that keeps what is sent: both ends of it."""

    caught: bytes | None = None

    def send(self, obj: object) -> None:
        self.send_bytes(ForkingPickler.dumps(obj))

    def send_bytes(self, buf: Any, offset: int = 0, size: int | None = None) -> None:
        view = memoryview(buf)
        self.caught = bytes(view[offset : None if size is None else offset + size])

    def recv(self) -> object:
        raise EOFError("nothing is received here: a pool of phalanx has no queues")

    recv_bytes = recv

    def poll(self, timeout: float | None = 0.0) -> bool:
        return False

    def close(self) -> None:
        pass


class _Context:
    """A context whose pipes catch."""

    def __init__(self, context: Any) -> None:
        self._context = context

    def Pipe(self, duplex: bool = True) -> tuple[_Catcher, _Catcher]:
        catcher = _Catcher()
        return catcher, catcher

    def __getattr__(self, name: str) -> Any:
        return getattr(self._context, name)


class Way:
    """How a queue pickles; ``answers`` is the one for results."""

    def __init__(self, queue: Any, answers: object = None) -> None:
        self._queue = queue
        self._lock = threading.Lock()
        self.answers = answers

    def dumps(self, obj: object) -> bytes | None:
        """What the queue would write; ``None`` if that cannot be caught."""
        with self._lock:
            catcher = self._queue._writer
            self._queue.put(obj)
            caught: bytes | None = catcher.caught
            catcher.caught = None
            return caught

    def pack(
        self, func: Callable[..., object], args: Iterable[Any], kwds: Mapping[str, Any] = {}
    ) -> object:
        """The argument of a `Call`."""
        return _Packed((func, tuple(args), dict(kwds)), self)


class _Packed:
    """An object that is pickled in a way of its own, and unpickled as any."""

    def __init__(self, obj: object, way: Way) -> None:
        self._obj = obj
        self._way = way

    def __reduce__(self) -> tuple[object, ...]:
        return pickle.loads, (self._way.dumps(self._obj),)


class Call(_carry.Namesake):
    """What a worker calls with a function and its arguments, packed."""

    def __call__(self, packed: tuple[Callable[..., object], tuple[Any, ...], Any]) -> object:
        func, args, kwds = packed
        result = func(*args, **kwds)
        return result if _answers is None else _Packed(result, _answers)


#: In a worker: how results are pickled.
_answers: Way | None = None


def answer_by(queue: object) -> None:
    """In a worker: pickle the results of `Call` as ``queue`` does."""
    global _answers  # noqa: PLW0603
    _answers = Way(queue)


def way_of(pool: Any) -> Way | None:
    """How the pool's class pickles, if in a way of its own."""
    if type(pool)._setup_queues is _standard.Pool._setup_queues:  # type: ignore[attr-defined]
        return None
    context, pool._ctx = pool._ctx, _Context(pool._ctx)
    try:
        pool._setup_queues()
    finally:
        pool._ctx = context
    queues = pool._inqueue, pool._outqueue
    if not all(isinstance(getattr(queue, "_writer", None), _Catcher) for queue in queues):
        return None
    return Way(*queues)
