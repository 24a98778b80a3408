"""Large data that is sent more than once, or written where it is sent from.

Arguments and results of a pool's tasks have their large buffers (pickle protocol 5, :pep:`574`) in
shared memory: a copy in, and none out. Here are the ways to save the copy in, too.

=================================  ================================================================
what                               copies
=================================  ================================================================
one array in many tasks of a map   one, by itself
``share(obj)``                     one, and one for each pool that it is sent to
``pool.loan(...)``, ``loan(...)``  none: the array is in shared memory from the beginning
=================================  ================================================================

Whoever gets an array may write to it: he sees what he writes, and nobody else does. When a process
dies, what it has seen, lent or sent goes back to the system as for any other argument or result.
"""

from __future__ import annotations

import math
import pickle
from typing import TYPE_CHECKING, Generic, TypeVar

from phalanx import _phalanx

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable
    from types import TracebackType
    from typing import Any, Self

    import numpy as np
    import numpy.typing as npt

__all__ = ["Shared", "loan", "share"]

T = TypeVar("T")

BUFFERS = 5  # the first pickle protocol that has them


class Shared(Generic[T]):
    """An object that is sent to any number of tasks, and copied to a pool's workers once.

    Made by `share`. As an argument, or anywhere in one, it becomes the object itself in the task,
    unpickled anew for each: its large buffers are seen where they are, everything else is copied.
    It is a snapshot: what becomes of the original afterwards changes nothing.

    It may also be sent through queues and pipes and to processes, which copies all of it. (``fork``
    passes a process's arguments as they are: there it stays a `Shared`, of which `get` has a copy.)
    """

    def __init__(self, obj: T) -> None:
        self._parts: tuple[Any, list[Any]] | None = _phalanx.snapshot(obj)

    def _open(self) -> tuple[Any, list[Any]]:
        if self._parts is None:
            raise ValueError("this shared object was released; share() it again to send it")
        return self._parts

    def get(self) -> T:
        """A copy of the object.

        Raises:
            ValueError: it was released.
        """
        stream, buffers = self._open()
        return pickle.loads(stream, buffers=[bytearray(buffer) for buffer in buffers])  # type: ignore[no-any-return]

    def release(self) -> None:
        """Let go of the memory, once the tasks that have it have ended; called again, nothing.

        Dropping the last reference does the same.
        """
        self._parts = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc_value: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.release()

    def __reduce_ex__(self, protocol: int) -> tuple[Any, ...]:  # type: ignore[override]
        stream, buffers = self._open()
        kind = pickle.PickleBuffer if protocol >= BUFFERS else bytearray
        return _unpickle, (kind(stream), [kind(buffer) for buffer in buffers])

    def __repr__(self) -> str:
        if self._parts is None:
            return "<Shared, released>"
        stream, buffers = self._parts
        size = sum(memoryview(part).nbytes for part in (stream, *buffers))
        return f"<Shared, {size} bytes in {len(buffers)} buffers>"


def share(obj: T) -> Shared[T]:
    """Keep a copy of ``obj`` to be sent to many tasks: ``pool.map(f, [(shared, x) for x in xs])``.

    Any object that can be pickled, any number of times (a connection cannot). The copy is kept
    until it is released, the ``with`` block ends, or nobody refers to it any more.

    Raises:
        pickle.PicklingError, TypeError, AttributeError: ``obj`` cannot be pickled.
        MemoryError: there is no room for the copy.
    """
    return Shared(obj)


def _unpickle(stream: Any, buffers: list[Any]) -> Any:
    return pickle.loads(stream, buffers=buffers)


def loan(shape: int | Iterable[int], dtype: npt.DTypeLike = float) -> np.ndarray[Any, Any]:
    """In a pool's task: an array to be returned, of which no copy is made then.

    As `numpy.empty`: what is in it is whatever it is. If the task keeps it after its return, a copy
    is made after all. Outside of a worker, below 64 KiB, or where there is no room, an ordinary
    array.

    Raises:
        ModuleNotFoundError: NumPy is not installed.
        TypeError: arrays of ``dtype`` hold Python objects.
        ValueError: a negative dimension.
        MemoryError: there is no room for so much.
    """
    return borrow(_phalanx.loan, shape, dtype)


def borrow(
    lend: Callable[[int], Any], shape: int | Iterable[int], dtype: npt.DTypeLike
) -> np.ndarray[Any, Any]:
    """An array in memory that ``lend`` has, or an ordinary one."""
    import numpy as np

    dtype = np.dtype(dtype)
    if dtype.hasobject:
        raise TypeError(f"an array of {dtype} holds Python objects, which no other process can see")
    dimensions = (shape,) if isinstance(shape, int) else tuple(shape)
    size = math.prod(dimensions) * dtype.itemsize
    memory = lend(size) if min(dimensions, default=0) > 0 else None
    if memory is None:
        return np.empty(dimensions, dtype)
    return np.frombuffer(memory, dtype).reshape(dimensions)
