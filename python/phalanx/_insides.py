"""What programs reach for inside of CPython's pool, on ours.

None of it is public, and much of it is in use: programs look at what waits before they submit more
(``pool._taskqueue.qsize()``, ``pool._cache``), and put together an ``imap`` of their own::

    result = IMapIterator(pool)
    tasks = pool._guarded_task_generation(result._job, starmapstar, batches)
    pool._taskqueue.put((tasks, result._set_length))

So these are there with what they tell and do. The queues and threads behind them are not.
"""

from __future__ import annotations

from abc import ABCMeta
from multiprocessing import pool as _standard

from phalanx import _phalanx

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterable
    from typing import Any, Self

    from phalanx.pool import Pool

    #: The call's number, the item's, and what is to be called.
    Task = tuple[int, int, Callable[..., Any], tuple[Any, ...], dict[str, Any]]

__all__ = ["Backlog", "IMapIterator", "IMapUnorderedIterator", "Unfinished", "call_number"]


def call_number() -> int:
    """A number for a call: none of the process's pools has given it before."""
    number: int = next(_standard.job_counter)  # type: ignore[attr-defined]
    return number


class Unfinished(dict[int, _phalanx.AsyncResult]):
    """The calls that have not ended, as ``Pool._cache``.

    Those with callbacks stay until these have returned. Of the others it only knows how many there
    are: their results belong to whoever asked for them.
    """

    def __init__(self, engine: _phalanx.Pool) -> None:
        self._engine = engine

    def __len__(self) -> int:
        return super().__len__() + self._engine.waiting()[0]

    __hash__ = object.__hash__  # type: ignore[assignment]


class Backlog:
    """The tasks that no worker has been given, as ``Pool._taskqueue``."""

    def __init__(self, pool: Pool) -> None:
        self._pool = pool

    def qsize(self) -> int:
        """How many there are."""
        return self._pool._engine.waiting()[1]

    def empty(self) -> bool:
        """Are there none?"""
        return self.qsize() == 0

    def put(self, item: tuple[Iterable[Task], Callable[[int], object]]) -> None:
        """Run the tasks, for the iterator whose ``_set_length`` comes with them."""
        tasks, set_length = item
        result = getattr(set_length, "__self__", None)
        if not isinstance(result, _ByHand):
            raise TypeError(f"only an IMapIterator can be given tasks, not {result!r}")
        result._begin(self._pool, tasks)


def _run(task: Task) -> Any:
    _job, _index, func, args, kwds = task
    return func(*args, **kwds)


class _ByHand(metaclass=ABCMeta):
    """The results of tasks that are put into `Backlog`: read ahead as ``Pool.imap`` reads."""

    _is_ordered = True
    _results: _phalanx.IMapIterator

    def __init__(self, pool: Pool) -> None:
        self._job = call_number()

    def _begin(self, pool: Pool, tasks: Iterable[Task]) -> None:
        self._results = pool._imap(_run, tasks, 1, None, self._is_ordered, {})

    def _set_length(self, _length: int) -> Self:
        """What comes with the tasks, so that `Backlog` knows whose they are."""
        return self

    def __iter__(self) -> Self:
        return self

    def next(self, timeout: float | None = None) -> Any:
        """The next result; `TimeoutError` if it is not there within ``timeout`` seconds."""
        return self._results.next(timeout)

    __next__ = next


class IMapIterator(_ByHand):
    """What ``Pool.imap`` returns, and, made by hand, what is returned in its place."""


class IMapUnorderedIterator(_ByHand):
    """What ``Pool.imap_unordered`` returns, and, made by hand, what is returned in its place."""

    _is_ordered = False


IMapIterator.register(_phalanx.IMapIterator)
IMapUnorderedIterator.register(_phalanx.IMapIterator)
