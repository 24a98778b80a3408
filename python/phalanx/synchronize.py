"""Locks and what else processes wait for, on words of shared memory.

As CPython 3.14, ``Lib/multiprocessing/synchronize.py``. Any number of them takes no descriptor
each. They are inherited by fork, and can be given to a process that is being started; nothing with
a name is left in the system, however their users end.

==================================  ==========================================================
what happens                        what others see
==================================  ==========================================================
the holder of a lock ends           who waits acquires it within 100 ms, and an `AbandonedLock`
                                    warning tells the pid and how it ended; with
                                    ``on_abandoned="raise"`` that is raised, and the lock is free
                                    again; with ``"ignore"`` nothing is said
one who holds a unit of a           as above, for a unit: always if the semaphore is bounded;
semaphore ends                      else if it began above 0 and units were only ever released
                                    by processes that held some (then they are no signals)
one who waits ends                  nothing: others are woken in its place
a process ends in ``notify``,       who waits looks for itself within 100 ms
``set`` or ``release``
one who waits at a barrier ends     the barrier is broken: BrokenBarrierError for the others
the creator ends                    nothing: the last user's end frees the memory
``release`` without ``acquire``     ValueError; AssertionError for an RLock of another thread
``Semaphore(-1)``, too many units   ValueError
``Condition.wait`` or ``notify``    AssertionError
without the lock
pickled otherwise than to a         RuntimeError
process that is being started
==================================  ==========================================================
"""

from __future__ import annotations

import sys
import threading
import time
import warnings
import weakref
from multiprocessing import process, reduction
from multiprocessing.context import assert_spawning

from phalanx import _phalanx

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any, Literal, TypeAlias

    OnAbandoned: TypeAlias = Literal["warn", "raise", "ignore"]

__all__ = ["BoundedSemaphore", "Condition", "Event", "Lock", "RLock", "Semaphore"]

RECURSIVE_MUTEX, SEMAPHORE = 0, 1
SEM_VALUE_MAX = 0x7FFF_FFFF

_SLICE = 0.05  # seconds that a party waits at a barrier before it looks after the others

#: The arenas of this process that were pickled or unpickled, by descriptor: one object for each,
#: so that a pickle has it once.
_arenas: weakref.WeakValueDictionary[int, _phalanx.Arena] = weakref.WeakValueDictionary()


def _one(arena: _phalanx.Arena) -> _phalanx.Arena:
    return _arenas.setdefault(arena.fileno(), arena)


def _reduce_arena(arena: _phalanx.Arena) -> tuple[Any, ...]:
    return _adopt_arena, (reduction.DupFd(arena.fileno()),)


def _adopt_arena(fd: Any) -> _phalanx.Arena:
    return _one(_phalanx.Arena.adopt(fd.detach()))


reduction.register(_phalanx.Arena, _reduce_arena)


def _placed(inner: Any) -> tuple[_phalanx.Arena, int]:
    arena, offset = inner._place()
    return _one(arena), offset


class SemLock:
    """What locks and semaphores share."""

    kind = SEMAPHORE
    #: Nothing has a name.
    name = None

    if TYPE_CHECKING:

        @property
        def _on_abandoned(self) -> str: ...
        def _place(self) -> tuple[_phalanx.Arena, int]: ...
        def _is_mine(self) -> bool: ...
        def _is_ours(self) -> bool: ...
        def _get_value(self) -> int: ...
        def _count(self) -> int: ...

    @property
    def maxvalue(self) -> int:
        """The most units that can be free: 1 for a lock."""
        return 1

    @property
    def _semlock(self) -> Any:
        return self

    def _is_zero(self) -> bool:
        return self._get_value() == 0

    def _abandoned(self, pid: int, exitcode: int | None) -> None:
        """Called by the engine when this was acquired from a process that had ended."""
        if self._on_abandoned == "ignore":
            return
        from phalanx.exceptions import AbandonedLock

        what = f"a {type(self).__name__}"
        told = AbandonedLock(pid, _exitcode(pid) if exitcode is None else exitcode, what)
        if self._on_abandoned == "raise":
            raise told
        warnings.warn(told, stacklevel=2)

    def __reduce__(self) -> tuple[Any, ...]:
        assert_spawning(self)
        policy = {"on_abandoned": self._on_abandoned}
        return _rebuild, (type(self), _placed(self), policy, self.__dict__)

    def _owner(self, ours: bool) -> str:
        if self._is_mine():
            name = process.current_process().name
            if threading.current_thread().name != "MainThread":
                name += "|" + threading.current_thread().name
            return name
        if self._get_value() == 1:
            return "None"
        return "SomeOtherThread" if ours else "SomeOtherProcess"


def _rebuild(
    kind: Any, place: tuple[_phalanx.Arena, int], policy: dict[str, Any], state: dict[str, Any]
) -> Any:
    rebuilt = kind.__new__(kind, place=place, **policy)
    if state:
        rebuilt.__dict__.update(state)
    return rebuilt


def _exitcode(pid: int) -> int | None:
    """How a child of ours ended, if it was one."""
    for child in list(process._children):  # type: ignore[attr-defined]
        if child._popen is not None and child.pid == pid:
            exitcode: int | None = child.exitcode
            return exitcode
    return None


class Lock(_phalanx.Lock, SemLock):
    """A lock: of whoever acquires it, process or thread; anybody may release it.

    See the module for what happens when its holder ends.
    """

    def __repr__(self) -> str:
        return f"<{type(self).__name__}(owner={self._owner(self._is_ours())})>"


class RLock(_phalanx.RLock, SemLock):
    """A lock that its holder can acquire again, and must release as often.

    See the module for what happens when its holder ends.
    """

    kind = RECURSIVE_MUTEX

    def __repr__(self) -> str:
        owner = self._owner(self._is_ours())
        count = self._count() if self._is_mine() else 0 if owner == "None" else "nonzero"
        return f"<{type(self).__name__}({owner}, {count})>"


class Semaphore(_phalanx.Semaphore, SemLock):
    """Units to acquire and to release, ``value`` of them at first.

    See the module for what happens when a process ends that has some.
    """

    def __repr__(self) -> str:
        return f"<{type(self).__name__}(value={self._get_value()})>"

    if not TYPE_CHECKING:

        def _is_mine(self) -> bool:
            return False

        def _count(self) -> int:
            return 0


class BoundedSemaphore(Semaphore):
    """A semaphore that never has more units than at first.

    Releasing more raises ValueError.
    """

    def __new__(cls, value: int = 1, **others: Any) -> Any:
        return super().__new__(cls, value, bounded=True, **others)

    def __repr__(self) -> str:
        return f"<{type(self).__name__}(value={self._get_value()}, maxvalue={self.maxvalue})>"


class _Gauge:
    """A count that can be read, where CPython has a semaphore."""

    def __init__(self, get_value: Callable[[], int]) -> None:
        self.get_value = get_value


class Condition:
    """A condition variable: those who wait are notified in the order of their coming.

    Who is notified is a process that lives: a notification for one that has ended while it waited
    goes to another within 100 ms. With more than 62 waiting at a time, ``notify(n)`` may wake more
    than ``n``.
    """

    def __init__(self, lock: Any = None, *, ctx: Any = None) -> None:
        self._lock = lock if lock is not None else RLock()
        self._waiters = _phalanx.Waiters()
        self._make_methods()

    def _make_methods(self) -> None:
        self.acquire = self._lock.acquire
        self.release = self._lock.release

    def __getstate__(self) -> tuple[Any, ...]:
        assert_spawning(self)
        return self._lock, _placed(self._waiters)

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        self._lock, place = state
        self._waiters = _phalanx.Waiters(place)
        self._make_methods()

    def __enter__(self) -> Any:
        return self._lock.__enter__()

    def __exit__(self, *args: object) -> None:
        self._lock.__exit__(*args)

    def __repr__(self) -> str:
        return f"<{type(self).__name__}({self._lock}, {self._waiters.count()})>"

    def locked(self) -> Any:
        """Whether the lock is held (CPython 3.14)."""
        return self._lock.locked()

    @property
    def _sleeping_count(self) -> _Gauge:
        return _Gauge(self._waiters.count)

    @property
    def _woken_count(self) -> _Gauge:
        return _Gauge(lambda: 0)

    _wait_semaphore = _woken_count

    def wait(self, timeout: float | None = None) -> bool:
        """Release the lock until notified, or for ``timeout`` seconds; whether it was notified.

        The lock is acquired again in any case.

        Raises:
            AssertionError: if this thread does not hold the lock.
        """
        held = self._lock._semlock
        assert held._is_mine(), "must acquire() condition before using wait()"
        turn = self._waiters.come()
        count = held._count()
        for _ in range(count):
            self._lock.release()
        try:
            return self._waiters.wait(turn, timeout)
        finally:
            for _ in range(count):
                self._lock.acquire()

    def notify(self, n: int = 1) -> None:
        """Wake those ``n`` that have waited longest, or all if there are less.

        Raises:
            AssertionError: if this thread does not hold the lock.
        """
        assert self._lock._semlock._is_mine(), "lock is not owned"
        self._waiters.notify(n)

    def notify_all(self) -> None:
        """Wake all who wait."""
        self.notify(sys.maxsize)

    def wait_for(self, predicate: Callable[[], Any], timeout: float | None = None) -> Any:
        """Wait until ``predicate()`` is true, or ``timeout`` seconds; what it returned last."""
        end = None if timeout is None else time.monotonic() + timeout
        while not (result := predicate()):
            left = None if end is None else end - time.monotonic()
            if left is not None and left <= 0:
                break
            self.wait(left)
        return result


class Event(_phalanx.Event):
    """A flag to wait for. Who waits sees it even if it is cleared at once."""

    def __reduce__(self) -> tuple[Any, ...]:
        assert_spawning(self)
        return _rebuild, (type(self), _placed(self), {}, self.__dict__)

    def __repr__(self) -> str:
        status = "set" if self.is_set() else "unset"
        return f"<{type(self).__qualname__} at {id(self):#x} {status}>"


class Barrier(threading.Barrier):
    """A barrier for ``parties`` threads and processes.

    If a process ends that waits at it, the barrier is broken.
    """

    if TYPE_CHECKING:
        _parties: int
        _action: Callable[[], object] | None
        _timeout: float | None
        _cond: Any

        def _break(self) -> None: ...

    def __init__(
        self,
        parties: int,
        action: Callable[[], object] | None = None,
        timeout: float | None = None,
        *,
        ctx: Any = None,
    ) -> None:
        if parties < 1:
            raise ValueError("parties must be >= 1")
        self._gathering = _phalanx.Gathering()
        condition = Condition(RLock(on_abandoned="ignore"))
        self._set(parties, action, timeout, condition)

    def _set(self, parties: int, action: Any, timeout: float | None, condition: Condition) -> None:
        self._parties, self._action, self._timeout = parties, action, timeout
        self._cond = condition

    def __getstate__(self) -> tuple[Any, ...]:
        place = _placed(self._gathering)
        return self._parties, self._action, self._timeout, self._cond, place

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        *fields, place = state
        self._gathering = _phalanx.Gathering(place)
        self._set(*fields)

    @property
    def _state(self) -> int:
        return self._gathering.state

    @_state.setter
    def _state(self, state: int) -> None:
        self._gathering.state = state

    @property
    def _count(self) -> int:
        return self._gathering.count()

    @_count.setter
    def _count(self, count: int) -> None:
        # `threading.Barrier` adds and takes away one at a time, for the calling thread.
        if count > self._gathering.count():
            self._gathering.come()
        else:
            self._gathering.leave()

    def _wait(self, timeout: float | None) -> None:
        end = None if timeout is None else time.monotonic() + timeout
        while self._state == 0:
            left = _SLICE if end is None else min(_SLICE, end - time.monotonic())
            if left <= 0 or self._gathering.settle() is not None:
                self._break()
                raise threading.BrokenBarrierError
            self._cond.wait(left)
        if self._state < 0:
            raise threading.BrokenBarrierError

    def _enter(self) -> None:
        while self._state in (-1, 1):  # resetting, draining
            self._gathering.settle()  # who has ended will not leave
            if self._count:
                self._cond.wait(_SLICE)
            else:
                self._state = 0
        if self._state < 0:
            raise threading.BrokenBarrierError
        assert self._state == 0
